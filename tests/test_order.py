"""What is asked of the kernel, in which order, at each durability level: a sync that is removed or moved turns a test
red.

Two ways to look, from outside by strace and from inside by patching :mod:`os`, against one list of what must be seen.
What a power cut does to each order on real file systems is shown elsewhere (tests/powercut).
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import atomicio

OLD = b"the old content\n"
NEW = b"what is to be there\n"
NAME = re.compile(r"\.atomicio-[0-9a-f]{16}\.tmp(\.txt)?")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the order of system calls on POSIX")


def step(call: str, what: str = "", other: str = "") -> str:
    return " ".join(filter(None, (call, what, other)))


# What is synced, named and published. "staging" is the file without a name or under its temporary one.
UNNAMED = {
    "none": ["write staging", "link staging temporary", "rename temporary target"],
    "consistent": ["write staging", "link staging temporary", "fsync staging", "rename temporary target"],
    "durable": [
        "write staging",
        "link staging temporary",
        "fsync staging",
        "rename temporary target",
        "fsync directory",
    ],
}
NAMED = {level: [each for each in order if each != "link staging temporary"] for level, order in UNNAMED.items()}
NEW_UNNAMED = {**UNNAMED, "none": ["write staging", "link staging target"]}
EXCLUSIVE_NAMED = {
    "none": ["write staging", "link temporary target", "unlink temporary"],
    "consistent": ["write staging", "fsync staging", "link temporary target", "unlink temporary"],
    "durable": ["write staging", "fsync staging", "link temporary target", "unlink temporary", "fsync directory"],
}
EXCLUSIVE_UNNAMED = {
    "none": ["write staging", "link staging target"],
    "consistent": [
        "write staging",
        "link staging temporary",
        "fsync staging",
        "link temporary target",
        "unlink temporary",
    ],
    "durable": [
        "write staging",
        "link staging temporary",
        "fsync staging",
        "link temporary target",
        "unlink temporary",
        "fsync directory",
    ],
}

CASES = [
    pytest.param(
        operation, exists, staging, level, expected, id=f"{operation}-{'old' if exists else 'new'}-{staging}-{level}"
    )
    for level in ("none", "consistent", "durable")
    for operation, exists, staging, expected in [
        ("write_bytes", True, "unnamed", UNNAMED[level]),
        ("write_bytes", True, "named", NAMED[level]),
        ("write_bytes", False, "unnamed", NEW_UNNAMED[level]),
        ("write_bytes", False, "named", NAMED[level]),
        ("w", True, "unnamed", UNNAMED[level]),
        ("w", False, "named", NAMED[level]),
        ("r+", True, "unnamed", UNNAMED[level]),
        ("a", True, "named", NAMED[level]),
        ("x", False, "unnamed", EXCLUSIVE_UNNAMED[level]),
        ("x", False, "named", EXCLUSIVE_NAMED[level]),
        ("atomic_path", True, "named", NAMED[level]),
    ]
]


def perform(operation: str, target: str, level: str) -> None:
    if operation == "write_bytes":
        atomicio.write_bytes(target, NEW, durability=level)  # type: ignore[arg-type]
    elif operation == "atomic_path":
        with atomicio.atomic_path(target, durability=level) as staging:  # type: ignore[arg-type]
            fd = os.open(staging, os.O_WRONLY)
            os.write(fd, NEW)
            os.close(fd)
    else:
        with atomicio.atomic_write(target, operation + "b", buffering=0, durability=level) as file:  # type: ignore[call-overload]
            file.write(NEW)


def prepare(directory: Path, exists: bool) -> str:
    target = directory / "target.txt"
    if exists:
        target.write_bytes(OLD)
    return str(target)


def merge(steps: list[str]) -> list[str]:
    """One step for several equal ones in a row: content may be written in pieces."""
    return [each for number, each in enumerate(steps) if number == 0 or each != steps[number - 1] or "fsync" in each]


# -- from inside ------------------------------------------------------------------------------------------------------


class Recorder:
    """Wrap the functions of os that matter, and tell what they were called for by what they were really applied to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
        self.steps: list[str] = []
        self.target = target
        self.directory = os.path.dirname(target)
        self.old = os.stat(target).st_ino if os.path.exists(target) else None
        for name in ("write", "fsync", "link", "rename", "replace", "unlink"):
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, function: Any) -> Any:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            what = [
                self._file(each) if isinstance(each, int) else self._name(each)
                for each in arguments[:2]
                if not isinstance(each, bytes)
            ]
            result = function(*arguments, **keywords)
            self.steps.append(step("rename" if name == "replace" else name, *what))
            return result

        return wrapped

    def _file(self, fd: int) -> str:
        status = os.fstat(fd)
        if status.st_ino == os.stat(self.directory).st_ino:
            return "directory"
        return "target" if status.st_ino == self.old else "staging"

    def _name(self, path: Any) -> str:
        name = os.path.basename(os.fsdecode(path))
        if NAME.fullmatch(name):
            return "temporary"
        return "target" if name == "target.txt" else "staging" if str(path).startswith("/proc/") else name


@pytest.mark.parametrize(("operation", "exists", "staging", "level", "expected"), CASES)
def test_order_from_inside(
    operation: str,
    exists: bool,
    staging: str,
    level: str,
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every platform: os.write, os.fsync, os.link, os.rename and os.unlink. io's own writes are not among them."""
    if staging == "unnamed" and not hasattr(os, "O_TMPFILE"):
        pytest.skip("no unnamed files (O_TMPFILE) on this system")
    if sys.platform == "darwin":
        pytest.skip("macOS syncs by fcntl, not by fsync")
    if staging == "named":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    target = prepare(tmp_path, exists)
    recorder = Recorder(monkeypatch, target)
    perform(operation, target, level)
    seen = merge(recorder.steps)
    if operation in ("write_bytes", "atomic_path"):
        assert seen == expected
    else:
        assert [each for each in seen if not each.startswith("write")] == expected[1:]


# -- from outside -----------------------------------------------------------------------------------------------------

PROGRAM = """
import os, sys
sys.path[:0] = {path!r}
if {staging!r} == "named":
    del os.O_TMPFILE
import atomicio
NEW = {content!r}
{source}
os.getppid()
perform({operation!r}, {target!r}, {level!r})
os.getppid()
"""
TRACED = "write,pwrite64,fsync,fdatasync,sync,syncfs,link,linkat,rename,renameat,renameat2,unlink,unlinkat,getppid"


def transcript(lines: list[str], directory: str) -> list[str]:
    """Read strace's lines: `fsync(3</path>) = 0`, `linkat(AT_FDCWD</>, "/proc/self/fd/4", 3</path>, "name") = 0`."""
    steps = []
    marks = 0
    for line in lines:
        if line.startswith("getppid"):
            marks += 1
        elif marks == 1 and " = -1 " not in line:
            name = line.partition("(")[0]
            call = {
                "linkat": "link",
                "renameat": "rename",
                "renameat2": "rename",
                "unlinkat": "unlink",
                "fdatasync": "fsync",
            }.get(name, name)
            if call in ("write", "pwrite64", "fsync"):
                path = line.partition("<")[2].partition(">")[0]
                steps.append(
                    step(
                        call,
                        "directory" if path == directory else "target" if path.endswith("target.txt") else "staging",
                    )
                )
            else:
                steps.append(step(call, *map(called, re.findall(r'"([^"]*)"', line))))
    return merge(steps)


def called(path: str) -> str:
    name = os.path.basename(path)
    if path.startswith("/proc/self/fd/"):
        return "staging"
    return "temporary" if NAME.fullmatch(name) else "target" if name == "target.txt" else name


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize(("operation", "exists", "staging", "level", "expected"), CASES)
def test_order_from_outside(
    operation: str, exists: bool, staging: str, level: str, expected: list[str], tmp_path: Path
) -> None:
    """Linux: what the kernel was asked, io's own writes and descriptors' real files included."""
    directory = tmp_path / "d"
    directory.mkdir()
    target = prepare(directory, exists)
    program = PROGRAM.format(
        path=[str(Path(atomicio.__file__).parent.parent)],
        content=NEW,
        source=inspect.getsource(perform),
        operation=operation,
        target=target,
        level=level,
        staging=staging,
    )
    log = tmp_path / "log"
    command = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-o",
        str(log),
        "-e",
        f"trace={TRACED}",
        sys.executable,
        "-I",
        "-S",
        "-c",
        program,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=1)[1] for line in log.read_text().splitlines() if " " in line]
    assert transcript(lines, str(directory)) == expected


@pytest.mark.parametrize("level", ["consistent", "durable"])
def test_backup_is_safe_before_the_target_changes(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backup has its name before the target gets its new content, and one sync of the directory makes both last."""
    if sys.platform == "darwin":
        pytest.skip("macOS syncs by fcntl, not by fsync")
    target = prepare(tmp_path, True)
    recorder = Recorder(monkeypatch, target)
    atomicio.write_bytes(target, NEW, backup=".bak", durability=level)  # type: ignore[arg-type]
    steps = recorder.steps
    assert steps.index("rename temporary target.txt.bak") < steps.index("rename temporary target")
    assert steps.index("fsync staging") < steps.index("rename temporary target")
    assert ("fsync directory" in steps[steps.index("rename temporary target") :]) == (level == "durable")


def test_new_directories_are_synced_into_their_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in a directory whose own name is lost is lost: each new directory's parent is synced first."""
    if sys.platform == "darwin":
        pytest.skip("macOS syncs by fcntl, not by fsync")
    target = tmp_path / "made" / "here" / "target.txt"
    synced: list[str] = []
    fsync = os.fsync

    def record(fd: int) -> None:
        synced.append({tmp_path.stat().st_ino: "parent"}.get(os.fstat(fd).st_ino, "") or _called(fd))
        fsync(fd)

    def _called(fd: int) -> str:
        for name in ("made", "made/here"):
            path = tmp_path / name
            if path.exists() and path.stat().st_ino == os.fstat(fd).st_ino:
                return name
        return "file"

    monkeypatch.setattr(os, "fsync", record)
    atomicio.write_bytes(target, NEW, make_parents=True)
    assert set(synced[:2]) == {"parent", "made"}
    assert synced[2:] == ["file", "made/here"]
    synced.clear()
    atomicio.write_bytes(tmp_path / "other" / "target.txt", NEW, make_parents=True, durability="none")
    assert synced == []


def test_unchanged_content_is_synced_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """skip_unchanged replaces nothing, but what it returns for survives a power cut: the file is synced."""
    if sys.platform == "darwin":
        pytest.skip("macOS syncs by fcntl, not by fsync")
    target = prepare(tmp_path, True)
    recorder = Recorder(monkeypatch, target)
    atomicio.write_bytes(target, OLD, skip_unchanged=True)
    assert [each for each in recorder.steps if each.startswith(("fsync", "rename"))] == [
        "fsync target",
        "fsync directory",
    ]
