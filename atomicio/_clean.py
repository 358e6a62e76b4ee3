"""Removing what killed processes left: temporary files and staging directories that provably belong to nobody alive.

A writer holds a lock on what it stages, for as long as it lives: flock(2), or on a file that it has lent to a consumer, which may use
flock itself, an open file description lock on one byte far behind the end. The kernel drops them with the process, however it ends.
So whoever gets these locks knows that the writer is gone. The complete files of a batch, of which there may be more than descriptors,
share the lock of one more file, which has a name in each of their directories. Where locks say nothing (another machine may be the
writer, the system has no such locks) nothing is removed, only reported.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import time

from ._filesystem import mount_of
from ._posix import _DIRECTORY_FLAGS, _TARGET_FLAGS, CLAIM, Descriptors, lock_byte
from ._recovery import RECORD
from ._trees import DIRECTORY as DIRECTORY_FLAGS
from ._trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["AGE", "Leftover", "clean"]

#: Seconds for which a leftover is left alone: between making a file and locking it a process may be stopped.
AGE = 60.0

_ONES_OWN = r"\.atomicio-[0-9a-f]{16}"
# The name of a lent file ends with the suffixes of its target, which may be anything.
_FILE = re.compile(_ONES_OWN + r"\.tmp(\..*)?", re.DOTALL)
_TREE = re.compile(_ONES_OWN + r"\.dir")
_COPY = re.compile(_ONES_OWN + r"\.backup")
_RECORD = re.compile(_ONES_OWN + re.escape(RECORD))

_FLAGS = _TARGET_FLAGS | getattr(os, "O_NOCTTY", 0)


class Leftover:
    """Something under a name of the library's, and what was done about it."""

    def __init__(self, path: str, status: os.stat_result, now: float) -> None:
        #: Where it is.
        self.path = path
        #: Whether it is a tree.
        self.directory = stat.S_ISDIR(status.st_mode)
        #: Its size in bytes; of a tree, that of its top.
        self.size = status.st_size
        #: Seconds since its last change of any kind (``st_ctime``), to which the removal of another name of a claim does not count.
        self.age = now - (status.st_mtime if path.endswith(CLAIM) else status.st_ctime)
        #: Whether it was removed; with ``dry_run``, whether it would have been.
        self.removed = False
        #: Why not.
        self.reason = ""
        #: Whether to remove it was tried and failed.
        self.failed = False


def clean(
    directory: str, *, dry_run: bool = False, older_than: float = AGE, recursive: bool = False, alone: bool = False
) -> Iterator[Leftover]:
    """Remove what killed writers left in *directory*, and tell about everything that has a name of the library's.

    :param directory: the directory; links to it are followed, links in it never
    :param dry_run: remove nothing
    :param older_than: seconds since the last change, below which something is left alone
    :param recursive: look into the directories below too, on the same file system
    :param alone: take it from the caller that no other machine writes here, so that on network and FUSE file systems locks count
    :raises OSError: if *directory* can't be read
    """
    held = Descriptors()
    try:
        if os.scandir in os.supports_fd:
            fd = held.open(directory, _DIRECTORY_FLAGS)
            yield from _Cleaner(dry_run, older_than, recursive, alone).look_into(held, fd, directory)
        else:
            yield from _PathCleaner(dry_run, older_than, recursive, alone).look_into(held, None, directory)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, directory) from None  # not the number of its descriptor
    finally:
        held.close()


class _Cleaner:
    def __init__(self, dry_run: bool, older_than: float, recursive: bool, alone: bool) -> None:
        self.dry_run = dry_run
        self.older_than = older_than
        self.recursive = recursive
        self.alone = alone
        self.now = time.time()

    def look_into(self, held: Descriptors, fd: int | None, path: str) -> Iterator[Leftover]:
        names, directories = [], []
        with os.scandir(path if fd is None else fd) as entries:
            for entry in entries:
                if entry.name.startswith(".atomicio-"):
                    names.append(entry.name)
                elif self.recursive and entry.is_dir(follow_symlinks=False):
                    directories.append(entry.name)
        hidden = self._hidden(fd) if names else ""
        # After the names were listed: whatever belongs to a batch, its claim was there before.
        at_work = self._batch_at_work(fd) if names else ""
        for name in sorted(names):
            leftover = self._treat(name, fd, path, hidden or (at_work if _FILE.fullmatch(name) and not name.endswith(CLAIM) else ""))
            if leftover is not None:
                yield leftover
        for name in sorted(directories):
            below = os.path.join(path, name)
            try:
                inner = None if fd is None else held.open(name, DIRECTORY_FLAGS, 0, fd)
            except OSError as error:
                yield _unread(below, error)
                continue
            if inner is None or os.fstat(inner).st_dev == os.fstat(fd).st_dev:  # type: ignore[arg-type]
                try:
                    yield from self.look_into(held, inner, below)
                except OSError as error:
                    yield _unread(below, error)
            if inner is not None:
                held.close_last()

    def _hidden(self, fd: int | None) -> str:
        """Return why locks of this machine say nothing about what is in the directory *fd*."""
        mount = None if fd is None else mount_of(fd)
        if self.alone or mount is None:
            return ""
        if mount.network or mount.fuse:
            return f"this is {mount.type}: a writer on another machine can't be ruled out"
        return ""

    def _batch_at_work(self, fd: int | None) -> str:
        """Return whether a batch in the directory *fd* may be alive, as the reason why what is complete in it stays."""
        if fd is None:
            return ""
        with os.scandir(fd) as entries:
            claims = [entry.name for entry in entries if _FILE.fullmatch(entry.name) and entry.name.endswith(CLAIM)]
        for name in claims:
            held = Descriptors()
            try:
                if _lock(held.open(name, os.O_RDONLY | _FLAGS, 0, fd), lent=True):
                    return "it may belong to a batch, and one in this directory is alive"
            except FileNotFoundError:
                pass
            except OSError as error:
                return f"it may belong to a batch, and whether that is alive is not known ({error.strerror})"
            finally:
                held.close()
        return ""

    def _treat(self, name: str, fd: int | None, path: str, hidden: str) -> Leftover | None:
        at = os.path.join(path, name) if fd is None else name
        try:
            status = os.stat(at, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        leftover = Leftover(os.path.join(path, name), status, self.now)
        held = Descriptors()
        try:
            leftover.reason = self._judge(name, status, leftover) or hidden or self._alive(held, at, fd, status, leftover)
            if not leftover.reason:
                leftover.removed = True
                if not self.dry_run:
                    self._remove(at, fd, status)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            leftover.removed = False
            leftover.failed = True
            leftover.reason = error.strerror or str(error)
        finally:
            held.close()
        return leftover if leftover.removed or leftover.reason != _NOT_OURS else None

    def _judge(self, name: str, status: os.stat_result, leftover: Leftover) -> str:
        """Return what speaks against removing *name*, from its name and kind alone."""
        if _COPY.fullmatch(name):
            return "a recovery copy: it may be the only one, so it is never removed"
        if _RECORD.fullmatch(name):
            return "a directory was being replaced here: 'atomicio recover' puts it right"
        if _FILE.fullmatch(name):
            if not stat.S_ISREG(status.st_mode):
                return "not a regular file: it is not the library's"
        elif not _TREE.fullmatch(name):
            return _NOT_OURS
        elif not stat.S_ISDIR(status.st_mode):
            return "not a directory: it is not the library's"
        if leftover.age < self.older_than:
            return f"it was changed {max(leftover.age, 0):.0f} seconds ago"
        return ""

    def _alive(self, held: Descriptors, at: str, fd: int | None, status: os.stat_result, leftover: Leftover) -> str:
        """Take the locks that a writer would hold, for as long as *held* is open; return why that proves nothing."""
        if leftover.directory:
            parent = os.fstat(fd)  # type: ignore[arg-type]
            if parent.st_dev != status.st_dev:
                return "another file system is mounted here"
            if not _named_by_its_owner(parent, status):
                return "others may rename in this directory: it may have got its name from them"
            opened = held.open(at, DIRECTORY_FLAGS, 0, fd)
        else:
            try:
                opened = held.open(at, os.O_RDWR | _FLAGS, 0, fd)  # NFS grants a lock for writing only so
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EROFS, errno.ETXTBSY, errno.EPERM):
                    raise
                opened = held.open(at, os.O_RDONLY | _FLAGS, 0, fd)
        if not os.path.samestat(os.fstat(opened), status):
            return "it is changing just now"
        return _lock(opened, lent=not leftover.directory)

    def _remove(self, at: str, fd: int | None, status: os.stat_result) -> None:
        found = os.stat(at, dir_fd=fd, follow_symlinks=False)
        if not os.path.samestat(found, status):
            raise OSError(errno.ESTALE, "it is changing just now")
        if stat.S_ISDIR(status.st_mode):
            remove_tree(at, fd)
        else:
            os.unlink(at, dir_fd=fd)


class _PathCleaner(_Cleaner):
    """On Windows: what a process has open can't be removed, so the attempt is the proof; for directories there is none."""

    def _alive(self, held: Descriptors, at: str, fd: int | None, status: os.stat_result, leftover: Leftover) -> str:
        del fd, status
        if leftover.directory:
            return "whether its writer is alive can't be told on this system"
        if self.dry_run:
            try:
                os.rename(at, at)
            except PermissionError:
                return "it is in use"
        return ""


_NOT_OURS = "not a name of the library's"


def _named_by_its_owner(parent: os.stat_result, tree: os.stat_result) -> bool:
    """Whether nobody but those whom the caller trusts anyway can have given *tree* its name.

    Where others may rename in the directory *parent*, they can give our form of a name to a tree that they may not even read, and
    have us remove its content.
    """
    others = parent.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not parent.st_mode & stat.S_ISVTX
    return not others and parent.st_uid in (0, os.geteuid(), tree.st_uid)  # type: ignore[attr-defined,unused-ignore]


def _lock(fd: int, *, lent: bool) -> str:
    """Take the locks of a writer on *fd*; return why that proves nothing."""
    try:
        import fcntl  # noqa: PLC0415
    except ImportError:
        return "whether its writer is alive can't be told on this system"
    alive = "its writer is alive"
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[attr-defined,unused-ignore]
    except BlockingIOError:
        return alive
    except OSError as error:
        return f"it can't be locked ({error.strerror}), so whether its writer is alive is not known"
    if not lent:
        return ""
    try:
        lock_byte(fd, shared=True)  # which a descriptor for reading may; it excludes the writer's lock all the same
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return alive
        return f"it can't be locked ({error.strerror}), so whether its writer is alive is not known"
    return ""


def _unread(path: str, error: OSError) -> Leftover:
    leftover = Leftover(path, os.stat_result((0,) * 10), 0)
    leftover.directory = True
    leftover.failed = True
    leftover.reason = error.strerror or str(error)
    return leftover
