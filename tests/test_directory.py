"""A directory is replaced all at once or not at all: old or new, nothing left behind, and never a crash that loses both."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomicio
from atomicio import NotDurableError, TargetChangedError, UnreplaceableTargetError, atomic_directory

if sys.platform == "win32":
    pytest.skip("tests of POSIX calls", allow_module_level=True)

import resource

from atomicio import _directory, _recovery, _syscalls, _trees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

ROOT = os.geteuid() == 0
NOBODY = 65534
OURS = re.compile(r"\.atomicio-")

needs_root = pytest.mark.skipif(not ROOT, reason="needs root, to mount and to give files away")
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def fill(directory: str | os.PathLike[str], content: dict[str, str]) -> None:
    for name, text in content.items():
        path = Path(directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def tree(directory: str | os.PathLike[str]) -> dict[str, str | None]:
    """All below `directory`: the content of files, the targets of links, None for directories."""
    found: dict[str, str | None] = {}
    for where, directories, files in os.walk(directory):
        for name in directories + files:
            path = os.path.join(where, name)
            relative = os.path.relpath(path, directory)
            if os.path.islink(path):
                found[relative] = "-> " + os.readlink(path)
            elif os.path.isdir(path):
                found[relative] = None
            else:
                found[relative] = Path(path).read_text()
    return found


OLD = {"a": "old", "sub/b": "old too"}
NEW = {"c": "new", "other/deep/d": "new too"}
OLD_TREE = {"a": "old", "sub": None, "sub/b": "old too"}
NEW_TREE = {"c": "new", "other": None, "other/deep": None, "other/deep/d": "new too"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the old tree in it, under the name `site`."""
    fill(tmp_path / "site", OLD)
    return tmp_path


def no_exchange(code: int) -> Callable[..., None]:
    def refuse(one: str, other: str, directory: int | None) -> None:
        raise OSError(code, os.strerror(code))

    return refuse


def rename_as_overlay(rename: Callable[..., None]) -> Callable[..., None]:
    """Refuse to rename directories that the library did not make itself, as overlay does for those of a lower layer."""

    def call(source: str, target: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        mode = os.stat(source, dir_fd=src_dir_fd, follow_symlinks=False).st_mode
        if src_dir_fd is not None and stat.S_ISDIR(mode) and not os.path.basename(source).startswith(".atomicio-"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    return call


@pytest.fixture(params=["exchange", "two renames", "copy"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where two directories can change places, where the file system says EINVAL to that, as NFS does, and an overlay's lower layer."""
    if request.param == "two renames":
        monkeypatch.setattr(_syscalls, "exchange", no_exchange(errno.EINVAL))
    elif request.param == "copy":
        monkeypatch.setattr(_syscalls, "exchange", no_exchange(errno.EXDEV))
        monkeypatch.setattr(os, "rename", rename_as_overlay(os.rename))
    return request.param


# -- what it does -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["none", "consistent", "durable"])
def test_replaces(place: Path, form: str, durability: Any) -> None:
    with atomic_directory(place / "site", durability=durability) as staging:
        assert tree(place / "site") == OLD_TREE
        assert tree(staging) == {}
        fill(staging, NEW)
        assert tree(place / "site") == OLD_TREE
    assert tree(place / "site") == NEW_TREE
    assert os.listdir(place) == ["site"]


@pytest.mark.parametrize("durability", ["none", "consistent", "durable"])
def test_creates(tmp_path: Path, form: str, durability: Any) -> None:
    with atomic_directory(tmp_path / "site", durability=durability) as staging:
        fill(staging, NEW)
        assert not (tmp_path / "site").exists()
    assert tree(tmp_path) == {"site": None, **{f"site/{name}": content for name, content in NEW_TREE.items()}}


def test_replaces_an_empty_one(tmp_path: Path, form: str) -> None:
    (tmp_path / "site").mkdir()
    with atomic_directory(tmp_path / "site") as staging:
        fill(staging, NEW)
    assert tree(tmp_path / "site") == NEW_TREE
    assert os.listdir(tmp_path) == ["site"]


def test_more_files_than_are_synced_one_by_one(place: Path, form: str) -> None:
    with atomic_directory(place / "site") as staging:
        for number in range(200):
            fill(staging, {f"{number % 7}/{number}": str(number)})
    assert len(tree(place / "site")) == 207
    assert os.listdir(place) == ["site"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_leaves_the_old(place: Path, form: str, error: type[BaseException]) -> None:
    with pytest.raises(error), atomic_directory(place / "site") as staging:
        fill(staging, NEW)
        raise error
    assert tree(place / "site") == OLD_TREE
    assert os.listdir(place) == ["site"]


def test_an_exception_leaves_none_where_none_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "site") as staging:
        fill(staging, NEW)
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_without_a_block(place: Path) -> None:
    writer = atomic_directory(place / "site")
    staging = writer.open()
    fill(staging, NEW)
    assert not writer.committed
    writer.commit()
    writer.commit()
    assert writer.committed
    assert tree(place / "site") == NEW_TREE

    writer = atomic_directory(place / "site")
    fill(writer.open(), OLD)
    writer.abort()
    writer.abort()
    assert tree(place / "site") == NEW_TREE
    assert os.listdir(place) == ["site"]


def test_dropped_without_commit(place: Path) -> None:
    writer = atomic_directory(place / "site")
    fill(writer.open(), NEW)
    with pytest.warns(ResourceWarning, match="never committed"):
        del writer
        gc.collect()
    assert tree(place / "site") == OLD_TREE
    assert os.listdir(place) == ["site"]


def test_the_path_lent_is_of_the_type_given(tmp_path: Path) -> None:
    for path in (str(tmp_path / "s"), os.fsencode(tmp_path / "b"), tmp_path / "p"):
        with atomic_directory(path) as staging:
            assert type(staging) is type(path)
            assert os.path.isabs(staging)
            assert os.path.isdir(staging)
    assert sorted(os.listdir(tmp_path)) == ["b", "p", "s"]


def test_a_relative_path_stays_what_it_was(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    with atomic_directory("site/") as staging:
        os.chdir("/")
        fill(staging, NEW)
    assert tree(place / "site") == NEW_TREE


def test_the_parent_is_renamed_meanwhile(tmp_path: Path, form: str) -> None:
    fill(tmp_path / "one/site", OLD)
    with atomic_directory(tmp_path / "one/site") as staging:
        fill(staging, NEW)
        os.rename(tmp_path / "one", tmp_path / "two")
        # a staging path does not follow, but the writer does
    assert tree(tmp_path / "two/site") == NEW_TREE
    assert os.listdir(tmp_path / "two") == ["site"]


def test_parents_are_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make_parents") as caught, atomic_directory(tmp_path / "a/b/site"):
        pass
    assert caught.value.committed is False  # type: ignore[attr-defined]
    with atomic_directory(tmp_path / "a/b/site", make_parents=True) as staging:
        fill(staging, NEW)
    assert tree(tmp_path / "a/b/site") == NEW_TREE


def test_the_caller_puts_another_directory_there(place: Path, form: str) -> None:
    """shutil.copytree wants to make its destination itself, and a build tool may rename its own result."""
    fill(place / "source", NEW)
    (place / "site").chmod(0o2750)
    with atomic_directory(place / "site") as staging:
        os.rmdir(staging)
        shutil.copytree(place / "source", staging)
    assert tree(place / "site") == NEW_TREE
    assert stat.S_IMODE((place / "site").stat().st_mode) == 0o2750
    assert sorted(os.listdir(place)) == ["site", "source"]


def test_the_caller_leaves_none(place: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomic_directory(place / "site") as staging:
        os.rmdir(staging)
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert tree(place) == {"site": None, **{f"site/{name}": content for name, content in OLD_TREE.items()}}


def test_the_caller_leaves_a_file(place: Path) -> None:
    with pytest.raises(NotADirectoryError) as caught, atomic_directory(place / "site") as staging:
        os.rmdir(staging)
        Path(staging).write_text("a file")
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert tree(place / "site") == OLD_TREE


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="fallback"):
        atomic_directory("site", fallback="in-place")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="durability"):
        atomic_directory("site", durability="certain")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="backup"):
        atomic_directory("site", backup="a/b")
    with pytest.raises(TypeError):
        atomic_directory(3)  # type: ignore[call-overload]


@pytest.mark.parametrize("path", [".", "..", "/", "site/..", "./"])
def test_what_has_no_name_of_its_own(place: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(place)
    with pytest.raises(UnreplaceableTargetError, match="name the directory") as caught, atomic_directory(path):
        pass
    assert caught.value.filename == path
    assert tree(place / "site") == OLD_TREE


def test_a_file_is_not_replaced(place: Path) -> None:
    with pytest.raises(NotADirectoryError) as caught, atomic_directory(place / "site/a"):
        pass
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert caught.value.filename == str(place / "site/a") or caught.value.filename == place / "site/a"
    assert tree(place / "site") == OLD_TREE


def test_lock_beside(place: Path) -> None:
    with atomic_directory(place / "site", lock=True) as staging:
        fill(staging, NEW)
        with pytest.raises(OSError, match="lock") as caught, atomic_directory(place / "site", lock=0.01):
            pass
        assert caught.value.errno == errno.ETIMEDOUT
    assert tree(place / "site") == NEW_TREE


def test_no_descriptor_stays_open(place: Path, form: str) -> None:
    def opened() -> list[str]:
        return sorted(os.listdir("/dev/fd"))

    with atomic_directory(place / "site") as staging:
        fill(staging, NEW)
    before = opened()
    for _ in range(3):
        with atomic_directory(place / "site", backup=".bak") as staging:
            fill(staging, NEW)
        with pytest.raises(RuntimeError), atomic_directory(place / "site"):
            raise RuntimeError
    assert opened() == before


# -- symbolic links ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", ["real", "real/", "./real/."])
def test_a_link_is_followed(tmp_path: Path, form: str, link: str) -> None:
    fill(tmp_path / "real", OLD)
    os.symlink(link, tmp_path / "site")
    if link.endswith("."):
        with pytest.raises(OSError, match="site"), atomic_directory(tmp_path / "site"):
            pass
        return
    with atomic_directory(tmp_path / "site") as staging:
        fill(staging, NEW)
    assert os.readlink(tmp_path / "site") == link
    assert tree(tmp_path / "real") == NEW_TREE
    assert sorted(os.listdir(tmp_path)) == ["real", "site"]


def test_a_dangling_link_is_followed(tmp_path: Path) -> None:
    os.symlink("real", tmp_path / "site")
    with atomic_directory(tmp_path / "site") as staging:
        fill(staging, NEW)
    assert tree(tmp_path / "real") == NEW_TREE


def test_a_link_is_replaced(tmp_path: Path, form: str) -> None:
    fill(tmp_path / "real", OLD)
    os.symlink("real", tmp_path / "site")
    with atomic_directory(tmp_path / "site", follow_symlinks=False) as staging:
        fill(staging, NEW)
    assert not os.path.islink(tmp_path / "site")
    assert tree(tmp_path / "site") == NEW_TREE
    assert tree(tmp_path / "real") == OLD_TREE
    assert sorted(os.listdir(tmp_path)) == ["real", "site"]


def test_links_inside_stay_links_and_are_never_followed(place: Path, form: str) -> None:
    fill(place / "outside", OLD)
    inside = {"dir": "../outside", "file": "../outside/a", "dangling": "nowhere", "self": ".", "up": "..", "root": "/"}
    for _ in range(2):  # the second time the links are in the old tree, which is removed
        with atomic_directory(place / "site") as staging:
            os.mkdir(os.path.join(staging, "below"))
            for name, target in inside.items():
                os.symlink(target, os.path.join(staging, name))
                os.symlink(os.path.join("..", target), os.path.join(staging, "below", name))
    found = tree(place / "site")
    assert {name: found[name] for name in inside} == {name: "-> " + target for name, target in inside.items()}
    with atomic_directory(place / "site"):
        pass
    assert tree(place / "outside") == OLD_TREE
    assert sorted(os.listdir(place)) == ["outside", "site"]


def test_everything_else_inside(place: Path) -> None:
    for _ in range(2):
        with atomic_directory(place / "site") as staging:
            os.mkfifo(os.path.join(staging, "fifo"))
            fill(staging, {"one": "1", "write-only": "2", "read-only/file": "3"})
            os.link(os.path.join(staging, "one"), os.path.join(staging, "two"))
            os.chmod(os.path.join(staging, "write-only"), 0o200)
            os.chmod(os.path.join(staging, "read-only"), 0o555)
    assert sorted(os.listdir(place / "site")) == ["fifo", "one", "read-only", "two", "write-only"]
    assert os.listdir(place) == ["site"]


# -- metadata ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o2770, 0o1777, 0o750, 0o711])
def test_the_mode_is_kept(place: Path, form: str, mode: int) -> None:
    (place / "site").chmod(mode)
    with atomic_directory(place / "site") as staging:
        fill(staging, NEW)
    assert stat.S_IMODE((place / "site").stat().st_mode) == mode


def test_a_new_one_gets_what_mkdir_gives(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_directory(tmp_path / "site"):
            pass
        os.mkdir(tmp_path / "plain")
    finally:
        os.umask(old)
    assert (tmp_path / "site").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
def test_permissions_are_exact(place: Path, exists: bool) -> None:
    target = place / "site" if exists else place / "new"
    with atomic_directory(target, permissions=0o2511) as staging:
        assert stat.S_IMODE(os.stat(staging).st_mode) & 0o077 & ~0o511 == 0
        fill(staging, NEW)
    assert stat.S_IMODE(target.stat().st_mode) == 0o2511
    target.chmod(0o755)


@needs_root
def test_the_owner_is_kept_and_inherited(place: Path) -> None:
    os.chown(place / "site", 1234, 2345)
    (place / "site").chmod(0o2775)
    with atomic_directory(place / "site") as staging:
        fill(staging, NEW)
    status = (place / "site").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 2345, 0o2775)
    assert (place / "site/c").stat().st_gid == 2345, "the set-group-ID bit is there while the tree is filled"
    assert (place / "site/other").stat().st_mode & stat.S_ISGID


@linux
def test_attributes_and_acls_are_kept_and_inherited(place: Path) -> None:
    if not shutil.which("setfacl"):
        pytest.skip("setfacl is not installed")
    try:
        os.setxattr(place / "site", "user.origin", b"here")
        subprocess.run(["setfacl", "-m", "u:1234:rwx,d:u:1234:rw,d:o::-", place / "site"], check=True)
    except OSError:
        pytest.skip("no extended attributes on this file system")
    before = {name: os.getxattr(place / "site", name) for name in os.listxattr(place / "site")}
    (place / "plain").mkdir()
    subprocess.run(["setfacl", "-m", "d:u:1234:rw,d:o::-", place / "plain"], check=True)
    fill(place / "plain", {"file": ""})
    with atomic_directory(place / "site") as staging:
        fill(staging, {"file": ""})
    assert {name: os.getxattr(place / "site", name) for name in os.listxattr(place / "site")} == before
    assert len(before) == 3
    acl = "system.posix_acl_access"
    assert os.getxattr(place / "site/file", acl) == os.getxattr(place / "plain/file", acl)


@linux
def test_a_default_acl_of_the_parent_is_for_new_ones(place: Path) -> None:
    if not shutil.which("setfacl"):
        pytest.skip("setfacl is not installed")
    subprocess.run(["setfacl", "-m", "d:u:1234:rwx", place], check=True)
    with atomic_directory(place / "site"), atomic_directory(place / "new"):
        pass
    assert os.listxattr(place / "site") == []
    assert "system.posix_acl_default" in os.listxattr(place / "new")


# -- permission -------------------------------------------------------------------------------------------------------------------


def as_nobody(function: Callable[[], str], directory: Path) -> str:
    """Call `function` in `directory` as an ordinary user, in a child process, and return what it returns."""
    import hashlib  # noqa: F401  what is imported late may not be readable any more

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.chdir(directory)
            os.setgroups([])
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
            said = function()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def reachable(place: Path) -> Iterator[Path]:
    """`place`, which an ordinary user can reach."""
    above = place
    modes = {}
    while above != above.parent and ROOT:
        mode = stat.S_IMODE(above.stat().st_mode)
        if not mode & 0o001 and above.stat().st_uid == 0:
            modes[above] = mode
            above.chmod(mode | 0o001)
        above = above.parent
    yield place
    for path, mode in modes.items():
        path.chmod(mode)


def refused(path: str) -> str:
    try:
        with atomic_directory(path):
            pass
    except OSError as error:
        return f"{error.filename} {error.committed} {type(error).__name__}"  # type: ignore[attr-defined]
    return "done"


@needs_root
def test_what_one_may_not_write_is_refused_though_one_may_rename_it(reachable: Path) -> None:
    reachable.chmod(0o777)
    assert as_nobody(lambda: refused("site"), reachable) == "site False PermissionError"
    assert tree(reachable / "site") == OLD_TREE
    assert os.listdir(reachable) == ["site"]


@needs_root
def test_a_parent_one_may_not_write_in(reachable: Path) -> None:
    os.chown(reachable / "site", NOBODY, NOBODY)
    assert as_nobody(lambda: refused("site"), reachable) == "site False UnreplaceableTargetError"
    assert as_nobody(lambda: refused("new"), reachable) == "new False PermissionError"
    assert tree(reachable / "site") == OLD_TREE


@needs_root
def test_what_cannot_be_removed_is_left_and_told(reachable: Path, form: str) -> None:
    """The old tree holds a directory of somebody else's: the new one is there, a warning says where the rest is."""
    reachable.chmod(0o777)
    os.chown(reachable / "site", NOBODY, NOBODY)
    (reachable / "site/theirs").mkdir()
    (reachable / "site/theirs/file").write_text("theirs")
    if form == "copy":  # what can't be removed can't be got out of the way
        assert as_nobody(lambda: refused("site"), reachable) == "site False UnreplaceableTargetError"
        assert tree(reachable / "site") == {**OLD_TREE, "theirs": None, "theirs/file": "theirs"}
        assert os.listdir(reachable) == ["site"]
        return

    def replace() -> str:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with atomic_directory("site") as staging:
                fill(staging, {"c": ""})
        return f"{len(caught)} {caught[0].category.__name__} {caught[0].message}"

    said = as_nobody(replace, reachable)
    assert said.startswith("1 RuntimeWarning 'site' was replaced, but what it replaced could not be removed")
    assert tree(reachable / "site") == {"c": ""}
    (left,) = (name for name in os.listdir(reachable) if name != "site")
    assert re.fullmatch(r"\.atomicio-[0-9a-f]{16}\.dir", left)
    assert left in said
    assert list(tree(reachable / left).values()).count("theirs") == 1


@needs_root
@linux
def test_what_is_mounted_in_the_old_tree_is_left_alone(place: Path, form: str) -> None:
    """rm -r would go into the mount and remove what is there."""
    fill(place / "data", {"precious": "data"})
    mounted = []
    try:
        for name in ("mnt", "sub/deep/mnt"):
            (place / "site" / name).mkdir(parents=True)
            subprocess.run(["mount", "--bind", place / "data", place / "site" / name], check=True)
            mounted.append(name)
        if form == "copy":
            before = tree(place / "site")
            with pytest.raises(UnreplaceableTargetError, match="busy"), atomic_directory(place / "site") as staging:
                fill(staging, NEW)
            assert tree(place / "site") == before
            assert sorted(os.listdir(place)) == ["data", "site"]
        else:
            with pytest.warns(RuntimeWarning, match="busy"), atomic_directory(place / "site") as staging:
                fill(staging, NEW)
            assert tree(place / "site") == NEW_TREE
        assert tree(place / "data") == {"precious": "data"}
    finally:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        for line in lines:
            if (where := line.split()[4]).startswith(str(place)):
                subprocess.run(["umount", where], check=True)


@needs_root
@linux
def test_a_mount_point_cannot_be_replaced(place: Path) -> None:
    subprocess.run(["mount", "--bind", place / "site", place / "site"], check=True)
    try:
        with pytest.raises(UnreplaceableTargetError) as caught, atomic_directory(place / "site") as staging:
            fill(staging, NEW)
    finally:
        subprocess.run(["umount", place / "site"], check=True)
    assert caught.value.errno in (errno.EBUSY, errno.EXDEV)
    assert caught.value.committed is False
    assert tree(place / "site") == OLD_TREE
    assert os.listdir(place) == ["site"]


@needs_root
@linux
def test_a_lower_layer_of_an_overlay(tmp_path: Path) -> None:
    """What comes with a container's image can't be renamed at all; what was made in the container can."""
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("site", "gone", "kept", "kept.bak"):
        fill(tmp_path / "lower" / name, OLD)
    layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work,redirect_dir=off"
    mount = ["mount", "-t", "overlay", "overlay", "-o", layers, tmp_path / "merged"]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no overlay can be mounted here")
    merged = tmp_path / "merged"
    try:
        with (
            pytest.raises(UnreplaceableTargetError, match="two-renames") as caught,
            atomic_directory(merged / "site", fallback="raise") as staging,
        ):
            fill(staging, NEW)
        assert caught.value.errno == errno.EXDEV
        assert tree(merged / "site") == OLD_TREE
        assert sorted(os.listdir(merged)) == ["gone", "kept", "kept.bak", "site"]
        for kept in (False, True):  # the first one replaces what comes from the image, and so does the second backup
            with atomic_directory(merged / ("kept" if kept else "gone"), backup=".bak" if kept else None) as staging:
                fill(staging, NEW)
            assert tree(merged / ("kept" if kept else "gone")) == NEW_TREE
        assert tree(merged / "kept.bak") == OLD_TREE
        assert sorted(os.listdir(merged)) == ["gone", "kept", "kept.bak", "site"]
        for number in range(1, 100):
            if not killed(merged, number, None, how="as it is"):
                break
            assert OLD_TREE in [tree(path) for path in merged.iterdir() if path.is_dir()] or tree(merged / "site") == {"c": ""}
            result = subprocess.run([sys.executable, "-m", "atomicio", "recover", merged], capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            if tree(merged / "site") == {"c": ""}:  # done: from here on the directory is no longer of the lower layer
                break
            assert tree(merged / "site") == OLD_TREE
        assert number > 20
        for each in merged.iterdir():
            _trees.remove_tree(str(each))
        (merged / "site").mkdir()
        for content in (OLD, NEW):
            with atomic_directory(merged / "new") as staging:
                fill(staging, content)
        assert tree(merged / "new") == NEW_TREE
        assert sorted(os.listdir(merged)) == ["new", "site"]
        # Litter in an image: its directories can't be moved, and yet it can be removed.
        (merged / "site" / "x").write_text("")
        _trees.remove_tree(str(merged / "site"))
        assert os.listdir(merged) == ["new"]
    finally:
        subprocess.run(["umount", merged], check=True)


# -- backup -----------------------------------------------------------------------------------------------------------------------


def test_the_old_one_is_kept(place: Path, form: str) -> None:
    with atomic_directory(place / "site", backup=".bak") as staging:
        fill(staging, NEW)
    assert tree(place / "site") == NEW_TREE
    assert tree(place / "site.bak") == OLD_TREE
    with atomic_directory(place / "site", backup=".bak") as staging:
        fill(staging, {"third": "3"})
    assert tree(place / "site") == {"third": "3"}
    assert tree(place / "site.bak") == NEW_TREE
    assert sorted(os.listdir(place)) == ["site", "site.bak"]


def test_the_old_one_is_kept_where_a_taken_name_is_just_a_failure(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SFTP has one error for everything, and sshfs makes EPERM of it."""
    rename = os.rename

    def as_sshfs(source: Any, target: Any, **directories: Any) -> None:
        try:
            rename(source, target, **directories)
        except OSError:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM)) from None

    monkeypatch.setattr(_syscalls, "exchange", no_exchange(errno.EINVAL))
    monkeypatch.setattr(os, "rename", as_sshfs)
    for content in (NEW, {"third": "3"}):
        with atomic_directory(place / "site", backup=".bak") as staging:
            fill(staging, content)
    assert tree(place / "site") == {"third": "3"}
    assert tree(place / "site.bak") == NEW_TREE
    assert sorted(os.listdir(place)) == ["site", "site.bak"]


def test_whatever_has_the_name_of_the_backup_is_replaced(place: Path, form: str) -> None:
    (place / "site.bak").write_text("a file")
    with atomic_directory(place / "site", backup=".bak") as staging:
        fill(staging, NEW)
    assert tree(place / "site.bak") == OLD_TREE
    assert sorted(os.listdir(place)) == ["site", "site.bak"]


def test_nothing_to_keep(tmp_path: Path, form: str) -> None:
    with atomic_directory(tmp_path / "site", backup=".bak") as staging:
        fill(staging, NEW)
    assert os.listdir(tmp_path) == ["site"]


def test_an_exception_leaves_the_backup_alone(place: Path, form: str) -> None:
    fill(place / "site.bak", NEW)
    with pytest.raises(RuntimeError), atomic_directory(place / "site", backup=".bak"):
        raise RuntimeError
    assert tree(place / "site.bak") == NEW_TREE
    assert sorted(os.listdir(place)) == ["site", "site.bak"]


# -- somebody else, meanwhile -----------------------------------------------------------------------------------------------------


def test_somebody_makes_it_meanwhile(tmp_path: Path, form: str) -> None:
    with atomic_directory(tmp_path / "site") as staging:
        fill(staging, NEW)
        fill(tmp_path / "site", OLD)
    assert tree(tmp_path / "site") == NEW_TREE
    assert os.listdir(tmp_path) == ["site"]


def test_somebody_makes_it_between_the_last_look_and_the_rename(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = _directory.move

    def late(source: str, target: str, directory: int | None) -> None:
        monkeypatch.setattr(_directory, "move", original)
        fill(tmp_path / "site", OLD)
        original(source, target, directory)

    monkeypatch.setattr(_directory, "move", late)
    with atomic_directory(tmp_path / "site") as staging:
        fill(staging, NEW)
    assert tree(tmp_path / "site") == NEW_TREE
    assert os.listdir(tmp_path) == ["site"]


def test_somebody_removes_it_meanwhile(place: Path, form: str) -> None:
    with atomic_directory(place / "site") as staging:
        fill(staging, NEW)
        shutil.rmtree(place / "site")
    assert tree(place / "site") == NEW_TREE
    assert os.listdir(place) == ["site"]


def test_somebody_puts_a_file_there_meanwhile(place: Path) -> None:
    with pytest.raises(NotADirectoryError) as caught, atomic_directory(place / "site") as staging:
        shutil.rmtree(place / "site")
        (place / "site").write_text("theirs")
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert (place / "site").read_text() == "theirs"
    assert os.listdir(place) == ["site"]


def test_somebody_makes_it_in_the_gap(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs stays, the old one is kept and told about."""
    monkeypatch.setattr(_syscalls, "exchange", no_exchange(errno.ENOSYS))
    original = _directory.move

    def meanwhile(source: str, target: str, directory: int | None) -> None:
        original(source, target, directory)
        if target.endswith(_recovery.BACKUP):
            fill(place / "site", {"theirs": "3"})

    monkeypatch.setattr(_directory, "move", meanwhile)
    with pytest.raises(TargetChangedError, match="somebody else") as caught, atomic_directory(place / "site") as staging:
        fill(staging, NEW)
    assert caught.value.committed is False
    assert tree(place / "site") == {"theirs": "3"}
    (old,) = (name for name in os.listdir(place) if name != "site")
    assert old in str(caught.value)
    assert tree(place / old) == OLD_TREE


def _writer(path: str, number: int, refuse: bool, locked: bool) -> None:
    if refuse:
        _syscalls.exchange = no_exchange(errno.EINVAL)  # type: ignore[assignment]
    for turn in range(15):
        with atomic_directory(path, durability="none", lock=locked) as staging:
            for name in "abc":
                Path(staging, name).write_text(f"{number} {turn}")


# With two renames, writers without a lock can get TargetChangedError: see the test of the gap.
@pytest.mark.parametrize(("form", "locked"), [("exchange", False), ("exchange", True), ("two renames", True)], indirect=["form"])
def test_many_writers(place: Path, form: str, locked: bool) -> None:
    context = multiprocessing.get_context("fork")
    target = str(place / "site")
    processes = [context.Process(target=_writer, args=(target, number, form == "two renames", locked)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(set(tree(target).values())) == 1, "files of one generation only"
    assert [name for name in os.listdir(place) if OURS.match(name)] == []


def test_a_reader_always_finds_it(place: Path) -> None:
    """With an exchange there is no moment without the name, and a file looked up in one generation belongs to it."""
    target = str(place / "site")
    stop = threading.Event()
    missing: list[str] = []
    looks = 0

    def read() -> None:
        nonlocal looks
        while not stop.is_set():
            try:
                os.stat(target)
                looks += 1
            except OSError as error:
                missing.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        rounds, end = 0, time.monotonic() + 120
        while rounds < 150 or (looks <= 150 and time.monotonic() < end):
            with atomic_directory(target, durability="none") as staging:
                fill(staging, NEW)
            rounds += 1
    finally:
        stop.set()
        thread.join()
    assert missing == []
    assert looks > 150


def test_a_forked_child_changes_nothing(place: Path, form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fork of a process with threads
        with atomic_directory(place / "site") as staging:
            fill(staging, NEW)
            child = os.fork()
            if child == 0:
                try:
                    raise RuntimeError  # leaves the block
                except RuntimeError:
                    pass
                gc.collect()
                os._exit(3)
            assert os.waitpid(child, 0)[1] == 3 << 8
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    writer = next(each for each in gc.get_objects() if isinstance(each, _directory._DirectoryWriter))
                    try:
                        writer.commit()
                    except atomicio.WriterStateError:
                        writer.abort()
                        del writer
                        gc.collect()
                        status = 4
                finally:
                    os._exit(status)
            assert os.waitpid(child, 0)[1] == 4 << 8
            assert tree(staging) == NEW_TREE
            assert tree(place / "site") == OLD_TREE
    assert tree(place / "site") == NEW_TREE
    assert os.listdir(place) == ["site"]


# -- durability -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced, exchanged and removed, in order, by name; for descriptors the name they were opened by."""
    made: list[str] = []

    def name(fd: int) -> str:
        return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))

    def record(module: Any, function: str, describe: Callable[..., str]) -> None:
        original = getattr(module, function)

        def call(*arguments: Any, **keywords: Any) -> Any:
            made.append(f"{function} {describe(*arguments)}")
            return original(*arguments, **keywords)

        monkeypatch.setattr(module, function, call)

    record(os, "fsync", name)
    record(_syscalls, "syncfs", name)
    record(_syscalls, "exchange", lambda one, other, _: other)
    record(os, "rename", lambda source, target: re.sub(r"\.atomicio-\w+", "", f"{source} {target}"))
    record(os, "rmdir", lambda name: re.sub(r"\.atomicio-\w+", "", name))
    record(os, "unlink", lambda name: re.sub(r"\.atomicio-\w+", "", name))
    return made


@linux
def test_files_then_directories_from_below_then_the_exchange_then_the_parent_then_the_removal(place: Path, calls: list[str]) -> None:
    with atomic_directory(place / "site") as staging:
        fill(staging, {"x/y/z": ""})
    staged = os.path.basename(staging)
    assert calls == [
        *("fsync z", "fsync y", "fsync x", f"fsync {staged}", "exchange site", f"fsync {place.name}"),
        *calls[6:],
    ]
    assert {each.split()[0] for each in calls[6:]} == {"rename", "unlink", "rmdir"}
    assert calls[-1] == "rmdir .dir"


@linux
def test_one_barrier_for_many(place: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trees, "syncs_whole", lambda _: True)
    with atomic_directory(place / "site") as staging:
        fill(staging, {f"{number}/file": "" for number in range(20)})
    # syncfs does not flush the device everywhere; an fsync behind it does
    name = os.path.basename(staging)
    assert calls[:4] == [f"syncfs {name}", f"fsync {name}", "exchange site", f"fsync {place.name}"]
    assert calls.count("exchange site") == 1
    assert [each for each in calls[4:] if "sync" in each] == []


@linux
def test_where_a_barrier_would_not_tell_of_lost_writes_each_file_is_synced(
    place: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_trees, "syncs_whole", lambda _: False)
    with atomic_directory(place / "site") as staging:
        fill(staging, {f"{number}/file": "" for number in range(20)})
    assert calls.count("fsync file") == 20
    assert sum(each.startswith("fsync") for each in calls) == 20 + 20 + 2
    assert calls.index("exchange site") == 20 + 20 + 1


@linux
@pytest.mark.parametrize("durability", ["consistent", "durable"])
def test_a_new_one(tmp_path: Path, calls: list[str], durability: Any) -> None:
    with atomic_directory(tmp_path / "site", durability=durability) as staging:
        fill(staging, {"z": ""})
    staged = os.path.basename(staging)
    parent = [f"fsync {tmp_path.name}"] if durability == "durable" else []
    assert calls == ["fsync z", f"fsync {staged}", "rename .dir site", *parent]


def test_no_sync_at_all(place: Path, form: str, calls: list[str]) -> None:
    with atomic_directory(place / "site", durability="none") as staging:
        fill(staging, NEW)
    assert [each for each in calls if "sync" in each] == []


@linux
def test_the_record_is_synced_before_the_first_rename(place: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_syscalls, "exchange", no_exchange(errno.EINVAL))
    with atomic_directory(place / "site") as staging:
        fill(staging, {"z": ""})
    record = _recovery.record_name("site")
    assert calls == [
        *("fsync z", f"fsync {os.path.basename(staging)}"),
        "rename .dir site",  # were it empty, that would do
        *(f"fsync {record}", f"fsync {place.name}"),
        *("rename site .backup", "rename .dir site", f"fsync {place.name}"),
        *("rename .backup .dir", "unlink .recover"),
        *calls[10:],
    ]
    assert calls[-1] == "rmdir .dir"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_failed_sync_of_the_content(place: Path, form: str, monkeypatch: pytest.MonkeyPatch, code: int, number: int) -> None:
    original, count = os.fsync, iter(range(100))

    def fail(fd: int) -> None:
        if next(count) == number:
            raise OSError(code, os.strerror(code))
        original(fd)

    with pytest.raises(OSError) as caught, atomic_directory(place / "site") as staging:
        fill(staging, {"x/y": ""})
        fill(staging, {"z": ""})
        monkeypatch.setattr(os, "fsync", fail)
    assert caught.value.errno == code
    assert caught.value.filename == place / "site" or caught.value.filename == str(place / "site")
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert tree(place / "site") == OLD_TREE
    assert os.listdir(place) == ["site"]


@linux
@pytest.mark.parametrize("backup", [None, ".bak"])
def test_a_failed_sync_of_the_parent_leaves_both_trees(
    place: Path, form: str, monkeypatch: pytest.MonkeyPatch, backup: str | None
) -> None:
    """What the device has is not known: after a power cut the old tree may have the name, so nothing of it may go."""
    original = os.fsync

    def fail(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}") == str(place) and tree(place / "site") == NEW_TREE:
            raise OSError(errno.EIO, "lost")
        original(fd)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(NotDurableError) as caught, atomic_directory(place / "site", backup=backup) as staging:
        fill(staging, NEW)
    assert caught.value.errno == errno.EIO
    assert tree(place / "site") == NEW_TREE
    trees = [tree(place / name) for name in os.listdir(place) if (place / name).is_dir() and name != "site"]
    assert trees == [OLD_TREE]
    monkeypatch.undo()
    if form == "two renames":
        monkeypatch.setattr(_syscalls, "exchange", no_exchange(errno.EINVAL))
    # The next one follows the record, if there is one.
    with atomic_directory(place / "site", backup=backup) as staging:
        fill(staging, OLD)
    assert tree(place / "site") == OLD_TREE
    if form == "two renames":
        assert sorted(os.listdir(place)) == ["site", "site.bak"][: 2 if backup else 1]


def test_where_directories_cannot_be_synced(place: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.fsync

    def fail(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no such thing")
        original(fd)

    monkeypatch.setattr(os, "fsync", fail)
    with atomic_directory(place / "site") as staging:
        fill(staging, NEW)
    assert tree(place / "site") == NEW_TREE
    assert os.listdir(place) == ["site"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV])
def test_where_two_cannot_change_places(place: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(_syscalls, "exchange", no_exchange(code))
    with pytest.raises(UnreplaceableTargetError, match="two-renames") as caught, atomic_directory(
        place / "site", fallback="raise"
    ) as staging:
        fill(staging, NEW)
    assert caught.value.committed is False
    assert tree(place / "site") == OLD_TREE
    assert os.listdir(place) == ["site"]
    with atomic_directory(place / "site") as staging:
        fill(staging, NEW)
    assert tree(place / "site") == NEW_TREE
    assert os.listdir(place) == ["site"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EBUSY])
def test_an_exchange_that_fails(place: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(_syscalls, "exchange", no_exchange(code))
    with pytest.raises(OSError) as caught, atomic_directory(place / "site", backup=".bak") as staging:
        fill(staging, NEW)
    assert caught.value.errno == code
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert tree(place / "site") == OLD_TREE
    assert os.listdir(place) == ["site"]


def test_the_backup_cannot_be_named(place: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.rename

    def fail(source: str, target: str, **keywords: Any) -> None:
        if target.endswith(".bak"):
            raise OSError(errno.EIO, "lost")
        original(source, target, **keywords)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="backup") as caught, atomic_directory(place / "site", backup=".bak") as staging:
        fill(staging, NEW)
    assert caught.value.committed is True  # type: ignore[attr-defined]
    assert tree(place / "site") == NEW_TREE
    (copy,) = (name for name in os.listdir(place) if name.endswith(".backup"))
    assert copy in str(caught.value)
    assert tree(place / copy) == OLD_TREE


# -- the gap ----------------------------------------------------------------------------------------------------------------------

RENAMES = """
import os, sys
sys.path.insert(0, {package!r})
import atomicio, errno, signal
from atomicio import _syscalls
left = {number}
def counted(original):
    def call(*arguments, **keywords):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)
    return call
def refuse(*_):
    raise OSError(errno.EXDEV, "no")
def rename(source, target, original=os.rename, **keywords):
    if {how!r} == "copy" and source.startswith("site"):
        refuse()
    original(source, target, **keywords)
if {how!r} != "as it is":
    _syscalls.exchange, os.rename = refuse, rename
with atomicio.atomic_directory({target!r}, backup={backup!r}, durability="consistent") as staging:
    open(staging + "/c", "w").close()
    for name in "rename", "unlink", "rmdir", "mkdir", "fsync", "write", "open":
        setattr(os, name, counted(getattr(os, name)))
print("done")
"""


def killed(place: Path, number: int, backup: str | None, how: str) -> bool:
    """Replace `site` with a gap, with a SIGKILL at the `number`-th change; tell whether there was one."""
    package = str(Path(atomicio.__file__).parent.parent)
    code = RENAMES.format(number=number, package=package, target=str(place / "site"), backup=backup, how=how)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode in (0, -9), result.stderr
    return result.returncode == -9


@pytest.mark.parametrize("how", ["two renames", "copy"])
@pytest.mark.parametrize("backup", [None, ".bak"])
def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path, backup: str | None, how: str) -> None:
    gaps = 0
    for number in range(1, 100):
        remedy = ("the next call", "recover PATH", "recover DIR")[number % 3]
        place = tmp_path / str(number)
        fill(place / "site", OLD)
        if not killed(place, number, backup, how):
            assert tree(place / "site") == {"c": ""}
            break
        trees = [tree(path) for path in place.iterdir() if path.is_dir()]
        new, found = {"c": ""}, tree(place / "site")
        gap = found not in (OLD_TREE, new)  # none, or the rest of one that is being removed
        assert OLD_TREE in trees or tree(place / "site") == new, "the old one is there, or the new one under the name"
        gaps += gap
        before = tree(place / "site")
        if remedy == "the next call":
            with pytest.raises(RuntimeError), atomic_directory(place / "site"):
                raise RuntimeError
        else:
            where = place / "site" if remedy == "recover PATH" else place
            result = subprocess.run([sys.executable, "-m", "atomicio", "recover", where], capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            assert not gap or "put back as it was" in result.stdout
        after = tree(place / "site")
        if gap:
            assert after == OLD_TREE, "in the gap the old one comes back"
        else:
            assert after == before
        left = {re.sub(r"\.atomicio-\w+", "", name) for name in os.listdir(place)}
        if after == OLD_TREE:
            # With backup=, a complete new tree has for a moment the name of a recovery copy.
            assert left - {".dir"} - ({".backup"} if backup else set()) == {"site"}
        elif backup:
            assert left - {".dir"} == {"site", "site.bak"}
            assert tree(place / "site.bak") == OLD_TREE
        else:
            assert left - {".dir"} == {"site"}
    assert gaps >= 1
    assert number > 8


@pytest.mark.parametrize("form", ["copy"], indirect=True)
def test_what_cannot_be_removed_half_way(place: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old tree, of which there is a copy, is neither whole nor gone, and stays so until the recovery rule can be followed."""

    def unlink(path: str, *, dir_fd: int | None = None) -> None:
        if path == "b":
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        original(path, dir_fd=dir_fd)

    original = os.unlink
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(OSError, match="recover") as caught, atomic_directory(place / "site") as staging:
            fill(staging, NEW)
    assert caught.value.committed is True  # type: ignore[attr-defined]
    (copy,) = place.glob("*.backup")
    assert str(copy) in str(caught.value)
    assert tree(copy) == OLD_TREE
    ((_, record),) = _recovery.recover(str(place))
    assert not isinstance(record, OSError)
    assert record.outcome == "restored"
    assert tree(place / "site") == OLD_TREE
    assert os.listdir(place) == ["site"]


@linux
@pytest.mark.parametrize("form", ["copy"], indirect=True)
def test_the_copy_is_like_the_old_one(place: Path, form: str) -> None:
    """It is what is put back, and what `backup=` keeps."""
    site = place / "site"
    os.mkfifo(site / "fifo", 0o640)
    (site / "link").symlink_to("/etc")
    (site / "a").chmod(0o4711)
    (site / "sub").chmod(0o2750)
    os.setxattr(site / "a", "user.color", b"blue")
    os.setxattr(site / "sub", "user.color", b"red")
    if ROOT:
        for name in ("a", "sub", "link", "fifo"):
            os.chown(site / name, 1234, 4321, follow_symlinks=False)
        (site / "a").chmod(0o4711)
        (site / "sub").chmod(0o2750)
    for name in ("a", "sub/b", "sub", "."):
        os.utime(site / name, ns=(1, 2))

    def look(top: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in (top, *top.rglob("*")):
            status = path.lstat()
            times = None if stat.S_ISLNK(status.st_mode) or stat.S_ISFIFO(status.st_mode) else status.st_mtime_ns
            attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}
            found[str(path.relative_to(top))] = (status.st_mode, status.st_uid, status.st_gid, times, attributes)
        return found

    before = look(site)
    assert len(before) == 6
    with atomic_directory(site, backup=".bak") as staging:
        fill(staging, NEW)
    assert look(place / "site.bak") == before


def arrange(place: Path, target: bool, old: bool, new: bool, backup: str | None = None) -> _recovery.Record:
    """What a killed process can leave, row by row of the table in `_recovery`."""
    record = _recovery.Record(str(place) + "/", None, "site")
    record.create(".atomicio-0123456789abcdef", backup, sync=False)
    record.close()
    for there, name in ((target, "site"), (old, record.old), (new, record.new)):
        if there:
            fill(place / name, {"from": name})
    return record


@pytest.mark.parametrize("remedy", ["the next call", "recover PATH", "recover DIR"])
@pytest.mark.parametrize(
    ("target", "old", "new", "outcome"),
    [
        (True, False, True, "nothing"),
        (True, False, False, "nothing"),
        (False, True, True, "restored"),
        (False, True, False, "restored"),
        (True, True, False, "done"),
        (True, True, True, "kept"),
        (False, False, True, "nothing"),
        (False, False, False, "nothing"),
    ],
)
def test_what_the_record_says_is_followed(tmp_path: Path, target: bool, old: bool, new: bool, outcome: str, remedy: str) -> None:
    record = arrange(tmp_path, target, old, new)
    if remedy == "the next call":
        with pytest.raises(RuntimeError), atomic_directory(tmp_path / "site"):
            raise RuntimeError
    else:
        (found,) = _recovery.recover(str(tmp_path / "site" if remedy == "recover PATH" else tmp_path))
        assert found[0] == str(tmp_path / "site")
        assert not isinstance(found[1], OSError)
        assert found[1].outcome == outcome
    left = tree(tmp_path)
    assert record.name not in left
    if outcome == "restored":
        assert left["site/from"] == record.old
    elif target:
        assert left["site/from"] == "site"
    else:
        assert "site" not in left
    assert (record.old in left) == (outcome == "kept")
    assert record.new not in left


def test_a_replacement_with_a_backup_is_finished(tmp_path: Path) -> None:
    record = arrange(tmp_path, True, True, False, ".bak")
    fill(tmp_path / "site.bak", {"from": "older"})
    ((_, found),) = _recovery.recover(str(tmp_path / "site"))
    assert not isinstance(found, OSError)
    assert found.outcome == "done"
    assert tree(tmp_path) == {"site": None, "site/from": "site", "site.bak": None, "site.bak/from": record.old}


def test_a_live_writer_is_waited_for(place: Path) -> None:
    """Whoever finds the target missing while another process is between its renames waits for it."""
    record = _recovery.Record(str(place) + "/", None, "site")
    record.create(".atomicio-0123456789abcdef", None, sync=False)
    os.rename(place / "site", place / record.old)
    done = threading.Event()

    def other() -> None:
        with atomic_directory(place / "site") as staging:
            fill(staging, NEW)
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert not done.wait(0.2), "it waits"
    os.rename(place / record.old, place / "site")
    record.resolve()
    thread.join(120)
    assert tree(place / "site") == NEW_TREE
    assert os.listdir(place) == ["site"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        json.dumps({"target": "other", "stem": ".atomicio-0123456789abcdef", "backup": None, "copied": False}).encode(),
        json.dumps({"target": "site", "stem": "../../etc", "backup": None, "copied": False}).encode(),
        json.dumps({"target": "site", "stem": ".atomicio-0123456789abcdef", "backup": "/../../etc/passwd", "copied": False}).encode(),
        json.dumps({"target": ["site"], "stem": 3, "backup": None, "copied": False}).encode(),
    ],
)
def test_a_record_that_says_nothing_changes_nothing(tmp_path: Path, content: bytes) -> None:
    """Nothing is ever guessed."""
    fill(tmp_path / ".atomicio-0123456789abcdef.backup", OLD)
    record = tmp_path / _recovery.record_name("site")
    record.write_bytes(content)
    before = tree(tmp_path / ".atomicio-0123456789abcdef.backup")
    for path in (tmp_path, tmp_path / "site"):
        result = subprocess.run([sys.executable, "-m", "atomicio", "recover", path], capture_output=True, text=True)
        assert result.returncode == 1
        assert "nothing was changed" in result.stdout
    assert record.read_bytes() == content
    assert tree(tmp_path / ".atomicio-0123456789abcdef.backup") == before
    with atomic_directory(tmp_path / "site") as staging:
        fill(staging, NEW)
    assert tree(tmp_path / "site") == NEW_TREE
    assert tree(tmp_path / ".atomicio-0123456789abcdef.backup") == before


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_a_record_that_is_no_file(place: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_syscalls, "exchange", no_exchange(errno.EINVAL))
    record = place / _recovery.record_name("site")
    if kind == "link":
        record.symlink_to(place / "site/a")
    elif kind == "fifo":
        os.mkfifo(record)
    else:
        record.mkdir()
    with pytest.raises(OSError) as caught, atomic_directory(place / "site") as staging:
        fill(staging, NEW)
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert tree(place / "site") == OLD_TREE
    assert sorted(os.listdir(place)) == sorted(["site", record.name])


def test_the_name_of_the_record_is_for_any_target() -> None:
    for target in ("a", "ä" * 100, "\udcff", "x" * 255, "with\nnewline"):
        name = _recovery.record_name(target)
        assert re.fullmatch(r"\.atomicio-[0-9a-f]{16}\.recover", name)
    assert _recovery.record_name("a") != _recovery.record_name("b")


def test_the_longest_name(tmp_path: Path, form: str) -> None:
    name = "n" * 255
    for content in (OLD, NEW):
        with atomic_directory(tmp_path / name) as staging:
            fill(staging, content)
    assert tree(tmp_path / name) == NEW_TREE
    assert os.listdir(tmp_path) == [name]


def test_a_name_that_is_no_text(tmp_path: Path, form: str) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\n\xfe"
    try:
        os.mkdir(path)
    except OSError:
        pytest.skip("this file system takes only names that are text")
    with atomic_directory(path, backup=".bak") as staging:
        fill(os.fsdecode(staging), NEW)
    assert tree(os.fsdecode(path)) == NEW_TREE


# -- size -------------------------------------------------------------------------------------------------------------------------

COUNT = """
import os, sys
sys.path.insert(0, {package!r})
import atomicio
from atomicio import _syscalls
{form}
def fill(staging):
    for number in range({files}):
        directory = os.path.join(staging, str(number // 20))
        if not number % 20:
            os.mkdir(directory)
        open(os.path.join(directory, str(number)), "wb").close()
for _ in range(2):
    writer = atomicio.atomic_directory("site")
    fill(writer.open())
    os.getppid()
    writer.commit()
    os.getppid()
"""
FORMS = {
    "exchange": "",
    "copy": """
def refuse(*_):
    raise OSError(18, "not here")
def rename(source, target, original=os.rename, **keywords):
    if source == "site":
        refuse()
    original(source, target, **keywords)
_syscalls.exchange, os.rename = refuse, rename
""",
}


@linux
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("how", FORMS)
def test_the_cost_grows_with_the_number_of_files_and_no_faster(tmp_path: Path, how: str) -> None:
    """Syncing, changing places and removing the old tree: twice the files, twice the system calls, and no more."""
    counts = []
    for files in (400, 800):
        place = tmp_path / str(files)
        place.mkdir()
        code = COUNT.format(package=str(Path(atomicio.__file__).parent.parent), form=FORMS[how], files=files)
        strace = ["strace", "-f", "-q", "-o", place / "log", sys.executable, "-I", "-c", code]
        subprocess.run(strace, cwd=place, check=True, timeout=120, capture_output=True)
        parts = re.split(r"^.*getppid\(.*\n", (place / "log").read_text(errors="replace"), flags=re.MULTILINE)
        assert len(parts) == 5
        counts.append(parts[3].count("\n"))
        assert len(tree(place / "site")) == files * 21 // 20
    assert counts[0] >= 400, "at least the removal of each"
    assert counts[1] <= 2 * counts[0]


def test_the_deepest_tree_with_few_descriptors(place: Path) -> None:
    """Deeper than Python's recursion limit and than any path can name, and more directories than can be open."""
    depth = 1500
    fd = os.open(place / "site", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/dev/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 12, limits[1]))
    try:
        with atomic_directory(place / "site", durability="none") as staging:
            fill(staging, NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert tree(place / "site") == NEW_TREE
    assert os.listdir(place) == ["site"]


# -- interrupts -------------------------------------------------------------------------------------------------------------------


class Interrupter:
    """Raises KeyboardInterrupt at the `number`-th bytecode that the package executes."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.package = str(Path(atomicio.__file__).parent)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self.package):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if not self.left:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def replace(target: str, backup: str | None) -> None:
    with atomic_directory(target, durability="none" if backup else "consistent", backup=backup) as staging:
        os.mkdir(staging + "/sub")
        os.close(os.open(staging + "/sub/c", os.O_CREAT | os.O_WRONLY))


def interrupted(target: Path, number: int, backup: str | None) -> bool:
    """Replace `target` with an interrupt at bytecode `number`, and tell whether it came to that."""
    interrupter = Interrupter(number)
    sys.settrace(interrupter)
    try:
        replace(str(target), backup)
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return interrupter.left <= 0


def sweep(tmp_path: Path, backup: str | None, numbers: Iterator[int]) -> int:
    """Interrupt a replacement at each of `numbers`, look at what is left, and return how often that was."""
    new = {"sub": None, "sub/c": ""}
    before = sorted(os.listdir("/dev/fd"))
    times = 0
    for number in numbers:
        place = tmp_path / str(number)
        os.mkdir(place)
        fill(place / "site", OLD)
        come = interrupted(place / "site", number, backup)
        names = set(os.listdir(place))
        found = tree(place / "site")
        assert found in (OLD_TREE, new), number
        assert names <= {"site", "site.bak"}, (number, names)
        if "site.bak" in names:
            assert tree(place / "site.bak") == OLD_TREE, number
        assert (found == new) or not backup or "site.bak" not in names, number
        assert not (backup and found == new and "site.bak" not in names), (number, "the old one is lost")
        shutil.rmtree(place)
        if not come:
            assert found == new
            break
        times += 1
    gc.collect()
    assert sorted(os.listdir("/dev/fd")) == before
    return times


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts bytecodes of CPython")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("backup", [None, ".bak"])
def test_an_interrupt_at_any_bytecode(tmp_path: Path, form: str, backup: str | None) -> None:
    """Every 43rd here; tests/interrupts does all of them."""
    fill(tmp_path / "rehearsal", OLD)
    # Traced too: Python 3.12 tells of the bytecodes of code that was traced before, and not always of others.
    interrupted(tmp_path / "rehearsal", 10**9, backup)
    assert sweep(tmp_path, backup, iter(range(1, 100_000, 43))) > 40
