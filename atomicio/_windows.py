"""The verbs of an atomic write on Windows: those of :mod:`atomicio._posix`, where they differ.

Three things are different. A file that somebody has open cannot be renamed over, nor removed (sharing violations); names are
folded, normalised and reserved; and there is no descriptor of a directory to work relative to, so every call has a full path.

``_winapi`` and ``msvcrt`` are compiled into the interpreter. What needs ctypes is in :mod:`atomicio._win32`, and is imported
when a file is replaced that has to hand on its access rights, or that somebody has open.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import errno
import msvcrt
import os
import stat
import time
from operator import methodcaller

from . import _posix
from ._errors import UnreplaceableTargetError
from ._posix import copy_content, sync_file, temporary_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = [
    "Staging",
    "absolute",
    "copy_content",
    "make_directories",
    "open_shared_fd",
    "open_source",
    "patiently",
    "sync_directory_named",
    "sync_file",
    "temporary_name",
]

# Seconds that are waited once busy_timeout is used up, to remove a temporary file or to bring back the old one.
_LAST_TIMEOUT = 0.5
# Seconds, half of busy_timeout at most, in which a rename in one step has to come through before it is tried in two.
_ONE_STEP_TIMEOUT = 1.0
# Seconds for a refusal that may be about a file that is being removed, but is mostly about access rights.
_CHECK_TIMEOUT = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05
_FOREVER = float("inf")

# <winerror.h>
_INVALID_FUNCTION = 1
_ACCESS_DENIED = 5
_SHARING_VIOLATION = 32
_LOCK_VIOLATION = 33
_NOT_SUPPORTED = 50
_INVALID_PARAMETER = 87
_INVALID_NAME = 123
# Somebody has the file open, and may close it soon. Any other error would be the same the next time.
_PASSING = frozenset({_ACCESS_DENIED, _SHARING_VIOLATION, _LOCK_VIOLATION})

# Directories cannot be opened for writing here, or flushed. FAT drivers and network servers differ.
_NO_DIRECTORY_SYNC = frozenset({_INVALID_FUNCTION, _ACCESS_DENIED, _NOT_SUPPORTED, _INVALID_PARAMETER})

# <winnt.h>, <fileapi.h>
_GENERIC_READ = 0x80000000
_GENERIC_WRITE = 0x40000000
_DELETE = 0x00010000
_SHARE_NOTHING = 0
_SHARE_ALL = 1 | 2 | 4
_OPEN_EXISTING = 3
_OPEN_ALWAYS = 4
_ATTRIBUTE_NORMAL = 0x80
_BACKUP_SEMANTICS = 0x02000000  # what CreateFileW wants in order to open a directory
_DELETE_ON_CLOSE = 0x04000000

_DEVICE = "\\\\.\\"
_VERBATIM = "\\\\?\\"
_MAX_PATH = 259
_MAX_NAME = 255
_MAX_LINKS = 63  # what Windows follows: "Reparse Points and File Operations"

# Beside the target while it is replaced in two steps; they are not litter, and do not look like it.
_ASIDE = ".atomicio-old"
_GUARD = ".atomicio-guard"
_LOOKS = 5  # writers may take their two steps one after the other, and the target be missing each time that one looks


def absolute(path: str) -> str:
    """Return *path* made independent of the current directory, in the form that Windows itself gives it before it opens it.

    That is where ``..``, trailing dots and spaces go, and where ``NUL`` becomes a device.
    """
    if not path:
        return path
    full = os.path.abspath(path)
    return full + os.sep if path[-1] in "\\/" and full[-1] != os.sep else full


def patiently(timeout: float, function: Callable[..., T], *arguments: Any) -> T:
    """Call *function* until it no longer fails because somebody has the file open, for *timeout* seconds at most."""
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    while True:
        try:
            return function(*arguments)
        except OSError as error:
            left = deadline - time.monotonic()
            if error.winerror not in _PASSING or not left > 0:
                raise
        # Between half the pause and all of it, so that writers who collided do not collide again.
        time.sleep(min(left, pause * (0.5 + os.urandom(1)[0] / 510)))
        pause = min(2 * pause, _LONGEST_PAUSE)


def make_directories(path: str, *, sync: bool, mode: int = 0o777) -> None:
    """Create *path* and its missing parents. With *sync* the name of each new one survives a power cut."""
    path = path.rstrip(os.sep)
    parent = os.path.dirname(path)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    except FileNotFoundError:
        if parent in ("", path):
            raise
        make_directories(parent, sync=sync)
        if not os.path.isdir(parent):  # a file is in the way, which Windows calls a missing path
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), parent) from None
        make_directories(path, sync=sync, mode=mode)
        return
    if sync:
        sync_directory_named(parent)


def sync_directory_named(path: str) -> bool:
    """Wait until the names in the directory *path* are on the device; return False where that is not possible."""
    descriptors = _Descriptors()
    try:
        return descriptors.sync_directory_named(path)
    finally:
        descriptors.close()


def open_shared_fd(path: str, flags: int, busy_timeout: float) -> int:
    """Open *path* for reading as the opener of :func:`open`, and let others write, rename and remove it meanwhile."""
    name = absolute(os.fsdecode(path))
    deadline = time.monotonic() + busy_timeout
    descriptors = _Descriptors()
    try:
        for candidate in (name, name + _ASIDE, name):  # between the two steps of a replacement the old file is aside
            try:
                left = deadline - time.monotonic()
                patiently(left, descriptors.open_handle, _verbatim(candidate), _GENERIC_READ, os.O_RDONLY)
            except FileNotFoundError as error:
                missing = error
            else:
                return descriptors.release_last()
    except OSError as error:
        raise OSError(error.errno, error.strerror, path, error.winerror) from None
    raise OSError(missing.errno, missing.strerror, path, missing.winerror)


def open_source(held: _posix.Descriptors, path: str, busy_timeout: float) -> int:
    """Open what is copied, and be in nobody's way."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    held._fds.extend(map(open_shared_fd, (path,), (os.O_RDONLY,), (busy_timeout,)))
    return held._fds[-1]


def _verbatim(path: str, longer_by: int = 0) -> str:
    r"""Return *path* so that Windows takes it beyond 259 characters too, where it is that long or will be: with ``\\?\``."""
    if len(path) + longer_by <= _MAX_PATH or path.startswith((_VERBATIM, _DEVICE)):
        return path
    return f"{_VERBATIM}UNC{path[1:]}" if path.startswith("\\\\") else _VERBATIM + path


class _Descriptors(_posix.Descriptors):
    """Open descriptors, owned from the system call that opens them to the one that closes them."""

    def open(self, path: str, flags: int, mode: int = 0o666, dir_fd: int | None = None) -> int:
        flags |= os.O_BINARY | os.O_NOINHERIT
        self._fds.extend(map(methodcaller("open", path, flags, mode), (os,)))
        return self._fds[-1]

    def open_handle(
        self,
        path: str,
        access: int,
        flags: int,
        share: int = _SHARE_ALL,
        disposition: int = _OPEN_EXISTING,
        attributes: int = _ATTRIBUTE_NORMAL,
    ) -> int:
        """Open *path* with what ``os.open`` has no flags for. Nothing can come in between: see the parent class."""
        handles = map(_winapi.CreateFile, (path,), (access,), (share,), (0,), (disposition,), (attributes,), (0,))
        self._fds.extend(map(msvcrt.open_osfhandle, handles, (flags | os.O_BINARY | os.O_NOINHERIT,)))
        return self._fds[-1]

    def release_last(self) -> int:
        """Give the newest away."""
        return self._fds.pop()

    def sync_directory_named(self, path: str) -> bool:
        """Wait until the names in the directory *path* are on the device; return False where that is not possible.

        FlushFileBuffers of a directory that is open for writing "ensures that the directory structure is persisted to stable
        storage": [MS-FSA] 2.1.5.7; the access it takes is in [MS-SMB2] 3.3.5.11 and NtFlushBuffersFileEx.
        """
        try:
            self.open_handle(path, _GENERIC_WRITE, 0, attributes=_BACKUP_SEMANTICS)
        except OSError as error:
            if error.winerror not in _NO_DIRECTORY_SYNC:
                raise
            return False
        possible = True
        try:
            os.fsync(self._fds[-1])
        except OSError:
            # _commit() of the C runtime says EBADF for whatever FlushFileBuffers said.
            code = _winapi.GetLastError()
            if code not in _NO_DIRECTORY_SYNC:
                raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} (FlushFileBuffers: {code})") from None
            possible = False
        self.close_last()
        return possible


class Staging(_Descriptors, _posix.Staging):
    """New content on its way to one target."""

    _waited = 0.0

    def patiently(
        self, function: Callable[..., T], *arguments: Any, share: float = 1.0, most: float = _FOREVER, least: float = 0.0
    ) -> T:
        """Call *function* until it no longer fails because somebody has the file open.

        All these calls of one write together have ``busy_timeout`` seconds. This one has the *share* of what is left of them, but
        *most* and *least* so many seconds.
        """
        begun = time.monotonic()
        try:
            return patiently(max(min(share * (self.busy_timeout - self._waited), most), least), function, *arguments)
        finally:
            self._waited += time.monotonic() - begun

    # -- find -------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        return os.path.split(path)

    def find(self, *, follow: bool, make_parents: bool = False, sync: bool = False, flags: int = 0) -> None:
        """Look at the target, resolving links in its last component. Those before it, Windows resolves at every call."""
        path = self.path
        for _ in range(_MAX_LINKS + 1):
            if path.startswith(_DEVICE):
                self.name = path
                self.look()
                return
            self.directory, self.name = self._split(path)
            if not self.name:
                os.stat(path)
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if ":" in self.name:
                reason = "a named stream of a file cannot be renamed over; the file was not changed"
                raise UnreplaceableTargetError(errno.EINVAL, reason, self.path)
            self._at = _verbatim(self.directory.rstrip(os.sep) + os.sep, longer_by=len(self.name) + 30)
            try:
                os.stat(self._at)
            except OSError as error:
                # A file in the way is a missing path to open, but makes the name of a directory an invalid one.
                if error.winerror == _INVALID_NAME and os.path.isfile(self.directory):
                    error = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                if not make_parents or not isinstance(error, FileNotFoundError):
                    raise error from None
                make_directories(self._at, sync=sync)
            self.look()
            if not follow or self.status is None or not stat.S_ISLNK(self.status.st_mode):
                self._keep_spelling()
                return
            path = absolute(os.path.join(self.directory, os.readlink(self._at + self.name)))
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def look(self) -> None:
        """Look at the target: itself, not what it may link to. If a writer died half way, put the old file back first."""
        if self.name.startswith(_DEVICE):
            self.status = os.stat_result((stat.S_IFCHR | 0o666, *[0] * 9))
            return
        self.patiently(super().look)
        for _ in range(_LOOKS):
            if self.status is not None:
                return
            # Another writer may be between its two steps, or have died there, or just have done the second.
            if os.path.lexists(self._at + self.name + _ASIDE):
                self._put_back()
            self.patiently(super().look)

    def _with_target(self, function: Callable[..., T], *arguments: Any, most: float = _FOREVER) -> T | None:
        """Call *function*, which opens the target. Another writer may be between its two steps: then wait for the second.

        Returns None if there is no target any more.
        """
        for looks in range(_LOOKS + 1):
            if self.status is None:
                break
            try:
                return self.patiently(function, *arguments, most=most)
            except FileNotFoundError:
                if looks == _LOOKS:  # it is there to be looked at, and is not: whoever says so will not change his mind
                    raise
                self.look()
        return None

    def _keep_spelling(self) -> None:
        """Keep upper and lower case as the directory has them, and a long name that was given in its short form."""
        if self.status is None:
            return
        try:
            name = os.path.basename(os.path.realpath(self._at + self.name))
        except OSError:  # Wine 8: ERROR_MORE_DATA for a name beyond 235
            return
        # The file may have a second link of another name, and realpath may be told that one.
        if name != self.name and (name.lower() == self.name.lower() or "~" in self.name):
            try:
                found = os.stat(self._at + name, follow_symlinks=False)
            except OSError:
                return
            if os.path.samestat(found, self.status):
                self.name = name

    def check_writable(self, *, read: bool = False, create: bool = False) -> None:
        """Refuse what open would refuse: the read-only attribute, or access rights that do not let this user write."""
        if self.status is not None and not self.status.st_mode & stat.S_IWRITE:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        access = _GENERIC_READ | _GENERIC_WRITE if read else _GENERIC_WRITE
        self._with_target(self._check_access, access, most=_CHECK_TIMEOUT)

    def _check_access(self, access: int) -> None:
        try:
            self.open_handle(self._at + self.name, access, 0)
        except OSError as error:
            if error.winerror not in (_SHARING_VIOLATION, _LOCK_VIOLATION):
                raise  # who has it open without sharing may close it before the rename
        else:
            self.close_last()

    def open_target(self, flags: int = os.O_RDONLY) -> int:
        """Open the target, and let others do what they want with it meanwhile."""
        access = {os.O_RDONLY: _GENERIC_READ, os.O_WRONLY: _GENERIC_WRITE}.get(flags, _GENERIC_READ | _GENERIC_WRITE)
        fd = self._with_target(self.open_handle, self._at + self.name, access, flags)
        if fd is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return fd

    # -- stage ------------------------------------------------------------------------------------------------------------------

    def stage(self, suffix: str | None = None) -> None:
        """Make the staging file in the target's directory. A path that is lent out is closed: it may be replaced."""
        super().stage(suffix)
        if self.lent:
            self.close_last()

    def _claim(self) -> None:
        """Do nothing: a file that is open without FILE_SHARE_DELETE cannot be removed, which is claim enough."""

    def path_of_staging(self) -> str:
        """Return the path of a staging file that has a name."""
        return self.elsewhere or self._at + (self.temporary or "")

    def stage_elsewhere(self, suffix: str | None = None) -> None:
        """Make the staging file in the directory for temporary files: for content that will be written in place."""
        import tempfile

        path = os.path.join(tempfile.gettempdir(), temporary_name(suffix or ""))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        if suffix is None:
            self.open(path, flags | os.O_TEMPORARY, 0o600)
        else:
            self.elsewhere = path
            self.open(path, flags, 0o600)

    # -- content ----------------------------------------------------------------------------------------------------------------

    def only_append(self) -> None:
        """Make every write go to the end: O_APPEND is a flag of the C runtime's descriptor, and is given when it is opened."""
        self.open(self.path_of_staging(), os.O_RDWR | os.O_APPEND)

    def same_content(self) -> bool:
        """Whether the target already holds what is staged."""
        staged = self.fd
        if not self._replaces_file() or self.status.st_size != os.fstat(staged).st_size:  # type: ignore[union-attr]
            return False
        target = self.open_target()
        os.lseek(staged, 0, os.SEEK_SET)
        while (old := os.read(target, 1 << 20)) == os.read(staged, 1 << 20) and old:
            pass
        self.close_last()
        return not old

    def sync_target(self) -> None:
        """Make the content that the target already has survive a power cut. FlushFileBuffers wants a handle that may write."""
        sync_file(self.open_target(os.O_RDWR))
        self.close_last()

    # -- metadata ---------------------------------------------------------------------------------------------------------------

    def keep_metadata(self) -> None:
        """Give the staging file the access rights (DACL) and attributes of the file it replaces; a new one inherits its rights."""
        new = os.fstat(self.fd)
        self.identity = new.st_dev, new.st_ino
        if self._replaces_file():
            try:
                from ._win32 import keep
            except ImportError:
                return  # an application that has closed the import system (sys.meta_path); the rights are the directory's
            self._with_target(keep, self._at + self.name, self.path_of_staging())

    def set_mode(self, target: int, permissions: int) -> None:
        """Set or clear the read-only attribute of the target: the one bit of *permissions* that Windows has."""
        os.chmod(self._at + self.name, permissions)

    # -- publish ----------------------------------------------------------------------------------------------------------------

    def back_up(self, name: str, *, sync: bool) -> None:
        """Keep the content of the target under *name* too, replacing what had that name. The target is never without a name."""
        self.spare = temporary_name()
        spare = self._at + self.spare
        try:
            self._with_target(os.link, self._at + self.name, spare)
        except OSError:  # FAT and many network file systems have no hard links, and as many errors to say so
            source = self.open_target()
            copy = self.open(spare, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            copy_content(source, copy)
            if sync:
                sync_file(copy)
            self.close_last()
            self.close_last()
        self.patiently(os.replace, spare, self._at + name)
        self._remove(self.spare)  # if both were links to one file, it may still be there
        self.spare = None

    def publish(self, *, sync: bool) -> None:
        """Replace the target. Until the rename nothing has happened to it; from then on everybody sees the new content.

        A target that somebody has open cannot be renamed over. In this order: MoveFileExW; the rename of POSIX, where Windows and
        the file system have it, which works if it is open with FILE_SHARE_DELETE; both again for a second, or half of ``busy_timeout``;
        and last in two steps, the old file aside and the new one in, which works with FILE_SHARE_DELETE everywhere.
        """
        self._prepare(sync=sync)
        source, target = self.path_of_staging(), self._at + self.name
        two_steps = len(self.name + _ASIDE) <= _MAX_NAME
        try:
            if two_steps:
                self.patiently(self._try_rename, source, target, share=0.5, most=_ONE_STEP_TIMEOUT)
            else:
                self.rename_over(source, target)
        except OSError as error:
            if not self._landed():
                if error.winerror not in _PASSING or not two_steps:
                    raise
                if error.winerror == _ACCESS_DENIED:
                    self._replace_in_two_steps(source, target)
                else:
                    # Nobody has the target open, but somebody has the staging file, which no second step would change.
                    self.rename_over(source, target)
        self.temporary = None

    def rename_over(self, source: str, target: str) -> None:
        """Rename *source* to *target*, replacing what is there, once nobody is in the way."""
        self.patiently(self._try_rename, source, target)

    def _try_rename(self, source: str, target: str) -> None:
        try:
            os.replace(source, target)
        except PermissionError as error:
            if error.winerror != _ACCESS_DENIED:
                raise
            try:
                from ._win32 import rename_posix
            except ImportError:
                raise error from None
            if not rename_posix(source, target):
                raise

    def publish_new(self, *, sync: bool) -> None:
        """Create the target or raise FileExistsError: MoveFileExW without MOVEFILE_REPLACE_EXISTING does both in one step."""
        self._prepare(sync=sync)
        try:
            self.patiently(os.rename, self.path_of_staging(), self._at + self.name)
        except OSError:
            if not self._landed():
                raise
        self.temporary = None

    def _prepare(self, *, sync: bool) -> None:
        """Sync the staging file, and close all that is open: our own handles would be in the way of the rename too."""
        if sync:
            sync_file(self.fd)
        if self.permissions is not None:
            os.chmod(self.path_of_staging(), self.permissions)
        self.close_last()
        self.close()

    def reopen(self) -> None:
        """Open the staging file by its name: again, after it was closed for the rename, or whatever a consumer put there."""
        if self.permissions is not None and self.temporary is not None:
            os.chmod(self.path_of_staging(), stat.S_IREAD | stat.S_IWRITE)
        super().reopen()

    def _hold_guard(self) -> None:
        """Keep everybody else from the two steps. The file, and with it the guard, goes away with the process that holds it."""
        self.patiently(
            self.open_handle,
            self._at + self.name + _GUARD,
            _GENERIC_WRITE | _DELETE,
            0,
            _SHARE_NOTHING,
            _OPEN_ALWAYS,
            _DELETE_ON_CLOSE,
        )

    def _replace_in_two_steps(self, source: str, target: str) -> None:
        """Move the old file aside, the new one in, and remove the old one. Whenever this ends, one of them is there to be found.

        Between the two steps the target is missing: what was aside is put back if the second step fails, and by the next
        writer that looks at the target if this process ends there. An aside that is there with the target is of no use any more.
        """
        aside = target + _ASIDE
        self._hold_guard()
        try:
            try:
                self.patiently(os.replace, target, aside)
            except FileNotFoundError:
                pass  # somebody removed it meanwhile, and nothing is in the way any more
            try:
                self.patiently(os.replace, source, target, least=_LAST_TIMEOUT)
            except BaseException:
                self._rename_back(aside, target)
                raise
            self.spare = temporary_name()
            try:
                # A reader that has the old file open keeps its name alive: it must not be the name that the next writer needs.
                os.rename(aside, self._at + self.spare)
            except OSError:
                pass  # the next writer in need replaces it
            self._remove(self.spare)
            self.spare = None
        finally:
            self.close()

    def _put_back(self) -> None:
        """Undo the first of the two steps, which a process that died did not follow with the second."""
        target = self._at + self.name
        self._hold_guard()
        try:
            self._rename_back(target + _ASIDE, target)
        finally:
            self.close_last()

    def _rename_back(self, aside: str, target: str) -> None:
        try:
            self.patiently(os.rename, aside, target, least=_LAST_TIMEOUT)
        except (FileExistsError, FileNotFoundError):
            pass  # the second step was done after all, or somebody else wrote the file

    def unlink_target(self) -> None:
        """Remove the target, once nobody is in the way."""
        self.patiently(os.unlink, self._at + self.name)

    def sync_directory(self) -> None:
        """Make what was published survive a power cut, where the file system knows how to."""
        self.sync_directory_named(self._at)

    # -- discard ----------------------------------------------------------------------------------------------------------------

    def discard(self) -> None:
        """Close everything, then remove what was staged and not published: an open file cannot be removed."""
        self.close()
        for name in (self.temporary, self.spare):
            if name is not None:
                self._remove(name)
        self.temporary = self.spare = None
        super().discard()

    def __del__(self) -> None:
        if len(self._fds) > 1 or self.temporary or self.spare or self.elsewhere:
            self.discard()

    def _remove(self, name: str) -> None:
        """Remove the temporary *name*. Nobody else uses it: on Windows a name of 64 random bits is never handed on."""
        path = self._at + name
        try:
            if self.lent and os.path.isdir(path):
                import shutil

                shutil.rmtree(path)
                return
            if self.permissions is not None:
                os.chmod(path, stat.S_IREAD | stat.S_IWRITE)
            patiently(min(_LAST_TIMEOUT, self.busy_timeout), os.unlink, path)
        except OSError:
            pass  # already gone; or a name is left that the library knows as its own
