"""System calls that Python's :mod:`os` lacks. Imported only when one is needed: ctypes is not light."""

from __future__ import annotations

import errno
import os
import sys

__all__ = ["clone_file", "drop_attributes", "exchange", "rename_new", "syncfs"]

_AT_FDCWD = -2 if sys.platform == "darwin" else -100
# The flag "fail if the target exists": <linux/fs.h> RENAME_NOREPLACE, <sys/stdio.h> RENAME_EXCL.
_NAME, _NEW = ("renameatx_np", 4) if sys.platform == "darwin" else ("renameat2", 1)
# The flag "swap the two": <linux/fs.h> RENAME_EXCHANGE, <sys/stdio.h> RENAME_SWAP.
_EXCHANGE = 2
_CLONE_NOOWNERCOPY = 2  # <sys/clonefile.h>


def _call(name: str, *arguments: object, target: str | None = None) -> int:
    """Make the call *name* of the C library, which answers -1 when it fails; ENOSYS where the library has no such call."""
    missing = OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
    try:
        from ctypes import CDLL, get_errno  # noqa: PLC0415
    except ImportError:  # a build without libffi
        raise missing from None
    function = None if sys.platform == "win32" else getattr(CDLL(None, use_errno=True), name, None)
    if function is None:
        raise missing
    result = function(*arguments)
    if result < 0:
        code = get_errno()
        raise OSError(code, os.strerror(code), target)
    return int(result)


def _rename(source: str, target: str, directory: int | None, flags: int) -> None:
    """rename(2) with *flags*, both names relative to *directory*."""
    at = _AT_FDCWD if directory is None else directory
    _call(_NAME, at, os.fsencode(source), at, os.fsencode(target), flags, target=target)


def rename_new(source: str, target: str, directory: int | None) -> None:
    """Rename *source*, or raise FileExistsError if *target* exists; ENOSYS or EINVAL where that is not possible."""
    _rename(source, target, directory, _NEW)


def exchange(one: str, other: str, directory: int | None) -> None:
    """Let two names change places in one step; ENOSYS or EINVAL where kernel or file system can't."""
    _rename(one, other, directory, _EXCHANGE)


def clone_file(source: int, target: str, directory: int | None) -> None:
    """Create *target* as a copy of the file *source* that shares its blocks: fclonefileat(2) of macOS; ENOSYS elsewhere."""
    at = _AT_FDCWD if directory is None else directory
    _call("fclonefileat", source, at, os.fsencode(target), _CLONE_NOOWNERCOPY, target=target)


def drop_attributes(fd: int) -> None:
    """Remove all extended attributes of *fd* that may be removed: flistxattr(2) and fremovexattr(2) of macOS."""
    from ctypes import c_size_t, create_string_buffer  # noqa: PLC0415

    try:
        names = create_string_buffer(_call("flistxattr", fd, None, c_size_t(0), 0))
        size = _call("flistxattr", fd, names, c_size_t(len(names)), 0)
    except OSError:
        return  # the file system has none, or they grew meanwhile
    for name in names.raw[:size].split(b"\0")[:-1]:
        try:
            _call("fremovexattr", fd, name, 0)
        except OSError:
            pass  # the system keeps some of its own, com.apple.provenance among them


def syncfs(fd: int) -> None:
    """Wait until all that was written to the file system of *fd* is on its device; Linux says since 5.8 if something was lost."""
    _call("syncfs", fd)
