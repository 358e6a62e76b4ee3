"""Every system call of a directory's replacement fails, or is the last one before a SIGKILL.

After an error: the old tree or the new one is there, whole, and ``committed`` says truly which; nothing is left, but what the failed call
should have removed or what a failed sync makes worth keeping. After a SIGKILL: the same, once the recovery rule was followed; the old
tree is never lost before the new one has the name.
"""

from __future__ import annotations

import itertools
import json
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

from atomicio._recovery import recover

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")

OLD, NEW = {"a": "old", "sub/b": "old"}, {"c": "new", "more/d": "new"}
ERRORS = {
    **dict.fromkeys(["openat", "open"], ("EIO", "EACCES", "ENOSPC")),
    **dict.fromkeys(["mkdir", "mkdirat"], ("EIO", "ENOSPC", "EACCES")),
    **dict.fromkeys(["rename", "renameat", "renameat2"], ("EIO", "ENOSPC", "EACCES", "EBUSY")),
    **dict.fromkeys(["unlink", "unlinkat", "rmdir"], ("EIO", "EACCES")),
    **dict.fromkeys(["fsync", "syncfs"], ("EIO", "ENOSPC")),
    **dict.fromkeys(["write", "flock", "getdents64", "newfstatat", "fchmod", "fchown", "flistxattr", "listxattr", "close"], ("EIO",)),
}
REMOVES = {"unlink", "unlinkat", "rmdir"}
PROGRAM = """
import json, os, sys
sys.path[:0] = [{package!r}]
import atomicio
from atomicio import _syscalls
def refuse(*_):
    raise OSError(18, "not here")
def rename(source, target, original=os.rename, **keywords):
    if source == "site":
        refuse()
    original(source, target, **keywords)
if {form!r} != "exchange":
    _syscalls.exchange = refuse
if {form!r} == "copy":  # as overlay refuses it for a directory of a lower layer
    os.rename = rename
def replace(target):
    with atomicio.atomic_directory(target, backup={backup!r}) as staging:
        os.mkdir(staging + "/more")
        for name in "c", "more/d":
            fd = os.open(os.path.join(staging, name), os.O_CREAT | os.O_WRONLY)
            os.write(fd, b"new")
            os.close(fd)
        os.getppid()
replace(sys.argv[1])
answer = dict(error=None, committed=True)
try:
    replace(sys.argv[2])
except OSError as error:
    answer = dict(error=type(error).__name__, committed=getattr(error, "committed", None), filename=error.filename)
except RuntimeWarning as error:
    answer = dict(error="RuntimeWarning", committed=True)
os.getppid()
sys.stdout.write(json.dumps(answer))
"""


def tree(directory: Path) -> dict[str, str]:
    return {path.relative_to(directory).as_posix(): path.read_text() for path in directory.rglob("*") if path.is_file()}


def fill(directory: Path) -> None:
    for name, text in OLD.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


def run(root: Path, number: int, form: str, backup: str | None, injection: str | None) -> tuple[Path, str, str]:
    """Replace a directory with one fault; return the directory it is in, what the program said, and the log."""
    place, log = root / f"run{number}", root / f"log{number}"
    for name in ("first/site", "second/site"):
        fill(place / name)
    code = PROGRAM.format(package=str(Path(atomicio.__file__).parent.parent), form=form, backup=backup)
    strace = ["strace", "-f", "-q", "-s", "64", "-o", str(log), *(["-e", injection] if injection else [])]
    python = [sys.executable, "-I", "-S", "-B", "-W", "error::RuntimeWarning", "-c", code]
    result = subprocess.run([*strace, *python, place / "first/site", place / "second/site"], capture_output=True, text=True, timeout=120)
    return place / "second", result.stdout, log.read_text(errors="replace")


def calls(log: str) -> list[tuple[str, int, str]]:
    """The calls between the end of the second block and the end of the second replacement."""
    counts: Counter[str] = Counter()
    found, marks = [], 0
    for line in log.splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match:
            counts[match[1]] += 1
            marks += match[1] == "getppid"
            if marks == 2 and match[1] in ERRORS:
                found.append((match[1], counts[match[1]], line))
    return found


def judge(place: Path, said: str, kind: str, name: str, form: str, backup: str | None) -> list[str]:
    broken: list[str] = []
    killed = kind == "kill"
    trees = [tree(path) for path in place.iterdir() if path.is_dir()]
    there = (place / "site").exists()
    if not there and not (killed and form != "exchange"):
        return [f"the target is gone: {said}"]
    if OLD not in trees and (not there or tree(place / "site") != NEW):
        return [f"both are lost: {trees}"]
    if killed:
        for path, outcome in recover(str(place / "site")):
            if isinstance(outcome, OSError):
                broken.append(f"{path} can't be put right: {outcome}")
    if not (place / "site").exists():
        return [*broken, "the target is still missing"]
    now = tree(place / "site")
    if now not in (OLD, NEW):
        return [*broken, f"neither old nor new: {now}"]
    left = sorted({re.sub(r"\.atomicio-\w{16}", "", each) for each in os.listdir(place)} - {"site", "site.bak"})
    if killed:
        if set(left) - {".dir", ".backup"}:
            broken.append(f"left after a kill: {left}")
        return broken
    if not said:
        return [*broken, "it died"]
    answer = json.loads(said)
    if answer["committed"] is not (now == NEW):
        broken.append(f"committed is {answer['committed']}, but the tree is {'new' if now == NEW else 'old'}")
    if answer["error"] not in (None, "RuntimeWarning") and not str(answer["filename"]).endswith("/site"):
        broken.append(f"the error names {answer['filename']}")
    # What the failed call should have removed or opened for removal; the old tree where a sync failed, or the backup got no name.
    if left and answer["error"] != "NotDurableError" and now == OLD and name not in REMOVES:
        broken.append(f"left with the old tree: {left}")
    if left and now == NEW and answer["error"] is None:
        broken.append(f"left, and nobody said so: {left}")
    if backup and now == NEW and OLD not in trees:
        broken.append("the old tree was to be kept")
    return broken


@pytest.mark.parametrize("backup", [None, ".bak"])
@pytest.mark.parametrize("form", ["exchange", "two renames", "copy"])
def test_every_call_of_a_commit_fails(tmp_path: Path, form: str, backup: str | None) -> None:
    place, said, log = run(tmp_path, 0, form, backup, None)
    assert json.loads(said)["error"] is None
    assert tree(place / "site") == NEW
    faults = [
        (name, count, kind, line)
        for name, count, line in calls(log)
        for kind in [*(["kill"] if name != "close" else []), *ERRORS[name]]
    ]
    assert len(faults) > 40
    numbers = itertools.count(1)

    def check(fault: tuple[str, int, str, str]) -> list[str]:
        name, count, kind, line = fault
        what = "signal=KILL" if kind == "kill" else f"error={kind}"
        number = next(numbers)
        place, said, _ = run(tmp_path, number, form, backup, f"inject={name}:{what}:when={count}")
        found = judge(place, said, kind, name, form, backup)
        shutil.rmtree(tmp_path / f"run{number}")
        return [f"{each}\n    {kind} at {line}" for each in found]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = [each for broken in pool.map(check, faults) for each in broken]
    harness.runs[f"atomic_directory, {form}{', backup' if backup else ''}"] += len(faults)
    assert not found, f"{len(found)} broken promises\n" + "\n".join(found)
