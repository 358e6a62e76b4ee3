"""The record of a directory that is being replaced in two renames.

Where two directories cannot change places in one step (Windows, NFS, many FUSE file systems, kernels before Linux 3.15), the old
tree is renamed away and then the new one to the target's name. In the gap between, the target has no name. A record beside it, made
and synced before, says how to put things right after a kill or a power cut in the gap.

A directory of an overlay's lower layer cannot even be renamed (EXDEV: overlayfs.rst of the kernel, "Renaming directories"). What is
renamed "away" there is a copy, whole and synced; the directory itself is then removed file by file, which makes the gap as long as that
takes, and the record says so::

    .atomicio-<from the target's name>.recover   the record: target, stem, the suffix of a backup if one was asked for, and whether
                                                 the old tree is a copy
    .atomicio-<stem>.backup                      the old tree, from the first rename on
    .atomicio-<stem>.dir                         the new tree, until the second

What is there says what happened, and nothing has to be guessed:

==========  ===========  ===========  ===============================================================================================
the target  the old one  the new one
==========  ===========  ===========  ===============================================================================================
is there    is not       is or not    nothing was begun, or it was undone: only the record goes
is not      is there     is or not    the gap: the old tree gets its name back
is there    is there     is not       it was done: the old tree becomes the backup or is left to be removed; the record goes
is there    is there     is there     somebody made a new target in the gap: it stays, and the old tree stays as a recovery copy;
                                      but where that is a copy: the gap, the rest of the target is removed, and the copy gets its name
==========  ===========  ===========  ===============================================================================================

A process that replaces a directory holds a lock on its record; whoever finds one waits for it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys

from ._posix import _DIRECTORY_FLAGS, _NAMED_FLAGS, _TARGET_FLAGS, Descriptors, sync_directory, sync_file, write_all
from ._trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BACKUP", "DIRECTORY", "RECORD", "Record", "exists", "move", "put_right", "record_name", "recover", "replace_backup"]

#: What the names of a staged tree, of a copy that is worth keeping, and of a record end with.
DIRECTORY = ".dir"
BACKUP = ".backup"
RECORD = ".recover"

_STEM = re.compile(r"\.atomicio-[0-9a-f]{16}")
_RECORD = re.compile(_STEM.pattern + re.escape(RECORD))
_LOCKED_BYTE = 1 << 30  # Windows forbids reading what is locked, so a byte far behind what the record says
_LIMIT = 1 << 16
_OCCUPIED = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR})


def record_name(target: str) -> str:
    """Return the name that the record for *target* has: the same for everybody, and short enough for any file system."""
    from hashlib import blake2b  # noqa: PLC0415

    return f".atomicio-{blake2b(os.fsencode(target), digest_size=8).hexdigest()}{RECORD}"


def exists(name: str, directory: int | None) -> bool:
    """Whether there is anything under *name*, a dangling link included."""
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def move(source: str, target: str, directory: int | None) -> None:
    """Rename, both names relative to *directory*."""
    os.rename(source, target, src_dir_fd=directory, dst_dir_fd=directory)


def _move(source: str, target: str, directory: int | None) -> None:
    """Rename; on Windows tried again while somebody has something in the tree open."""
    if sys.platform == "win32":
        from ._windows import patiently  # noqa: PLC0415
        from ._writer import AtomicWriter  # noqa: PLC0415

        patiently(AtomicWriter.busy_timeout, move, source, target, directory)
    else:
        move(source, target, directory)


def replace_backup(old: str, backup: str, spare: str, directory: int | None) -> None:
    """Rename the tree *old* to *backup*; what has that name goes to *spare*."""
    try:
        _move(old, backup, directory)
    except OSError as error:
        # SFTP has one error for all that it does not name (SSH_FX_FAILURE), and sshfs makes EPERM of it.
        if error.errno not in _OCCUPIED and not (error.errno == errno.EPERM and exists(backup, directory)):
            raise
        try:
            _move(backup, spare, directory)
        except OSError as immovable:
            if immovable.errno != errno.EXDEV:
                raise
            remove_tree(backup, directory)
        _move(old, backup, directory)


if sys.platform == "win32":

    def _lock(fd: int, *, wait: bool) -> bool | None:
        """Lock *fd* against other processes: True if that worked, False if another has it."""
        import msvcrt  # noqa: PLC0415
        import time  # noqa: PLC0415

        while True:
            os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            except OSError:
                if not wait:
                    return False
                time.sleep(0.01)
            else:
                return True
            finally:
                os.lseek(fd, 0, os.SEEK_SET)

else:

    def _lock(fd: int, *, wait: bool) -> bool | None:
        """Lock *fd* against other processes: True if that worked, False if another has it, None where there are no locks."""
        try:
            import fcntl  # noqa: PLC0415

            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except (ImportError, OSError):  # Emscripten: one process only; a file system without locks
            return None
        return True


class Record(Descriptors):
    """The record for one target, held open and locked."""

    stem = ""
    backup: str | None = None
    copied = False
    """Whether the old tree is a copy, and what has the target's name is being removed."""
    durable = True
    """Whether it is to hold after a power cut too; of a record that was found nobody knows."""
    outcome = ""
    """What :meth:`resolve` did: ``"nothing"``, ``"restored"``, ``"done"`` or ``"kept"``, in the order of the table above."""
    sure = False
    """Whether the lock is real, so that no other process is at work on what the record names."""

    def __init__(self, at: str, directory: int | None, target: str = "", name: str = "") -> None:
        super().__init__()
        self._at = at
        self._directory = directory
        self.target = target
        self.name = name or record_name(target)

    # -- make and find --------------------------------------------------------------------------------------------------------

    def create(self, stem: str, backup: str | None, *, copied: bool = False, sync: bool) -> None:
        """Make the record, after what another left was put right."""
        import json  # noqa: PLC0415

        self.stem, self.backup, self.copied, self.durable = stem, backup, copied, sync
        while True:
            try:
                fd = self.open(self._at + self.name, _NAMED_FLAGS, 0o666, self._directory)
            except FileExistsError:
                put_right(self._at, self._directory, self.target, wait=True)
                continue
            _lock(fd, wait=True)
            if self._is_named(fd):
                break
            self.close_last()  # somebody took the empty file for litter
        content = {"what": "atomicio directory", "target": self.target, "stem": stem, "backup": backup, "copied": copied}
        write_all(fd, json.dumps(content).encode())
        if sync:
            sync_file(fd)
            self.sync_directory()

    def find(self, *, wait: bool) -> bool:
        """Open and lock the record, if there is one and, unless *wait*, nobody else is at work on it.

        :raises OSError: if it can't be opened, or is not a record
        """
        try:
            fd = self.open(self._at + self.name, os.O_RDWR | _TARGET_FLAGS, 0, self._directory)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a record of this library", self.name)
        locked = _lock(fd, wait=wait)
        if locked is False or not self._is_named(fd):
            self.close()
            return False
        self.sure = locked is True
        self._read(fd)
        return True

    @property
    def held(self) -> bool:
        """Whether the record that is there is this one."""
        return len(self._fds) > 1 and self._is_named(self._fds[-1])

    def _is_named(self, fd: int) -> bool:
        try:
            found = os.stat(self._at + self.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(fd))

    def _read(self, fd: int) -> None:
        """Read what the record says. One that is cut short was left before anything was renamed, or says nothing."""
        import json  # noqa: PLC0415

        target, stem, backup, copied = "", "", None, False
        try:
            content = json.loads(os.read(fd, _LIMIT))
            target, stem, backup, copied = content["target"], content["stem"], content["backup"], content["copied"]
            right = (
                record_name(target) == self.name
                and _STEM.fullmatch(stem)
                and (backup is None or (isinstance(backup, str) and backup and not re.search(r"[/\\\0]", backup)))
                and isinstance(copied, bool)
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            right = False
        if right:
            self.target, self.stem, self.backup, self.copied = target, stem, backup, copied
        elif (self.target and exists(self._at + self.target, self._directory)) or not self._copies():
            self.stem = ""  # nothing is missing, or nothing is there that could be what is missing
        else:
            raise OSError(errno.EINVAL, "the record can't be read; nothing was changed", self.name)

    def _copies(self) -> bool:
        try:
            names = os.listdir(self._at or "." if self._directory is None else self._directory)
        except OSError:
            return True
        return any(name.endswith(BACKUP) and _STEM.fullmatch(name.removesuffix(BACKUP)) for name in names)

    # -- put right ------------------------------------------------------------------------------------------------------------

    @property
    def old(self) -> str:
        """The name of the tree that is replaced."""
        return self.stem + BACKUP

    @property
    def new(self) -> str:
        """The name of the tree that replaces it."""
        return self.stem + DIRECTORY

    def resolve(self) -> str:
        """Put right what is there, by the table above, remove the record, and return the :attr:`outcome`."""
        at, directory = self._at, self._directory
        outcome = "nothing"
        if self.stem and exists(at + self.old, directory):
            begun = self.copied and exists(at + self.new, directory)
            if begun or not exists(at + self.target, directory):
                if begun:
                    remove_tree(at + self.target, directory)
                _move(at + self.old, at + self.target, directory)
                self.sync_directory()
                outcome = "restored"
            elif exists(at + self.new, directory):
                outcome = "kept"
            elif self.backup is None:
                _move(at + self.old, at + self.new, directory)
                outcome = "done"
            else:
                replace_backup(at + self.old, at + self.target + self.backup, at + self.new, directory)
                outcome = "done"
            if outcome == "done" and self.copied and self.durable:
                # The old tree is removed next. Were its former name still on the device, it would look like the gap.
                self.sync_directory()
        self._remove()
        self.outcome = outcome
        return outcome

    def _remove(self) -> None:
        if not self.held:
            return
        # Under the lock. Windows cannot remove an open file, and so nobody else can either.
        try:
            os.unlink(self._at + self.name, dir_fd=self._directory)
        except FileNotFoundError:
            pass
        except PermissionError:
            if os.open in os.supports_dir_fd:
                raise
            self.close()
            os.unlink(self._at + self.name)
        self.close()

    def sync_directory(self) -> None:
        """Make the names survive a power cut."""
        if self._directory is not None:
            sync_directory(self._directory)
        elif sys.platform == "win32":
            from ._windows import sync_directory_named  # noqa: PLC0415

            sync_directory_named(self._at)


def put_right(at: str, directory: int | None, target: str = "", name: str = "", *, wait: bool) -> Record | None:
    """Put right what a dead process left of the replacement of *target*, or of that whose record is *name*.

    :param wait: wait for a process that is at work on it
    :returns: None if there is nothing to do, else the record, which is closed and no longer there
    :raises OSError: if the record is there but can't be used; nothing is changed then
    """
    record = Record(at, directory, target, name)
    try:
        if not record.find(wait=wait):
            return None
        record.resolve()
        if record.sure and record.stem:
            try:
                remove_tree(at + record.new, directory)
            except OSError:
                pass  # it has a name by which it is found and removed some other day
        return record
    finally:
        record.close()


def recover(path: str) -> Iterator[tuple[str, Record | OSError]]:
    """Put right what killed processes left of the replacement of *path*, and of that of directories in it.

    :param path: the directory that was being replaced, or one in which such directories are
    :returns: each path that had a record, and the record after what it said was done, or the reason why that can't be
    :raises OSError: if *path* can't be reached
    """
    from ._directory import Tree  # noqa: PLC0415
    from ._writer import _platform  # type: ignore[attr-defined]  # noqa: PLC0415

    path = _platform.absolute(path)
    if Tree._split(path)[1] not in ("", ".", ".."):  # what has no name has no record
        place = Tree(path)
        try:
            place.find(follow=True)
            try:
                record = put_right(place._at, place._directory, place.name, wait=True)
            except OSError as error:
                yield path, error
            else:
                if record is not None:
                    yield path, record
        finally:
            place.close()
    if not os.path.isdir(path):
        return
    held = Descriptors()
    try:
        directory = None
        if os.open in os.supports_dir_fd:
            directory = held.open(path, _DIRECTORY_FLAGS)
        for name in sorted(os.listdir(path if directory is None else directory)):
            if _RECORD.fullmatch(name):
                try:
                    record = put_right("" if directory is not None else path + os.sep, directory, name=name, wait=True)
                except OSError as error:
                    yield os.path.join(path, name), error
                else:
                    if record is not None:
                        yield os.path.join(path, record.target), record
    except OSError as error:
        raise type(error)(error.errno, error.strerror, path) from None  # not the number of its descriptor
    finally:
        held.close()
