"""The verbs of an atomic write on POSIX systems.

A :class:`Staging` holds the directory of one target open and stages new content beside the target::

    find            open the target's directory, follow symbolic links, look at the target
    stage           make the staging file there: unnamed where the kernel can (O_TMPFILE), else under a temporary name
    write, copy     put the content in
    keep_metadata   give it the owner, mode, ACL and extended attributes of the file it replaces
    publish         name it, sync it, close it, rename it over the target
    publish_new     the same, but fail if the target exists, in the very step that creates it
    sync_directory  make the new name survive a power cut
    discard         remove what was staged and not published, close everything

Descriptors are opened *into* the list that owns them, and closed *out of* it, inside one call of a C function. The
interpreter delivers signals (KeyboardInterrupt) only between bytecodes, so there is no moment at which a descriptor or
a file exists that nobody would clean up. When an interrupt flies past every handler, ``__del__`` does it.

System calls are looked up in ``os`` when they are made, so that tests may patch them there.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from operator import methodcaller

from ._metadata import keep, set_mode

TYPE_CHECKING = False
if TYPE_CHECKING:
    import fcntl
    from collections.abc import Callable
    from typing import Any, TypeVar

    from typing_extensions import Buffer

    T = TypeVar("T")
else:
    try:
        import fcntl
    except ImportError:  # Windows; and Emscripten, where there is one process only
        fcntl = None

__all__ = ["Descriptors", "Staging", "absolute", "copy_content", "make_directories", "open_source", "sync_file", "temporary_name"]

PREFIX = ".atomicio-"
SUFFIX = ".tmp"
#: What the temporary name of a file ends with whose lock shows that a batch is alive.
CLAIM = ".batch"

_CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0) | getattr(os, "O_BINARY", 0)
_STAGING_FLAGS = os.O_RDWR | _CLOEXEC
_NAMED_FLAGS = _STAGING_FLAGS | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
# O_NONBLOCK: should a FIFO have taken the target's place, do not wait for its other end.
_TARGET_FLAGS = _CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_DIRECTORY_FLAGS = os.O_RDONLY | _CLOEXEC | getattr(os, "O_DIRECTORY", 0)
# A directory one may write in but not read (mode 0333) can still anchor calls: O_PATH on Linux, O_SEARCH on macOS.
_ANCHOR_FLAGS = getattr(os, "O_PATH", getattr(os, "O_SEARCH", 0)) | _CLOEXEC | getattr(os, "O_DIRECTORY", 0)

# open(2), O_TMPFILE: EOPNOTSUPP where the file system has no unnamed files, EISDIR where the kernel has none.
_NO_UNNAMED = frozenset({errno.EOPNOTSUPP, errno.ENOTSUP, errno.EISDIR, errno.EINVAL, errno.ENOSYS})
# link(2): no hard links here (EPERM and its kin), or no /proc to name the unnamed file through (ENOENT).
_NO_LINK = frozenset(
    {
        errno.EPERM,
        errno.EOPNOTSUPP,
        errno.ENOTSUP,
        errno.ENOSYS,
        errno.EXDEV,
        errno.ENOENT,
        errno.EINVAL,
        errno.EMLINK,
    }
)
# renameat2(2) with RENAME_NOREPLACE: not in this kernel (or no call into it: None), or not on this file system.
_NO_RENAME_NEW = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, None})
# fsync(2) of a directory is not a thing here. EIO, ENOSPC and EDQUOT are real, and not in this list.
_NO_DIRECTORY_SYNC = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EROFS})
# copy_file_range(2): not between these two files; reading and writing always works.
_NO_COPY_RANGE = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EPERM, errno.ETXTBSY}
)

_MAX_LINKS = 40  # path_resolution(7)
_MAX_NAMES = 100
_CHUNK = 1 << 20


def absolute(path: str) -> str:
    """Return *path* made independent of the current directory. Its ``..`` stay: links may lead through them."""
    return path if path[:1] == "/" or not path else os.path.join(os.getcwd(), path)


def temporary_name(suffix: str = "") -> str:
    """Return a name that no other writer has: 64 random bits, in the one shape that the library's names have."""
    return f"{PREFIX}{os.urandom(8).hex()}{SUFFIX}{suffix}"


def sync_file(fd: int) -> None:
    """Wait until content and metadata of *fd* are on the device.

    Never retried after an error: the kernel has marked the pages clean, and a second call would report success over
    lost data.
    """
    os.fsync(fd)


if sys.platform == "darwin":
    _F_BARRIERFSYNC = 85  # <sys/fcntl.h> of macOS; Python's fcntl module does not name it
    _NO_COMMAND = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.ENODEV})

    def sync_file(fd: int) -> None:
        """Wait until content and metadata of *fd* are on the device, past its cache.

        fsync(2) of macOS stops at the cache of the drive; F_FULLFSYNC goes through. Where a file system lacks it (SMB,
        FUSE), the barrier may be there, and fsync is.
        """
        for command in (fcntl.F_FULLFSYNC, _F_BARRIERFSYNC):
            try:
                fcntl.fcntl(fd, command)
            except OSError as error:
                if error.errno not in _NO_COMMAND:
                    raise
            else:
                return
        os.fsync(fd)


def write_all(fd: int, data: Buffer) -> None:
    """Write all of *data*: write(2) may stop short, on a full disk without an error, and at 2 GiB always."""
    written = os.write(fd, data)
    size = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
    if written < size:
        rest = memoryview(data).cast("B")
        while written < size:
            count = os.write(fd, rest[written:])
            if not count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += count


def copy_content(source: int, destination: int) -> None:
    """Append what is left to read of *source* to *destination*, inside the kernel where it can (shared on xfs)."""
    if hasattr(os, "copy_file_range"):
        try:
            while os.copy_file_range(source, destination, 1 << 30):
                pass
        except OSError as error:
            if error.errno not in _NO_COPY_RANGE:
                raise
    # Also after success: some file systems answer 0 for what they can't copy. At the end of the file nothing is read.
    while data := os.read(source, _CHUNK):
        write_all(destination, data)


def hard_link(source: str, target: str, source_directory: int | None, target_directory: int | None) -> None:
    """link(2), which some builds of Python lack: Android's, Emscripten's."""
    if not hasattr(os, "link"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)
    os.link(source, target, src_dir_fd=source_directory, dst_dir_fd=target_directory)


def lock_whole(fd: int) -> None:
    """Show whoever cleans up that the writer of *fd* is alive. Without such locks nobody can prove the contrary either."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (AttributeError, OSError):
        pass  # not in this system or file system; or somebody is just trying it


def lock_byte(fd: int, *, shared: bool = False) -> None:
    """Take an open file description lock on one byte far behind the end of a file that is lent out.

    Consumers take their own locks: HDF5 by flock(2), SQLite on bytes from 1 GiB. This byte is nobody's. The struct is
    that of <fcntl.h>: other systems have the command under no name, or another struct.

    :raises OSError: if somebody else has it (EAGAIN, EACCES), or there are no such locks here
    """
    from struct import pack  # noqa: PLC0415

    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    start, length, pid = 1 << 62, 1, 0
    if sys.platform == "linux":
        lock = pack("hhqqi4x", kind, os.SEEK_SET, start, length, pid)
    elif sys.platform == "darwin":
        lock = pack("qqihh", start, length, pid, kind, os.SEEK_SET)
    else:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    command = getattr(fcntl, "F_OFD_SETLK", None)
    if command is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.fcntl(fd, command, lock)


class Descriptors:
    """Open descriptors, owned from the system call that opens them to the one that closes them."""

    _BOTTOM = -1
    _fds: list[int] = []  # noqa: RUF012  (until __init__ has run, and never changed: __del__ needs something to look at)

    def __init__(self) -> None:
        self._fds = [self._BOTTOM]

    def open(self, path: str, flags: int, mode: int = 0o666, dir_fd: int | None = None) -> int:
        # One call for the interpreter: list.extend draws from map, which calls os.open. Nothing can come in between.
        self._fds.extend(map(methodcaller("open", path, flags, mode, dir_fd=dir_fd), (os,)))
        return self._fds[-1]

    def open_either(self, path: str, dir_fd: int | None = None) -> int:
        """Open a file for reading, or if its mode forbids that (0200) for writing: a sync takes either."""
        try:
            return self.open(path, os.O_RDONLY | _TARGET_FLAGS, 0, dir_fd)
        except PermissionError:
            return self.open(path, os.O_WRONLY | _TARGET_FLAGS, 0, dir_fd)

    def close_last(self) -> None:
        """Close the newest. An error is real: NFS and quotas report lost writes here. Never retried: close(2)."""
        next(map(os.close, map(list.pop, (self._fds,))))

    def close_last_but_one(self) -> None:
        """Close the one that was opened before the newest."""
        next(map(os.close, map(list.pop, (self._fds,), (-2,))))

    def close(self) -> None:
        """Close all."""
        while len(self._fds) > 1:
            try:
                for _ in map(os.close, iter(self._fds.pop, self._BOTTOM)):
                    pass
            except OSError:
                pass  # nothing was lost that anybody still wants; the kernel released the descriptor all the same
            else:
                self._fds = [self._BOTTOM]

    def __del__(self) -> None:
        if len(self._fds) > 1:
            self.close()


def sync_directory(fd: int) -> None:
    """Wait until the names in the directory *fd* are on the device, where the file system knows how to."""
    try:
        sync_file(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise


def make_directories(path: str, *, sync: bool, mode: int = 0o777) -> None:
    """Create *path* and its missing parents. With *sync* the name of each new one survives a power cut."""
    path = path.rstrip("/") or "/"
    parent = os.path.dirname(path)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    except FileNotFoundError:
        if parent in ("", path):
            raise
        make_directories(parent, sync=sync)
        make_directories(path, sync=sync, mode=mode)
        return
    if sync:
        descriptors = Descriptors()
        try:
            sync_directory(descriptors.open(parent or ".", _DIRECTORY_FLAGS))
        finally:
            descriptors.close()


def open_source(held: Descriptors, path: str, busy_timeout: float) -> int:  # noqa: ARG001  (for Windows)
    """Open what is copied."""
    return held.open(path, os.O_RDONLY | _CLOEXEC)


class Staging(Descriptors):
    """New content on its way to one target. The module's docstring lists the verbs in the order of their use."""

    #: The directory the target is in once links are followed: for messages, lock files and whoever wants a path.
    directory = ""
    #: The target's name in it.
    name = ""
    #: What the target was when last looked at; None where there is none.
    status: os.stat_result | None = None
    #: The target as it was given, if that was relative.
    relative: str | None = None
    #: Whether the path leads through a link of /proc (/dev/stdout): an open file without a name to rename over.
    through = False
    #: The name that the staging file has, or is about to have.
    temporary: str | None = None
    #: The path of the staging file, if it has one in the directory for temporary files.
    elsewhere: str | None = None
    #: The name that a backup has until it gets its own.
    spare: str | None = None
    #: Whether others write to the staging file by its name, and may put another file there.
    lent = False
    #: Whether the staging file got the target's name while it is still open.
    published = False
    #: Device and inode number of the staging file, from when its metadata is settled.
    identity: tuple[int, int] | None = None
    #: The mode that is wanted; None for the old file's, or what the kernel gives to a new one.
    permissions: int | None = None
    #: Seconds to wait for those who have the target open, where that is in the way: on Windows.
    busy_timeout = 2.0
    #: The path of the old content while it is written over in place, as long as nobody needs it.
    backup: str | None = None
    #: What a new target is created with; umask or default ACL apply to it.
    mode_of_new = 0o666
    _directory: int | None = None
    _at = ""  # what comes before a name where calls relative to a descriptor do not exist

    def __init__(self, path: str) -> None:
        self._fds = [self._BOTTOM]
        #: The target, absolute, as it was given.
        self.path = path
        #: The only process that may publish or discard.
        self.owner = os.getpid()

    @property
    def fd(self) -> int:
        """The staging file."""
        return self._fds[-1]

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        """Split *path* into directory and name: os.path.split, several times faster."""
        directory, slash, name = path.rpartition("/")
        return directory or slash, name

    def _replaces_file(self) -> bool:
        return self.status is not None and stat.S_ISREG(self.status.st_mode)

    # -- find ----------------------------------------------------------------------------------------------------------

    def find(
        self, *, follow: bool, make_parents: bool = False, sync: bool = False, flags: int = os.O_WRONLY | os.O_CREAT
    ) -> None:
        """Open the target's directory and look at the target, resolving links one at a time, as open(2) does.

        *flags* are those with which open(2) would open the target: they decide what is wrong with a path such as ``name/``.
        """
        directory, name = self._split(self.path)
        self.directory = directory
        for _ in range(_MAX_LINKS + 1):
            if name in ("", ".", ".."):
                # Names a directory, if anything. open(2) fails with the right errno for that, and can't create anything.
                self.open(self.path, flags | _CLOEXEC)
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            self.name = name
            if directory:
                try:
                    self._enter(directory)
                except FileNotFoundError:
                    if not make_parents:
                        raise
                    make_directories(self.directory, sync=sync)
                    self._enter(directory)
                except PermissionError:
                    # The working directory may lie below one that is closed to us; a relative path does not mind.
                    if not self.relative or self.path != os.path.join(os.getcwd(), self.relative):
                        raise
                    self._enter(self._split(self.relative)[0] or ".")
            self.look()
            status = self.status
            if status is None:
                return
            if not stat.S_ISLNK(status.st_mode):
                # Files of /proc and /sys look regular; what is written to them goes to the kernel.
                if self.directory.startswith(("/proc", "/sys")):
                    self.through = status.st_dev in (_device("/proc"), _device("/sys"))
                return
            if not follow:
                return
            if status.st_dev == _device("/proc"):
                self.through = True
                return
            if self._is_planted(status, "protected_symlinks"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            directory, name = self._split(os.readlink(self._at + name, dir_fd=self._directory))
            self.directory = os.path.join(self.directory, directory) if directory else self.directory
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def _enter(self, directory: str) -> None:
        """Hold *directory* open. Every later call is relative to it, even should it be renamed meanwhile."""
        if os.open not in os.supports_dir_fd:
            self._at = self.directory.rstrip("/") + "/"
            os.stat(self._at)
            return
        try:
            self._directory = self.open(directory, _DIRECTORY_FLAGS, 0, self._directory)
        except PermissionError:
            # As the last part of a path a link in a sticky directory leads its owner only (fs.protected_symlinks); for
            # open(2) of a file it is not the last.
            directory += "/."
            try:
                self._directory = self.open(directory, _DIRECTORY_FLAGS, 0, self._directory)
            except PermissionError:
                self._directory = self.open(directory, _ANCHOR_FLAGS, 0, self._directory)

    def _is_planted(self, found: os.stat_result, setting: str) -> bool:
        """Tell whether open(2) would refuse what another user put into a sticky directory: proc_sys_fs(5) on *setting*.

        The kernel cannot, because it is not asked: links are read here and not followed, and a file is not opened but
        renamed over. Only the owners that pass can remove a name from such a directory, so it cannot lead elsewhere by
        the time it is used.
        """
        directory = os.stat(self._at if self._directory is None else self._directory)
        if not directory.st_mode & stat.S_ISVTX or found.st_uid in (os.geteuid(), directory.st_uid):
            return False
        try:
            with open(f"/proc/sys/fs/{setting}", "rb") as file:
                level = int(file.read(2))
        except OSError:
            level = 1 if sys.platform == "linux" else 0  # what systemd sets; only Linux has such a rule
        writable = (0, stat.S_IWOTH, stat.S_IWOTH | stat.S_IWGRP)[level]
        return bool(directory.st_mode & writable)

    def look(self) -> None:
        """Look at the target: itself, not what it may link to."""
        try:
            self.status = os.stat(self._at + self.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            self.status = None

    def check_writable(self, *, read: bool = False, create: bool = False) -> None:
        """Refuse what open(2) would refuse: to be able to rename over a file is no permission to write to it.

        *create*: whether it would be opened with O_CREAT, which fs.protected_regular is about.
        """
        status = self.status
        assert status is not None
        wanted = stat.S_IRUSR | stat.S_IWUSR if read else stat.S_IWUSR
        if status.st_mode & wanted == wanted and hasattr(os, "geteuid") and status.st_uid == os.geteuid():
            return
        if create and self._is_planted(status, "protected_regular"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if os.access in os.supports_dir_fd or self._directory is None:
            effective = os.access in os.supports_effective_ids
            access = os.R_OK | os.W_OK if read else os.W_OK
            if os.access(self._at + self.name, access, dir_fd=self._directory, effective_ids=effective):
                return
        # access(2) through Python says only no. open knows why; it truncates nothing.
        self.open_target(os.O_RDWR if read else os.O_WRONLY)
        self.close_last()

    def open_target(self, flags: int = os.O_RDONLY) -> int:
        """Open the target, never through a link."""
        return self.open(self._at + self.name, flags | _TARGET_FLAGS, 0, self._directory)

    # -- stage ---------------------------------------------------------------------------------------------------------

    def stage(self, suffix: str | None = None) -> None:
        """Make the staging file in the target's directory, unnamed if that is possible and no *suffix* asks for a name.

        For a new target with 0666, to which the kernel applies umask and default ACL: reading the umask would be a
        race. Where the mode is the old file's or the caller's, with nothing for others as long as :meth:`keep_metadata`
        has not set it.
        """
        unnamed = getattr(os, "O_TMPFILE", 0)
        if unnamed and suffix is None:
            # Nobody can open a file without a name, so it may begin with the mode that it will have.
            mode = stat.S_IMODE(self.status.st_mode) & 0o777 if self._replaces_file() else self.mode_of_new  # type: ignore[union-attr]
            try:
                self.open(self._at or ".", unnamed | _STAGING_FLAGS, mode, self._directory)
            except OSError as error:
                if error.errno not in _NO_UNNAMED:
                    raise
            else:
                return
        self.lent = suffix is not None
        self._stage_named(suffix or "")

    def _stage_named(self, suffix: str = "") -> None:
        mode = 0o600 if self._replaces_file() or self.permissions is not None else self.mode_of_new
        for _ in range(_MAX_NAMES):
            self.temporary = temporary_name(suffix)
            try:
                self.open(self._at + self.temporary, _NAMED_FLAGS, mode, self._directory)
            except FileExistsError:
                continue
            self._claim()
            return
        raise FileExistsError(errno.EEXIST, "no unused temporary name could be found")

    def _claim(self) -> None:
        """Lock the staging file while it is open: proof for whoever cleans up that its writer is alive."""
        try:
            if self.lent:
                lock_byte(self.fd)
            else:
                lock_whole(self.fd)
        except (AttributeError, ImportError, OSError):
            pass  # no such locks here, or no imports any more

    def path_of_staging(self) -> str:
        """Return the path of a staging file that has a name."""
        return self.elsewhere or os.path.join(self.directory, self.temporary or "")

    def reopen(self) -> None:
        """Open the staging file by its name, after it was closed for the rename or given to a consumer."""
        if not self.lent and (self.temporary is None or self._is_open()):
            return
        if self.elsewhere:
            fd = self.open(self.elsewhere, os.O_RDWR | _TARGET_FLAGS)
        else:
            fd = self.open(self._at + (self.temporary or ""), os.O_RDWR | _TARGET_FLAGS, 0, self._directory)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.identity = status.st_dev, status.st_ino

    def _is_open(self) -> bool:
        return any((status.st_dev, status.st_ino) == self.identity for status in map(os.fstat, self._fds[1:]))

    def stage_elsewhere(self, suffix: str | None = None) -> None:
        """Make the staging file in the directory for temporary files: for content that will be written in place."""
        import tempfile  # noqa: PLC0415

        directory = tempfile.gettempdir()
        self.temporary = None
        unnamed = getattr(os, "O_TMPFILE", 0)
        if unnamed and suffix is None:
            try:
                self.open(directory, unnamed | _STAGING_FLAGS, 0o600)
            except OSError:
                pass
            else:
                return
        self.elsewhere = os.path.join(directory, temporary_name(suffix or ""))
        self.open(self.elsewhere, _NAMED_FLAGS, 0o600)

    # -- content -------------------------------------------------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        """Write all of *data*."""
        write_all(self.fd, data)

    def only_append(self) -> None:
        """Make every write go to the end. After the copy: copy_file_range(2) refuses a file that is so opened."""
        if fcntl is None:
            name, directory = f"/proc/self/fd/{self.fd}", None
            if self.temporary is not None:
                name, directory = self._at + self.temporary, self._directory
            self.open(name, os.O_RDWR | os.O_APPEND | _CLOEXEC, 0, directory)
            return
        fcntl.fcntl(self.fd, fcntl.F_SETFL, fcntl.fcntl(self.fd, fcntl.F_GETFL) | os.O_APPEND)

    def same_content(self) -> bool:
        """Whether the target already holds what is staged."""
        staged = self.fd
        if not self._replaces_file() or self.status.st_size != os.fstat(staged).st_size:  # type: ignore[union-attr]
            return False
        try:
            target = self.open_target()
        except PermissionError:
            return False
        os.lseek(staged, 0, os.SEEK_SET)
        while (old := os.read(target, _CHUNK)) == os.read(staged, _CHUNK):
            if not old:
                break
        self.close_last()
        return not old

    def sync_target(self) -> None:
        """Make the content that the target already has survive a power cut."""
        sync_file(self.open_target())
        self.close_last()

    # -- metadata ------------------------------------------------------------------------------------------------------

    def keep_metadata(self) -> None:
        """Give the staging file what the file it replaces has; :attr:`permissions` go before the old mode."""
        new = os.fstat(self.fd)
        self.identity = new.st_dev, new.st_ino
        if self._replaces_file():
            keep(self.fd, new, self.status, self._target_path(), self.permissions)  # type: ignore[arg-type]
        elif self.permissions is not None:
            set_mode(self.fd, self.permissions)

    def set_mode(self, target: int, permissions: int) -> None:
        """Give the target itself, open as *target*, the mode *permissions*: it is written in place."""
        set_mode(target, permissions)

    def _target_path(self) -> str:
        # The calls for extended attributes know no directory descriptor; this has the same effect.
        return f"/proc/self/fd/{self._directory}/{self.name}" if self._directory is not None else self._at + self.name

    # -- publish -------------------------------------------------------------------------------------------------------

    def back_up(self, name: str, *, sync: bool) -> None:
        """Keep the content of the target under *name* too, and replace what had it. The target always has its name."""
        self.spare = temporary_name()
        spare, backup = self._at + self.spare, self._at + name
        try:
            hard_link(self._at + self.name, spare, self._directory, self._directory)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            source = self.open_target()
            copy = self.open(spare, _NAMED_FLAGS, 0o600, self._directory)
            copy_content(source, copy)
            keep(copy, os.fstat(copy), os.fstat(source), self._target_path(), None)
            if sync:
                sync_file(copy)
            self.close_last()
            self.close_last()
        os.rename(spare, backup, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        # rename(2) does nothing where both names are links to one file: an earlier backup of this very content.
        self._remove(self.spare)
        self.spare = None

    def publish(self, *, sync: bool) -> None:
        """Replace the target. Until the rename nothing has happened to it; from then on everybody sees the new one."""
        if self.temporary is None and self.status is None and not sync:
            try:
                self._link(self.name)
            except OSError as error:
                if error.errno != errno.EEXIST and error.errno not in _NO_LINK:
                    raise
            else:
                self.published = True
                return
        self._prepare(sync=sync)
        source, target = self._at + self.temporary, self._at + self.name  # type: ignore[operator]
        try:
            os.rename(source, target, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            if not self._landed():
                raise
        self.temporary = None

    def publish_new(self, *, sync: bool) -> None:
        """Create the target or raise FileExistsError: link(2) looks and creates in one step."""
        if self.temporary is None and not sync:
            try:
                self._link(self.name)
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
            else:
                self.published = True
                return
        self._prepare(sync=sync)
        source, target = self._at + self.temporary, self._at + self.name  # type: ignore[operator]
        try:
            hard_link(source, target, self._directory, self._directory)
        except OSError as error:
            if not self._landed():
                if error.errno not in _NO_LINK:
                    raise
                self._rename_new(source, target)
        self._remove(self.temporary)  # type: ignore[arg-type]
        self.temporary = None

    def _rename_new(self, source: str, target: str) -> None:
        """Do what link(2) would have done, where there are no hard links."""
        try:
            from ._syscalls import rename_new  # noqa: PLC0415

            rename_new(source, target, self._directory)
        except (ImportError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_RENAME_NEW:
                raise
        else:
            return
        # Only O_EXCL looks and creates in one step here: the target exists, empty, until it is renamed over. A process that is
        # killed between these two calls leaves it so.
        held, claimed = len(self._fds), False
        try:
            self.open(target, _NAMED_FLAGS, 0o600, self._directory)
            claimed = True
            self.close_last()
            os.rename(source, target, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except BaseException:
            if (claimed or len(self._fds) > held) and not self._landed():
                os.unlink(target, dir_fd=self._directory)
            raise

    def _prepare(self, *, sync: bool) -> None:
        """Give the staging file a name, sync it, close it."""
        if self.temporary is None:
            self._give_name(claim=sync)
        if sync:
            # After the file has a name: btrfs does nothing for one that has none.
            sync_file(self.fd)
        self.close_last()

    def _give_name(self, *, claim: bool) -> None:
        if claim:  # without a sync the name lasts for two system calls, less than any age at which one would clean up
            self._claim()
        for _ in range(_MAX_NAMES):
            self.temporary = temporary_name()
            try:
                self._link(self.temporary)
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno not in _NO_LINK:
                    raise
                unnamed = self.fd
                self._stage_named()
                os.lseek(unnamed, 0, os.SEEK_SET)
                copy_content(unnamed, self.fd)
                self.keep_metadata()
            return
        raise FileExistsError(errno.EEXIST, "no unused temporary name could be found")

    def _link(self, name: str) -> None:
        """Name the unnamed file, the way that open(2) shows for O_TMPFILE."""
        hard_link(f"/proc/self/fd/{self.fd}", self._at + name, None, self._directory)

    def _landed(self) -> bool:
        """Whether the target is the staged file, whatever the error said: NFS loses replies (rename(2), BUGS)."""
        try:
            found = os.stat(self._at + self.name, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self.identity

    def patiently(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call *function*. On Windows it is called again while others are in its way, for :attr:`busy_timeout`."""
        return function(*arguments)

    def rename_over(self, source: str, target: str) -> None:
        """Rename *source* to *target*, by paths, replacing what is there."""
        os.replace(source, target)

    def unlink_target(self) -> None:
        """Remove the target."""
        os.unlink(self._at + self.name, dir_fd=self._directory)

    def put_right(self) -> None:
        """Close the staging file if it was published open, and check that: FUSE and quotas report lost writes here."""
        if self.published:
            self.published = False
            self.close_last()

    def sync_directory(self) -> None:
        """Make what was published survive a power cut, where the file system knows how to."""
        if self._directory is None:
            self._directory = self.open(self._at, _DIRECTORY_FLAGS)
        try:
            sync_directory(self._directory)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            self._sync_around()

    def _sync_around(self) -> None:
        """Sync more than a directory that one may not read: O_PATH holds it open, and cannot be synced (EBADF)."""
        try:
            from ._syscalls import syncfs  # noqa: PLC0415

            syncfs(self.open_target())
            # ext2, and ext4 without a journal, leave the cache of the device to fsync(2).
            sync_file(self._fds[-1])
        except (ImportError, OSError) as error:
            if isinstance(error, OSError) and error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
                raise
            os.sync()  # one may not read the file either, or there is no such call; this waits for every file system there is
        else:
            self.close_last()

    # -- discard -------------------------------------------------------------------------------------------------------

    def discard(self) -> None:
        """Remove what was staged and not published, and close everything. In a forked child, only close."""
        if (self.temporary is not None or self.spare is not None) and os.getpid() == self.owner:
            for name in (self.temporary, self.spare):
                if name is not None:
                    self._remove(name)
            self.temporary = self.spare = None
        if (self.elsewhere is not None or self.backup is not None) and os.getpid() == self.owner:
            for path in (self.elsewhere, self.backup):
                try:
                    if path is not None:
                        os.unlink(path)
                except OSError:
                    pass  # the consumer removed it, or it was never made
            self.elsewhere = self.backup = None
        self.close()

    def _remove(self, name: str) -> None:
        """Remove the temporary *name*. Nobody else has its 64 random bits, not even once what had it was renamed."""
        try:
            os.unlink(self._at + name, dir_fd=self._directory)
        except (IsADirectoryError, PermissionError):  # EISDIR is Linux's answer for a directory, EPERM that of POSIX
            if self.lent:
                import shutil  # noqa: PLC0415

                shutil.rmtree(self._at + name, ignore_errors=True, dir_fd=self._directory)
        except OSError:
            pass  # already gone; or a name is left that the library knows as its own

    def __del__(self) -> None:
        if len(self._fds) > 1:
            self.discard()


def _device(path: str) -> int | None:
    """Return the device number of what is mounted at *path*; None where it is just a directory: in a chroot, on Emscripten."""
    try:
        device = os.stat(path).st_dev
        return device if device != os.stat("/").st_dev else None
    except OSError:
        return None
