"""Rename, remove, make and copy, each with the syncs that it needs to survive a power cut, in the right order.

What a single call of the kernel does to a name is atomic anyway. What is missing after :func:`os.replace` and its like
is that it lasts: the file's content must be on the device before its new name is (or the name leads to an empty file),
and the names in a directory are on the device when the *directory* was synced.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from ._errors import NotDurableError, failure
from ._posix import Descriptors, sync_directory, sync_file, temporary_name, write_all
from ._writer import _DURABILITIES, AtomicWriter

if sys.platform == "win32":
    from . import _windows as _platform
else:
    from . import _posix as _platform

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias  # noqa: F401  Any is in quotes

    from ._writer import Durability, Fallback, Lock, Path

    Progress: TypeAlias = Callable[[int, int | None], object]

__all__ = ["copy", "makedirs", "remove", "replace"]

_CHUNK = 1 << 20
_KERNEL_CHUNK = 8 << 20  # short enough for Ctrl-C and for a progress bar
# Lost is lost: no reason to try in another way.
_LOST = frozenset({errno.EIO, errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})

_FICLONE = 0x40049409  # <linux/fs.h>. Some architectures have another number, and refuse this one


def _check(durability: str) -> None:
    if durability not in _DURABILITIES:
        raise ValueError(f"invalid durability: {durability!r}; use 'none', 'consistent' or 'durable'")


class _Name(_platform.Staging):
    """A name in a directory that is held open. Nothing is staged."""

    def __init__(self, path: Path) -> None:
        super().__init__("")
        if isinstance(path, int):
            raise TypeError(f"a path is needed; got the descriptor {path!r}")
        #: The path as it was given, for messages.
        self.given = os.fspath(path)
        full = _platform.absolute(os.fsdecode(self.given))
        stripped = full.rstrip("/" if os.sep == "/" else "/\\") or full[:1]
        self.path = stripped
        self._slash = stripped != full and len(full) > 1
        self.busy_timeout = AtomicWriter.busy_timeout

    def enter(self) -> None:
        """Open the directory and look at the name."""
        self.find(follow=False)
        if self._slash and self.status is not None and not stat.S_ISDIR(self.status.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def exists(self) -> os.stat_result:
        if self.status is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return self.status

    def sync_content(self) -> None:
        """Wait until the content is on the device. Links and special files have none of their own."""
        kind = self.exists().st_mode
        if stat.S_ISDIR(kind):
            if os.name != "nt":
                sync_directory(self.open_target())
                self.close_last()
        elif stat.S_ISREG(kind):
            flags = os.O_RDWR if os.name == "nt" else os.O_RDONLY
            try:
                fd = self.open_target(flags)
            except PermissionError:
                fd = self.open_target(os.O_WRONLY)
            sync_file(fd)
            self.close_last()

    def rename_to(self, target: _Name) -> None:
        """Rename this to *target*, replacing what is there."""
        old = self.exists()
        source, destination = self._at + self.name, target._at + target.name
        try:
            if self._directory is not None:
                os.rename(source, destination, src_dir_fd=self._directory, dst_dir_fd=target._directory)
            else:
                self.rename_over(source, destination)
        except OSError:
            # NFS loses replies, and answers ENOENT to the second try: rename(2), BUGS.
            self.look()
            target.look()
            now = target.status
            if self.status is not None or now is None or (now.st_dev, now.st_ino) != (old.st_dev, old.st_ino):
                raise

    def unlink(self) -> None:
        if stat.S_ISDIR(self.exists().st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self.unlink_target()

    def make_directory(self, mode: int) -> None:
        os.mkdir(self._at + self.name, mode, dir_fd=self._directory)

    def is_directory(self) -> bool:
        """Whether the name leads to a directory, through links too."""
        try:
            return stat.S_ISDIR(os.stat(self._at + self.name, dir_fd=self._directory).st_mode)
        except OSError:
            return False

    def place(self) -> object:
        """Return what tells the directory from others."""
        if self._directory is None:
            return os.path.normcase(self._at)
        status = os.fstat(self._directory)
        return status.st_dev, status.st_ino


def replace(src: Path, dst: Path, *, durability: Durability = "durable") -> None:
    """Rename *src* to *dst*, replacing what is there: :func:`os.replace`, so that it survives a power cut.

    :param src: a file, a symbolic link (which is renamed itself), or a directory
    :param dst: its new name, in the same directory or another of the same file system
    :param durability: ``"none"`` only renames. ``"consistent"`` syncs the file before: after a power cut *dst* is the
        old or the new file, whole. ``"durable"`` syncs the directories too, that of *dst* first: a power cut in between
        may leave both names, never none.
    :raises NotDurableError: if it was renamed, but a directory could not be synced
    :raises OSError: as :func:`os.replace` does (``EXDEV`` between file systems: use :func:`copy`, then :func:`remove`),
        or if the file could not be synced. Nothing was changed; ``committed`` is False.
    :raises ValueError: on a wrong option

    Of a directory, the names in it are synced, not the content of the files below: :func:`atomicio.atomic_directory`
    does that. Other than a write, this does not ask whether *dst* may be written to; a rename never does.
    A directory that its file system cannot sync (``EINVAL``, ``ENOTSUP``) raises nothing.
    Sources: rename(2), fsync(2).
    """
    _check(durability)
    source, target = _Name(src), _Name(dst)
    try:
        try:
            source.enter()
            source.exists()
        except OSError as error:
            raise failure(error, source.given, "nothing was changed") from None
        try:
            target.enter()
            if durability != "none":
                source.sync_content()
            source.rename_to(target)
        except OSError as error:
            advice = "nothing was changed"
            if error.errno == errno.EXDEV:
                advice += "; between file systems, copy() and then remove() do it"
            raise failure(error, target.given, advice) from None
        if durability == "durable":
            try:
                target.sync_directory()
                if source.place() != target.place():
                    source.sync_directory()
            except OSError as error:
                advice = "it has its new name, but a directory could not be synced: it may not survive a power cut"
                raise failure(error, target.given, advice, committed=True, kind=NotDurableError) from None
    finally:
        source.close()
        target.close()


def remove(path: Path, *, durability: Durability = "durable") -> None:
    """Remove the file *path*: :func:`os.remove`, so that it does not come back after a power cut.

    :param path: a file or a symbolic link, which is removed itself
    :param durability: ``"durable"`` syncs the directory. ``"none"`` and ``"consistent"`` only remove: after a power cut
        the file is there, whole, or it is not.
    :raises NotDurableError: if it was removed, but the directory could not be synced
    :raises OSError: as :func:`os.remove` does (``EISDIR`` for a directory on all systems); nothing was changed
    :raises ValueError: on a wrong option

    A directory that its file system cannot sync (``EINVAL``, ``ENOTSUP``) raises nothing (fsync(2)).
    """
    _check(durability)
    name = _Name(path)
    try:
        try:
            name.enter()
            name.unlink()
        except OSError as error:
            raise failure(error, name.given, "nothing was removed") from None
        if durability == "durable":
            try:
                name.sync_directory()
            except OSError as error:
                advice = "it was removed, but its directory could not be synced: a power cut may bring it back"
                raise failure(error, name.given, advice, committed=True, kind=NotDurableError) from None
    finally:
        name.close()


def makedirs(
    path: Path, mode: int = 0o777, exist_ok: bool = False, *, durability: Durability = "durable"
) -> None:
    """Make the directory *path* and its missing parents: :func:`os.makedirs`, so that they survive a power cut.

    :param path: the directory
    :param mode: permissions of the last one; the umask applies. The parents have what the umask makes of 0777.
    :param exist_ok: accept that it exists
    :param durability: ``"durable"`` syncs the parent of each directory that is made. What exists already is taken to be
        durable. ``"none"`` and ``"consistent"`` only make them.
    :raises NotDurableError: if it was made, but its parent could not be synced
    :raises FileExistsError: if it exists and *exist_ok* is false, or it is not a directory
    :raises OSError: as :func:`os.makedirs` does; *path* was not made, some of its parents may have been
    :raises ValueError: on a wrong option

    A directory that its file system cannot sync (``EINVAL``, ``ENOTSUP``) raises nothing (fsync(2)).
    """
    _check(durability)
    name = _Name(path)
    durable = durability == "durable"
    try:
        try:
            try:
                name.find(follow=False, make_parents=True, sync=durable)
                name.make_directory(mode)
            except IsADirectoryError:
                if name.name:
                    raise
                if not exist_ok:  # "/", or a path that ends in ".."
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
                return
            except FileExistsError:
                if exist_ok and name.is_directory():
                    return
                raise
        except OSError as error:
            raise failure(error, name.given, "the directory was not made") from None
        if durable:
            try:
                name.sync_directory()
            except OSError as error:
                advice = "it was made, but its parent could not be synced: it may not survive a power cut"
                raise failure(error, name.given, advice, committed=True, kind=NotDurableError) from None
    finally:
        name.close()


def copy(
    src: Path,
    dst: Path,
    *,
    progress: Progress | None = None,
    durability: Durability = "durable",
    permissions: int | None = None,
    follow_symlinks: bool = True,
    lock: Lock = None,
    fallback: Fallback = "raise",
    skip_unchanged: bool = False,
    backup: str | None = None,
    make_parents: bool = False,
) -> None:
    """Copy the content of the file *src* to *dst*, which is replaced or created when all of it has arrived.

    An existing *dst* keeps its metadata, as with :func:`atomicio.atomic_write`. A new one gets the permission bits of
    *src*, to which the umask applies, as ``cp`` does it; nothing else of the metadata of *src* is copied.

    :param src: the file to read; a symbolic link is followed
    :param dst: the file to replace or create; a directory is refused
    :param progress: called as ``progress(bytes_done, bytes_total)`` after each part, and at the end; the total is None
        where it is not known (a FIFO, a device). What it raises ends the copy; *dst* is untouched.
    :raises OSError: if *src* can't be opened (``filename`` is *src* then), or as :func:`atomicio.atomic_write` does;
        *dst* is untouched, unless it is :exc:`NotDurableError`

    The other parameters, the errors and the guarantees are those of :func:`atomicio.atomic_write`.

    Where the file system can (btrfs, xfs; a new *dst* on APFS), the two files share their blocks until one of them is
    changed (ioctl_ficlone(2), fclonefileat(2)), and the copy is of one moment. Elsewhere the kernel copies
    (copy_file_range(2)), and holes stay holes, or this process reads and writes; somebody who changes *src* meanwhile
    can then have old and new content mixed in *dst*.
    """
    _Copy(
        dst,
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
    ).copy(src, progress)


class _Copy(AtomicWriter["Any"]):
    """A writer that takes its content from a file."""

    _mode_of_source = 0o666

    def copy(self, src: Path, progress: Progress | None) -> None:
        if isinstance(src, int):
            raise TypeError(f"a path is needed to copy from; got the descriptor {src!r}")
        given = os.fspath(src)
        descriptors = Descriptors()
        try:
            try:
                source = _platform.open_source(descriptors, os.fsdecode(given), AtomicWriter.busy_timeout)
                status = os.fstat(source)
                if stat.S_ISDIR(status.st_mode):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            except OSError as error:
                raise failure(error, given, "nothing was copied") from None
            self._mode_of_source = stat.S_IMODE(status.st_mode) & 0o777
            try:
                self._begin()
                size = status.st_size if stat.S_ISREG(status.st_mode) else None
                if self._through:
                    self._copy_through(source, size, progress)
                elif size and self._clone(source, status):
                    if progress is not None:
                        progress(os.fstat(self._staging.fd).st_size, size)  # type: ignore[union-attr]
                else:
                    _transfer(source, self._staging.fd, size, progress)  # type: ignore[union-attr]
                descriptors.close()  # a file may be copied to itself, and Windows replaces none that is open
                self._publish()
            except OSError as error:
                raise self._explain(error) from None
            finally:
                self._finish()
        finally:
            descriptors.close()

    def _stage(self, staging: _platform.Staging, suffix: str | None) -> None:
        staging.mode_of_new = self._mode_of_source
        super()._stage(staging, suffix)

    def _clone(self, source: int, status: os.stat_result) -> bool:
        """Put a clone of *source* in the place of the empty staging file, where the system can only make new files so: macOS.

        A clone comes with the mode, times and extended attributes of its source. Not tried where it would be open to more users
        than the staging file is, if only for a moment; nor with flags, one of which says that the content is in an attribute.
        """
        staging = self._staging
        assert staging is not None
        if sys.platform != "darwin" or staging.temporary is None or status.st_flags:
            return False
        mode = stat.S_IMODE(os.fstat(staging.fd).st_mode)
        if status.st_mode & 0o7777 & ~mode or not status.st_mode & stat.S_IWUSR:
            return False
        from ._syscalls import clone_file, drop_attributes  # noqa: PLC0415

        staging.spare = temporary_name()  # whatever happens, this name is removed in the end
        clone, directory = staging._at + staging.spare, staging._directory
        try:
            clone_file(source, clone, directory)
        except OSError:
            staging.spare = None
            return False  # nothing was made; what goes wrong for a reason of its own will go wrong again when it is copied
        fd = staging.open(clone, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0, directory)
        staging._claim()
        os.fchmod(fd, mode)
        drop_attributes(fd)
        os.utime(fd)
        os.rename(clone, staging._at + staging.temporary, src_dir_fd=directory, dst_dir_fd=directory)
        staging.spare = None
        staging.close_last_but_one()
        return True

    def _copy_through(self, source: int, size: int | None, progress: Progress | None) -> None:
        file = self._wrap()
        done = 0
        while data := os.read(source, _CHUNK):
            file.write(data)
            done += len(data)
            if progress is not None:
                progress(done, size)
        self._complete()


def _transfer(source: int, destination: int, size: int | None, progress: Progress | None) -> None:
    """Copy *source*, whose size is thought to be *size*, to the empty *destination*."""
    if size and _share(source, destination):
        done = os.fstat(destination).st_size
    else:
        done = _copy_extents(source, destination, size, progress) if size else 0
        # What was added meanwhile; all, where the size is not known or is a lie, as it is in /proc.
        while data := os.read(source, _CHUNK):
            write_all(destination, data)
            done += len(data)
            if progress is not None:
                progress(done, size and max(size, done))
    if progress is not None:
        progress(done, None if size is None else done)


def _share(source: int, destination: int) -> bool:
    """Make *destination* share all blocks with *source*, where the file system can."""
    if sys.platform != "linux":
        return False
    try:
        import fcntl  # noqa: PLC0415

        fcntl.ioctl(destination, getattr(fcntl, "FICLONE", _FICLONE), source)
    except (ImportError, OSError):
        return False  # nothing was done; what goes wrong for a reason of its own will go wrong again below
    return True


def _copy_extents(source: int, destination: int, size: int, progress: Progress | None) -> int:
    """Copy what is not a hole, and leave both at the end of what was copied."""
    offset = 0
    while offset < size:
        start, end = _extent(source, offset, size)
        os.lseek(source, start, os.SEEK_SET)
        os.lseek(destination, start, os.SEEK_SET)
        offset = start
        if start == end:
            break  # a hole is last
        while offset < end and (count := _copy_some(source, destination, end - offset)):
            offset += count
            if progress is not None:
                progress(min(offset, size), size)
        if offset < end:
            break  # it became shorter meanwhile
    os.ftruncate(destination, offset)
    return offset


def _extent(source: int, offset: int, size: int) -> tuple[int, int]:
    """Return where the next data from *offset* on begins and ends: both at the end of the file where there is none."""
    if sys.platform == "win32" or not hasattr(os, "SEEK_DATA"):
        return offset, size
    try:
        start = os.lseek(source, offset, os.SEEK_DATA)
        return min(start, size), min(os.lseek(source, start, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno != errno.ENXIO:
            return offset, size  # holes are not known here
        end = max(offset, min(size, os.fstat(source).st_size))
        return end, end


def _copy_some(source: int, destination: int, count: int) -> int:
    """Copy up to *count* bytes from where *source* is to where *destination* is; 0 at the end of the file."""
    if hasattr(os, "copy_file_range"):
        try:
            copied: int = os.copy_file_range(source, destination, min(count, _KERNEL_CHUNK))
            if copied:
                return copied
        except OSError as error:
            if error.errno in _LOST:
                raise
        # Some file systems answer 0 for what they can't copy, and some errors only say that this call can't.
    data = os.read(source, min(count, _CHUNK))
    write_all(destination, data)
    return len(data)
