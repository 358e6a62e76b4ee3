"""The verbs of an atomic write on Windows: those of :mod:`atomicio._posix` where they differ."""

from __future__ import annotations

import errno
import os
import stat
import time

from . import _posix
from ._posix import copy_content, make_directories, sync_file, temporary_name

__all__ = ["Staging", "absolute", "copy_content", "make_directories", "sync_file", "temporary_name"]

# ERROR_ACCESS_DENIED, ERROR_SHARING_VIOLATION, ERROR_LOCK_VIOLATION: somebody has the file open, perhaps not for long.
_PASSING = frozenset({5, 32, 33})
_PAUSES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.2, 0.2, 0.2)


def absolute(path: str) -> str:
    """Return *path* made independent of the current directory."""
    return os.path.abspath(path) if path else path


class Staging(_posix.Staging):
    """New content on its way to one target."""

    def check_writable(self) -> None:
        """Refuse what open would refuse: a read-only file."""
        assert self.status is not None
        if not self.status.st_mode & stat.S_IWRITE:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        return os.path.split(path)

    def keep_metadata(self) -> None:
        """Take note of the staging file; the ACL of the directory is inherited."""
        new = os.fstat(self.fd)
        self.identity = new.st_dev, new.st_ino

    def publish(self, *, sync: bool) -> None:
        """Replace the target: MoveFileExW with MOVEFILE_REPLACE_EXISTING, again while somebody has the target open."""
        self._prepare(sync=sync)
        source, target = self._at + self.temporary, self._at + self.name  # type: ignore[operator]
        for pause in (*_PAUSES, None):
            try:
                os.replace(source, target)
            except PermissionError as error:
                if getattr(error, "winerror", None) not in _PASSING:
                    raise
                if pause is None:
                    self._move_aside(source, target)
                    break
                time.sleep(pause)
            else:
                break
        self.temporary = None

    def publish_new(self, *, sync: bool) -> None:
        """Create the target or raise FileExistsError, in one step: MoveFileExW without MOVEFILE_REPLACE_EXISTING."""
        self._prepare(sync=sync)
        os.rename(self._at + self.temporary, self._at + self.name)  # type: ignore[operator]
        self.temporary = None

    def _move_aside(self, source: str, target: str) -> None:
        """Replace in two steps; the old file is kept until the new one is there, and put back if it never is."""
        aside = self._at + temporary_name()
        os.rename(target, aside)
        try:
            os.rename(source, target)
        except BaseException:
            os.rename(aside, target)
            raise
        os.unlink(aside)

    def sync_directory(self) -> None:
        """NTFS journals names; there is no call that syncs a directory."""
