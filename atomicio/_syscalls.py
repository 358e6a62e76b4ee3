"""System calls that Python's :mod:`os` lacks. Imported only when one is needed: ctypes is not light."""

from __future__ import annotations

import errno
import os
import sys

try:
    import ctypes
except ImportError:  # a build without libffi
    ctypes = None  # type: ignore[assignment]

__all__ = ["clone_file", "drop_attributes", "exchange", "rename_new", "syncfs"]

_AT_FDCWD = -2 if sys.platform == "darwin" else -100
# The flag "fail if the target exists": <linux/fs.h> RENAME_NOREPLACE, <sys/stdio.h> RENAME_EXCL.
_NAME, _NEW = ("renameatx_np", 4) if sys.platform == "darwin" else ("renameat2", 1)
# The flag "swap the two": <linux/fs.h> RENAME_EXCHANGE, <sys/stdio.h> RENAME_SWAP.
_EXCHANGE = 2
_CLONE_NOOWNERCOPY = 2  # <sys/clonefile.h>


def _rename(source: str, target: str, directory: int | None, flags: int) -> None:
    """rename(2) with *flags*, both names relative to *directory*."""
    library = None if sys.platform == "win32" or ctypes is None else ctypes.CDLL(None, use_errno=True)
    function = getattr(library, _NAME, None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
    at = _AT_FDCWD if directory is None else directory
    if function(at, os.fsencode(source), at, os.fsencode(target), ctypes.c_uint(flags)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def rename_new(source: str, target: str, directory: int | None) -> None:
    """Rename *source*, or raise FileExistsError if *target* exists; ENOSYS or EINVAL where that is not possible."""
    _rename(source, target, directory, _NEW)


def exchange(one: str, other: str, directory: int | None) -> None:
    """Let two names change places in one step; ENOSYS or EINVAL where kernel or file system can't."""
    _rename(one, other, directory, _EXCHANGE)


def clone_file(source: int, target: str, directory: int | None) -> None:
    """Create *target* as a copy of the file *source* that shares its blocks: fclonefileat(2) of macOS; ENOSYS elsewhere."""
    library = None if sys.platform == "win32" or ctypes is None else ctypes.CDLL(None, use_errno=True)
    function = getattr(library, "fclonefileat", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
    at = _AT_FDCWD if directory is None else directory
    if function(source, at, os.fsencode(target), ctypes.c_uint(_CLONE_NOOWNERCOPY)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def drop_attributes(fd: int) -> None:
    """Remove all extended attributes of *fd* that may be removed: flistxattr(2) and fremovexattr(2) of macOS."""
    library = ctypes.CDLL(None, use_errno=True)
    size = library.flistxattr(fd, None, ctypes.c_size_t(0), 0)
    if size > 0:
        names = ctypes.create_string_buffer(size)
        size = library.flistxattr(fd, names, ctypes.c_size_t(size), 0)
        for name in names.raw[: max(size, 0)].split(b"\0")[:-1]:
            library.fremovexattr(fd, name, 0)  # the system keeps some of its own, com.apple.provenance among them


def syncfs(fd: int) -> None:
    """Wait until all that was written to the file system of *fd* is on its device; Linux says since 5.8 if something was lost."""
    library = None if sys.platform == "win32" or ctypes is None else ctypes.CDLL(None, use_errno=True)
    function = getattr(library, "syncfs", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(fd):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
