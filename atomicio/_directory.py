"""Replacing a whole directory: the state machine of :mod:`atomicio._writer`, with a tree in place of a file.

The new tree grows in ``.atomicio-<16 hex digits>.dir`` beside the target. At the commit the two change places in one step, and what
then has the staging name is the old tree. Where they can't change places, the two renames of :mod:`atomicio._recovery` do, and where the
old one can't be renamed either, a copy of it is made before it is removed.
"""

from __future__ import annotations

import errno
import os
import stat

from ._errors import NotDurableError, TargetChangedError, UnreplaceableTargetError, failure
from ._metadata import set_mode
from ._posix import Descriptors, lock_whole
from ._recovery import BACKUP, DIRECTORY, Record, exists, move, put_right, replace_backup
from ._trees import DIRECTORY as DIRECTORY_FLAGS
from ._trees import remove_tree, sync_tree
from ._writer import _COMMITTED, _STAGED, _UNREPLACEABLE, AtomicWriter, _platform  # type: ignore[attr-defined]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, TypeVar, overload

    from ._writer import Durability, Lock

    P = TypeVar("P", bound=bytes | os.PathLike[str])
else:
    from ._writer import overload

__all__ = ["Tree", "atomic_directory"]

_DEFAULT_ACL = "system.posix_acl_default"
# renameat2(2), RENAME_EXCHANGE: ENOSYS before Linux 3.15, EINVAL from file systems without it, EXDEV from overlay for a directory
# of a lower layer, EPERM from sandboxes that do not know the call.
_NO_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EXDEV, errno.EPERM})
_FALLBACKS = frozenset({"two-renames", "raise"})
_MAX_NAMES = 100


class Tree(_platform.Staging):
    """A directory on its way to one target."""

    #: What the staging names begin with: ``.atomicio-<16 hex digits>``.
    stem = ""
    #: The name of a copy of the old tree, until it is whole.
    copy: str | None = None
    #: The suffix under which the old tree is kept.
    backup: str | None = None
    #: Whether what is left has to stay: the device may still have the old names.
    doubtful = False
    #: What kept the old tree from being removed.
    left: OSError | None = None
    record: Record | None = None
    _sync = False
    _since = -1  # the descriptor that has been open since before there was any content

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        """Split *path* as for a file: slashes at its end say no more than that it is a directory."""
        return _platform.Staging._split(path.rstrip("/" if os.sep == "/" else "/\\") or path[:1])

    def check_writable(self, *, read: bool = False, create: bool = False) -> None:  # noqa: ARG002  (a directory is always read)
        """Refuse to replace the content of a directory in which one may not create and remove."""
        effective = os.access in os.supports_effective_ids
        if not os.access(
            self._at + self.name,
            os.W_OK | os.X_OK,
            dir_fd=self._directory,
            effective_ids=effective,
        ):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    # -- stage ------------------------------------------------------------------------------------------------------------------

    def stage(self, suffix: str | None = None) -> None:
        """Make the staging directory, with what its content inherits: owner, set-group-ID bit, default ACL of the old one."""
        del suffix
        mode = 0o777 if self.permissions is None and not self._replaces_directory() else 0o700
        for _ in range(_MAX_NAMES):
            self.stem = _platform.temporary_name().removesuffix(".tmp")
            self.temporary = self.stem + DIRECTORY
            try:
                os.mkdir(self._at + self.temporary, mode, dir_fd=self._directory)
            except FileExistsError:
                self.temporary = None
                continue
            self.reopen()
            return
        raise FileExistsError(errno.EEXIST, "no unused temporary name could be found")

    def reopen(self) -> None:
        """Hold what is under the staging name: the directory that was made, or the one that the caller put there instead."""
        name = self._at + self.path_in_directory()
        status = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if (status.st_dev, status.st_ino) == self.identity:
            return
        if os.open in os.supports_dir_fd:
            fd = self.open(name, DIRECTORY_FLAGS, 0, self._directory)
            lock_whole(fd)
            if self.identity is None:
                self._since = fd
            status = os.fstat(fd)
        self.identity = status.st_dev, status.st_ino
        self._keep_directory(status)

    def path_in_directory(self) -> str:
        """Return the staging name."""
        assert self.temporary is not None
        return self.temporary

    def _replaces_directory(self) -> bool:
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)

    def _keep_directory(self, new: os.stat_result) -> None:
        wanted = None if self.permissions is None else self.permissions | 0o700  # until the commit it must be usable
        if not hasattr(os, "fchmod") or self._directory is None:
            return  # Windows: the ACL is inherited
        if self._replaces_directory():
            from ._metadata import keep  # noqa: PLC0415

            path = self._target_path()
            keep(self.fd, new, self.status, path, wanted)  # type: ignore[arg-type]
            if hasattr(os, "listxattr"):
                self._drop_default_acl(path)
        elif wanted is not None:
            os.fchmod(self.fd, wanted)

    def _drop_default_acl(self, path: str) -> None:
        """Remove the default ACL that came from the parent if the old directory had none."""
        try:
            if _DEFAULT_ACL in os.listxattr(self.fd) and _DEFAULT_ACL not in os.listxattr(path, follow_symlinks=False):  # type: ignore[attr-defined,unused-ignore]
                os.removexattr(self.fd, _DEFAULT_ACL)  # type: ignore[attr-defined,unused-ignore]
        except OSError as error:
            # Some file systems say EPERM for "no such attributes here".
            if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENODATA, errno.ENOSYS, errno.EPERM):
                raise

    # -- publish ----------------------------------------------------------------------------------------------------------------

    def settle(self, *, sync: bool) -> None:
        """Give the directory its mode, and make all of it survive a power cut."""
        self._sync = sync
        fd = self.fd if os.open in os.supports_dir_fd else None
        if self.permissions is not None and os.name != "nt":
            if fd is None:
                os.chmod(self.path_of_staging(), self.permissions)
            else:
                set_mode(fd, self.permissions)
        if sync:
            sync_tree(self.path_of_staging(), fd, self._since)

    def exchange(self, *, fallback: str) -> None:
        """Put the staged tree in the target's place. What was there has the staging name afterwards, or that of a recovery copy."""
        if self.backup is not None and self.status is not None:
            # From here on this is, or becomes, something that must not be taken for litter.
            self._rename(DIRECTORY, BACKUP)
        source, target = self._at + self.path_in_directory(), self._at + self.name
        try:
            if self.status is None:
                self._move(source, target)
            else:
                from ._syscalls import exchange  # noqa: PLC0415

                exchange(source, target, self._directory)
        except OSError as error:
            if self._landed():
                return
            if self.status is None and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                # Somebody made it meanwhile: now there is something to replace.
                self.look()
                if not self._replaces_directory():
                    raise
                self.exchange(fallback=fallback)
            elif self.status is not None and error.errno == errno.ENOENT:
                self._move(source, target)
            elif self.status is None or error.errno not in _NO_EXCHANGE:
                raise
            elif fallback == "raise":
                raise UnreplaceableTargetError(
                    error.errno,
                    "two directories cannot change places here; the directory was not changed. fallback='two-renames' leaves a "
                    "moment in which it is not there",
                    self.path,
                ) from None
            else:
                self._two_renames()

    def _rename(self, before: str, after: str) -> None:
        # Either name may be the one when an interrupt comes: both are looked at by discard.
        self._move(self._at + self.stem + before, self._at + self.stem + after)
        self.temporary = self.stem + after

    def _move(self, source: str, target: str) -> None:
        self.patiently(move, source, target, self._directory)

    def _two_renames(self) -> None:
        source, target = self._at + self.stem + DIRECTORY, self._at + self.name
        if self.backup is not None:
            self._rename(BACKUP, DIRECTORY)
            if self._sync:
                self.sync_directory()  # before there is a record that takes what has the other name for the old tree
        elif self._replaces_directory():
            try:
                os.rename(source, target, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            except OSError:
                pass  # it is not empty, or this system never renames over a directory
            else:
                return
        self.record = Record(self._at, self._directory, self.name)
        self.record.create(self.stem, self.backup, sync=self._sync)
        try:
            try:
                self._move(target, self._at + self.record.old)
            except OSError as error:
                if error.errno != errno.EXDEV or self._directory is None:
                    raise
                self._copy_and_remove(target)
            self._move(source, target)
        except OSError:
            self._undo()
            raise

    def _copy_and_remove(self, target: str) -> None:
        """Instead of a rename of the old tree: copy it, make the copy the old tree, and remove what it was copied from."""
        from ._copy_tree import copy_tree  # noqa: PLC0415

        record = self.record
        assert record is not None
        record.resolve()  # nothing was renamed: the next one says what is about to happen
        held = Descriptors()
        try:
            self.copy = _platform.temporary_name().removesuffix(".tmp") + DIRECTORY
            os.mkdir(self._at + self.copy, 0o700, dir_fd=self._directory)
            copy = held.open(self._at + self.copy, DIRECTORY_FLAGS, 0, self._directory)
            lock_whole(copy)
            copy_tree(held.open(target, DIRECTORY_FLAGS, 0, self._directory), copy)
            if self._sync:
                sync_tree(os.path.join(self.directory, self.copy), copy, copy)
            record.create(self.stem, self.backup, copied=True, sync=self._sync)
            self._move(self._at + self.copy, self._at + record.old)
            self.copy = None
            if self._sync:
                record.sync_directory()  # before anything goes, the device must have what replaces it
        finally:
            held.close()
        remove_tree(target, self._directory)

    def _undo(self) -> None:
        """Close the gap: give the old tree its name back."""
        assert self.record is not None
        old = os.path.join(self.directory, self.record.old)
        try:
            outcome = self.record.resolve()
        except OSError as error:
            advice = f"the directory could not be replaced, and not be put back either: it is in {old!r}; 'atomicio recover' puts it back"
            raise failure(error, self.path, advice, committed=True) from None
        if outcome == "kept":
            message = f"somebody else made the directory while it was being replaced: theirs was kept, the old one is in {old!r}"
            raise TargetChangedError(errno.ESTALE, message, self.path)

    def sync_or_doubt(self) -> None:
        """Sync the directory that the target is in, and if that fails leave everything: either tree may have the name after a crash."""
        try:
            self.sync_directory()
        except OSError:
            self.doubtful = True
            raise

    def remove_replaced(self) -> None:
        """Give the old tree the name of the backup, or remove it. Safe to call again after an interrupt."""
        old = self._at + self.stem + BACKUP
        spare = self._at + self.stem + DIRECTORY
        if self.backup is not None and exists(old, self._directory):
            if self.record is not None:
                self.record.resolve()
            else:
                replace_backup(old, self._at + self.name + self.backup, spare, self._directory)
            if self._sync:
                self.sync_or_doubt()
        try:
            if self.record is not None:
                self.record.resolve()
            self.patiently(remove_tree, spare, self._directory)
        except OSError as error:
            self.left = error
        self.temporary = None

    # -- discard ----------------------------------------------------------------------------------------------------------------

    def discard(self) -> None:
        """Remove what was staged and not published, or what it replaced, and close everything. In a forked child, only close."""
        if self.temporary is not None and os.getpid() == self.owner and not self.doubtful:
            try:
                self._discard_names()
            except OSError:
                pass  # what is left has names that the library knows as its own
            self.temporary = None
        if self.record is not None:
            self.record.close()
        self.close()

    def _discard_names(self) -> None:
        staged, spare = self.stem + DIRECTORY, self.stem + BACKUP
        if self.identity is None:
            os.rmdir(self._at + staged, dir_fd=self._directory)  # made, but never opened: it is empty, or not ours
            return
        if self.record is not None and self.record.held:
            self.record.resolve()
        if self.copy is not None:
            remove_tree(self._at + self.copy, self._directory)
        for name in (staged, spare):
            if self._is_staged(name):
                remove_tree(self._at + name, self._directory)
        if self._is_staged(self.name):
            # An interrupt came after the exchange.
            if self._sync:
                self.sync_or_doubt()
            self.remove_replaced()

    def _is_staged(self, name: str) -> bool:
        try:
            found = os.stat(self._at + name, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.identity


class _DirectoryWriter(AtomicWriter["Any"]):
    """A writer that lends out the path of a staging directory."""

    _staging: Tree | None  # pyright: ignore[reportIncompatibleVariableOverride]

    def __repr__(self) -> str:
        return f"<atomic_directory {self.target!r} {self._state}>"

    def _begin(self, suffix: str | None = None) -> None:
        del suffix
        self._staging = staging = Tree(self._path)  # pyright: ignore[reportIncompatibleVariableOverride]
        staging.permissions = self._permissions
        staging.busy_timeout = self.busy_timeout
        staging.backup = self._backup
        if self._path and Tree._split(self._path)[1] in ("", ".", ".."):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        staging.find(follow=self._follow, make_parents=self._make_parents, sync=self._durability == "durable")
        if self._lock is not None:
            self._step = "lock"
            self._take_turn(staging, self._lock)
            staging.look()
        self._step = "check"
        self._put_right(staging)
        self._check(staging)
        if staging._replaces_directory():
            staging.check_writable()
        self._step = "stage"
        staging.stage()
        self._step = "write"
        self._state = _STAGED

    def _put_right(self, staging: Tree) -> None:
        """Follow the recovery rule, should a process have been killed while it replaced this very directory."""
        try:
            # Where the target is there, whoever is at work on it may be left alone.
            if put_right(staging._at, staging._directory, staging.name, wait=staging.status is None) is not None:
                staging.look()
        except OSError:
            pass  # not readable for us; what it is about stays as it is

    def _check(self, staging: Tree) -> None:
        status = staging.status
        if status is None or stat.S_ISDIR(status.st_mode) or (stat.S_ISLNK(status.st_mode) and not self._follow):
            return
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _wrap(self) -> Any:
        assert self._staging is not None
        path = self._staging.path_of_staging()
        target = self._given
        if isinstance(target, bytes):
            return os.fsencode(path)
        return path if isinstance(target, str) else type(target)(path)  # type: ignore[call-arg]

    def _complete(self) -> None:
        assert self._staging is not None
        self._staging.reopen()

    def _publish(self, *, look: bool = True) -> None:
        staging = self._staging
        assert staging is not None
        self._step = "publish"
        if look:
            staging.look()
            if staging.status is None:
                self._put_right(staging)  # it may be missing for as long as somebody else takes for two renames
            self._check(staging)
        sync = self._durability != "none"
        staging.settle(sync=sync)
        try:
            staging.exchange(fallback=self._fallback)
            self.committed = True
            # Before anything of the old tree goes, the device must know its new name; also for "consistent".
            if self._durability == "durable" or (sync and staging.status is not None):
                staging.sync_or_doubt()
            staging.remove_replaced()
        except OSError as error:
            if not staging.doubtful and not self.committed:
                raise
            self.committed = True
            self._state = _COMMITTED
            raise self._explain_late(error, staging) from None
        self._state = _COMMITTED
        if staging.left is not None:
            import warnings  # noqa: PLC0415

            warnings.warn(
                f"{self.target!r} was replaced, but what it replaced could not be removed: {staging.left.strerror}, in "
                f"{os.path.join(staging.directory, staging.stem + DIRECTORY)!r}",
                RuntimeWarning,
                4,
            )

    def _explain_late(self, error: OSError, staging: Tree) -> OSError:
        if staging.doubtful:
            where = os.path.join(staging.directory, staging.stem + ".*")
            advice = (
                "the directory was replaced, but that could not be synced: it may not survive a power cut, and what it replaced is "
                f"left in {where!r}"
            )
            return failure(error, self.target, advice, committed=True, kind=NotDurableError)
        where = os.path.join(staging.directory, staging.stem + BACKUP)
        advice = f"the directory was replaced, but what it replaced could not be renamed to the backup: it is in {where!r}"
        return failure(error, self.target, advice, committed=True)

    def _explain(self, error: OSError) -> OSError:
        if hasattr(error, "committed"):
            return error
        staging, code = self._staging, error.errno
        parent = staging.directory if staging is not None else ""
        exists = staging is not None and staging.status is not None
        advice, kind = "the directory was not changed", OSError
        if self._step == "lock":
            return super()._explain(error)
        if code == errno.ENOENT:
            if not self._path:
                advice = "the path is empty; nothing was written"
            elif self._step == "find":
                advice = f"the directory {parent!r} does not exist (make_parents=True creates it); nothing was written"
            else:
                advice = "the staging directory was removed meanwhile; nothing was changed"
        elif code == errno.EBUSY and not exists:
            kind = UnreplaceableTargetError
            advice = "name the directory itself: '.', '..' and '/' cannot be replaced"
        elif code == errno.ENOTDIR and self._step == "check":
            advice = "this is not a directory, and only a directory is replaced by one; it was not changed"
        elif self._step in ("stage", "publish") and code in _UNREPLACEABLE:
            if not exists:
                advice = f"the directory {parent!r} does not let you create anything; nothing was written"
            else:
                kind = UnreplaceableTargetError
                advice = {
                    errno.EBUSY: "the directory is a mount point or somebody's root, and cannot be renamed",
                    errno.EXDEV: "the directory is bound to another file system, and cannot be renamed",
                    errno.EROFS: f"the directory {parent!r} is on a read-only file system",
                }.get(code, f"the directory {parent!r} does not let you replace what is in it") + "; it was not changed"
        elif code in (errno.EACCES, errno.EPERM) and self._step == "check":
            advice = "you may not write in this directory; it was not changed"
        return failure(error, self.target, advice, kind=kind)


@overload
def atomic_directory(
    path: str,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Literal["two-renames", "raise"] = "two-renames",
    backup: str | None = None,
    make_parents: bool = False,
) -> AtomicWriter[str]: ...
@overload
def atomic_directory(
    path: P,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Literal["two-renames", "raise"] = "two-renames",
    backup: str | None = None,
    make_parents: bool = False,
) -> AtomicWriter[P]: ...
def atomic_directory(
    path: Any,
    *,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Literal["two-renames", "raise"] = "two-renames",
    backup: str | None = None,
    make_parents: bool = False,
) -> AtomicWriter[Any]:
    """Replace or create a whole directory, all at once or not at all.

    Use it as a context manager: it lends out the path of an empty directory, beside the target, to be filled by anything that writes
    files by name. When the block ends, that directory takes the target's place in one step, and the old one is removed with all
    that is in it. An exception, an interrupt or a kill in between leaves the old directory as it was. A program that looks a name up
    in it finds the old or the new; one that has the old directory open keeps it until that is removed, and then finds it empty.

    Owner, mode, ACL and extended attributes of the directory itself are kept. What is inside is the caller's: symbolic links stay
    links, and are never followed.

    :param path: the directory: a string, bytes or a path object; a relative path is made absolute at once
    :param durability: what a power cut may do. ``"none"``: anything; nothing is synced. ``"consistent"``: the old or the new
        directory is there, whole: everything in it is synced first, and the change of places before the old one is removed.
        ``"durable"``: what returned is there. A level syncs all it names, or fails.
    :param permissions: the exact mode of the directory, for example ``0o750``; by default the old one's, or what the kernel gives to
        a new one. The mode of what is inside is the caller's business.
    :param follow_symlinks: replace the directory that a symbolic link leads to (the default), or the link itself
    :param lock: writers that take turns, as in :func:`atomic_write`; the lock is the file ``NAME.lock`` beside the directory
    :param fallback: what to do where two directories can't change places (see below). ``"two-renames"`` renames the old one away
        and the new one to its name, with a gap between in which there is none; where the old one can't be renamed, it is copied and
        then removed. ``"raise"`` raises :exc:`UnreplaceableTargetError` instead.
    :param backup: a suffix such as ``".bak"``: keep the old directory under the name with this suffix, replacing what is there
    :param make_parents: create missing directories above, durably if the level says so
    :returns: a writer that is a context manager for the path, which is of the type of *path*
    :raises ValueError: on a wrong option, before anything happens
    :raises NotADirectoryError: if the target is a file
    :raises PermissionError: if the caller may not create and remove in the target, whoever may rename it
    :raises UnreplaceableTargetError: if the target can't be renamed: a mount point, a parent directory one may not write in; or if
        it would have to be removed first, and holds what can't be; the target is untouched
    :raises NotDurableError: if the target was replaced but the directory it is in can't be synced; the old tree is left under a
        staging name then, because after a power cut it may be the one that is needed
    :raises OSError: if staging, syncing or renaming failed; the target is untouched unless ``committed`` is True
    :warns RuntimeWarning: if the target was replaced, but the old tree can't be removed (somebody else's files, a mount point in it)

    Linux: renameat2(2) with ``RENAME_EXCHANGE`` (3.15; ext4, xfs, btrfs, tmpfs and others); macOS: renamex_np(2) with
    ``RENAME_SWAP``. Elsewhere, and on NFS and many FUSE file systems, two renames: a reader may find no directory for a moment, and a
    process killed in that moment leaves none, until the next :func:`atomic_directory` of the same path or ``python -m atomicio recover``
    gives the old one its name back. At no moment can a crash lose both. A directory of an overlay's lower layer (what comes with a
    container's image) can't be renamed (overlayfs.rst of the kernel): it is copied, then removed, which makes the gap longer.
    """
    if fallback not in _FALLBACKS:
        raise ValueError(f"invalid fallback: {fallback!r}; use 'two-renames' or 'raise'")
    writer = _DirectoryWriter(
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
        "raise",
        False,
        backup,
        make_parents,
    )
    writer._fallback = fallback
    return writer
