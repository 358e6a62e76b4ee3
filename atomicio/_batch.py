"""Many files that wait for the disk together.

Each file of a batch is *settled* when its own block ends: it has its content, its metadata and its temporary name, and
its descriptor is closed. When the batch's block ends::

    look again      refuse to go on if a target became what it must not be
    barrier         one wait for each file system, until content and metadata of all its files are on the device
    rename          all, in the order in which they were settled
    sync            each directory once

The barrier is syncfs(2) where it tells of lost writes, and otherwise fsync(2) of each file, several at a time. Either
way the files have names by then: btrfs makes nothing durable that has none. (sync_file_range(2) is no barrier: it waits
neither for metadata nor for the cache of the device.)

Directories are held open once for all files in them, and no more than 64: beyond, the one that was not needed for the
longest time is closed, and opened again when it is.

A settled file has no descriptor, and so no lock that shows whoever cleans up that it belongs to somebody alive. One
locked file for each file system shows it instead: it has a name, a hard link, in each directory of the batch.
"""

from __future__ import annotations

import errno
import os
import sys
from _weakref import ref
from functools import partial
from operator import call

from ._errors import NotDurableError, PartialCommitError, UnreplaceableTargetError, WriterStateError, failure
from ._posix import (
    _ANCHOR_FLAGS,
    _DIRECTORY_FLAGS,
    _NAMED_FLAGS,
    CLAIM,
    Descriptors,
    hard_link,
    lock_whole,
    sync_file,
    temporary_name,
)
from ._writer import _ABORTED, _COMMITTED, _DURABILITIES, _STAGED, AtomicWriter

if sys.platform == "win32":
    from . import _windows as _platform
else:
    from . import _posix as _platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import IO, Any, Self, TypeVar, overload

    from typing_extensions import Buffer

    from ._writer import Durability, Lock, Path, _BinaryMode, _TextMode

    F = TypeVar("F")
else:
    from ._writer import F, overload

__all__ = ["Batch", "batch"]

_SETTLED = "staged in its batch"

_MAX_DIRECTORIES = 64
# More of them on one file system are synced by one syncfs(2).
_FEW_DIRECTORIES = 4
_THREADS = 8

# syncfs(2) is not to be had here after all: an old kernel under another name, or a filter of system calls.
# EINVAL, EOPNOTSUPP: directories can't be synced.
_NO_SYNCFS = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP})


class _FileSystem(Descriptors):
    """A file system that has files of the batch."""

    #: Whether one syncfs(2) is as good as an fsync(2) of each file.
    whole = False
    _watched = -1
    #: Where the file is that shows the batch to be alive; None if there is none.
    _claimed: str | None = None

    def watch(self, directory: int) -> None:
        """Hold a descriptor from before the first write: syncfs(2) reports what failed since it was opened."""
        try:
            import ctypes  # noqa: F401, PLC0415  # pyright: ignore[reportUnusedImport]

            from ._filesystem import syncs_whole  # noqa: PLC0415

            if syncs_whole(directory):
                self._watched = self.open(".", _DIRECTORY_FLAGS, 0, directory)
                self.whole = True
        except (ImportError, PermissionError):
            pass  # a directory that may not be read can't be synced either, but its files can

    def sync(self) -> bool:
        """Wait until all of it is on the device; False where that is not possible."""
        from ._syscalls import syncfs  # noqa: PLC0415

        try:
            syncfs(self._watched)
            # ext2, and ext4 without a journal, leave the cache of the device to fsync(2).
            os.fsync(self._watched)
        except OSError as error:
            if error.errno not in _NO_SYNCFS:
                raise
            self.whole = False
            return False
        return True

    def claim(self, directory: _Directory) -> None:
        """Keep `clean` away from what will be settled in *directory*. Where that is not possible, the age does for a while."""
        fd = directory.descriptor()
        directory.claim = name = temporary_name(CLAIM)
        try:
            if self._claimed is not None:
                hard_link(self._claimed, name, None, fd)
            else:
                lock_whole(self.open(name, _NAMED_FLAGS, 0o666, fd))
                self._claimed = os.path.join(directory.path, name)
        except OSError:
            pass


class _Directory(Descriptors):
    """A directory that has files of the batch."""

    #: The name that the claim of its file system has in it.
    claim: str | None = None

    def __init__(self, path: str, identity: tuple[int, int] | None, file_system: _FileSystem) -> None:
        super().__init__()
        self.path = path
        self.identity = identity
        self.file_system = file_system

    @property
    def opened(self) -> bool:
        return len(self._fds) > 1

    def share(self, fd: int) -> None:
        self._fds.extend(map(os.dup, (fd,)))

    def descriptor(self) -> int:
        if not self.opened:
            try:
                self.open(self.path, _DIRECTORY_FLAGS)
            except PermissionError:
                self.open(self.path, _ANCHOR_FLAGS)
            status = os.fstat(self._fds[-1])
            if (status.st_dev, status.st_ino) != self.identity:
                self.close()
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return self._fds[-1]


class _Directories:
    """The directories of a batch, a few of them open."""

    def __init__(self, *, sync: bool) -> None:
        self._sync = sync
        self._known: dict[object, _Directory] = {}
        self._opened: dict[_Directory, None] = {}
        self._file_systems: dict[int, _FileSystem] = {}

    def find(self, path: str, fd: int | None) -> _Directory:
        """Return the directory *fd*, or where there are no descriptors of directories, the one at *path*."""
        status = os.stat(path) if fd is None else os.fstat(fd)
        device = status.st_dev
        identity = None if fd is None else (device, status.st_ino)
        key = identity or os.path.normcase(path)
        directory = self._known.get(key)
        if directory is None:
            if device not in self._file_systems:
                file_system = self._file_systems[device] = _FileSystem()
                if self._sync and fd is not None:
                    file_system.watch(fd)
            file_system = self._file_systems[device]
            directory = self._known[key] = _Directory(path, identity, file_system)
        if fd is not None and not directory.opened:
            self._use(directory)
            directory.share(fd)
            if directory.claim is None:
                directory.file_system.claim(directory)
        return directory

    def descriptor(self, directory: _Directory) -> int:
        """Return the descriptor of *directory*, which stays open until 63 others were asked for."""
        self._use(directory)
        return directory.descriptor()

    def _use(self, directory: _Directory) -> None:
        self._opened.pop(directory, None)
        while len(self._opened) >= _MAX_DIRECTORIES:
            oldest = next(iter(self._opened))
            oldest.close()
            self._opened.pop(oldest, None)
        self._opened[directory] = None

    def unclaim(self, directories: Iterable[_Directory]) -> None:
        """Take back what was claimed in *directories*: nothing that is only settled is left there."""
        for directory in directories:
            if directory.claim is not None:
                try:
                    os.unlink(directory.claim, dir_fd=self.descriptor(directory))
                except OSError:
                    pass  # never made; or left, as litter that `clean` knows
                directory.claim = None

    def close(self, *, owned: bool) -> None:
        if owned:
            self.unclaim(self._known.values())
        for directory in self._known.values():
            directory.close()
        for file_system in self._file_systems.values():
            file_system.close()


class _Staging(_platform.Staging):
    """New content that is settled before it is published, and needs no descriptor in between."""

    _own: int | None = None
    _shared: _Directories | None = None
    place: _Directory

    @property
    def _directory(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The directory's descriptor: this staging's own, and once settled, the one that all files in it share."""
        if self._own is not None or self._shared is None or self.place.identity is None:
            return self._own
        return self._shared.descriptor(self.place)

    @_directory.setter
    def _directory(self, fd: int | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._own = fd

    def share(self, directories: _Directories) -> None:
        self.place = directories.find(self._at or self.directory, self._own)
        self._shared = directories

    def settle(self, *, sync: bool) -> None:
        """Give the staging file its name and close all descriptors. What can't be opened again is synced now."""
        if sync and not self.place.file_system.whole:
            sync = os.name == "nt" or not os.fstat(self.fd).st_mode & 0o600
        else:
            sync = False
        super()._prepare(sync=sync)
        self.synced = sync
        self._own = None
        self.close()

    def drop(self) -> None:
        """Forget what is staged: the target has it already."""
        self._own = None
        self.close()  # before: Windows does not remove what is open
        if self.temporary is not None:
            self._remove(self.temporary)
            self.temporary = None

    def _prepare(self, *, sync: bool) -> None:
        """Do nothing: it is settled."""

    def _remove(self, name: str) -> None:
        """Remove the temporary *name*. What was renamed is not asked about here: the batch knows which were."""
        if os.name == "nt":
            super()._remove(name)
            return
        try:
            os.unlink(self._at + name, dir_fd=self._directory)
        except OSError:
            pass  # already gone; or a name is left that the library knows as its own

    def check(self) -> None:
        """Raise if the staging file or its directory is no longer there."""
        found = os.stat(self._at + self.temporary, dir_fd=self._directory, follow_symlinks=False)  # type: ignore[operator]
        if (found.st_dev, found.st_ino) != self.identity:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def keep_metadata_again(self) -> None:
        """Give the staging file what the target has by now."""
        self.open_either(self._at + self.temporary, self._directory)  # type: ignore[operator]
        self.keep_metadata()
        self.close_last()

    def syncing(self) -> Callable[[], OSError | None]:
        """Return a function that syncs the staging file in any thread, and returns what went wrong."""
        return partial(_sync_by_name, self._at + self.temporary, self._directory)  # type: ignore[operator]

    def sync_fully(self) -> None:
        """Sync the staging file, and where that is a step of its own (macOS), the cache of the device with it."""
        sync_file(self.open_either(self._at + self.temporary, self._directory))  # type: ignore[operator]
        self.close_last()

    def renaming(self) -> Callable[[], None]:
        """Return a function that replaces the target: a compiled one where one call does it."""
        if os.name == "nt":
            return partial(self.publish, sync=False)
        directory = self._directory
        return partial(
            os.rename, self._at + self.temporary, self._at + self.name, src_dir_fd=directory, dst_dir_fd=directory  # type: ignore[operator]
        )

    def linking(self) -> Callable[[], None]:
        """Return a function that creates the target or raises FileExistsError; the temporary name stays."""
        if os.name == "nt" or not hasattr(os, "link"):
            return partial(self.publish_new, sync=False)
        directory = self._directory
        return partial(
            os.link, self._at + self.temporary, self._at + self.name, src_dir_fd=directory, dst_dir_fd=directory  # type: ignore[operator]
        )


def _sync_by_name(path: str, directory: int | None) -> OSError | None:
    descriptors = Descriptors()
    try:
        os.fsync(descriptors.open_either(path, directory))
        descriptors.close_last()
    except OSError as error:
        return error
    finally:
        descriptors.close()
    return None


def _state(status: os.stat_result) -> tuple[int, ...]:
    # The time of the last change says it all but within one tick of the clock it is taken from, which can be 10 ms.
    return status.st_ino, status.st_ctime_ns, status.st_mode, status.st_uid, status.st_gid


class _BatchWriter(AtomicWriter[F]):
    """A writer whose commit settles the file; the batch publishes it."""

    _verbs = _Staging
    _otherwise = "outside the batch, fallback='in-place'"
    _staging: _Staging | None  # pyright: ignore[reportIncompatibleVariableOverride]
    #: Whether the target had the same content already, and ``skip_unchanged`` was asked for.
    unchanged = False

    def __init__(
        self,
        group: _Group,
        path: Path,
        mode: str,
        buffering: int,
        encoding: str | None,
        errors: str | None,
        newline: str | None,
        permissions: int | None,
        follow_symlinks: bool,
        lock: Lock,
        skip_unchanged: bool,
        backup: str | None,
        make_parents: bool,
    ) -> None:
        super().__init__(
            path,
            mode,
            buffering,
            encoding,
            errors,
            newline,
            group.durability,
            permissions,
            follow_symlinks,
            lock,
            "raise",
            skip_unchanged,
            backup,
            make_parents,
        )
        # A strong reference would make a cycle, and what nobody has any more is to be cleaned up at once.
        self._group = ref(group)

    @property
    def staging(self) -> _Staging:
        assert self._staging is not None
        return self._staging

    @property
    def state(self) -> str:
        return self._state

    @property
    def creates(self) -> bool:
        """Whether the target must not exist: ``"x"``, and ``"a"`` where there was nothing to copy."""
        return self._kind == "x" or (self._kind == "a" and self._copied is None)

    def commit(self) -> None:
        """Settle the file in its batch. Does nothing when called again.

        :raises OSError: as :meth:`AtomicWriter.commit` does; the file is not in the batch then
        """
        if self._state is not _SETTLED:
            super().commit()

    def _begin(self, suffix: str | None = None) -> None:
        self._find_group()
        super()._begin(suffix)
        if self._through:
            raise UnreplaceableTargetError(
                errno.EINVAL,
                "what is written to a device, FIFO or socket can't be taken back, so it can't be in a batch",
                self.target,
            )

    def _stage(self, staging: _platform.Staging, suffix: str | None) -> None:
        self._step = "stage"
        group = self._find_group()
        assert isinstance(staging, _Staging)
        staging.share(group.directories)
        group.register(self)
        super()._stage(staging, suffix)

    def _find_group(self) -> _Group:
        group = self._group()
        if group is None or not group.running:
            raise WriterStateError(errno.EINVAL, "the batch is over, or its block was not entered", self.target)
        if os.getpid() != group.owner:
            raise WriterStateError(errno.EPERM, "only the process that began the batch can add to it", self.target)
        return group

    def _publish(self, *, look: bool = True) -> None:
        """Settle: what there is to do without a wait for the disk."""
        group = self._find_group()
        staging = self.staging
        self._step = "publish"
        if look:
            self._check_target(staging)
        if self._skip_unchanged and self._is_unchanged(staging):
            staging.drop()
            self.unchanged = True
        else:
            staging.keep_metadata()
            staging.settle(sync=group.syncs)
        self._layers = ()
        self._raw = None
        group.settled.append(self)
        self._state = _SETTLED  # from here on the group discards it

    def _finish(self) -> None:
        if self._state is not _SETTLED:
            super()._finish()

    # -- what the batch does at its end --------------------------------------------------------------------------------

    def look_again(self) -> None:
        """Refuse what changed since in a way that it must not; follow what changed in the target's metadata."""
        staging, then = self.staging, self.staging.status
        staging.check()
        self._check_target(staging)
        now = staging.status
        if now is None:
            return
        if self._kind == "x":
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if then is None or _state(now) != _state(then):
            staging.keep_metadata_again()

    def back_up(self, *, sync: bool) -> None:
        if self._backup is not None and self.staging.status is not None:
            self.staging.back_up(self.staging.name + self._backup, sync=sync)

    def publishing(self) -> Callable[[], None]:
        """Return a function that makes the settled file the target."""
        return self.staging.linking() if self.creates else self.staging.renaming()

    def sync_target(self) -> None:
        """Make the content that an unchanged target has survive a power cut."""
        self.staging.sync_target()

    def explain(self, error: OSError) -> OSError:
        if self._kind == "a" and error.errno == errno.EEXIST:
            return self._changed("it did not exist when it was opened, and does now")
        return self._explain(error)

    def end(self, *, committed: bool) -> None:
        """Give up what is left, now that the batch is over."""
        if committed:
            if self._staging is not None and not self.creates:
                self._staging.temporary = None
            self.committed = not self.unchanged
            self._state = _COMMITTED
        elif self._state is not _COMMITTED:
            self._state = _ABORTED
        super()._finish()


class _Group:
    """The writers of one batch, and what is done with all of them when its block ends."""

    # Class attributes, so that __del__ works however early __init__ was interrupted.
    began = False
    #: Whether files can be added.
    running = False
    _over = False

    def __init__(self, durability: Durability) -> None:
        self.durability = durability
        self.syncs = durability != "none"
        self.owner = os.getpid()
        self.directories = _Directories(sync=self.syncs)
        #: Writers in the order in which they were settled. One counts from when its state says so too.
        self.settled: list[_BatchWriter[Any]] = []
        self.committed_paths: list[str | bytes] = []
        self.uncommitted_paths: list[str | bytes] = []
        self._writers: dict[tuple[_Directory, str], _BatchWriter[Any]] = {}
        self._order: list[_BatchWriter[Any]] = []  # what is to be renamed,
        self._done: list[None] = []  # and as many entries as were
        self._complete = False

    def register(self, writer: _BatchWriter[Any]) -> None:
        """Own *writer* from now on; refuse a second one for the same target."""
        key = writer.staging.place, os.path.normcase(writer.staging.name)
        earlier = self._writers.get(key)
        if earlier is not None and earlier.state is not _ABORTED:
            raise WriterStateError(errno.EEXIST, "the batch has new content for this file already", writer.target)
        self._writers[key] = writer

    def commit(self) -> None:
        """From settled files to new targets."""
        self.running = False
        for writer in self._writers.values():
            if os.getpid() != self.owner:
                raise WriterStateError(errno.EPERM, "only the process that began the batch can commit", writer.target)
            if writer.state is _STAGED:
                raise WriterStateError(errno.EINVAL, "its own block has not ended; no file was changed", writer.target)
        settled = [writer for writer in self.settled if writer.state is _SETTLED]
        order = self._order = [writer for writer in settled if not writer.unchanged]
        for writer in order:
            _try(writer, writer.look_again)
        if self.syncs:
            for file_system, writers in _by_file_system(settled).items():
                _wait_for_content(file_system, writers)
        for writer in order:
            _try(writer, partial(writer.back_up, sync=self.syncs))
        try:
            self._rename()
        except OSError as error:
            raise self._not_renamed(error) from None
        self._complete = True
        for writer in order:
            if writer.creates:
                writer.staging.discard()  # the second name
        if self.durability == "durable" and (failed := _sync_directories(settled)):
            advice = "it was replaced, but its directory could not be synced: it may not survive a power cut"
            raise failure(failed[1], failed[0].target, advice, committed=True, kind=NotDurableError) from None

    def _rename(self) -> None:
        order, done = self._order, self._done
        for writers in _at_hand(order):
            calls = [writer.publishing() for writer in writers]
            end = len(done) + len(calls)
            while len(done) < end:
                try:
                    # One call for the interpreter, in which no signal handler runs: Ctrl-C comes before the renames or
                    # after.
                    done.extend(map(call, calls[len(done) - end :]))
                except OSError as error:
                    writer = order[len(done)]
                    if not writer.staging._landed():  # it did all the same: NFS loses replies, rename(2), BUGS
                        if not writer.creates or error.errno == errno.EEXIST:
                            raise
                        writer.staging.publish_new(sync=False)  # no hard links here
                    done.append(None)
            self.directories.unclaim({writer.staging.place: None for writer in writers})

    def _not_renamed(self, error: OSError) -> OSError:
        """Return the error to raise for one in the middle of the renames; what was renamed is synced first."""
        order, count = self._order, len(self._done)
        failed = order[count]
        explained = failed.explain(error)
        if not count:
            return explained
        advice = f"this file was not changed, but {count} of {len(order)} in the batch were replaced before"
        if self.durability == "durable" and _sync_directories(order[:count]):
            advice += ", and may not survive a power cut"
        partly = failure(error, failed.target, advice, committed=True, kind=PartialCommitError)
        assert isinstance(partly, PartialCommitError)
        partly.committed_paths = [writer.target for writer in order[:count]]
        partly.uncommitted_paths = [writer.target for writer in order[count:]]
        return partly

    def tell(self) -> set[int]:
        """Say in the two lists what became of the files, and return what was committed. Again, should it be interrupted."""
        committed = {*map(id, self._order[: len(self._done)])}
        if self._complete:
            committed.update(map(id, self.settled))
        settled = [writer for writer in self.settled if writer.state in (_SETTLED, _COMMITTED)]
        if settled and not self.running and not self._over:
            self.committed_paths = [writer.target for writer in settled if id(writer) in committed]
            self.uncommitted_paths = [writer.target for writer in settled if id(writer) not in committed]
        return committed

    def finish(self) -> None:
        """Discard what was not committed, give up the rest. Safe at any time, and again."""
        self.running = False
        committed = self.tell()
        # Locks are released in the order opposite to that in which they were taken.
        for writer in reversed(self._writers.values()):
            writer.end(committed=id(writer) in committed)
        self.settled, self._order, self._writers = [], [], {}
        self.directories.close(owned=os.getpid() == self.owner)
        self._over = True

    def __del__(self) -> None:
        if self.began and not self._over:
            self.finish()


def _try(writer: _BatchWriter[Any], function: Callable[[], object]) -> None:
    try:
        function()
    except OSError as error:
        raise writer.explain(error) from None


def _by_file_system(writers: list[_BatchWriter[Any]]) -> dict[_FileSystem, list[_BatchWriter[Any]]]:
    found: dict[_FileSystem, list[_BatchWriter[Any]]] = {}
    for writer in writers:
        found.setdefault(writer.staging.place.file_system, []).append(writer)
    return found


def _at_hand(writers: list[_BatchWriter[Any]]) -> Iterator[list[_BatchWriter[Any]]]:
    """Split *writers*, in their order, so that the directories of each part can be open at the same time."""
    part: list[_BatchWriter[Any]] = []
    directories: set[_Directory] = set()
    for writer in writers:
        directories.add(writer.staging.place)
        if len(directories) > _MAX_DIRECTORIES:
            yield part
            part, directories = [], {writer.staging.place}
        part.append(writer)
    if part:
        yield part


def _wait_for_content(file_system: _FileSystem, writers: list[_BatchWriter[Any]]) -> None:
    """Wait until the settled files of *writers*, all on *file_system*, are on the device."""
    try:
        if file_system.whole and file_system.sync():
            return
    except OSError as error:
        raise failure(error, writers[0].target, "no file of the batch was changed") from None
    for writer in writers:
        if writer.unchanged:
            _try(writer, writer.sync_target)
    dirty = [writer for writer in writers if not writer.unchanged and not writer.staging.synced]
    for part in _at_hand(dirty):
        errors = _in_threads([writer.staging.syncing() for writer in part])
        for writer, failed in zip(part, errors, strict=True):
            if failed is not None:
                raise writer.explain(failed)
    if sys.platform == "darwin" and dirty:
        _try(dirty[-1], dirty[-1].staging.sync_fully)


def _in_threads(calls: list[Callable[[], OSError | None]]) -> list[OSError | None]:
    """Call each of *calls* once and return what they return. Journals take what several threads wait for in one go."""
    results: list[OSError | None] = [None] * len(calls)
    left = list(range(len(calls)))

    def work() -> None:
        while left:
            try:
                number = left.pop()
            except IndexError:
                return  # another thread was faster
            results[number] = calls[number]()

    threads = []
    try:
        if len(calls) > 1:
            try:
                from threading import Thread  # noqa: PLC0415

                for _ in range(min(_THREADS, len(calls)) - 1):
                    thread = Thread(target=work, daemon=True)
                    thread.start()
                    threads.append(thread)
            except (ImportError, OSError, RuntimeError):
                pass  # no threads here (Emscripten), or no more of them: then this one does it all
        work()
    finally:
        left.clear()
        for thread in threads:
            thread.join()
    return results


def _sync_directories(writers: list[_BatchWriter[Any]]) -> tuple[_BatchWriter[Any], OSError] | None:
    """Make the new names survive a power cut, each directory once; return the first failure, having done the others."""
    failed = None
    for file_system, members in _by_file_system(writers).items():
        directories = {writer.staging.place: writer for writer in reversed(members)}
        try:
            if file_system.whole and len(directories) > _FEW_DIRECTORIES and file_system.sync():
                continue
        except OSError as error:
            failed = failed or (members[0], error)
            continue
        for writer in reversed(directories.values()):
            try:
                writer.staging.sync_directory()
            except OSError as error:
                failed = failed or (writer, error)
    return failed


class Batch:
    """Files that are replaced together, after one wait for the disk. Made by :func:`batch`.

    A batch serves one block, in one thread at a time, in the process that made it: in a forked child, leaving the block
    neither commits nor discards.
    """

    def __init__(self, durability: Durability) -> None:
        if durability not in _DURABILITIES:
            raise ValueError(f"invalid durability: {durability!r}; use 'none', 'consistent' or 'durable'")
        self._group = _Group(durability)

    @property
    def committed_paths(self) -> list[str | bytes]:
        """After the block: the targets that have their new content, in the order of their replacement."""
        self._group.tell()  # an interrupt may have come between the renames and the end of the batch
        return self._group.committed_paths

    @property
    def uncommitted_paths(self) -> list[str | bytes]:
        """After the block: the targets that are as they were, although their new content was complete."""
        self._group.tell()
        return self._group.uncommitted_paths

    def __enter__(self) -> Self:
        group = self._group
        if group.began:
            raise WriterStateError(errno.EINVAL, "a batch is for one block")
        group.began = group.running = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._group.commit()
        finally:
            self._group.finish()

    @overload
    def atomic_write(
        self,
        path: Path,
        mode: _TextMode = "w",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        permissions: int | None = None,
        follow_symlinks: bool = True,
        lock: Lock = None,
        skip_unchanged: bool = False,
        backup: str | None = None,
        make_parents: bool = False,
    ) -> AtomicWriter[io.TextIOWrapper]: ...
    @overload
    def atomic_write(
        self,
        path: Path,
        mode: _BinaryMode,
        buffering: int = -1,
        encoding: None = None,
        errors: None = None,
        newline: None = None,
        *,
        permissions: int | None = None,
        follow_symlinks: bool = True,
        lock: Lock = None,
        skip_unchanged: bool = False,
        backup: str | None = None,
        make_parents: bool = False,
    ) -> AtomicWriter[IO[bytes]]: ...
    @overload
    def atomic_write(
        self,
        path: Path,
        mode: str,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        permissions: int | None = None,
        follow_symlinks: bool = True,
        lock: Lock = None,
        skip_unchanged: bool = False,
        backup: str | None = None,
        make_parents: bool = False,
    ) -> AtomicWriter[IO[Any]]: ...
    def atomic_write(
        self,
        path: Path,
        mode: str = "w",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        permissions: int | None = None,
        follow_symlinks: bool = True,
        lock: Lock = None,
        skip_unchanged: bool = False,
        backup: str | None = None,
        make_parents: bool = False,
    ) -> AtomicWriter[Any]:
        """Open *path* for writing as :func:`atomicio.atomic_write` does; its commit only makes it a part of the batch.

        The file is complete, with the metadata that the target has at that moment, when its own block ends. Its target
        is replaced when the block of the batch ends. A file whose own block raises is not in the batch.

        The parameters are those of :func:`atomicio.atomic_write`, without ``durability``, which is the batch's, and
        without ``fallback``: what is written in place can't be taken back. A ``lock`` is held until the batch is over.

        :raises WriterStateError: if the batch has new content for the file already (``EEXIST``; that is kept), is over,
            or was begun by another process
        :raises UnreplaceableTargetError: for a device, a FIFO or a socket (``EINVAL``): what is written there can't be
            taken back
        :raises OSError: as :func:`atomicio.atomic_write` does; the target is untouched
        """
        return _BatchWriter(
            self._group,
            path,
            mode,
            buffering,
            encoding,
            errors,
            newline,
            permissions,
            follow_symlinks,
            lock,
            skip_unchanged,
            backup,
            make_parents,
        )

    def write_bytes(
        self,
        path: Path,
        data: Buffer,
        *,
        permissions: int | None = None,
        follow_symlinks: bool = True,
        lock: Lock = None,
        skip_unchanged: bool = False,
        backup: str | None = None,
        make_parents: bool = False,
    ) -> None:
        """Add the file *path* with the content *data* to the batch: :meth:`atomic_write` in one call, with its errors."""
        _BatchWriter["Any"](
            self._group,
            path,
            "wb",
            -1,
            None,
            None,
            None,
            permissions,
            follow_symlinks,
            lock,
            skip_unchanged,
            backup,
            make_parents,
        )._write(data)

    def write_text(
        self,
        path: Path,
        text: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        permissions: int | None = None,
        follow_symlinks: bool = True,
        lock: Lock = None,
        skip_unchanged: bool = False,
        backup: str | None = None,
        make_parents: bool = False,
    ) -> None:
        """Add the file *path* with the content *text* to the batch: :meth:`atomic_write` in one call, with its errors."""
        with _BatchWriter["Any"](
            self._group,
            path,
            "w",
            -1,
            encoding,
            errors,
            newline,
            permissions,
            follow_symlinks,
            lock,
            skip_unchanged,
            backup,
            make_parents,
        ) as file:
            file.write(text)


def batch(*, durability: Durability = "durable") -> Batch:
    """Replace many files together: each all at once, after one wait for the disk instead of one for each.

    Use it as a context manager. Its :meth:`~Batch.atomic_write`, :meth:`~Batch.write_bytes` and
    :meth:`~Batch.write_text` put the new content beside each target. When the block ends, all of it is made durable,
    then the targets are replaced in the order in which their content was complete, then each directory is synced. An
    exception in the block, or a failure before the first target is replaced, leaves all targets as they were.

    It is **not** one atomic step: a reader can see some files new and others old, and a kill or a power cut can leave
    them so. Each single one is old or new, whole.

    :param durability: what a power cut may do, for all files of the batch. ``"none"``: anything; nothing is synced.
        ``"consistent"``: each has its old or its new content, whole, since all content is synced before the first
        rename. ``"durable"``: when the block has ended, all of it is there, since the directories are synced as well.
    :returns: a :class:`Batch`
    :raises ValueError: on a wrong option
    :raises PartialCommitError: when the block ends, if replacing one target failed after others were replaced: lists
        both
    :raises NotDurableError: when the block ends, if all targets were replaced, but a directory could not be synced
    :raises TargetChangedError: when the block ends, if a target that was opened with ``"a"`` or ``"r+"`` was changed,
        or one is no regular file any more; no target was changed
    :raises WriterStateError: when the block ends, if a file of the batch is still open; no target was changed
    :raises OSError: when the block ends, if the content could not be made durable, or the first target could not be
        replaced; no target was changed

    On Linux since 5.8, the wait is one syncfs(2) for each file system, on ext4, xfs, btrfs and f2fs. It waits for what
    other programs have written there too, and fails if any of that was lost. Elsewhere every file is synced by itself,
    several at a time. Descriptors: one for each file that is open in the block, at most 64 for directories, two for
    each file system.
    """
    return Batch(durability)
