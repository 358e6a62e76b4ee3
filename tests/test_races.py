"""Readers and writers at the same time, and a directory that changes under the writer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import atomicio

few_at_a_time = pytest.mark.skipif(
    os.name != "posix", reason="on Windows test_windows.py does this, with as many as wait for each other there"
)
posix = pytest.mark.skipif(os.name != "posix", reason="on Windows a directory that is in use cannot be renamed")


def program(source: str, *arguments: object) -> subprocess.Popen[str]:
    """Start *source* in another process, with the library that is tested here."""
    where = str(Path(atomicio.__file__).parent.parent)
    import filelock

    header = f"import sys; sys.path[:0] = [{where!r}, {str(Path(filelock.__file__).parent.parent)!r}]\n"
    command = [sys.executable, "-c", header + source, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Let all of them go at the same time, and return what they print."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    output = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return output


READY = """
import atomicio, os
print("ready", flush=True)
sys.stdin.readline()
"""

WRITE = (
    READY
    + """
target, letter, times = sys.argv[1], sys.argv[2].encode(), int(sys.argv[3])
for number in range(times):
    size = 1 + number * 7919 % 60000
    content = letter * size + b"|%d" % size
    if number % 3 == 0:
        atomicio.write_bytes(target, content, durability="none")
    elif number % 3 == 1:
        with atomicio.atomic_write(target, "wb", durability="none") as file:
            file.write(content)
    else:
        with atomicio.atomic_path(target, durability="none") as staging, open(staging, "wb") as file:
            file.write(content)
"""
)


def is_whole(content: bytes) -> bool:
    body, _, size = content.rpartition(b"|")
    return len(body) == int(size) and body == body[:1] * len(body)


@few_at_a_time
def test_readers_see_whole_files(tmp_path: Path) -> None:
    """Two processes replace a file 600 times while two threads read it: never torn, never missing."""
    target = tmp_path / "target"
    target.write_bytes(b"x|1")
    writers = [program(WRITE, target, letter, 300) for letter in "ab"]
    done = threading.Event()
    torn: list[bytes] = []

    def read() -> int:
        reads = 0
        while not done.is_set():
            content = target.read_bytes()  # FileNotFoundError would be a moment without the file
            if not is_whole(content):
                torn.append(content)
            reads += 1
        return reads

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            finish(writers)
        finally:
            done.set()
        assert sum(reader.result() for reader in readers) > 20
    assert torn == []
    assert [each.name for each in tmp_path.iterdir()] == ["target"]


def test_open_file_keeps_its_content(tmp_path: Path) -> None:
    """Who has opened the file reads on in what it was, while it is replaced."""
    if os.name != "posix":
        pytest.skip("on Windows what replaces a file that is open depends on how it was opened")
    target = tmp_path / "target"
    target.write_bytes(b"old" * 1000)
    with target.open("rb") as file:
        start = file.read(3)
        atomicio.write_bytes(target, b"new")
        assert start + file.read() == b"old" * 1000
    assert target.read_bytes() == b"new"


EXCLUSIVE = (
    READY
    + """
won = []
for number in range(20):
    target = os.path.join(sys.argv[1], str(number))
    try:
        with atomicio.atomic_write(target, "x", durability=sys.argv[3]) as file:
            file.write(sys.argv[2])
        won.append(number)
    except FileExistsError as error:
        assert error.committed is False and error.filename == target
print(*won)
"""
)


@pytest.mark.parametrize("durability", ["none", "durable"])
def test_exclusive_has_one_winner(durability: str, tmp_path: Path) -> None:
    """16 processes create the same 20 files: each file has one winner, its content, and nobody overwrites it."""
    winners = finish([program(EXCLUSIVE, tmp_path, who, durability) for who in range(16)])
    won = {int(number): str(who) for who, line in enumerate(winners) for number in line.split()}
    assert sum(len(line.split()) for line in winners) == 20
    assert {int(each.name): each.read_text() for each in tmp_path.iterdir()} == won


@few_at_a_time
def test_threads_write_one_file(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def write(who: int) -> None:
        for number in range(50):
            size = 1 + number * 7919 % 30000
            with atomicio.atomic_write(target, "wb", durability="none") as file:
                file.write(b"%c" % (65 + who) * size + b"|%d" % size)
            assert is_whole(target.read_bytes())

    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(write, who) for who in range(8)]:
            result.result()
    assert [each.name for each in tmp_path.iterdir()] == ["target"]


def test_threads_write_many_files(tmp_path: Path) -> None:
    """Each thread finds its own content: nothing is shared between writers."""

    def write(who: int) -> None:
        for number in range(50):
            target = tmp_path / f"{who}-{number}"
            atomicio.write_text(target, f"{who} {number}", durability="none")
            assert target.read_text() == f"{who} {number}"

    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(write, who) for who in range(8)]:
            result.result()
    assert len(list(tmp_path.iterdir())) == 400


@pytest.mark.parametrize("lock", [True, threading.Lock()], ids=["file", "thread"])
def test_threads_take_turns(lock: object, tmp_path: Path) -> None:
    target = tmp_path / "counter"
    target.write_text("0")

    def increment() -> None:
        for _ in range(50):
            with atomicio.atomic_write(target, "r+", lock=lock, durability="none") as file:  # type: ignore[call-overload]
                number = int(file.read())
                file.seek(0)
                file.truncate()
                file.write(str(number + 1))

    with ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(increment) for _ in range(8)]:
            result.result()
    assert target.read_text() == "400"


@pytest.mark.parametrize("mode", ["w", "x", "a", "r+"])
def test_chdir_in_the_block(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means what it meant when the writer was made."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    if mode in ("a", "r+"):
        (here / "target").write_text("new")
    monkeypatch.chdir(here)
    with atomicio.atomic_write("target", mode) as file:  # type: ignore[call-overload]
        if mode != "a":
            file.write("new")
        monkeypatch.chdir(there)
    assert (here / "target").read_text() == "new"
    assert [each.name for each in here.iterdir()] == ["target"]
    assert list(there.iterdir()) == []


def test_chdir_before_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    writer = atomicio.atomic_write("target")
    monkeypatch.chdir(there)
    with writer as file:
        file.write("new")
    assert (here / "target").read_text() == "new"
    assert list(there.iterdir()) == []


@posix
@pytest.mark.parametrize("staging", ["unnamed", "named"])
@pytest.mark.parametrize("exists", [True, False], ids=["old", "new"])
def test_directory_renamed_in_the_block(
    exists: bool, staging: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file ends up in the directory that it was opened in, whatever that is called by then, and nowhere else."""
    if staging == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    if exists:
        (before / "target").write_text("old")
    with atomicio.atomic_write(before / "target") as file:
        file.write("new")
        before.rename(after)
        before.mkdir()
    assert (after / "target").read_text() == "new"
    assert [each.name for each in after.iterdir()] == ["target"]
    assert list(before.iterdir()) == []


@posix
def test_directory_removed_in_the_block(tmp_path: Path) -> None:
    directory = tmp_path / "gone"
    directory.mkdir()
    with pytest.raises(FileNotFoundError) as caught, atomicio.atomic_write(directory / "target") as file:
        file.write("new")
        directory.rmdir()
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert caught.value.filename == str(directory / "target")
    assert list(tmp_path.iterdir()) == []


@posix
def test_link_swapped_in_the_block(tmp_path: Path) -> None:
    """The target is the file that the link led to when the writer was opened."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "target").write_text("old")
    link = tmp_path / "link"
    link.symlink_to("one")
    with atomicio.atomic_write(link / "target") as file:
        file.write("new")
        link.unlink()
        link.symlink_to("two")
    assert (tmp_path / "one" / "target").read_text() == "new"
    assert (tmp_path / "two" / "target").read_text() == "old"


def test_target_created_in_the_block(tmp_path: Path) -> None:
    """x: somebody else was first, after the check on entry."""
    target = tmp_path / "target"
    with pytest.raises(FileExistsError) as caught, atomicio.atomic_write(target, "x") as file:
        file.write("mine")
        target.write_text("theirs")
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert target.read_text() == "theirs"
    assert [each.name for each in tmp_path.iterdir()] == ["target"]


@pytest.mark.parametrize("mode", ["a", "r+"])
@pytest.mark.parametrize("how", ["replaced", "changed", "removed"])
def test_target_changed_in_the_block(mode: str, how: str, tmp_path: Path) -> None:
    """a and r+: what somebody else wrote meanwhile is not dropped silently."""
    target = tmp_path / "target"
    target.write_text("old")
    with pytest.raises(atomicio.TargetChangedError) as caught, atomicio.atomic_write(target, mode) as file:
        file.write("mine")
        if how == "removed":
            target.unlink()
        elif how == "changed":
            time.sleep(0.01)
            target.write_text("theirs")
        else:
            atomicio.write_text(target, "theirs")
    assert caught.value.committed is False
    assert caught.value.filename == str(target)
    assert [each.read_text() for each in tmp_path.iterdir()] == ([] if how == "removed" else ["theirs"])
