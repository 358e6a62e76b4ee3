"""What a write leaves behind, and who may write: the means by which the tests compare atomicio with plain ``open``."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
LINUX = sys.platform.startswith("linux")
ORDINARY_USER = 65534
OTHER_USER = 1234
OTHER_GROUP = 1235

ACL_ACCESS = "system.posix_acl_access"
ACL_DEFAULT = "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The extended attribute of an ACL given as (tag, permissions, id), in the layout of linux/posix_acl_xattr.h."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, perm, ident) for tag, perm, ident in entries)


NO_ID = 0xFFFFFFFF
#: Grants one named user more than the group has: a mode alone cannot say this.
NAMED_USER_ACL = acl(
    (USER_OBJ, 6, NO_ID), (USER, 6, OTHER_USER), (GROUP_OBJ, 4, NO_ID), (MASK, 6, NO_ID), (OTHER, 0, NO_ID)
)
#: A default ACL that takes everything from others: umask and mode alone give a wrong answer.
DEFAULT_ACL = acl(
    (USER_OBJ, 7, NO_ID), (USER, 7, OTHER_USER), (GROUP_OBJ, 5, NO_ID), (MASK, 7, NO_ID), (OTHER, 0, NO_ID)
)
#: cap_net_raw+ep in the layout of struct vfs_cap_data, revision 2 (linux/capability.h).
NET_RAW_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def xattrs(path: str) -> dict[str, bytes]:
    """All extended attributes of *path* itself that this process may read."""
    if not hasattr(os, "listxattr"):
        return {}
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def left_behind(directory: str) -> dict[str, dict[str, Any]]:
    """Everything that can be seen of every name below *directory*, except times and inode numbers.

    A link's text is given relative to *directory*, so that two directories can be compared.
    """
    found: dict[str, dict[str, Any]] = {}
    for where, directories, files in os.walk(directory):
        for name in directories + files:
            path = os.path.join(where, name)
            status = os.lstat(path)
            entry: dict[str, Any] = {
                "type": stat.S_IFMT(status.st_mode),
                "mode": oct(stat.S_IMODE(status.st_mode)),
                "uid": status.st_uid,
                "gid": status.st_gid,
                "xattrs": xattrs(path),
            }
            if stat.S_ISLNK(status.st_mode):
                entry["link"] = os.readlink(path).replace(directory, "DIRECTORY")
            elif stat.S_ISREG(status.st_mode):
                entry["content"] = read(path)
            found[os.path.relpath(path, directory)] = entry
    return found


def read(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write(path: str | os.PathLike[str], data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def mode_of(path: str | os.PathLike[str]) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def outcome(action: Callable[[], object], directory: str = "") -> object:
    """What *action* returned, or what it raised as far as a caller can act on it: class, errno, filename."""
    try:
        return action()
    except OSError as error:
        # A more precise subclass is still the error that ``open`` promises.
        kind = next(k for k in type(error).__mro__ if k.__module__ in ("builtins", "io", "_io"))
        name = error.filename
        if isinstance(name, (str, bytes)):
            name = os.fsdecode(name).replace(directory, "DIRECTORY") if directory else os.fsdecode(name)
        return kind.__name__, error.errno and errno.errorcode[error.errno], name
    except (ValueError, TypeError, LookupError) as error:
        return (type(error).__name__,)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def public_directory(mode: int = 0o777) -> Iterator[str]:
    """A directory that every user may enter: pytest's own are 0700, so an ordinary user cannot reach into tmp_path."""
    path = os.path.realpath(tempfile.mkdtemp(prefix="atomicio-test-"))
    try:
        os.chmod(path, mode)
        yield path
    finally:
        shutil.rmtree(path)


def as_ordinary_user(function: Callable[[], T], *, uid: int = ORDINARY_USER, groups: tuple[int, ...] = ()) -> T:
    """Run *function* in a forked child that has given up root for good; return or raise what it did."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.setgroups(groups)
            os.setgid(uid)
            os.setuid(uid)
            result: tuple[bool, Any]
            try:
                result = (True, function())
            except BaseException as error:
                error.add_note("in the ordinary user's process:\n" + traceback.format_exc())
                result = (False, (type(error), error.args, error.__dict__))
                with contextlib.suppress(Exception):
                    pickle.loads(pickle.dumps(error))
                    result = (False, error)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(result, pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0 and data, f"the ordinary user's process died with status {status}"
    good, value = pickle.loads(data)
    if good:
        return value
    if isinstance(value, BaseException):
        raise value
    raise AssertionError(f"an error that cannot be pickled: {value}")


@contextlib.contextmanager
def bind_mounted(source: str, target: str) -> Iterator[None]:
    """*source* bind-mounted over *target*, as a container runtime mounts a single file; skips where one may not."""
    import pytest

    if not LINUX or not AS_ROOT:
        pytest.skip("a bind mount takes Linux and root")
    done = subprocess.run(["mount", "--bind", source, target], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine does not let root mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


@contextlib.contextmanager
def tmpfs_mounted(target: str, size: str = "1m", mode: int = 0o755) -> Iterator[None]:
    """A small tmpfs of its own at *target*: a second file system, or one that fills up."""
    import pytest

    if not LINUX or not AS_ROOT:
        pytest.skip("mounting a tmpfs takes Linux and root")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode={mode:o}", "tmpfs", target], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"this machine does not let root mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", target], check=True)


def device(path: str | os.PathLike[str], like: str = "/dev/null") -> str:
    """Make a node of the device *like* at *path*: the machine's own could be replaced by a writer that is wrong."""
    import pytest

    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.stat(like).st_rdev)
        os.close(os.open(path, os.O_WRONLY))  # a file system may be mounted with "nodev"
    except OSError as error:
        pytest.skip(f"this machine does not let this user make a device: {error.strerror}")
    return os.fspath(path)


def supports_xattrs(directory: str, name: str, value: bytes) -> bool:
    """Whether the file system of *directory* takes this attribute from this process."""
    if not hasattr(os, "setxattr"):
        return False
    probe = os.path.join(directory, "probe")
    write(probe, b"")
    try:
        os.setxattr(probe, name, value)
    except OSError:
        return False
    finally:
        os.unlink(probe)
    return True
