"""Copying a whole tree that is to be replaced, but can't be renamed: a directory of an overlay's lower layer. For POSIX systems."""

from __future__ import annotations

import errno
import os
import stat

from ._filesystem import mount_id
from ._metadata import keep
from ._posix import _NAMED_FLAGS, _TARGET_FLAGS, Descriptors, copy_content
from ._trees import DIRECTORY

__all__ = ["copy_tree"]


def copy_tree(source: int, destination: int) -> None:
    """Copy the directory open as *source*, its metadata and all that is in it, to the empty one open as *destination*.

    Links stay links, holes and hard links are not kept.

    :raises OSError: also for what could be copied, but not removed: a directory one may not write in (EACCES), a mount point (EBUSY)
    """
    _copy_directory(source, destination, mount_id(source))


def _copy_directory(source: int, destination: int, mount: str | None) -> None:
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=source, effective_ids=os.access in os.supports_effective_ids):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    with os.scandir(source) as entries:
        for entry in entries:
            _copy_entry(entry, source, destination, mount)
    _keep(source, destination, f"/proc/self/fd/{source}/.")


def _copy_entry(entry: os.DirEntry[str], source: int, destination: int, mount: str | None) -> None:
    name = entry.name
    directory, file = entry.is_dir(follow_symlinks=False), entry.is_file(follow_symlinks=False)
    held = Descriptors()
    try:
        if not directory and not file:
            _copy_special(entry, source, destination)
            return
        original = held.open(name, DIRECTORY if directory else os.O_RDONLY | _TARGET_FLAGS, 0, source)
        if mount_id(original) != mount:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if directory:
            os.mkdir(name, 0o700, dir_fd=destination)
            _copy_directory(original, held.open(name, DIRECTORY, 0, destination), mount)
        else:
            copy = held.open(name, _NAMED_FLAGS, 0o600, destination)
            copy_content(original, copy)
            _keep(original, copy, f"/proc/self/fd/{source}/{name}")
    finally:
        held.close()


def _copy_special(entry: os.DirEntry[str], source: int, destination: int) -> None:
    """Make another link, FIFO, socket or device like *entry*."""
    name, status = entry.name, entry.stat(follow_symlinks=False)
    if entry.is_symlink():
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=destination)
    else:
        os.mknod(name, status.st_mode, status.st_rdev, dir_fd=destination)
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=destination)
    if status.st_uid != os.geteuid() or status.st_gid != os.getegid():
        os.chown(name, status.st_uid, status.st_gid, dir_fd=destination, follow_symlinks=False)


def _keep(original: int, copy: int, path: str) -> None:
    old = os.fstat(original)
    keep(copy, os.fstat(copy), old, path, None)
    os.utime(copy, ns=(old.st_atime_ns, old.st_mtime_ns))
