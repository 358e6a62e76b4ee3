"""Calls of the Windows API that Python lacks. Imported only when one is needed: ctypes is not light."""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import ctypes
import os
import struct

__all__ = ["keep", "rename_posix"]

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)

_DELETE_AND_SYNCHRONIZE = 0x00110000
_SHARE_ALL = 1 | 2 | 4
_OPEN_EXISTING = 3
_BACKUP_SEMANTICS_AND_OPEN_REPARSE_POINT = 0x02200000

# FILE_INFO_BY_HANDLE_CLASS and the flags of FILE_RENAME_INFO, <winbase.h>
_FILE_RENAME_INFO_EX = 22
_REPLACE_IF_EXISTS = 1
_POSIX_SEMANTICS = 2

# Windows before 10 1607 does not know the class (87), and file systems other than NTFS do not know how (1, 50).
_NO_POSIX_RENAME = frozenset({1, 50, 87})

_INSUFFICIENT_BUFFER = 122

_DACL_SECURITY_INFORMATION = 4
_PROTECTED_DACL_SECURITY_INFORMATION = 0x80000000
_SE_DACL_PROTECTED = 0x1000

_HIDDEN_SYSTEM_NOT_INDEXED = 0x2 | 0x4 | 0x2000
_ARCHIVE = 0x20


def _error() -> OSError:
    return ctypes.WinError(ctypes.get_last_error())


def rename_by_handle(source: str, target: str, information_class: int, flags: int) -> None:
    """SetFileInformationByHandle with FILE_RENAME_INFO: flags, padding, root directory, length of the name in bytes, the name."""
    name = target.encode("utf-16-le", "surrogatepass")
    information = struct.pack("@IPI", flags, 0, len(name)) + name + b"\0\0"
    handle = _winapi.CreateFile(
        source, _DELETE_AND_SYNCHRONIZE, _SHARE_ALL, 0, _OPEN_EXISTING, _BACKUP_SEMANTICS_AND_OPEN_REPARSE_POINT, 0
    )
    try:
        if not _kernel32.SetFileInformationByHandle(
            ctypes.c_void_p(handle), information_class, information, len(information)
        ):
            raise _error()
    finally:
        _winapi.CloseHandle(handle)


def rename_posix(source: str, target: str) -> bool:
    """Rename *source* over *target*, even if that is open with FILE_SHARE_DELETE; return False where this does not exist."""
    try:
        rename_by_handle(source, target, _FILE_RENAME_INFO_EX, _REPLACE_IF_EXISTS | _POSIX_SEMANTICS)
    except OSError as error:
        if error.winerror not in _NO_POSIX_RENAME:
            raise
        return False
    return True


def _dacl(path: str) -> bytes:
    """Return the security descriptor of *path* with its DACL, self-relative."""
    size, descriptor = ctypes.c_ulong(), ctypes.create_string_buffer(0)
    while not _advapi32.GetFileSecurityW(path, _DACL_SECURITY_INFORMATION, descriptor, len(descriptor), ctypes.byref(size)):
        error = _error()
        # What it says first is how much room it wants; if there is no file, because a writer is between its two steps, it says that.
        if error.winerror != _INSUFFICIENT_BUFFER or size.value <= len(descriptor):
            raise error
        descriptor = ctypes.create_string_buffer(size.value)
    return descriptor.raw[: size.value]


def keep(old: str, new: str) -> None:
    """Give the file *new* the DACL of *old*, and its attributes hidden, system and not-to-be-indexed.

    Not kept: owner, mandatory label and audit rules, which take privileges to set; named streams; creation time.
    """
    descriptor = _dacl(old)
    if descriptor != _dacl(new):
        wanted = _DACL_SECURITY_INFORMATION
        (control,) = struct.unpack_from("<H", descriptor, 2)
        if control & _SE_DACL_PROTECTED:
            wanted |= _PROTECTED_DACL_SECURITY_INFORMATION
        if not _advapi32.SetFileSecurityW(new, ctypes.c_ulong(wanted), descriptor):
            raise _error()
    kept = os.stat(old).st_file_attributes & _HIDDEN_SYSTEM_NOT_INDEXED
    if kept and not _kernel32.SetFileAttributesW(new, ctypes.c_ulong(kept | _ARCHIVE)):
        raise _error()
