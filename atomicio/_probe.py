"""What one place can do, found out by trying, and what the library can therefore promise there."""

from __future__ import annotations

import errno
import os
import stat
import sys

from ._directory import Tree
from ._filesystem import Mount, mount_of
from ._posix import _DIRECTORY_FLAGS, _NAMED_FLAGS, _NO_DIRECTORY_SYNC, Descriptors, hard_link, sync_file, write_all
from ._verbs import _share

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ._writer import Path

__all__ = ["Probe", "probe"]

# It makes no lock file, and above all no directory for one, should there be none any more: who asks may be gone. filelock makes
# the directory of a lock, with Path.mkdir(exist_ok=True), which takes this answer for one only where there is a directory.
_CHILD = """
import os, sys
name = {name!r}
sys.path[:] = {path!r}
from filelock import FileLock, Timeout
def mkdir(path, *_, **__):
    raise FileExistsError(17, "no directory is made here", path)
os.mkdir = mkdir
os.path.exists(name) or sys.exit(1)
try:
    FileLock(name, timeout=0).acquire()
except Timeout:
    sys.exit(77)
"""


class Probe:
    """What one directory can do. True: it was tried and works; False: it was tried and does not; None: not known on this system."""

    def __init__(self, path: str, mount: Mount | None) -> None:
        #: The directory that was tried.
        self.path = path
        #: The type of the file system (``"ext4"``, ``"nfs4"``, ``"fuse.sshfs"``); None where the system does not tell.
        self.filesystem = mount.type if mount else None
        #: Whether the files are on another machine.
        self.network = mount.network if mount else None
        #: Whether a program serves the files.
        self.fuse = mount.fuse if mount else None
        #: Whether there is no device below: everything is gone after a restart.
        self.in_memory = mount.in_memory if mount else None
        #: The mount option that makes a sync do nothing, if there is one.
        self.unsynced = mount.syncs_nothing if mount else None
        #: Files without a name (O_TMPFILE): a killed writer leaves nothing behind.
        self.unnamed_files: bool | None = None
        #: Two names for one file: backups without a copy.
        self.hard_links: bool | None = None
        #: Creating a file without replacing one, in one step (``mode="x"``).
        self.create_new: bool | None = None
        #: Two directories that change places in one step (``atomic_directory`` without a gap).
        self.exchange: bool | None = None
        #: fsync of a file returns without an error.
        self.file_sync: bool | None = None
        #: fsync of a directory returns without an error.
        self.directory_sync: bool | None = None
        #: Copies that share their blocks until one of them changes (``copy``).
        self.reflink: bool | None = None
        #: A lock that this process holds keeps another process out (``lock=True``).
        self.locks: bool | None = None
        #: Permission bits stay what they were set to.
        self.permissions: bool | None = None
        #: ``a`` and ``A`` are two names.
        self.case_sensitive: bool | None = None

    @property
    def promises(self) -> dict[str, str]:
        """One sentence for each level of durability."""
        sight = "every process sees the old or the new content, whole"
        if self.network:
            sight = "every process on this machine sees the old or the new content, whole, and other machines may see the old for a while"
        return {
            "none": f"{sight}; a power cut may leave anything",
            "consistent": f"{sight}; {self._after_power_cut(durable=False)}",
            "durable": f"{sight}; {self._after_power_cut(durable=True)}",
        }

    def _after_power_cut(self, *, durable: bool) -> str:
        if self.in_memory:
            return f"after a restart everything is gone: {self.filesystem} is in memory"
        if self.unsynced:
            return f"a power cut may leave anything: the file system is mounted with {self.unsynced!r}, which makes syncs do nothing"
        if self.file_sync is False:
            return "a power cut may leave anything: files can't be synced here"
        cut = "a power cut"
        if self.network:
            cut = "a power cut, of the server too if it keeps what it has acknowledged,"
        elif self.fuse:
            cut = f"a power cut, if the program behind {self.filesystem} does what a sync asks for,"
        if not durable:
            return f"after {cut} the old or the new content is there, whole"
        if self.directory_sync is False:
            return (
                f"after {cut} the old or the new content is there, whole: directories can't be synced here, so the file system "
                "chooses when a replacement becomes durable"
            )
        if os.name == "nt":
            return f"after {cut} the new content is there once the call has returned, if the file system journals names, as NTFS does"
        return f"after {cut} the new content is there once the call has returned"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as a dictionary that :mod:`json` can write."""
        return {**vars(self), "promises": self.promises}

    def __repr__(self) -> str:
        return f"<Probe {self.path!r}: {self.filesystem}>"


def probe(path: Path = ".") -> Probe:
    """Find out what the directory *path* can do, and what is promised there.

    Tries everything in a directory ``.atomicio-<16 hex digits>.dir`` that it makes and removes again; the locks are tried with a second
    process.

    :param path: a directory one may write in
    :returns: an object with an attribute for each capability, ``promises`` (one sentence for each durability level) and ``as_dict()``
    :raises OSError: if *path* is not a directory, or nothing can be created in it

    A sync that returns without an error is believed: what a drive, a hypervisor or a FUSE program makes of it can't be seen from here.
    """
    given = os.fspath(path)
    directory = os.path.abspath(given if isinstance(given, str) else os.fsdecode(given))
    scratch = Tree(os.path.join(directory, "probe"))
    try:
        try:
            scratch.find(follow=False)
            scratch.stage()
        except OSError as error:
            code = errno.ENOTDIR if os.path.isfile(directory) else error.errno  # Windows says that the name is invalid
            raise OSError(code, os.strerror(code), given) from None  # type: ignore[arg-type]
        has_descriptors = os.open in os.supports_dir_fd
        found = Probe(directory, mount_of(scratch.fd) if has_descriptors else None)
        trial = _Trial(scratch.path_of_staging())
        try:
            found.unnamed_files = trial.unnamed_file()
            found.file_sync = trial.file_sync()
            found.hard_links = trial.hard_link()
            found.create_new = trial.create_new(hard_links=found.hard_links)
            found.exchange = trial.exchange()
            if has_descriptors:
                found.directory_sync = trial.directory_sync(scratch.fd)
            elif sys.platform == "win32":
                found.directory_sync = scratch.sync_directory_named(trial.directory)
            found.reflink = trial.reflink()
            found.permissions = trial.permissions()
            found.case_sensitive = trial.case()
            found.locks = trial.locks()
        finally:
            trial.held.close()
        return found
    finally:
        scratch.discard()


class _Trial:
    """One thing after the other, in a directory of its own."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.held = Descriptors()

    def at(self, name: str) -> str:
        return os.path.join(self.directory, name)

    def file(self, name: str, content: bytes = b"") -> int:
        fd = self.held.open(self.at(name), _NAMED_FLAGS, 0o600)
        write_all(fd, content)
        return fd

    def unnamed_file(self) -> bool:
        if not hasattr(os, "O_TMPFILE"):
            return False
        try:
            fd = self.held.open(self.directory, os.O_TMPFILE | os.O_RDWR, 0o600)  # type: ignore[attr-defined,unused-ignore]
            anchor = self.held.open(self.directory, _DIRECTORY_FLAGS)
            hard_link(f"/proc/self/fd/{fd}", "unnamed", None, anchor)
        except OSError:
            return False
        return os.path.exists(self.at("unnamed"))

    def file_sync(self) -> bool:
        try:
            sync_file(self.file("synced", b"x"))
        except OSError:
            return False
        return True

    def hard_link(self) -> bool:
        one, other = self.at("linked"), self.at("link")
        self.file("linked")
        try:
            hard_link(one, other, None, None)
        except (OSError, NotImplementedError):
            return False
        return os.path.samefile(one, other)

    def create_new(self, *, hard_links: bool | None) -> bool:
        if hard_links:
            return True  # link(2) never replaces
        self.file("newer")
        self.file("there")
        if os.name == "nt":
            try:
                os.rename(self.at("newer"), self.at("there"))
            except FileExistsError:
                return True
            return False
        from ._syscalls import rename_new  # noqa: PLC0415

        try:
            rename_new(self.at("newer"), self.at("there"), None)
        except FileExistsError:
            return True
        except OSError:
            pass
        return False

    def exchange(self) -> bool:
        from ._syscalls import exchange  # noqa: PLC0415

        one, other = self.at("one"), self.at("other")
        os.mkdir(one)
        os.mkdir(other)
        before = os.stat(one).st_ino
        try:
            exchange(one, other, None)
        except OSError:
            return False
        return os.stat(other).st_ino == before

    def directory_sync(self, fd: int) -> bool:
        try:
            sync_file(fd)
        except OSError as error:
            if error.errno in _NO_DIRECTORY_SYNC:
                return False
            raise
        return True

    def reflink(self) -> bool | None:
        source = self.file("shared", b"x" * 65536)
        if sys.platform == "linux":
            return _share(source, self.file("sharing")) and os.stat(self.at("sharing")).st_size == 65536
        if sys.platform == "darwin":
            import ctypes  # noqa: PLC0415

            clonefile = getattr(ctypes.CDLL(None), "clonefile", None)
            return clonefile is not None and not clonefile(os.fsencode(self.at("shared")), os.fsencode(self.at("sharing")), 0)
        return None

    def permissions(self) -> bool:
        self.file("bits")
        for mode in (0o640, 0o600):
            try:
                os.chmod(self.at("bits"), mode)
            except OSError:
                return False
            if stat.S_IMODE(os.stat(self.at("bits")).st_mode) != mode:
                return False
        return True

    def case(self) -> bool:
        self.file("case")
        return not os.path.exists(self.at("CASE"))

    def locks(self) -> bool | None:
        import subprocess  # noqa: PLC0415

        from filelock import FileLock  # noqa: PLC0415

        name = self.at("lock")
        if not sys.executable:
            return None
        lock = FileLock(name)
        try:
            lock.acquire(timeout=0)
        except (OSError, NotImplementedError):
            return False
        try:
            child = _CHILD.format(path=sys.path, name=name)
            status = subprocess.run([sys.executable, "-I", "-c", child], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.ENOENT, errno.ENOEXEC, errno.ENOSYS, errno.EAGAIN, errno.ENOMEM):
                return None  # there is no second process to be had here
            raise
        finally:
            lock.release()
        return {77: True, 0: False}.get(status.returncode)
