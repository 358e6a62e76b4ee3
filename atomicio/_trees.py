"""Whole trees: synced before they are published, removed when nobody wants them any more.

All calls are relative to descriptors and never follow a symbolic link, so that a tree that somebody else can change meanwhile leads
nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from ._filesystem import syncs_whole
from ._posix import _DIRECTORY_FLAGS, _TARGET_FLAGS, Descriptors, sync_directory, sync_file, temporary_name

__all__ = ["DIRECTORY", "remove_tree", "sync_tree"]

#: open(2): a directory, itself and not what a link leads to.
DIRECTORY = _DIRECTORY_FLAGS | getattr(os, "O_NOFOLLOW", 0)
# Below this many files one fsync(2) each costs less than everybody else's unwritten data, which syncfs(2) waits for too.
_FEW = 16

_RELATIVE = os.open in os.supports_dir_fd and os.scandir in os.supports_fd


# -- sync -------------------------------------------------------------------------------------------------------------------------


def sync_tree(path: str, fd: int | None, since: int) -> None:
    """Make the content of the directory *path*, open as *fd*, survive a power cut: files first, then directories from below.

    One barrier for the whole file system where that reports lost writes, if the tree is big enough to be worth it. It is asked for
    on *since*, a descriptor that was open before the content was written: only such are told what was lost meanwhile.
    """
    if fd is None or not _RELATIVE:
        _sync_by_path(path)
        return
    held = Descriptors()
    try:
        if _left(held, fd, _FEW) < 0 and syncs_whole(since) and _sync_whole(since):
            # ext2, and ext4 without a journal, leave the cache of the device to fsync(2).
            sync_directory(fd)
        else:
            _sync_each(held, fd)
    finally:
        held.close()


def _sync_whole(since: int) -> bool:
    """Wait until all of the file system has been written; False where that call is not to be had after all."""
    from ._syscalls import syncfs  # noqa: PLC0415

    try:
        syncfs(since)
    except OSError as error:
        # Unknown to the kernel behind that version, or forbidden by a filter of system calls.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
        return False
    return True


def _left(held: Descriptors, fd: int, left: int) -> int:
    """Take the entries below the directory *fd* from *left*, and stop below 0."""
    with os.scandir(fd) as entries:
        for entry in entries:
            left -= 1
            if left >= 0 and entry.is_dir(follow_symlinks=False):
                left = _left(held, held.open(entry.name, DIRECTORY, 0, fd), left)
                held.close_last()
            if left < 0:
                break
    return left


def _sync_each(held: Descriptors, fd: int) -> None:
    with os.scandir(fd) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _sync_each(held, held.open(entry.name, DIRECTORY, 0, fd))
                held.close_last()
            elif entry.is_file(follow_symlinks=False):
                sync_file(held.open_either(entry.name, fd))
                held.close_last()
    sync_directory(fd)


def _sync_by_path(path: str) -> None:
    """Where there are no descriptors of directories: all files, and on Windows, which opens directories in another way, those too."""
    held = Descriptors()
    try:
        for where, _, files in os.walk(path, onerror=_raise):
            for name in files:
                file = os.path.join(where, name)
                if os.path.islink(file):
                    continue
                mode = os.stat(file).st_mode
                if not mode & stat.S_IWRITE:
                    os.chmod(file, mode | stat.S_IWRITE)  # FlushFileBuffers wants a handle that can write
                try:
                    sync_file(held.open(file, os.O_RDWR | _TARGET_FLAGS))
                    held.close_last()
                finally:
                    if not mode & stat.S_IWRITE:
                        os.chmod(file, mode)
            if sys.platform == "win32":
                from ._windows import sync_directory_named  # noqa: PLC0415

                sync_directory_named(where)
    finally:
        held.close()


def _raise(error: OSError) -> None:
    raise error


# -- remove -----------------------------------------------------------------------------------------------------------------------


def remove_tree(name: str, directory: int | None = None) -> None:
    """Remove *name*, a tree or a single file, in the directory open as *directory*; what is gone already is no error.

    Every directory found inside is first renamed to the top of the tree. So few are ever open, however deep the tree is; and a
    mount point inside, to which rename(2) answers EBUSY, is left alone with what is mounted there.

    :raises OSError: the first error, after everything else was removed
    """
    if not _RELATIVE:
        _remove_by_path(name)
        return
    held = Descriptors()
    errors: list[OSError] = []
    try:
        top = held.open(name, DIRECTORY, 0, directory)
        pending: list[str] = []
        _empty(top, top, pending, errors)
        while pending:
            _remove_directory(pending.pop(), top, top, pending, errors)
        os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EMLINK):  # a file; a link, as Linux and macOS, or FreeBSD say it
            os.unlink(name, dir_fd=directory)
        else:
            errors.append(error)
    finally:
        held.close()
    if errors:
        raise errors[0]


def _remove_directory(name: str, fd: int, top: int, pending: list[str], errors: list[OSError]) -> None:
    """Remove the directory *name* in the directory *fd*; what directories there are in it are added to those *pending* in *top*."""
    held = Descriptors()
    try:
        _empty(held.open(name, DIRECTORY, 0, fd), top, pending, errors)
        os.rmdir(name, dir_fd=fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        errors.append(error)
    finally:
        held.close()


def _empty(fd: int, top: int, pending: list[str], errors: list[OSError]) -> None:
    """Remove the files in the directory *fd*, and move its directories to *top*."""
    with os.scandir(fd) as entries:
        found = list(entries)  # listed before anything changes
    for entry in found:
        try:
            try:
                _take_out(entry, fd, top, pending)
            except PermissionError:
                # The owner of directories without write permission may give it back.
                _make_writable(entry, fd)
                _take_out(entry, fd, top, pending)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno == errno.EXDEV:
                # No mount point, for which the kernel says EBUSY first, but a directory that can't leave its place: of an
                # overlay's lower layer, in a btrfs subvolume.
                _remove_directory(entry.name, fd, top, pending, errors)
            else:
                errors.append(error)


def _take_out(entry: os.DirEntry[str], fd: int, top: int, pending: list[str]) -> None:
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.name, dir_fd=fd)
        return
    fresh = temporary_name()
    os.rename(entry.name, fresh, src_dir_fd=fd, dst_dir_fd=top)
    pending.append(fresh)


def _make_writable(entry: os.DirEntry[str], fd: int) -> None:
    os.fchmod(fd, 0o700)  # type: ignore[attr-defined,unused-ignore]
    if entry.is_dir(follow_symlinks=False):
        held = Descriptors()
        try:
            os.fchmod(held.open(entry.name, DIRECTORY, 0, fd), 0o700)  # type: ignore[attr-defined,unused-ignore]
        finally:
            held.close()


def _remove_by_path(path: str) -> None:
    import shutil  # noqa: PLC0415

    def writable(function: object, name: str, _: object) -> None:
        """Windows refuses to remove what has the read-only attribute."""
        os.chmod(name, stat.S_IRWXU)
        os.rmdir(name) if os.path.isdir(name) else os.unlink(name)

    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, onerror=writable)
    elif os.path.lexists(path):
        os.unlink(path)
