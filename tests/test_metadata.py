"""What a replaced file keeps, what a new one gets: mode, owner, ACL, extended attributes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

import atomicio
from oracle import (
    ACL_ACCESS,
    ACL_DEFAULT,
    AS_ROOT,
    DEFAULT_ACL,
    LINUX,
    NAMED_USER_ACL,
    NET_RAW_CAPABILITY,
    ORDINARY_USER,
    OTHER_GROUP,
    OTHER_USER,
    as_ordinary_user,
    bind_mounted,
    left_behind,
    mode_of,
    public_directory,
    read,
    supports_xattrs,
    umask,
    write,
    xattrs,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permission bits and owners as POSIX has them")
root_only = pytest.mark.skipif(not AS_ROOT, reason="only root can give files away and become somebody else")
linux_only = pytest.mark.skipif(not LINUX, reason="extended attributes by os.setxattr, which only Linux has")

LEVELS = ("none", "consistent", "durable")

Write = Callable[..., None]


def by_bytes(path: str, data: bytes, **keywords: object) -> None:
    atomicio.write_bytes(path, data, **keywords)  # type: ignore[arg-type]


def by_text(path: str, data: bytes, **keywords: object) -> None:
    atomicio.write_text(path, data.decode(), **keywords)  # type: ignore[arg-type]


def by_block(path: str, data: bytes, **keywords: object) -> None:
    with atomicio.atomic_write(path, "wb", **keywords) as file:  # type: ignore[call-overload]
        file.write(data)


def by_append(path: str, data: bytes, **keywords: object) -> None:
    with atomicio.atomic_write(path, "ab", **keywords) as file:  # type: ignore[call-overload]
        file.truncate(0)
        file.write(data)


def by_path(path: str, data: bytes, **keywords: object) -> None:
    with atomicio.atomic_path(path, **keywords) as staging:  # type: ignore[arg-type]
        write(staging, data)


WAYS: tuple[Write, ...] = (by_bytes, by_text, by_block, by_append, by_path)
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
def public() -> Iterator[str]:
    with public_directory() as directory:
        yield directory


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077, 0o000])
@every_way
def test_a_new_file_gets_what_the_umask_leaves(tmp_path: Path, way: Write, mask: int, level: str) -> None:
    target, plain = tmp_path / "target", tmp_path / "plain"
    with umask(mask):
        way(str(target), b"new", durability=level)
        assert os.umask(mask) == mask
        write(plain, b"new")
    assert oct(mode_of(target)) == oct(mode_of(plain))


@pytest.mark.parametrize("mode", [0o755, 0o640, 0o600, 0o444, 0o4755, 0o2755, 0o6711, 0o1644])
@every_way
@root_only
def test_root_replaces_a_file_and_its_mode_stays_setuid_too(tmp_path: Path, way: Write, mode: int) -> None:
    target = tmp_path / "target"
    write(target, b"old")
    os.chown(target, OTHER_USER, OTHER_GROUP)
    os.chmod(target, mode)
    with umask(0o077):
        way(str(target), b"new")
    assert oct(mode_of(target)) == oct(mode)
    assert (target.stat().st_uid, target.stat().st_gid) == (OTHER_USER, OTHER_GROUP)
    assert read(target) == b"new"


@pytest.mark.parametrize("mode", [0o755, 0o640, 0o600, 0o700, 0o666])
@every_way
def test_the_mode_of_a_replaced_file_stays(tmp_path: Path, way: Write, mode: int) -> None:
    target = tmp_path / "target"
    write(target, b"old")
    os.chmod(target, mode)
    with umask(0o027):
        way(str(target), b"new")
    assert oct(mode_of(target)) == oct(mode)


@pytest.mark.parametrize("permissions", [0o600, 0o640, 0o755, 0o666, 0o000, 0o4755, 0o2755, 0o1777])
@pytest.mark.parametrize("old", [None, 0o644, 0o600])
@every_way
def test_permissions_asked_for_are_exact(tmp_path: Path, way: Write, old: int | None, permissions: int) -> None:
    target = tmp_path / "target"
    if old is not None:
        write(target, b"old")
        os.chmod(target, old)
    with umask(0o077):
        way(str(target), b"new", permissions=permissions)
    assert oct(mode_of(target)) == oct(permissions)
    if AS_ROOT:
        assert read(target) == b"new"


@pytest.mark.parametrize("old", [None, 0o600])
@pytest.mark.parametrize("level", LEVELS)
@every_way
def test_a_secret_is_never_readable_by_others_meanwhile(
    tmp_path: Path, way: Write, old: int | None, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every change of a name or a mode, nothing in the directory may be wider than what the secret ends up with."""
    target = tmp_path / "target"
    if old is not None:
        write(target, b"old secret")
        os.chmod(target, old)
    seen: list[tuple[str, str]] = []

    def look() -> None:
        for name in os.listdir(tmp_path):
            mode = mode_of(tmp_path / name)
            if mode & 0o077:
                seen.append((name, oct(mode)))

    def watched(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **keywords: object) -> object:
            look()
            try:
                return real(*arguments, **keywords)
            finally:
                look()

        monkeypatch.setattr(os, name, call)

    for name in ("open", "write", "link", "rename", "replace", "fchmod", "fchown", "fsync", "close", "chmod", "unlink"):
        watched(name)
    with umask(0o000):
        way(str(target), b"new secret", durability=level, permissions=0o600 if old is None else None)
    monkeypatch.undo()
    assert oct(mode_of(target)) == oct(0o600)
    assert seen == []


@root_only
@linux_only
@every_way
def test_a_secret_is_created_closed_to_others(tmp_path: Path, way: Write) -> None:
    """Not by chmod afterwards: a descriptor that was opened in between would stay readable."""
    if subprocess.run(["strace", "-V"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not installed or may not trace")
    target = tmp_path / "target"
    write(target, b"old secret")
    os.chmod(target, 0o600)
    code = (
        f"import sys, os; sys.path[:0] = {[os.path.dirname(os.path.abspath(__file__))]!r}\n"
        f"import test_metadata\nos.umask(0)\ntest_metadata.{way.__name__}({str(target)!r}, b'new secret')\n"
    )
    trace = tmp_path / "trace"
    subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=openat,open,creat", "-o", str(trace), sys.executable, "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    created = [
        line
        for line in trace.read_text().splitlines()
        if ("O_CREAT" in line or "O_TMPFILE" in line)
        and " = -1 E" not in line
        # by_path lets its consumer open the staging file; that one is only truncated, it exists already.
        and not (way is by_path and "O_TRUNC" in line)
    ]
    assert created
    for line in created:
        assert line.rsplit(")", 1)[0].split(",")[-1].strip() in ("0600", "000", "0"), line


# ---------------------------------------------------------------------------------------------------------------------
# ACLs and extended attributes
# ---------------------------------------------------------------------------------------------------------------------


@linux_only
@every_way
@pytest.mark.parametrize("level", LEVELS)
def test_the_acl_of_a_replaced_file_stays(tmp_path: Path, way: Write, level: str) -> None:
    if not supports_xattrs(str(tmp_path), ACL_ACCESS, NAMED_USER_ACL):
        pytest.skip("the file system of the temporary directory has no ACLs")
    target = tmp_path / "target"
    write(target, b"old")
    os.setxattr(target, ACL_ACCESS, NAMED_USER_ACL)
    before = mode_of(target)
    way(str(target), b"new", durability=level)
    assert os.getxattr(target, ACL_ACCESS) == NAMED_USER_ACL
    assert mode_of(target) == before


@linux_only
@every_way
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_default_acl_decides_what_a_new_file_gets(tmp_path: Path, way: Write, level: str, mask: int) -> None:
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    for directory in (plain, atomic):
        directory.mkdir()
        try:
            os.setxattr(directory, ACL_DEFAULT, DEFAULT_ACL)
        except OSError as error:
            pytest.skip(f"the file system of the temporary directory has no ACLs: {error}")
    with umask(mask):
        write(plain / "target", b"new")
        way(str(atomic / "target"), b"new", durability=level)
    assert left_behind(str(atomic)) == left_behind(str(plain))
    # The umask has no say under a default ACL, the mask entry has: 0666 & 0770. But FUSE may know attributes and no ACLs.
    if ACL_ACCESS in xattrs(str(plain / "target")):
        assert mode_of(atomic / "target") == 0o660


@linux_only
@every_way
def test_a_default_acl_changes_nothing_on_a_file_that_had_none(tmp_path: Path, way: Write) -> None:
    target = tmp_path / "target"
    write(target, b"old")
    os.chmod(target, 0o644)
    try:
        os.setxattr(tmp_path, ACL_DEFAULT, DEFAULT_ACL)
    except OSError as error:
        pytest.skip(f"the file system of the temporary directory has no ACLs: {error}")
    way(str(target), b"new")
    assert xattrs(str(target)) == {}
    assert oct(mode_of(target)) == oct(0o644)


@linux_only
@every_way
def test_user_attributes_stay(tmp_path: Path, way: Write) -> None:
    wanted = {"user.origin": b"https://example.org/", "user.empty": b"", "user.binary": bytes(range(256))}
    if not supports_xattrs(str(tmp_path), "user.origin", b"x"):
        pytest.skip("the file system of the temporary directory has no user attributes")
    target = tmp_path / "target"
    write(target, b"old")
    for name, value in wanted.items():
        os.setxattr(target, name, value)
    way(str(target), b"new")
    assert xattrs(str(target)) == wanted


@linux_only
@root_only
@every_way
def test_roots_attributes_stay(tmp_path: Path, way: Write) -> None:
    """trusted.* and security.* (where SELinux keeps its label): what security.* means is the kernel's to judge."""
    wanted = {"trusted.origin": b"root", "security.test": b"label"}
    target = tmp_path / "target"
    write(target, b"old")
    for name, value in wanted.items():
        try:
            os.setxattr(target, name, value)
        except OSError as error:
            pytest.skip(f"this machine refuses {name}: {error}")
    way(str(target), b"new")
    assert xattrs(str(target)) == wanted


@linux_only
@root_only
@every_way
def test_a_capability_is_dropped_as_every_write_drops_it(tmp_path: Path, way: Write) -> None:
    """A program that gets new content must not keep rights that were given to the old one."""
    plain, target = tmp_path / "plain", tmp_path / "target"
    for path in (plain, target):
        write(path, b"old")
        os.chmod(path, 0o755)
        try:
            os.setxattr(path, "security.capability", NET_RAW_CAPABILITY)
        except OSError as error:
            pytest.skip(f"this machine refuses file capabilities: {error}")
    write(plain, b"new")
    assert "security.capability" not in xattrs(str(plain))
    way(str(target), b"new")
    assert "security.capability" not in xattrs(str(target))


@linux_only
@every_way
def test_an_immutable_attribute_of_no_use_elsewhere_does_not_fail_the_write(
    tmp_path: Path, way: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CIFS, vfat, NFS and sandboxes refuse chown or attributes with EPERM or ENOTSUP; open would not have minded."""
    target = tmp_path / "target"
    write(target, b"old")
    os.setxattr(target, "user.origin", b"x") if supports_xattrs(str(tmp_path), "user.a", b"a") else None

    def refuse(*_: object, **__: object) -> None:
        import errno

        raise PermissionError(errno.EPERM, "refused by the test")

    monkeypatch.setattr(os, "setxattr", refuse)
    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(os, "chown", refuse)
    way(str(target), b"new")
    monkeypatch.undo()
    assert read(target) == b"new"


# ---------------------------------------------------------------------------------------------------------------------
# A group given by the directory
# ---------------------------------------------------------------------------------------------------------------------


@root_only
@every_way
@pytest.mark.parametrize("level", LEVELS)
def test_a_new_file_in_a_setgid_directory_gets_its_group(tmp_path: Path, way: Write, level: str) -> None:
    os.chown(tmp_path, -1, OTHER_GROUP)
    os.chmod(tmp_path, 0o2755)
    way(str(tmp_path / "target"), b"new", durability=level)
    write(tmp_path / "plain", b"new")
    assert (tmp_path / "target").stat().st_gid == (tmp_path / "plain").stat().st_gid


@root_only
@every_way
def test_a_replaced_file_in_a_setgid_directory_keeps_its_own_group(tmp_path: Path, way: Write) -> None:
    target = tmp_path / "target"
    write(target, b"old")
    os.chown(target, 0, 77)
    os.chmod(target, 0o640)
    os.chown(tmp_path, -1, OTHER_GROUP)
    os.chmod(tmp_path, 0o2755)
    way(str(target), b"new")
    assert target.stat().st_gid == 77
    assert oct(mode_of(target)) == oct(0o640)


# ---------------------------------------------------------------------------------------------------------------------
# Somebody who is not root
# ---------------------------------------------------------------------------------------------------------------------


@root_only
@every_way
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6755, 0o2744, 0o4644, 0o755, 0o600])
def test_setuid_and_setgid_are_what_open_leaves_to_an_ordinary_user(public: str, way: Write, mode: int) -> None:
    plain, target = f"{public}/plain", f"{public}/target"
    for path in (plain, target):
        write(path, b"old")
        os.chown(path, ORDINARY_USER, ORDINARY_USER)
        os.chmod(path, mode)

    def act() -> None:
        write(plain, b"new")
        way(target, b"new")

    as_ordinary_user(act)
    assert oct(mode_of(target)) == oct(mode_of(plain))
    assert not mode_of(target) & stat.S_ISUID
    assert read(target) == b"new"


@root_only
@pytest.mark.parametrize(
    ("way", "mode"),
    # A copy takes the right to read.
    [(way, mode) for way in WAYS for mode in (0o666, 0o4777, 0o662) if mode & 0o004 or way is not by_append],
)
def test_somebody_elses_writable_file_is_replaced_although_it_cannot_be_given_back(
    public: str, way: Write, mode: int
) -> None:
    """open would write it, so the write succeeds; the owner becomes the writer, for only root may give files away."""
    target = f"{public}/target"
    write(target, b"old")
    os.chown(target, OTHER_USER, OTHER_GROUP)
    os.chmod(target, mode)
    as_ordinary_user(lambda: way(target, b"new"))
    assert read(target) == b"new"
    assert os.stat(target).st_uid == ORDINARY_USER
    # Nobody gets more than they had: no setuid of another user, and bits for others as they were.
    assert not mode_of(target) & 0o7000
    assert mode_of(target) & 0o007 == mode & 0o007


@root_only
@every_way
def test_a_group_one_may_give_is_given(public: str, way: Write) -> None:
    target = f"{public}/target"
    write(target, b"old")
    os.chown(target, ORDINARY_USER, OTHER_GROUP)
    os.chmod(target, 0o660)
    as_ordinary_user(lambda: way(target, b"new"), groups=(OTHER_GROUP,))
    status = os.stat(target)
    assert (status.st_uid, status.st_gid, oct(status.st_mode & 0o7777)) == (ORDINARY_USER, OTHER_GROUP, "0o660")


@root_only
@every_way
def test_a_group_one_may_not_give_opens_the_file_to_no_other_group(public: str, way: Write) -> None:
    """0640 meant that group may read; when the file ends up with another group, that one must not read instead."""
    target = f"{public}/target"
    write(target, b"old")
    os.chown(target, ORDINARY_USER, OTHER_GROUP)
    os.chmod(target, 0o640)
    as_ordinary_user(lambda: way(target, b"new"))
    status = os.stat(target)
    assert read(target) == b"new"
    assert status.st_gid == OTHER_GROUP or not status.st_mode & 0o070, oct(status.st_mode)


@root_only
@linux_only
@every_way
@pytest.mark.parametrize("level", LEVELS)
def test_a_process_that_gave_up_root_can_write(public: str, way: Write, level: str) -> None:
    """After setuid the kernel closes /proc/self to the process itself (it is no longer dumpable), by which an unnamed
    file gets its name; a daemon that starts as root must not notice."""
    target = f"{public}/target"
    as_ordinary_user(lambda: way(target, b"first", durability=level))
    as_ordinary_user(lambda: way(target, b"second", durability=level))
    assert read(target) == b"second"
    assert os.listdir(public) == ["target"]


@root_only
@linux_only
@every_way
@pytest.mark.parametrize("level", LEVELS)
def test_without_proc_the_write_works(public: str, way: Write, level: str) -> None:
    """A chroot or a container need not have /proc mounted."""
    target = f"{public}/target"
    code = (
        f"import sys; sys.path[:0] = {[os.path.dirname(os.path.abspath(__file__))]!r}\n"
        f"import test_metadata\ntest_metadata.{way.__name__}({target!r}, b'new', durability={level!r})\n"
    )
    script = 'mount -t tmpfs tmpfs /proc && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, sys.executable, code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this machine does not let root have its own mounts: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert read(target) == b"new"
    assert os.listdir(public) == ["target"]


@root_only
@linux_only
@every_way
def test_fallback_in_place_keeps_inode_owner_mode_acl_and_attributes(tmp_path: Path, way: Write) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    write(source, b"the old content, which is longer")
    os.chown(source, OTHER_USER, OTHER_GROUP)
    os.chmod(source, 0o640)
    os.setxattr(source, "user.origin", b"x") if supports_xattrs(str(tmp_path), "user.a", b"a") else None
    write(target, b"")
    with bind_mounted(str(source), str(target)):
        before = os.stat(target)
        kept = xattrs(str(target))
        way(str(target), b"new", fallback="in-place")
        after = os.stat(target)
        assert read(target) == b"new"
        assert (after.st_ino, after.st_uid, after.st_gid, after.st_mode) == (
            before.st_ino,
            before.st_uid,
            before.st_gid,
            before.st_mode,
        )
        assert xattrs(str(target)) == kept
    assert read(source) == b"new"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]
