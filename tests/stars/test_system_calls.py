"""SIGKILL at every system call of a save, and failure of every one: the file is the old or the new, and whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from conftest import litter
from star_helpers import PRELUDE, environment, learn, make, recorded, settle

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace to inject into system calls")

CODE = """
import ast, filelock, atomicio
c = StarImportCache(sys.argv[1])
list(c.names("s_new"))
os.access("/mark-begin", 0)
saved = c.save()
os.access("/mark-end", 0)
answer([saved, repr(c.last_error)])
"""
# What fails with an error must be about files: a failing mmap is the interpreter's end, not ours.
FILES = re.compile(
    r"open|read|write|close|stat|lseek|ioctl|fcntl|flock|link|rename|truncate|chmod|chown|sync|sendfile|xattr|mkdir|access"
)


def trace(inject: list[str], cache: Path, modules: Path, output: Path) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-qq", "-o", str(output), *inject]
    command += [sys.executable, "-P", "-c", PRELUDE + CODE, str(cache)]
    return subprocess.run(command, env=environment([modules]), capture_output=True, text=True, timeout=120)


def window(cache: Path, modules: Path, output: Path) -> list[tuple[str, int]]:
    """Each system call of the save: its name, and which call of that name in the whole process it is."""
    done = trace([], cache, modules, output)
    assert done.returncode == 0, done.stderr
    seen: dict[str, int] = {}
    calls, inside = [], False
    for line in output.read_text(errors="replace").splitlines():
        if not (match := re.match(r"\d+\s+(\w+)\(", line)):
            continue
        name = match[1]
        seen[name] = seen.get(name, 0) + 1
        if "/mark-end" in line:
            break
        if inside:
            calls.append((name, seen[name]))
        inside = inside or "/mark-begin" in line
    assert any(name.startswith("rename") for name, _ in calls), calls
    return calls


def test_kill_and_failure_at_every_system_call(tmp_path: Path) -> None:
    modules, output = tmp_path / "modules", tmp_path / "trace"
    make(modules, {"s_old.py": "old = 1\n", "s_new.py": "new = 1\nother = 2\n"})
    settle()
    old = tmp_path / "old.json"
    learn(old, ["s_old"], modules)
    folder = tmp_path / "cache"
    cache = folder / "names.json"

    def fresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy2(old, cache)

    fresh()
    calls = window(cache, modules, output)
    before, after = {"s_old": ["old"]}, {"s_old": ["old"], "s_new": ["new", "other"]}
    assert recorded(cache) == after
    cases = [(name, number, "signal=SIGKILL") for name, number in calls]
    cases += [
        (name, number, f"error={error}")
        for name, number in calls
        if FILES.search(name)
        for error in ("EIO", "ENOSPC", "EACCES")
    ]
    outcomes: dict[str, int] = {}
    litters = 0
    for name, number, how in cases:
        fresh()
        done = trace(["-e", f"inject={name}:{how}:when={number}"], cache, modules, output)
        what = f"{name} number {number}, {how}"
        found = recorded(cache)  # whole, whatever happened
        assert found in (before, after), what
        left = litter(folder)
        if how.startswith("signal"):
            litters += len(left)
            assert len(left) <= 1, what
            others = set(os.listdir(folder)) - {os.path.basename(path) for path in left}
            assert others <= {"names.json", "names.json.lock"}, what
            outcomes["killed"] = outcomes.get("killed", 0) + (done.returncode != 0)
        else:
            assert done.returncode == 0, (what, done.stderr)
            saved, error = json.loads(done.stdout.splitlines()[-1])
            assert found == (after if saved else found), what
            assert (error == "None") == saved, what
            if name not in ("unlink", "unlinkat"):  # what cannot be removed stays
                assert left == [], what
            outcomes[f"saved {saved}"] = outcomes.get(f"saved {saved}", 0) + 1
            if not saved and found == after:
                unreleased = "saved, but the lock could not be released"
                outcomes[unreleased] = outcomes.get(unreleased, 0) + 1
    assert outcomes["killed"] >= len(calls) * 0.9
    print(f"{len(calls)} system calls, {len(cases)} runs: {outcomes}, staging names left by SIGKILL: {litters}")
    # Between link() and rename() a name of the staging file exists: nowhere else may SIGKILL leave anything.
    assert litters <= 8
