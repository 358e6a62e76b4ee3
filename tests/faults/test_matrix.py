"""Every system call of every operation fails, once and for ever, is interrupted, and is the last one before a
SIGKILL.

After each of these runs: the target has its old or its new content, whole, with the owner, mode and attributes that
go with it; an exception says truly which (``committed``), with the right errno and the target's name; nothing else is
in the directory (but, after a SIGKILL between link and rename, one file under the recognisable name); no descriptor
is left open.

``python -m tox run -e faults`` prints the number of runs.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import harness
from harness import NEW, OLD, SHORT, Cell, Program, every_fault, judge, rehearse, runs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(harness.untraceable() is not None, reason=str(harness.untraceable()))

LEVELS = ("none", "consistent", "durable")
# What is done with a staging file that has a name from the beginning, besides what is done without one.
NAMED = {
    *(f"{what}-{level}" for what in ("write_bytes-old", "write_bytes-new", "x") for level in LEVELS),
    *(
        "w",
        "w-new",
        "unbuffered",
        "closed-early",
        "a",
        "r+",
        "commit",
        "abort",
        "abort-r+",
        "skip-differs",
        "backup",
        "parents",
    ),
    *("lock-r+", "permissions-old", "symlink", "metadata", "mount-point", "in-place"),
}
# Where the cleaning up fails too.
TWICE = {
    "write_bytes-old-durable",
    "write_bytes-new-durable",
    "x-durable",
    "a",
    "backup",
    "skip-differs",
    "path-old",
    "lock-r+",
}


def level(name: str) -> dict[str, str]:
    return {"durability": name}


UNNAMED = [
    *(Cell(f"write_bytes-old-{each}", "write_bytes", keywords=level(each)) for each in LEVELS),
    *(Cell(f"write_bytes-new-{each}", "write_bytes", keywords=level(each), exists=False) for each in LEVELS),
    *(Cell(f"x-{each}", mode="xb", keywords=level(each), exists=False) for each in LEVELS),
    Cell("write_text", "write_text"),
    Cell("write_text-new", "write_text", exists=False),
    Cell("w", mode="w", pieces=4),
    Cell("w-new", mode="w", exists=False),
    Cell("w-short", mode="w", text=SHORT),
    Cell("w-empty", mode="w", text=""),
    Cell("w-none", mode="w", keywords=level("none")),
    Cell("unbuffered", keywords={"buffering": 0}, pieces=3),
    Cell("unbuffered-new", keywords={"buffering": 0}, exists=False),
    Cell("line-buffered", mode="w", keywords={"buffering": 1}, text="one line\n" * 5),
    Cell("w+", mode="w+b", pieces=2),
    Cell("closed-early", body="close"),
    Cell("x-exists", mode="xb", raises="FileExistsError"),
    Cell("x+t", mode="x+", exists=False),
    Cell("a", mode="ab"),
    Cell("a-new", mode="ab", exists=False),
    Cell("a-consistent", mode="a", keywords=level("consistent"), text=SHORT),
    Cell("a+", mode="a+"),
    Cell("r+", mode="r+b"),
    Cell("r+-none", mode="r+", keywords=level("none")),
    Cell("commit", "commit"),
    Cell("commit-new", "commit", exists=False),
    Cell("abort", body="raise"),
    Cell("abort-new", body="raise", exists=False),
    Cell("abort-r+", mode="r+b", body="raise"),
    Cell("path-old", "atomic_path"),
    Cell("path-new", "atomic_path", exists=False),
    Cell("path-none", "atomic_path", keywords=level("none")),
    Cell("path-abort", "atomic_path", body="raise"),
    Cell("skip-same", "write_bytes", keywords={"skip_unchanged": True}, arrangement="same content"),
    Cell("skip-differs", keywords={"skip_unchanged": True}),
    Cell("backup", keywords={"backup": ".bak"}),
    Cell("backup-again", keywords={"backup": ".bak"}, arrangement="old backup"),
    Cell("backup-new", keywords={"backup": ".bak"}, exists=False),
    Cell("parents", "write_bytes", keywords={"make_parents": True}, exists=False, arrangement="missing parents"),
    Cell("parents-none", keywords={"make_parents": True, **level("none")}, exists=False, arrangement="missing parents"),
    Cell("lock-w", "write_bytes", keywords={"lock": True}),
    Cell("lock-r+", mode="r+b", keywords={"lock": 5.0}),
    Cell("lock-x", mode="xb", keywords={"lock": True}, exists=False),
    Cell("permissions-old", "write_bytes", keywords={"permissions": 0o604}),
    Cell("permissions-new", "write_bytes", keywords={"permissions": 0o604}, exists=False),
    Cell("symlink", "write_bytes", arrangement="symlink"),
    Cell("symlink-new", "write_bytes", arrangement="symlink", exists=False),
    Cell("symlink-replaced", "write_bytes", arrangement="symlink", keywords={"follow_symlinks": False}),
    Cell("metadata", "write_bytes", arrangement="metadata"),
    Cell("somebody-elses", "write_bytes", arrangement="somebody else's", privileged=False),
    Cell(
        "unwritable",
        "write_bytes",
        arrangement="unwritable directory",
        privileged=False,
        raises="UnreplaceableTargetError",
    ),
    Cell(
        "in-place-unwritable", keywords={"fallback": "in-place"}, arrangement="unwritable directory", privileged=False
    ),
    Cell("mount-point", "write_bytes", arrangement="mount point", raises="UnreplaceableTargetError"),
    Cell("in-place", keywords={"fallback": "in-place"}, arrangement="mount point"),
    Cell("in-place-none", "write_bytes", keywords={"fallback": "in-place", **level("none")}, arrangement="mount point"),
    Cell("in-place-r+", mode="r+b", keywords={"fallback": "in-place"}, arrangement="mount point"),
    Cell("in-place-unused", "write_bytes", keywords={"fallback": "in-place"}),
]
CELLS = [
    *UNNAMED,
    *(
        replace(cell, staging="named")
        for cell in UNNAMED
        if cell.name in NAMED or (harness.thorough and cell.call != "atomic_path")
    ),
    *(replace(cell, staging="claimed") for cell in UNNAMED if cell.name in ("x-none", "x-durable", "x-exists", "lock-x")),
]


def needs(cell: Cell) -> None:
    if cell.arrangement in ("mount point", "metadata", "somebody else's") and os.geteuid() != 0:
        pytest.skip("needs root, to mount and to give files away")
    if not cell.privileged and not shutil.which("setpriv"):
        pytest.skip("setpriv is not installed")


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.label)
def test_every_call_fails(cell: Cell, tmp_path: Path) -> None:
    needs(cell)
    found = every_fault(cell, tmp_path)
    assert not found, f"{len(found)} broken promises\n" + "\n".join(found)


@pytest.mark.parametrize(
    "cell",
    # The calls of a lock are the same, and many.
    [cell for cell in CELLS if cell.name in TWICE and (harness.thorough or cell.label != "lock-r+-named")],
    ids=lambda cell: cell.label,
)
def test_cleaning_up_fails_too(cell: Cell, tmp_path: Path) -> None:
    """A call fails, and then another of those made because of that, or a SIGKILL comes."""
    found = every_fault(cell, tmp_path, twice=True)
    assert not found, f"{len(found)} broken promises\n" + "\n".join(found)


@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS if len(cell.text) > 10_000 and cell.privileged], ids=lambda cell: cell.label
)
def test_short_writes(cell: Cell, tmp_path: Path) -> None:
    """The kernel takes a part of what is written: a limit on the size of files (EFBIG) cuts a write short."""
    needs(cell)
    program = Program(cell, tmp_path)
    rehearsal = rehearse(program)
    found = []
    for limit in (0, 1, 4096, len(OLD) + 1, len(NEW) - 1):
        outcome = program.run(file_size_limit=limit)
        runs[f"{cell.label}, short write"] += 1
        found += [f"limit {limit}: {each}" for each in judge(rehearsal, None, outcome, cut_short=True)]
    program.close()
    assert not found, "\n".join(found)
