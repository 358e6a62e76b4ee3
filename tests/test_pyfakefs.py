"""pyfakefs puts a file system of its own in the place of ``os`` and ``open``; many test with it what uses us.

It has no descriptors of directories, no O_TMPFILE and no copy_file_range; what it lacks are just missing capabilities.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

if os.name == "nt":
    pytest.skip("pyfakefs does not replace CreateFileW, which opens files on Windows", allow_module_level=True)
pytest.importorskip("pyfakefs", reason="needs the package 'pyfakefs'")

from pyfakefs.fake_filesystem_unittest import Patcher

import atomicio

if TYPE_CHECKING:
    from collections.abc import Iterator

LEVELS = ("none", "consistent", "durable")


@pytest.fixture
def fake() -> Iterator[Any]:
    with Patcher() as patcher:
        assert patcher.fs is not None
        patcher.fs.create_dir("/data")
        yield patcher.fs


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("level", LEVELS)
def test_create_and_replace(fake: Any, level: str) -> None:
    atomicio.write_bytes("/data/target", b"old", durability=level)  # type: ignore[arg-type]
    assert content("/data/target") == b"old"
    with atomicio.atomic_write("/data/target", durability=level) as file:  # type: ignore[call-overload]
        file.write("new")
        assert content("/data/target") == b"old"
    assert content("/data/target") == b"new"
    assert os.listdir("/data") == ["target"]
    assert not os.path.ismount("/data"), "the real file system was not asked"


@pytest.mark.parametrize("level", LEVELS)
def test_append_and_update(fake: Any, level: str) -> None:
    fake.create_file("/data/target", contents="old")
    with atomicio.atomic_write("/data/target", "a", durability=level) as file:  # type: ignore[call-overload]
        file.write(" and new")
    assert content("/data/target") == b"old and new"
    with atomicio.atomic_write("/data/target", "r+", durability=level) as file:  # type: ignore[call-overload]
        assert file.read(3) == "old"
        file.seek(0)
        file.write("OLD")
    assert content("/data/target") == b"OLD and new"
    assert os.listdir("/data") == ["target"]


def test_exclusive_creation(fake: Any) -> None:
    with atomicio.atomic_write("/data/target", "x") as file:
        file.write("new")
    with pytest.raises(FileExistsError):
        atomicio.atomic_write("/data/target", "x").open()
    assert content("/data/target") == b"new"
    assert os.listdir("/data") == ["target"]


def test_an_exception_leaves_everything(fake: Any) -> None:
    fake.create_file("/data/target", contents="old")
    with pytest.raises(KeyError), atomicio.atomic_write("/data/target") as file:
        file.write("new")
        raise KeyError
    assert content("/data/target") == b"old"
    assert os.listdir("/data") == ["target"]


def test_the_mode_stays(fake: Any) -> None:
    fake.create_file("/data/target", contents="old", st_mode=0o100640)
    atomicio.write_text("/data/target", "new")
    assert os.stat("/data/target").st_mode & 0o777 == 0o640
    atomicio.write_text("/data/other", "new", permissions=0o600)
    assert os.stat("/data/other").st_mode & 0o777 == 0o600


def test_a_link_is_followed(fake: Any) -> None:
    fake.create_file("/data/real/target", contents="old")
    fake.create_symlink("/data/link", "/data/real/target")
    atomicio.write_text("/data/link", "new")
    assert os.path.islink("/data/link")
    assert content("/data/real/target") == b"new"


def test_a_path_for_others(fake: Any) -> None:
    with atomicio.atomic_path("/data/out.txt") as staging:
        assert staging.endswith(".txt")
        with open(staging, "w") as file:
            file.write("new")
    assert content("/data/out.txt") == b"new"
    assert os.listdir("/data") == ["out.txt"]


def test_errors(fake: Any) -> None:
    with pytest.raises(FileNotFoundError):
        atomicio.write_bytes("/missing/target", b"new")
    with pytest.raises(IsADirectoryError):
        atomicio.write_bytes("/data", b"new")
    atomicio.write_bytes("/made/by/us/target", b"new", make_parents=True)
    assert content("/made/by/us/target") == b"new"


def test_a_full_disk(fake: Any) -> None:
    fake.create_file("/data/target", contents="old")
    fake.set_disk_usage(1000)
    with pytest.raises(OSError):
        atomicio.write_bytes("/data/target", b"z" * 5000)
    assert content("/data/target") == b"old"
    assert os.listdir("/data") == ["target"]
