"""`probe` tells what a place can do by trying it, and leaves no trace."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomicio
from atomicio import probe

if sys.platform == "emscripten":
    pytest.skip("locks are tried with a second process, which Emscripten has not", allow_module_level=True)

from atomicio import _filesystem, _syscalls
from atomicio._filesystem import Mount, mount_of
from atomicio._probe import _CHILD, Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEVELS = {"none", "consistent", "durable"}
CAPABILITIES = (
    "unnamed_files",
    "hard_links",
    "create_new",
    "exchange",
    "file_sync",
    "directory_sync",
    "reflink",
    "locks",
    "permissions",
    "case_sensitive",
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
posix = pytest.mark.skipif(os.name == "nt", reason="needs POSIX calls")
needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to mount")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts file systems, and unmounts them again."""
    places: list[Path] = []
    devices: list[str] = []

    def mount(kind: str, *options: str, size: str | None = None) -> Path:
        place = tmp_path / f"{kind}{len(places)}"
        place.mkdir()
        source: list[str | Path] = [kind]
        if size:
            image = tmp_path / f"{kind}.img"
            maker = shutil.which(f"mkfs.{kind}")
            if not maker:
                pytest.skip(f"mkfs.{kind} is not installed")
            with open(image, "wb") as file:
                file.truncate(int(size) << 20)
            subprocess.run([maker, image], check=True, capture_output=True)
            source = ["-o", "loop", image]
        command = ["mount", "-t", kind, *options, *source, place]
        if program := shutil.which(f"mount.{kind}-fuse"):
            loop = ["losetup", "-f", "--show", image]
            devices.append(subprocess.run(loop, check=True, capture_output=True, text=True).stdout.strip())
            command = [program, devices[-1], place]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"{kind} can't be mounted here")
        places.append(place)
        return place

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", place], check=True)
    for device in devices:
        subprocess.run(["losetup", "-d", device], check=True)


def test_everything_is_told_and_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    found = probe(tmp_path)
    assert isinstance(found, Probe)
    for name in CAPABILITIES:
        assert getattr(found, name) in (True, False, None), name
    assert set(found.promises) == LEVELS
    assert found.path == str(tmp_path)
    assert os.listdir(tmp_path) == ["mine"]
    assert found.file_sync is True
    assert found.locks is True


@linux
def test_what_linux_can(tmp_path: Path) -> None:
    found = probe(tmp_path)
    for name in ("hard_links", "create_new", "directory_sync", "permissions", "case_sensitive"):
        assert getattr(found, name) is True, name
    fd = os.open(tmp_path, os.O_RDONLY)
    mount = mount_of(fd)
    os.close(fd)
    assert mount is not None
    expected = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout.strip()
    # stat(1) names by magic number, and ext2 to ext4 have one
    assert found.filesystem == mount.type
    assert expected.startswith(mount.type[:3])


@posix
@pytest.mark.parametrize("kind", [str, os.fsencode, Path])
def test_any_kind_of_path(tmp_path: Path, kind: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert probe(kind(tmp_path)).path == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert probe(kind(".")).path == str(tmp_path)
    assert probe().path == str(tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, error in (("file", NotADirectoryError), ("nowhere", FileNotFoundError)):
        with pytest.raises(error) as caught:
            probe(tmp_path / name)
        assert caught.value.filename == str(tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]


@linux
@needs_root
def test_in_memory(mounted: Callable[..., Path]) -> None:
    found = probe(mounted("tmpfs"))
    assert found.filesystem == "tmpfs"
    assert found.in_memory is True
    assert found.network is False
    assert found.exchange is True
    assert "everything is gone" in found.promises["durable"]


@linux
@needs_root
@pytest.mark.parametrize("kind", ["vfat", "exfat"])
def test_fat(kind: str, mounted: Callable[..., Path]) -> None:
    place = mounted(kind, size="16")
    found = probe(place)
    assert found.filesystem == {"vfat": "vfat", "exfat": "fuseblk"}[kind]
    assert found.hard_links is False
    assert found.create_new is True
    assert found.unnamed_files is False
    assert found.permissions is False
    assert found.case_sensitive is False
    assert found.locks is True
    assert os.listdir(place) == []


@linux
@needs_root
def test_reflinks(mounted: Callable[..., Path]) -> None:
    place = mounted("btrfs", size="128")
    found = probe(place)
    assert (found.filesystem, found.reflink, found.exchange, found.unnamed_files) == ("btrfs", True, True, True)
    assert os.listdir(place) == []


@linux
@needs_root
def test_a_mount_that_ignores_syncs(mounted: Callable[..., Path]) -> None:
    found = probe(mounted("ext4", "-o", "nobarrier", size="8"))
    assert found.unsynced == "nobarrier"
    assert "a power cut may leave anything" in found.promises["durable"]


@linux
@needs_root
def test_read_only(mounted: Callable[..., Path]) -> None:
    place = mounted("tmpfs", "-o", "ro")
    with pytest.raises(OSError) as caught:
        probe(place)
    assert caught.value.errno == errno.EROFS


@posix
@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_directories_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    original = os.fsync

    def fail(fd: int) -> None:
        if os.path.isdir(f"/dev/fd/{fd}"):
            raise OSError(code, os.strerror(code))
        original(fd)

    monkeypatch.setattr(os, "fsync", fail)
    found = probe(tmp_path)
    assert found.directory_sync is False
    assert "directories can't be synced here" in found.promises["durable"]
    assert "directories" not in found.promises["consistent"]
    assert os.listdir(tmp_path) == []


@posix
def test_what_fails_is_false_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(_syscalls, "exchange", refuse)
    monkeypatch.setattr(_syscalls, "rename_new", refuse)
    monkeypatch.setattr(os, "chmod", refuse)
    found = probe(tmp_path)
    for name in ("unnamed_files", "hard_links", "create_new", "exchange", "permissions"):
        assert getattr(found, name) is False, name
    assert os.listdir(tmp_path) == []


@posix
def test_locks_that_keep_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system whose locks are each machine's own."""
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: None)
    monkeypatch.setattr(fcntl, "lockf", lambda *arguments: None)
    assert probe(tmp_path).locks is False
    assert os.listdir(tmp_path) == []


@posix
@pytest.mark.parametrize("moment", ["os.path.exists", "pathlib.Path.mkdir"])
def test_the_second_process_makes_nothing_where_there_is_no_directory_any_more(tmp_path: Path, moment: str) -> None:
    """Who asked may be gone, and have removed its scratch directory: filelock would make the directory and the lock again."""
    scratch, modules = tmp_path / "scratch", tmp_path / "modules"
    scratch.mkdir()
    (scratch / "lock").touch()
    modules.mkdir()
    owner, _, name = moment.rpartition(".")
    # Removes the directory at that moment: behind the look whether it is there, or before it would be made.
    removal = f"""
import os, pathlib, shutil, sys
real = {moment}
def removed(*arguments, **keywords):
    found = real(*arguments, **keywords) if {name == "exists"} else None
    shutil.rmtree({str(scratch)!r}, ignore_errors=True)
    return found or real(*arguments, **keywords)
{owner}.{name} = removed
sys.path.remove({str(modules)!r})
del sys.modules["filelock"]
import filelock
"""
    (modules / "filelock.py").write_text(removal)
    code = _CHILD.format(path=[str(modules), *sys.path], name=str(scratch / "lock"))
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert not scratch.exists(), done.stderr
    assert done.returncode == 1, done.stderr


def test_the_promises_of_each_kind() -> None:
    line = "36 35 98:0 / /mnt rw,noatime shared:1 - {} source rw,{}"
    local = Probe("/mnt", Mount(line.format("ext4", "data=ordered")))
    network = Probe("/mnt", Mount(line.format("nfs4", "vers=4.2")))
    fuse = Probe("/mnt", Mount(line.format("fuse.unknown", "user_id=0")))
    volatile = Probe("/mnt", Mount(line.format("overlay", "lowerdir=/l,volatile")))
    memory = Probe("/mnt", Mount(line.format("tmpfs", "size=10k")))
    unknown = Probe("/mnt", None)
    kinds = [local, network, fuse, volatile, memory]
    assert len({each.promises["durable"] for each in kinds}) == len(kinds)
    for each in (*kinds, unknown):
        assert all("." not in promise.removesuffix(".").replace("fuse.unknown", "") for promise in each.promises.values()), "one sentence"
        assert all("old or the new content, whole" in promise for promise in each.promises.values())
    assert "other machines" in network.promises["none"]
    assert "volatile" in volatile.promises["consistent"]
    assert "fuse.unknown" in fuse.promises["durable"]
    assert unknown.filesystem is None
    assert unknown.promises == local.promises


def test_a_line_of_mountinfo() -> None:
    mount = Mount(r"42 36 0:40 / /mnt/with\040space rw,relatime master:5 propagate_from:2 - fuse.sshfs user@host:/ rw,user_id=0")
    assert (mount.type, mount.network, mount.fuse, mount.in_memory) == ("fuse.sshfs", True, True, False)
    assert "user_id=0" in mount.options
    assert "relatime" in mount.options
    mount = Mount("42 36 8:1 / / rw - fuseblk /dev/sda1 rw")
    assert (mount.type, mount.network, mount.fuse) == ("fuseblk", False, True)


@linux
@pytest.mark.parametrize(
    ("kind", "release", "whole"),
    [
        ("ext4", "5.8.0", True),
        ("btrfs", "6.18.44-fc", True),
        ("xfs", "5.7.19", False),
        ("xfs", "4.19.0-1-amd64", False),
        ("overlay", "6.1.0", False),
        ("fuse.sshfs", "6.1.0", False),
        ("nfs4", "6.1.0", False),
        ("unheard-of", "6.1.0", False),
    ],
)
def test_where_one_barrier_tells_of_lost_writes(monkeypatch: pytest.MonkeyPatch, kind: str, release: str, whole: bool) -> None:
    class System:
        pass

    System.release = release  # type: ignore[attr-defined]
    monkeypatch.setattr(os, "uname", System)
    monkeypatch.setattr(_filesystem, "mount_of", lambda _: Mount(f"1 1 1:1 / / rw - {kind} x rw"))
    assert _filesystem.syncs_whole(0) is whole


def command(*arguments: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atomicio", "probe", *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def test_the_command(tmp_path: Path) -> None:
    found = probe(tmp_path)
    result = command(tmp_path, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == found.as_dict()
    assert set(found.as_dict()) == {
        *CAPABILITIES, "path", "filesystem", "network", "fuse", "in_memory", "unsynced", "promises",
    }  # fmt: skip
    result = command(tmp_path)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0] == str(tmp_path)
    rows = " ".join(line.strip() for line in lines)
    for level, promise in found.promises.items():
        assert f"{level:<26}{promise}" in rows
    assert max(map(len, lines[1:])) <= 100
    shown = {line[:26].strip(): line[28:].partition(":")[0] for line in lines[2:12]}
    assert list(shown.values()) == [{True: "yes", False: "no", None: "not known"}[getattr(found, name)] for name in (
        "unnamed_files", "hard_links", "create_new", "exchange", "file_sync", "directory_sync", "reflink", "locks", "permissions",
        "case_sensitive",
    )]  # fmt: skip
    assert os.listdir(tmp_path) == []


def test_every_key_is_documented(tmp_path: Path) -> None:
    page = Path(__file__).parent.parent / "docs" / "how-to" / "probe.rst"
    if not page.exists():
        pytest.skip("the tests run without the checkout: no pages here")
    documented = {name for line in page.read_text().splitlines() if line.startswith("``") for name in re.findall(r"``(\w+)``", line[:26])}
    assert documented == set(probe(tmp_path).as_dict())


def test_the_command_where_there_is_no_directory(tmp_path: Path) -> None:
    result = command(tmp_path / "nowhere")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"atomicio: {tmp_path / 'nowhere'}: ")
    assert len(result.stderr.splitlines()) == 1


def test_imports_late() -> None:
    program = "import sys, atomicio; assert not {'atomicio._probe', 'atomicio._directory', 'subprocess'} & set(sys.modules); atomicio.probe"
    package = str(Path(atomicio.__file__).parent.parent)
    preamble = f"import sys; sys.path.insert(0, {package!r}); "
    subprocess.run([sys.executable, "-I", "-S", "-c", preamble + program], check=True, timeout=60)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        atomicio.nothing_like_it  # type: ignore[attr-defined]  # noqa: B018
