"""A full disk, a real one: ENOSPC is raised, the old content is whole, nothing is left behind, and the space is free
again.
"""

from __future__ import annotations

import errno
import gc
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import atomicio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SIZE = 256 * 1024
OLD = b"the old content\n" * 1000
TOO_MUCH = b"more than there is room for\n" * (SIZE // 20)


def cannot_mount() -> str | None:
    if sys.platform != "linux":
        return "mounts a tmpfs: Linux only"
    if os.geteuid() != 0 or not shutil.which("mount"):
        return "needs root, to mount a small tmpfs"
    return None


pytestmark = pytest.mark.skipif(cannot_mount() is not None, reason=str(cannot_mount()))


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    mount = tmp_path_factory.mktemp("small")
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},nr_inodes=100", "small", mount]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.fixture
def small(mount: Path) -> Iterator[Path]:
    """An empty file system of 256 KiB."""
    yield mount
    for each in mount.iterdir():
        shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()


def descriptors() -> set[str]:
    return {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}


def free(mount: Path) -> tuple[int, int]:
    status = os.statvfs(mount)
    return status.f_bavail, status.f_favail


def whole(target: Path, **keywords: Any) -> None:
    atomicio.write_bytes(target, TOO_MUCH, **keywords)


def whole_text(target: Path, **keywords: Any) -> None:
    atomicio.write_text(target, TOO_MUCH.decode(), **keywords)


def buffered(target: Path, **keywords: Any) -> None:
    with atomicio.atomic_write(target, "wb", **keywords) as file:
        for start in range(0, len(TOO_MUCH), 1000):
            file.write(TOO_MUCH[start : start + 1000])


def big_buffer(target: Path, **keywords: Any) -> None:
    """All of it is still in the buffer when the block ends."""
    with atomicio.atomic_write(target, "wb", 4 * SIZE, **keywords) as file:
        file.write(TOO_MUCH)


def unbuffered(target: Path, **keywords: Any) -> None:
    """Plain open returns a short count here, and no error."""
    with atomicio.atomic_write(target, "wb", 0, **keywords) as file:
        file.write(TOO_MUCH)


def text(target: Path, **keywords: Any) -> None:
    with atomicio.atomic_write(target, **keywords) as file:
        file.write(TOO_MUCH.decode())


def exclusive(target: Path, **keywords: Any) -> None:
    with atomicio.atomic_write(target, "xb", **keywords) as file:
        file.write(TOO_MUCH)


def append(target: Path, **keywords: Any) -> None:
    with atomicio.atomic_write(target, "ab", **keywords) as file:
        file.write(TOO_MUCH)


def update(target: Path, **keywords: Any) -> None:
    with atomicio.atomic_write(target, "r+b", **keywords) as file:
        file.seek(0, os.SEEK_END)
        file.write(TOO_MUCH)


def by_path(target: Path, **keywords: Any) -> None:
    with atomicio.atomic_path(target, **keywords) as staging, open(staging, "wb") as file:
        file.write(TOO_MUCH)


def explicit(target: Path, **keywords: Any) -> None:
    writer = atomicio.atomic_write(target, "wb", 4 * SIZE, **keywords)
    writer.open().write(TOO_MUCH)
    writer.commit()


WRITERS = [whole, whole_text, buffered, big_buffer, unbuffered, text, append, by_path, explicit]
CASES = [*((write, exists) for write in WRITERS for exists in (True, False)), (exclusive, False), (update, True)]


@pytest.mark.parametrize("durability", ["none", "durable"])
@pytest.mark.parametrize("staging", ["unnamed", "named"])
@pytest.mark.parametrize(
    ("write", "exists"), CASES, ids=lambda value: getattr(value, "__name__", "old" if value else "new")
)
def test_full_disk(
    write: Callable[..., None],
    exists: bool,
    staging: str,
    durability: str,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if staging == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    target = small / "target"
    if exists:
        target.write_bytes(OLD)
    before = free(small)
    with pytest.raises(OSError) as caught:
        write(target, durability=durability)
    assert caught.value.errno == errno.ENOSPC
    if write is not by_path:  # there it is the consumer's own write to the staging path that fails
        assert caught.value.filename == str(target)
        assert caught.value.committed is False  # type: ignore[attr-defined]
    assert [each.name for each in small.iterdir()] == (["target"] if exists else [])
    if exists:
        assert target.read_bytes() == OLD
    assert free(small) == before


@pytest.mark.parametrize("buffering", [-1, 0])
def test_commit_refuses_after_a_swallowed_error(buffering: int, small: Path) -> None:
    """The caller goes on after a write has failed: what is there is not all that was written."""
    target = small / "target"
    target.write_bytes(OLD)
    before = free(small)
    writer = atomicio.atomic_write(target, "wb", buffering)
    file = writer.open()
    try:
        file.write(TOO_MUCH)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    else:
        raise AssertionError("it fitted")
    try:
        file.close()
    except OSError:
        pass
    with pytest.raises(OSError) as caught:
        writer.commit()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(target)
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert target.read_bytes() == OLD
    assert [each.name for each in small.iterdir()] == ["target"]
    assert free(small) == before


@pytest.mark.parametrize("staging", ["unnamed", "named"])
@pytest.mark.parametrize("buffering", [-1, 0])
def test_dropped_after_a_failed_write(
    buffering: int, staging: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for the garbage collector: with the caller's frame, descriptors and staging file are gone."""
    if staging == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)

    def write() -> None:
        writer = atomicio.atomic_write(small / "target", "wb", buffering)
        writer.open().write(TOO_MUCH)

    before = free(small), descriptors()
    gc.disable()
    try:
        with pytest.warns(ResourceWarning, match="never committed"):
            try:
                write()
            except OSError as error:
                assert error.errno == errno.ENOSPC
        assert (free(small), descriptors()) == before
    finally:
        gc.enable()
    assert list(small.iterdir()) == []


def test_swallowed_in_the_block(small: Path) -> None:
    target = small / "target"
    target.write_bytes(OLD)
    with pytest.raises(OSError) as caught, atomicio.atomic_write(target, "wb", 0) as file:
        try:
            file.write(TOO_MUCH)
        except OSError:
            pass
        file.seek(0)
        file.truncate()
        file.write(b"now it fits")
    assert caught.value.errno == errno.ENOSPC
    assert target.read_bytes() == OLD
    assert [each.name for each in small.iterdir()] == ["target"]


def test_it_works_again_when_there_is_room(small: Path) -> None:
    """An error leaves nothing in the library that would get in the way of the next write."""
    target = small / "target"
    ballast = small / "ballast"
    ballast.write_bytes(b"x" * (SIZE - 2 * 4096))
    with pytest.raises(OSError, match="No space left"):
        atomicio.write_bytes(target, OLD)
    ballast.unlink()
    atomicio.write_bytes(target, OLD)
    assert target.read_bytes() == OLD


@pytest.mark.parametrize("staging", ["unnamed", "named"])
def test_no_inode_left(staging: str, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full is also where there is room for content and none for one more file."""
    if staging == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    target = small / "target"
    target.write_bytes(OLD)
    number = 0
    with pytest.raises(OSError, match="No space left"):
        while True:
            (small / f"filler-{number}").touch()
            number += 1
    names = sorted(each.name for each in small.iterdir())
    with pytest.raises(OSError) as caught:
        atomicio.write_bytes(target, b"new")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert target.read_bytes() == OLD
    assert sorted(each.name for each in small.iterdir()) == names


def test_backup_does_not_fit(small: Path) -> None:
    """A backup is a second name for the old file, and takes no room."""
    target = small / "target"
    target.write_bytes(b"o" * (SIZE // 2))
    atomicio.write_bytes(target, b"new", backup=".bak")
    assert target.read_bytes() == b"new"
    assert (small / "target.bak").read_bytes() == b"o" * (SIZE // 2)
