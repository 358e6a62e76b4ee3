"""Writing into a file that cannot be renamed over: not atomic, and only when asked for with ``fallback="in-place"``.

The new content is complete and elsewhere before the first byte of the target changes. The old content is kept in a
backup until the new one is written and synced; should the process be killed in between, the backup is what recovers the
file, and its name (``.atomicio-<16 hex digits>.backup`` beside the target, or in the directory for temporary files when
one may not create files beside it) tells it from litter. Readers can see the file half written. What grows is written
first, so that a full disk shows before anything is overwritten.
"""

from __future__ import annotations

import errno
import os

from ._posix import copy_content, sync_file, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._posix import Staging

__all__ = ["overwrite"]

_CHUNK = 1 << 20
_BACKUP_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


def overwrite(staging: Staging, permissions: int | None, *, sync: bool) -> None:
    """Write the staged content into the target, which keeps its inode, and with it owner, ACL, attributes and links."""
    source = staging.fd
    target = staging.open_target(os.O_RDWR)
    _wait_for_turn(target)
    size = os.fstat(target).st_size
    name = f".atomicio-{os.urandom(8).hex()}.backup"
    backup_path = os.path.join(staging.directory, name)
    backup = -1
    touched = False
    try:
        beside = True
        try:
            staging.backup = backup_path
            backup = staging.open(backup_path, _BACKUP_FLAGS, 0o600)
        except OSError:
            import tempfile  # noqa: PLC0415

            beside = False
            staging.backup = backup_path = os.path.join(tempfile.gettempdir(), name)
            backup = staging.open(backup_path, _BACKUP_FLAGS, 0o600)
        copy_content(target, backup)
        if sync:
            sync_file(backup)
            if beside:
                # After a power cut the backup may be all there is, and fsync(2) of a file says nothing of its name.
                staging.sync_directory()
        touched = True
        staging.backup = None
        _write(source, target, old_size=size)
        if permissions is not None:
            staging.set_mode(target, permissions)
        if sync:
            sync_file(target)
        staging.backup = backup_path
    except BaseException as error:
        if touched:
            try:
                _write(backup, target, old_size=0)
            except OSError as second:
                raise _lost(second, staging.path, backup_path) from error
            staging.backup = backup_path
        _remove(staging, backup_path)
        raise
    _remove(staging, backup_path)


def _lost(error: OSError, target: str, backup: str) -> OSError:
    code = error.errno or errno.EIO
    lost = OSError(
        code,
        f"{os.strerror(code)}; writing in place failed half way, and the old content could not be put back: it is in "
        f"{backup!r}",
        target,
    )
    lost.committed = True  # type: ignore[attr-defined]
    return lost


def _remove(staging: Staging, backup: str) -> None:
    try:
        try:
            staging.close_last()  # Windows removes nothing that is open
        finally:
            os.unlink(backup)
    except OSError:
        pass  # never made, or it can stay: it tells by its name what it is
    staging.backup = None


def _wait_for_turn(target: int) -> None:
    """Take turns with others that write this file in place; released when the descriptor is closed."""
    try:
        from fcntl import LOCK_EX, flock  # noqa: PLC0415

        flock(target, LOCK_EX)
    except (ImportError, OSError):
        pass  # a file system without locks


def _write(source: int, target: int, *, old_size: int) -> None:
    """Make *target* hold what *source* holds: first what lies beyond *old_size*, then the rest."""
    size = os.fstat(source).st_size
    for start, end in ((old_size, size), (0, min(old_size, size))):
        if start < end:
            os.lseek(source, start, os.SEEK_SET)
            os.lseek(target, start, os.SEEK_SET)
            while start < end and (data := os.read(source, min(_CHUNK, end - start))):
                write_all(target, data)
                start += len(data)
    os.ftruncate(target, size)
