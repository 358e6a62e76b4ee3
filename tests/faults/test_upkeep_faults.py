"""Every system call of ``clean``, ``recover`` and ``probe`` fails, or is the last one before a SIGKILL.

Whatever happens: what is not theirs stays as it is, what belongs to somebody alive and recovery copies too; an error is told, in one
line and with status 1. What a fault kept ``recover`` from doing, the next one does.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import atomicio
import harness

if sys.platform != "linux":
    pytest.skip("strace is for Linux", allow_module_level=True)

from atomicio._recovery import Record, recover

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")

HEX = "0123456789abcde"
DEAD, ALIVE, COPY = f".atomicio-{HEX}0.tmp", f".atomicio-{HEX}1.tmp", f".atomicio-{HEX}2.backup"
TREE, STEM = f".atomicio-{HEX}3.dir", f".atomicio-{HEX}4"
ERRORS = {
    **dict.fromkeys(["openat", "mkdir", "mkdirat", "rename", "renameat", "renameat2"], ("EIO", "EACCES", "ENOSPC")),
    **dict.fromkeys(["link", "linkat", "unlink", "unlinkat", "rmdir", "chmod", "fchmod", "fchmodat"], ("EIO", "EACCES")),
    **dict.fromkeys(["fsync", "write", "flock", "fcntl", "getdents64", "newfstatat", "fstat", "ioctl", "close"], ("EIO",)),
}
# What it takes to remove a tree; fcntl among it, with which os.scandir duplicates a descriptor.
REMOVES = {"unlink", "unlinkat", "rmdir", "openat", "getdents64", "newfstatat", "rename", "renameat", "fstat", "fcntl"}
CHANGES = {"mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "write", "fsync"}
OPTIONS = {"clean": ["--older-than", "0", "--recursive"], "recover": [], "probe": ["--json"]}
PROGRAM = """
import os, sys
sys.path[:0] = [{package!r}]
from atomicio.cli import main
main([*sys.argv[2:], sys.argv[1] + "/first"])  # what is imported late has been
sys.stdout.flush()
os.getppid()
status = main([*sys.argv[2:], sys.argv[1] + "/second"])
os.getppid()
sys.exit(status)
"""


def arrange(place: Path, command: str) -> int:
    """What a command finds; return the descriptor that keeps one file alive."""
    (place / "precious").mkdir(parents=True)
    (place / "precious" / "file").write_text("precious")
    if command == "recover":
        record = Record(str(place) + "/", None, "site")
        record.create(STEM, None, copied=True, sync=False)
        record.close()
        for name, text in (("site", "half"), (record.old, "old"), (record.new, "new")):
            (place / name / "sub").mkdir(parents=True)
            (place / name / "sub" / "file").write_text(text)
    elif command == "clean":
        (place / DEAD).write_text("dead")
        (place / TREE / "sub").mkdir(parents=True)
        (place / TREE / "sub" / "file").write_text("dead")
        (place / TREE / "link").symlink_to(place / "precious")
        (place / COPY).mkdir()
        (place / COPY / "file").write_text("the only one")
    fd = os.open(place / ALIVE, os.O_CREAT | os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def run(root: Path, number: int, command: str, injection: str | None) -> tuple[Path, subprocess.CompletedProcess[str], str]:
    place, log = root / f"run{number}", root / f"log{number}"
    held = [arrange(place / each, command) for each in ("first", "second")]
    code = PROGRAM.format(package=str(Path(atomicio.__file__).parent.parent))
    # No -f: the second process with which probe tries its lock is not what is tried here.
    strace = ["strace", "-q", "-o", str(log), *(["-e", injection] if injection else [])]
    arguments = [*strace, sys.executable, "-I", "-B", "-c", code, str(place), command, *OPTIONS[command]]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    for fd in held:
        os.close(fd)
    return place / "second", result, log.read_text(errors="replace")


def calls(log: str) -> list[tuple[str, int, str]]:
    """The calls of the second run of the command."""
    counts: Counter[str] = Counter()
    found, marks = [], 0
    for line in log.splitlines():
        if match := re.match(r"(\w+)\(", line):
            counts[match[1]] += 1
            marks += match[1] == "getppid"
            if marks == 1 and match[1] in ERRORS:
                found.append((match[1], counts[match[1]], line))
    return found


def kinds(name: str) -> list[str]:
    """A kill before a call that only looks is as one before the next that changes something, and one error is as good as another."""
    killed = ["kill"] if name in CHANGES or (harness.thorough and name != "close") else []
    return [*killed, *ERRORS[name][: None if harness.thorough else 1]]


def judge(place: Path, result: subprocess.CompletedProcess[str], command: str, name: str, *, killed: bool) -> list[str]:
    broken = []
    if (place / "precious" / "file").read_text() != "precious":
        broken.append("somebody else's file was changed")
    if not (place / ALIVE).exists():
        broken.append("a file of somebody alive was removed")
    if not killed and (result.returncode not in (0, 1) or "Traceback" in result.stderr):
        broken.append(f"status {result.returncode}: {result.stderr}")
    if command == "clean":
        if (place / COPY / "file").read_text() != "the only one":
            broken.append("a recovery copy was changed")
        for each in (DEAD, TREE):
            if not killed and (place / each).exists() and each not in result.stdout and result.returncode == 0:
                broken.append(f"{each} was left and not told")
    elif command == "recover":
        again = [outcome for _, outcome in recover(str(place / "site"))]
        if any(isinstance(outcome, OSError) for outcome in again) or (place / "site/sub/file").read_text() != "old":
            broken.append(f"it is not put right by the next one: {again}")
    elif not killed and name not in REMOVES and set(os.listdir(place)) != {"precious", ALIVE}:
        broken.append(f"probe left {os.listdir(place)}")
    return broken


@pytest.mark.parametrize("command", OPTIONS)
def test_every_call_of_upkeep_fails(tmp_path: Path, command: str) -> None:
    place, result, log = run(tmp_path, 0, command, None)
    assert result.returncode == 0, result.stderr
    assert not judge(place, result, command, "", killed=False)
    faults = [
        (name, count, kind, line)
        for name, count, line in calls(log)
        for kind in kinds(name)
    ]
    assert len(faults) > 40
    numbers = itertools.count(1)

    def check(fault: tuple[str, int, str, str]) -> list[str]:
        name, count, kind, line = fault
        what = "signal=KILL" if kind == "kill" else f"error={kind}"
        number = next(numbers)
        place, result, _ = run(tmp_path, number, command, f"inject={name}:{what}:when={count}")
        found = judge(place, result, command, name, killed=kind == "kill")
        shutil.rmtree(tmp_path / f"run{number}")
        return [f"{each}\n    {kind} at {line}" for each in found]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [each for broken in pool.map(check, faults) for each in broken]
    harness.runs[f"atomicio {command}"] += len(faults)
    assert not found, f"{len(found)} broken promises\n" + "\n".join(found)
