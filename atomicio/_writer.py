"""The writer: one state machine that takes new content from :func:`atomic_write` to its target.

::

    new --open()--> staged --commit()--> committed
     |                 |
     +----abort()------+---abort(), an error, an exception in the block, garbage collection---> aborted

What happens between staging and the rename is the platform's business (`_posix`, `_windows`), in verbs that are the
same everywhere. This module decides which of them are used, and tells the caller in words what came of it.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from operator import itemgetter, methodcaller

from ._errors import NotDurableError, TargetChangedError, UnreplaceableTargetError, WriterStateError, failure

if sys.platform == "win32":
    from . import _windows as _platform
else:
    from . import _posix as _platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType
    from typing import IO, Any, Generic, Literal, TypeAlias, TypeVar, overload

    from typing_extensions import Buffer

    Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Durability: TypeAlias = Literal["none", "consistent", "durable"]
    Fallback: TypeAlias = Literal["raise", "in-place"]
    Lock: TypeAlias = bool | float | AbstractContextManager[Any] | None
    F = TypeVar("F")
    P = TypeVar("P", bound=bytes | os.PathLike[str])
else:
    F = None

    class Generic:  # what typing.Generic does for us at run time, without typing's 10 ms
        def __class_getitem__(cls, item: object) -> type:
            return cls

    def overload(function: object) -> None:
        """Keep nothing: overloads are for type checkers."""


__all__ = ["AtomicWriter", "atomic_path", "atomic_write", "write_bytes", "write_text"]

_DURABILITIES = frozenset({"none", "consistent", "durable"})
_FALLBACKS = frozenset({"raise", "in-place"})
# What says that this file can't be renamed over, though it can perhaps be written: a mount point; a directory that is
# not ours, is sticky, or is read-only around a file that is not; a name that is bound to another file system.
_UNREPLACEABLE = frozenset({errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV})

_NEW, _STAGED, _COMMITTED, _ABORTED = "new", "staged", "committed", "aborted"


class _StagingFile(io.FileIO):
    """The unbuffered layer under the file that the caller writes to.

    A write here is whole or an error: a bare FileIO returns a short count on a full disk. A failure is remembered,
    because what the caller swallows must still keep the writer from publishing. Nothing reaches the descriptor any more
    once the writer is done with it, or in a forked child: the number may belong to another file by then, and the
    content to the parent.
    """

    # The errno and words of what failed first. Not the exception: its traceback leads back here, and such a cycle would
    # leave descriptor and staging file to the garbage collector.
    failed: tuple[int, str] | None = None
    discarded = False
    owner = 0

    def write(self, data: Buffer, /) -> int:
        if self.closed:
            return super().write(data)  # raises ValueError; nothing is lost
        size = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
        if self.discarded:
            return size
        if os.getpid() != self.owner:
            raise WriterStateError(errno.EBADF, "only the process that opened the writer can write", self.name)
        try:
            written = super().write(data)
            if written != size:
                rest = memoryview(data).cast("B")
                while written < size:
                    count = super().write(rest[written:])
                    if not count:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    written += count
            return size
        except OSError as error:
            raise self._failure(error) from None
        except BaseException as error:
            # How much was written is not known: the buffer above would write it again.
            self.failed = self.failed or (errno.EIO, type(error).__name__)
            raise

    def seek(self, offset: int, whence: int = 0, /) -> int:
        # A buffer that was read from goes back to where its reader was when it is closed, be it by the garbage collector.
        return 0 if self.discarded else super().seek(offset, whence)

    def truncate(self, size: int | None = None, /) -> int:
        if self.discarded:
            return 0
        try:
            return super().truncate(size)
        except OSError as error:
            if error.errno == errno.EINVAL:  # a size that makes no sense: nothing was tried, so nothing is lost
                raise
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> OSError:
        self.failed = self.failed or (error.errno or errno.EIO, error.strerror or str(error))
        return failure(error, self.name)


def _buffer_size(raw: io.FileIO) -> int:
    """Return the size of the buffer that open would take. It can be seen: by who reads what he wrote, and by others while he writes."""
    size: int = getattr(raw, "_blksize", io.DEFAULT_BUFFER_SIZE)
    return size if sys.version_info < (3, 14) else max(min(size, 8 << 20), io.DEFAULT_BUFFER_SIZE)


def _open_flags(kind: str) -> int:
    """Return how open(2) would open the target for the kind of mode, but for the truncation."""
    if kind == "r":
        return os.O_RDWR
    return os.O_WRONLY | os.O_CREAT | (os.O_EXCL if kind == "x" else os.O_APPEND if kind == "a" else 0)


def _check_options(permissions: object, lock: object, backup: object) -> None:
    """Refuse options that mean nothing, before anything happens."""
    if permissions is not None:
        if not isinstance(permissions, int):
            raise TypeError(f"permissions must be an int such as 0o644, not {type(permissions).__name__}")
        if not 0 <= permissions <= 0o7777:
            raise ValueError(f"invalid permissions: {permissions!r}; use an octal number such as 0o644")
    if lock is not None and not isinstance(lock, (bool, int)):
        if isinstance(lock, float):
            if lock != lock:  # noqa: PLR0124  (true of NaN alone)
                raise ValueError("invalid lock: the timeout is not a number")
        elif not hasattr(type(lock), "__enter__") or not hasattr(type(lock), "__exit__"):
            raise TypeError(f"lock must be True, a timeout in seconds or a context manager, not {type(lock).__name__}")
    if backup is not None:
        if not isinstance(backup, str):
            raise TypeError(f"backup must be a suffix such as '.bak', not {type(backup).__name__}")
        if not backup or "/" in backup or os.sep in backup or "\0" in backup:
            raise ValueError(f"invalid backup: {backup!r}; use a suffix such as '.bak'")


def _parse(mode: object) -> tuple[str, bool, bool]:
    """Split *mode*, as open takes it: its kind (``w``, ``x``, ``a`` or ``r``), whether binary, whether it updates."""
    if not isinstance(mode, str):
        raise TypeError(f"mode must be a string, not {type(mode).__name__}")
    letters = set(mode)
    kind = letters & {"w", "x", "a", "r"}
    if len(letters) != len(mode) or letters - set("wxarbt+") or len(kind) != 1 or {"b", "t"} <= letters:
        raise ValueError(f"invalid mode: {mode!r}; use 'w', 'x', 'a' or 'r+', each with 'b' or 't', and '+'")
    if kind == {"r"} and "+" not in letters:
        raise ValueError(f"mode {mode!r} only reads: use open(); 'r+' reads and replaces")
    return kind.pop(), "b" in letters, "+" in letters


class AtomicWriter(Generic[F]):
    """A file being written that takes the place of its target all at once, or not at all. Made by :func:`atomic_write`.

    As a context manager it yields the file, commits when the block ends and aborts when the block raises. Without
    ``with``, call :meth:`open`, then :meth:`commit` or :meth:`abort`. A writer that is dropped without either aborts,
    with a ResourceWarning. Only the process that opened it can commit or abort; in a forked child both leave the file
    to the parent.

    A writer serves one write, in one thread at a time.
    """

    # Class attributes, so that __del__ works however early __init__ or open was interrupted.
    _state = _NEW
    _verbs: type[_platform.Staging] | None = None  # other verbs than those of the platform
    _otherwise = "fallback='in-place'"
    _staging: _platform.Staging | None = None
    _file: Any = None
    _raw: _StagingFile | None = None
    _layers: tuple[Any, ...] = ()
    _copied: os.stat_result | None = None
    _through = False
    _elsewhere = False
    _step = "find"
    _held: list[tuple[Any, Any]]
    _write_in_place: Any

    committed = False
    """Whether the target was replaced."""

    busy_timeout = 2.0
    """For how many seconds in all this writer waits for other programs that have the file open, where that keeps it from
    being read or replaced: on Windows. Then it gives up, and the file is what it was. A virus scanner or an indexer lets
    go within a second; 0 tries once, ``math.inf`` waits for ever. Set it on a writer before it is opened, on a subclass,
    or here for all writers of a program::

        writer = atomicio.atomic_write("state.json")
        writer.busy_timeout = 30
        with writer as file: ...

        atomicio.AtomicWriter.busy_timeout = 30

    Half of the time, but no more than a second, is for a rename; the rest is for the two steps that are tried next. Once
    the first of the two was done, the second, or else the way back, has half a second each even if no time is left.
    Elsewhere nobody has to be waited for."""

    def __init__(
        self,
        path: Path,
        mode: str,
        buffering: int,
        encoding: str | None,
        errors: str | None,
        newline: str | None,
        durability: str,
        permissions: int | None,
        follow_symlinks: bool,
        lock: Lock,
        fallback: str,
        skip_unchanged: bool,
        backup: str | None,
        make_parents: bool,
    ) -> None:
        self._held = []
        self._kind, self._binary, self._update = _MODES.get(mode) or _parse(mode)
        if isinstance(path, int):
            raise TypeError(f"a path is needed to replace a file; got the descriptor {path!r}: write to it with open()")
        target = os.fspath(path)
        if durability not in _DURABILITIES:
            raise ValueError(f"invalid durability: {durability!r}; use 'none', 'consistent' or 'durable'")
        if fallback not in _FALLBACKS:
            raise ValueError(f"invalid fallback: {fallback!r}; use 'raise' or 'in-place'")
        if self._binary:
            for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
                if value is not None:
                    raise ValueError(f"binary mode doesn't take an {name} argument")
        elif buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        if permissions is not None or lock is not None or backup is not None:
            _check_options(permissions, lock, backup)
        if fallback != "raise":
            # Now, not when it is needed: the program may have given up the right to read its packages by then.
            from ._in_place import overwrite  # noqa: PLC0415

            self._write_in_place = overwrite
        self.target = target
        self._given = path
        given = target if isinstance(target, str) else os.fsdecode(target)
        self._path = _platform.absolute(given)
        self._relative = self._path is not given
        self._mode = mode
        self._buffering = buffering
        self._encoding = encoding
        self._errors = errors
        self._newline = newline
        self._durability = durability
        self._permissions = permissions
        self._follow = follow_symlinks
        self._lock = None if lock is False else lock
        self._fallback = fallback
        self._skip_unchanged = skip_unchanged
        self._backup = backup
        self._make_parents = make_parents

    # -- public --------------------------------------------------------------------------------------------------------

    def open(self) -> F:
        """Stage the new content and return the file to write it to.

        :returns: an :class:`io.TextIOWrapper`, :class:`io.BufferedWriter`, :class:`io.BufferedRandom` or
            :class:`io.FileIO`, as :func:`open` would return for the mode; its ``name`` is the target's path
        :raises WriterStateError: if called twice
        :raises OSError: as :func:`open` does; the target is untouched
        """
        if self._state is not _NEW:
            raise WriterStateError(errno.EINVAL, f"this writer is {self._state}: it can be opened once", self.target)
        try:
            self._begin()
            file = self._wrap()
        except OSError as error:
            explained = self._explain(error)
            self._finish()
            raise explained from None
        except BaseException:
            self._finish()
            raise
        return file

    def commit(self) -> None:
        """Replace the target with what was written. Does nothing when called again.

        :raises WriterStateError: if the writer was not opened, was aborted, or belongs to another process
        :raises NotDurableError: if the target was replaced, but its durability can't be promised
        :raises TargetChangedError: if, with ``"a"`` or ``"r+"``, the target is no longer the file that was copied
        :raises FileExistsError: if, with ``"x"``, the target exists by now
        :raises UnreplaceableTargetError: if the target can't be renamed over
        :raises OSError: if writing, syncing or renaming failed, or an earlier write did and the caller went on; the
            target is untouched
        """
        if self._state is _COMMITTED:
            return
        if self._state is not _STAGED:
            message = f"this writer is {self._state}: there is nothing to commit"
            raise WriterStateError(errno.EINVAL, message, self.target)
        try:
            if os.getpid() != self._staging.owner:  # type: ignore[union-attr]
                raise WriterStateError(errno.EPERM, "only the process that opened the writer can commit", self.target)
            self._complete()
            self._publish()
        except OSError as error:
            raise self._explain(error) from None
        finally:
            self._finish()

    def abort(self) -> None:
        """Forget what was written. The target stays as it is. Does nothing after a commit or an abort. Never raises."""
        self._finish()

    def _write(self, data: Buffer) -> None:
        """Write *data* and commit."""
        try:
            self._begin()
            if self._through:
                self._wrap().write(data)  # type: ignore[attr-defined]
                self._complete()
            else:
                self._staging.write(data)  # type: ignore[union-attr]
            self._publish(look=False)
        except OSError as error:
            raise self._explain(error) from None
        finally:
            self._finish()

    def __enter__(self) -> F:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None or self._state is _ABORTED:
            self.abort()
        else:
            self.commit()

    def __del__(self) -> None:
        staging = self._staging
        if staging is None:
            return
        try:
            if self._state is _STAGED and os.getpid() == staging.owner and not sys.is_finalizing():
                import warnings  # noqa: PLC0415

                message = f"an atomic write to {self.target!r} was never committed: discarded"
                warnings.warn(message, ResourceWarning, 2, source=self)
        finally:
            self._finish()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target!r} mode={self._mode!r} {self._state}>"

    # -- the protocol --------------------------------------------------------------------------------------------------

    def _begin(self, suffix: str | None = None) -> None:
        """Find the target, wait for the lock, decide what is to be done with what is there, and stage."""
        kind = self._kind
        self._staging = staging = (self._verbs or _platform.Staging)(self._path)
        staging.permissions = self._permissions
        staging.busy_timeout = self.busy_timeout
        if self._relative:
            staging.relative = os.fsdecode(self.target)
        staging.find(
            follow=self._follow and kind != "x",
            make_parents=self._make_parents,
            sync=self._durability == "durable",
            flags=_open_flags(kind),
        )
        if self._lock is not None:
            self._step = "lock"
            self._take_turn(staging, self._lock)
            staging.look()
        self._step = "check"
        status = staging.status
        if status is None:
            if kind == "r":
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        elif kind == "x":
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        elif stat.S_ISREG(status.st_mode) and not staging.through:
            staging.check_writable(read=self._update, create=kind != "r")
        elif stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        elif staging.through or not stat.S_ISLNK(status.st_mode):
            # A device, a FIFO, /dev/stdout: what is written there is gone, there is nothing to replace.
            self._through = True
            self._state = _STAGED
            return
        elif kind in "ar":
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if kind in "ar" and status is not None:
            self._step = "copy"
            source = staging.open_target()
            self._copied = staging.status = os.fstat(source)
            self._stage(staging, suffix)
            _platform.copy_content(source, staging.fd)
            os.lseek(staging.fd, 0, os.SEEK_SET)
            staging.close_last_but_one()  # on Windows nobody else could replace the file while we have it open
        else:
            self._stage(staging, suffix)
        if kind == "a":
            staging.only_append()
        self._step = "write"
        self._state = _STAGED

    def _stage(self, staging: _platform.Staging, suffix: str | None) -> None:
        self._step = "stage"
        try:
            staging.stage(suffix)
        except OSError as error:
            if error.errno not in _UNREPLACEABLE or staging.status is None or self._fallback == "raise":
                raise
            staging.stage_elsewhere(suffix)
            self._elsewhere = True

    def _wrap(self) -> F:
        """Build the file object that open would return for the mode."""
        kind, update = self._kind, self._update
        file: Any
        if self._through:
            path = self._path if isinstance(self.target, str) else os.fsencode(self._path)
            encoding = self._encoding if self._binary else self._encoding or "utf-8"
            file = open(path, self._mode, self._buffering, encoding, self._errors, self._newline)
            self._layers = (file,)
            return file  # type: ignore[no-any-return]
        if type(os) is not type(sys):
            # A test has put a double in the place of os (pyfakefs): its descriptors mean something to its open only.
            encoding = self._encoding if self._binary else self._encoding or "utf-8"
            mode = self._mode.replace("x", "w")
            fd = self._staging.fd  # type: ignore[union-attr]
            file = open(fd, mode, self._buffering, encoding, self._errors, self._newline, closefd=False)
            self._layers = (file,)
            return file  # type: ignore[no-any-return]
        # The descriptor stays the writer's own: a consumer may close the file early.
        raw = _StagingFile(self._staging.fd, kind + "b+" if update else kind + "b", closefd=False)  # type: ignore[union-attr]
        raw.owner = self._staging.owner  # type: ignore[union-attr]
        raw.name = self.target
        self._raw = raw
        buffering = self._buffering
        if self._binary and buffering == 0:
            self._layers = (raw,)
            return raw  # type: ignore[return-value]
        line_buffering = buffering == 1
        if line_buffering and self._binary:
            import warnings  # noqa: PLC0415

            warnings.warn(
                "line buffering (buffering=1) isn't supported in binary mode, the default buffer size will be used",
                RuntimeWarning,
                3,
            )
        layer = io.BufferedRandom if update else io.BufferedWriter
        buffer: Any = layer(raw, buffering if buffering > 1 else _buffer_size(raw))
        self._layers = (buffer, raw)  # also should the next layer refuse its encoding
        if self._binary:
            return buffer  # type: ignore[no-any-return]
        text = io.TextIOWrapper(buffer, self._encoding or "utf-8", self._errors, self._newline, line_buffering)
        text.mode = self._mode  # type: ignore[misc]
        self._layers = (text, buffer, raw)
        return text  # type: ignore[return-value]

    def _complete(self) -> None:
        """Flush and close the layers, outermost first, and refuse to go on if any write ever failed."""
        for layer in self._layers:
            try:
                layer.close()
            except UnicodeError:
                raise
            except ValueError:
                pass  # detached by the caller: the next layer is closed in its own right
        if self._raw is not None and self._raw.failed is not None:
            code, reason = self._raw.failed
            advice = f"an earlier write failed ({reason}), so what was written is not whole; the file was not changed"
            raise failure(OSError(code, reason), self.target, advice)

    def _publish(self, *, look: bool = True) -> None:
        """From complete content to the target: metadata, sync, rename, sync of the directory."""
        staging = self._staging
        assert staging is not None
        if self._through:
            self.committed = True
            self._state = _COMMITTED
            return
        self._step = "publish"
        sync = self._durability != "none"
        if look:
            self._check_target(staging)
        if self._skip_unchanged and self._is_unchanged(staging):
            if sync:
                staging.sync_target()
        elif self._elsewhere:
            self._overwrite(staging, sync)
        else:
            staging.keep_metadata()
            if self._backup is not None and staging.status is not None:
                staging.back_up(staging.name + self._backup, sync=sync)
            self._replace(staging, sync)
        self._state = _COMMITTED
        advice = "the file was replaced, but closing it failed: what was written may be lost"
        try:
            staging.put_right()
            if self._durability == "durable":
                advice = "the file was replaced, but its directory could not be synced: it may not survive a power cut"
                staging.sync_directory()
        except OSError as error:
            if not self.committed:
                advice = "the file has this content already, but its directory could not be synced"
                raise failure(error, self.target, advice) from None
            raise failure(error, self.target, advice, committed=True, kind=NotDurableError) from None

    def _check_target(self, staging: _platform.Staging) -> None:
        """Look at the target again: its successor will be like what it is now. Refuse if it is not what was copied."""
        staging.look()
        now, then = staging.status, self._copied
        if then is not None:
            if now is None or _version(now) != _version(then):
                raise self._changed("it is no longer the file whose content was copied")
        elif self._kind == "a" and now is not None:
            raise self._changed("it did not exist when it was opened, and does now")
        elif now is not None and not stat.S_ISREG(now.st_mode) and not stat.S_ISLNK(now.st_mode):
            raise self._changed("it is no longer a regular file")

    def _changed(self, how: str) -> TargetChangedError:
        return TargetChangedError(
            errno.ESTALE,
            f"somebody else changed the file: {how}; theirs was kept. lock=True makes writers take turns",
            self.target,
        )

    def _is_unchanged(self, staging: _platform.Staging) -> bool:
        wanted = self._permissions
        if wanted is not None and (staging.status is None or stat.S_IMODE(staging.status.st_mode) != wanted):
            return False
        return bool(staging.same_content())

    def _replace(self, staging: _platform.Staging, sync: bool) -> None:
        try:
            if self._kind == "x":
                staging.publish_new(sync=sync)
            elif self._kind == "a" and self._copied is None:
                try:
                    staging.publish_new(sync=sync)
                except FileExistsError:
                    raise self._changed("it did not exist when it was opened, and does now") from None
            else:
                staging.publish(sync=sync)
        except OSError as error:
            if error.errno not in _UNREPLACEABLE or self._fallback == "raise" or staging.status is None:
                raise
            staging.reopen()
            self._overwrite(staging, sync)
        self.committed = True

    def _overwrite(self, staging: _platform.Staging, sync: bool) -> None:
        self._write_in_place(staging, self._permissions, sync=sync)
        self.committed = True

    def _finish(self) -> None:
        """Give up everything that is still held. Safe at any time, and again."""
        if self._state is not _COMMITTED:
            self._state = _ABORTED
        staging = self._staging
        if staging is None:
            return
        if self._raw is not None:
            self._raw.discarded = True
        for layer in self._layers:
            try:
                layer.close()
            except (OSError, ValueError):
                pass  # what it still wanted to write has no place any more
        staging.discard()
        failed = None
        if self._held and os.getpid() == staging.owner:
            try:
                self._end_turn()
            except OSError as error:
                failed = error
        self._staging = None
        # The first error is the one to tell, and an abort never raises.
        if failed is not None and self._state is _COMMITTED and sys.exc_info()[1] is None:
            advice = "the file was written, but its lock could not be released"
            raise failure(failed, self.target, advice, committed=self.committed)

    # -- locks ---------------------------------------------------------------------------------------------------------

    def _take_turn(self, staging: _platform.Staging, lock: Any) -> None:
        if isinstance(lock, (bool, int, float)):
            from ._locks import lock_beside  # noqa: PLC0415

            lock = lock_beside(staging.directory, staging.name, -1 if lock is True else lock)
        # Entered and recorded in one step, for the reason given in _posix.Descriptors.
        self._held.extend(zip((lock,), map(methodcaller("__enter__"), (lock,))))  # noqa: B905

    def _end_turn(self) -> None:
        next(map(methodcaller("__exit__", None, None, None), map(itemgetter(0), map(list.pop, (self._held,)))))

    # -- words ---------------------------------------------------------------------------------------------------------

    def _explain(self, error: OSError) -> OSError:
        """Return *error* with the target's name, what became of the file, and what can be done about it."""
        if hasattr(error, "committed"):
            return error
        staging, code = self._staging, error.errno
        directory = staging.directory if staging is not None else ""
        exists = staging is not None and staging.status is not None
        advice, kind = "the file was not changed", OSError
        if self._step == "lock":
            if code is None:  # filelock.Timeout
                error = OSError(errno.ETIMEDOUT, "") if isinstance(error, TimeoutError) else OSError(errno.ENOLCK, "")
            advice = f"the lock was not obtained ({error}); the file was not changed"
        elif code == errno.ENOENT:
            if not self._path:
                advice = "the path is empty; nothing was written"
            elif self._step == "find":
                advice = f"the directory {directory!r} does not exist (make_parents=True creates it)"
                advice += "; nothing was written"
            elif self._kind == "r":
                advice = "there is no such file to update ('w' and 'a' create one); nothing was written"
            else:
                advice = f"the directory {directory!r} or the staging file in it was removed meanwhile"
                advice += "; nothing was written"
        elif code == errno.EEXIST and self._kind == "x":
            advice = "mode 'x' never replaces a file; the file was not changed"
        elif code == errno.EISDIR:
            advice = "a directory cannot be replaced by a file; it was not changed"
        elif self._step in ("stage", "publish") and code in _UNREPLACEABLE:
            if not exists:
                advice = f"the directory {directory!r} does not let you create files; nothing was written"
            else:
                kind = UnreplaceableTargetError
                reason = {
                    errno.EBUSY: "the file is a mount point, as files bind-mounted into a container are, and cannot be "
                    "renamed over",
                    errno.EXDEV: "the file is bound to another file system and cannot be renamed over",
                    errno.EROFS: f"the directory {directory!r} is on a read-only file system",
                }.get(code) or _forbidden(directory)
                if getattr(error, "winerror", None) is not None:  # MoveFileExW was refused
                    reason = "another program has the file open, and does not share it as open_shared() does"
                advice = f"{reason}; the file was not changed. {self._otherwise} writes into it, which is not atomic"
        elif code in (errno.EACCES, errno.EPERM) and self._step == "check":
            advice = "you may not write to this file; it was not changed"
        return failure(error, self.target, advice, kind=kind)


def _forbidden(directory: str) -> str:
    """Say why files in *directory* can't be replaced by this process."""
    try:
        sticky = os.stat(directory).st_mode & stat.S_ISVTX
    except OSError:
        sticky = 0
    if sticky:
        return f"the directory {directory!r} is sticky, and you own neither it nor the file"
    return f"the directory {directory!r} does not let you create and replace files"


def _version(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


_MODES = {mode: _parse(mode) for mode in ("w", "wb", "x", "xb", "a", "ab", "r+", "r+b", "w+", "wb+", "wt")}


def _suffixes(target: str) -> str:
    """Return all suffixes of *target*, or the last where that would be long: what consumers read a format from."""
    name = os.path.basename(target)
    first = name.find(".", 1)
    if first < 0:
        return ""
    return name[first:] if len(os.fsencode(name[first:])) <= 128 else os.path.splitext(name)[1][:64]


class _PathWriter(AtomicWriter["Any"]):
    """A writer that lends out the path of its staging file instead of a file."""

    def _begin(self, suffix: str | None = None) -> None:
        super()._begin(_suffixes(self._path) if suffix is None else suffix)

    def _wrap(self) -> Any:
        staging = self._staging
        assert staging is not None
        path = self._path if self._through else staging.path_of_staging()
        target = self._given
        if isinstance(target, bytes):
            return os.fsencode(path)
        if isinstance(target, str):
            return path
        try:
            return type(target)(path)  # type: ignore[call-arg]
        except TypeError:  # a path that can't be made from a string, such as os.DirEntry
            return path

    def _complete(self) -> None:
        if not self._through:
            self._staging.reopen()  # type: ignore[union-attr]


if TYPE_CHECKING:
    _TextMode: TypeAlias = Literal[
        "w", "wt", "tw", "w+", "+w", "w+t", "wt+", "tw+", "t+w", "+wt", "+tw",
        "x", "xt", "tx", "x+", "+x", "x+t", "xt+", "tx+", "t+x", "+xt", "+tx",
        "a", "at", "ta", "a+", "+a", "a+t", "at+", "ta+", "t+a", "+at", "+ta",
        "r+", "+r", "r+t", "rt+", "tr+", "t+r", "+rt", "+tr",
    ]  # fmt: skip
    _BinaryMode: TypeAlias = Literal[
        "wb", "bw", "w+b", "wb+", "bw+", "b+w", "+wb", "+bw",
        "xb", "bx", "x+b", "xb+", "bx+", "b+x", "+xb", "+bx",
        "ab", "ba", "a+b", "ab+", "ba+", "b+a", "+ab", "+ba",
        "r+b", "rb+", "br+", "b+r", "+rb", "+br",
    ]  # fmt: skip


@overload
def atomic_write(
    path: Path,
    mode: _TextMode = "w",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Fallback = "raise",
    skip_unchanged: bool = False,
    backup: str | None = None,
    make_parents: bool = False,
) -> AtomicWriter[io.TextIOWrapper]: ...
@overload
def atomic_write(
    path: Path,
    mode: _BinaryMode,
    buffering: int = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Fallback = "raise",
    skip_unchanged: bool = False,
    backup: str | None = None,
    make_parents: bool = False,
) -> AtomicWriter[IO[bytes]]: ...
@overload
def atomic_write(
    path: Path,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Fallback = "raise",
    skip_unchanged: bool = False,
    backup: str | None = None,
    make_parents: bool = False,
) -> AtomicWriter[IO[Any]]: ...
def atomic_write(
    path: Path,
    mode: str = "w",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Fallback = "raise",
    skip_unchanged: bool = False,
    backup: str | None = None,
    make_parents: bool = False,
) -> AtomicWriter[Any]:
    """Open *path* for writing, as :func:`open` does, so that the write happens all at once or not at all.

    Use it as a context manager, or call :meth:`~AtomicWriter.open`, then :meth:`~AtomicWriter.commit` or
    :meth:`~AtomicWriter.abort`. Until the commit nobody sees anything of the new content; from then on everybody sees
    all of it. An exception, an interrupt or a kill in between leaves the old file as it was.

    What a plain :func:`open` would have left stays: owner, mode, ACL, extended attributes, symbolic links, what umask
    and default ACL give to a new file.

    :param path: the file: a string, bytes or a path object; a relative path is made absolute at once
    :param mode: ``"w"`` replaces or creates; ``"x"`` creates and never replaces, which is checked on entry and again in
        the very step that publishes; ``"a"`` and ``"r+"`` begin with a copy of the content, and commit only if the
        target is still the file that was copied. Each with ``"b"`` or ``"t"``, and ``"+"`` to read as well.
    :param buffering: as in :func:`open`; an unbuffered write is complete or fails
    :param encoding: as in :func:`open`, but UTF-8 when not given
    :param errors: as in :func:`open`
    :param newline: as in :func:`open`
    :param durability: what a power cut may do. ``"none"``: anything; nothing is synced. ``"consistent"``: the old or
        the new content is there, whole, since the content is synced before the rename. ``"durable"``: what returned is
        there, since the directory is synced as well (fsync(2)). A level syncs all it names, or fails.
    :param permissions: the exact mode of the file, for example ``0o600``; not subject to the umask. By default the old
        file's, or what the kernel gives to a new one.
    :param follow_symlinks: write to the file that a symbolic link leads to (the default), or replace the link itself
    :param lock: writers that take turns. ``True`` waits for a :class:`filelock.FileLock` beside the file
        (``NAME.lock``), a number waits so many seconds; any context manager is entered as it is. Held from before the
        content is copied until after the directory is synced.
    :param fallback: what to do about a file that can't be renamed over (it is a mount point, or its directory can't be
        written). ``"raise"`` raises :exc:`UnreplaceableTargetError`. ``"in-place"`` writes into the existing file,
        which is **not** atomic; the old content is kept in a backup file until the new one is written.
    :param skip_unchanged: leave the file, its inode and its times alone when the content is the same
    :param backup: a suffix such as ``".bak"``: keep the old content under the name with this suffix, replacing what is
        there
    :param make_parents: create missing directories, durably if the level says so; they stay even when the write fails
    :returns: a writer that is a context manager for the file object
    :raises ValueError: on a wrong mode or option, before anything happens
    :raises TypeError: if *path* is a descriptor
    :raises FileExistsError: with ``"x"``, on entry or at the commit, if the target exists; it is untouched
    :raises TargetChangedError: at the commit, with ``"a"`` or ``"r+"``, if somebody else changed the target; theirs is kept
    :raises UnreplaceableTargetError: at the latest at the commit, if the target can't be renamed over; it is untouched
    :raises TimeoutError: on entry, if a *lock* in seconds was not to be had; the target is untouched
    :raises NotDurableError: at the commit, if the target **was** replaced, but a power cut may take that back
    :raises OSError: on entry or at the commit, of the class that :func:`open` raises; the target is untouched. Each has an
        attribute ``committed``, whether the target was replaced: True for :exc:`NotDurableError`, and where writing in place
        failed half way

    On Linux the new content is in a file without a name (``O_TMPFILE``, open(2)) until it is complete, so that a process
    killed in the block leaves nothing. During the sync and up to the rename, and all the time where there are no such files, it
    is a file ``.atomicio-<16 hex digits>.tmp`` in the same directory. Renaming over an existing file is atomic by POSIX
    (rename(2)); on macOS the sync is ``F_FULLFSYNC`` (fcntl(2)). On Windows a file that somebody holds open is tried for
    :attr:`AtomicWriter.busy_timeout` seconds, in the end by two renames, between which :func:`open` may find none. Where
    directories can't be synced (``EINVAL``, ``ENOTSUP``), ``"durable"`` raises nothing. Devices, FIFOs and
    ``/dev/stdout`` are written through, as :func:`open` does: there is nothing to replace.
    """
    return AtomicWriter(
        path,
        mode,
        buffering,
        encoding,
        errors,
        newline,
        durability,
        permissions,
        follow_symlinks,
        lock,
        fallback,
        skip_unchanged,
        backup,
        make_parents,
    )


@overload
def atomic_path(
    path: str,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Fallback = "raise",
    skip_unchanged: bool = False,
    backup: str | None = None,
    make_parents: bool = False,
) -> AtomicWriter[str]: ...
@overload
def atomic_path(
    path: P,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Fallback = "raise",
    skip_unchanged: bool = False,
    backup: str | None = None,
    make_parents: bool = False,
) -> AtomicWriter[P]: ...
def atomic_path(
    path: Any,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Fallback = "raise",
    skip_unchanged: bool = False,
    backup: str | None = None,
    make_parents: bool = False,
) -> AtomicWriter[Any]:
    """Lend out a path to write to, and publish what is there when the block ends: for consumers that want a name.

    The path is absolute, in the directory of the target, and has the target's suffix (``.h5``, ``.tar.gz``). An empty
    file is there already; the consumer may write into it, or remove or rename over it. What is there at the end, a
    regular file, takes the place of the target, as with :func:`atomic_write`.

    The parameters and errors are those of :func:`atomic_write`; in addition:

    :returns: a writer that is a context manager for the path, which is of the type of *path*
    :raises FileNotFoundError: at the commit, if the consumer left no file there; the target is untouched

    A killed process leaves the staging file, ``.atomicio-<16 hex digits>.tmp<suffix>``.
    """
    return _PathWriter(
        path,
        "wb",
        -1,
        None,
        None,
        None,
        durability,
        permissions,
        follow_symlinks,
        lock,
        fallback,
        skip_unchanged,
        backup,
        make_parents,
    )


def write_bytes(
    path: Path,
    data: Buffer,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Fallback = "raise",
    skip_unchanged: bool = False,
    backup: str | None = None,
    make_parents: bool = False,
) -> None:
    """Replace or create the file *path* with *data*: :func:`atomic_write` in one call, and the fastest.

    :param data: the content: bytes or any object with the buffer protocol

    The other parameters, the errors and the guarantees are those of :func:`atomic_write`.
    """
    AtomicWriter(
        path,
        "wb",
        -1,
        None,
        None,
        None,
        durability,
        permissions,
        follow_symlinks,
        lock,
        fallback,
        skip_unchanged,
        backup,
        make_parents,
    )._write(data)


def write_text(
    path: Path,
    text: str,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Fallback = "raise",
    skip_unchanged: bool = False,
    backup: str | None = None,
    make_parents: bool = False,
) -> None:
    """Replace or create the file *path* with *text*: :func:`atomic_write` in one call.

    :param text: the content
    :param encoding: as in :func:`open`, but UTF-8 when not given

    The other parameters, the errors and the guarantees are those of :func:`atomic_write`. Text that can't be encoded
    raises :exc:`UnicodeEncodeError`; the target is untouched.
    """
    with AtomicWriter[io.TextIOWrapper](
        path,
        "w",
        -1,
        encoding,
        errors,
        newline,
        durability,
        permissions,
        follow_symlinks,
        lock,
        fallback,
        skip_unchanged,
        backup,
        make_parents,
    ) as file:
        file.write(text)
