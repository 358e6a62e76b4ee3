"""The same faults for batches, durable verbs, and what is built on them.

A batch's targets are all old or all new, or the error lists which.
"""

from __future__ import annotations

import ast
import errno
import json
import re
import shutil
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import harness
from harness import NEW, Cell, Fault, Outcome, Program, Rehearsal, every_fault, rehearse, runs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="strace is for Linux"),
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
]

judge_one = harness.judge


def cell(
    name: str,
    what: str,
    *,
    arrangement: str = "",
    exists: bool = True,
    body: str = "plain",
    staging: str = "unnamed",
    text: str = NEW,
    **keywords: Any,
) -> Cell:
    return Cell(
        name,
        "write_bytes",
        keywords={"what": what, **keywords},
        arrangement=arrangement,
        exists=exists,
        text=text,
        body=body,
        staging=staging,
        library="operations_batch",
        raises="BodyError" if body == "raise" else None,
    )


BATCHES = [
    cell("batch", "batch", arrangement="symlink"),
    cell("batch-named", "batch", arrangement="symlink", staging="named"),
    cell("batch-fsync", "batch", arrangement="symlink", barrier="fsync"),
    cell("batch-consistent", "batch", arrangement="symlink", durability="consistent"),
    cell("batch-none", "batch", arrangement="symlink", durability="none"),
    cell("batch-x", "batch", arrangement="symlink", mode="xb"),
    cell("batch-backup", "batch", arrangement="symlink", backup=".bak"),
    cell("batch-abort", "batch", arrangement="symlink", body="raise", fail=True),
]
VERBS = [
    cell("copy", "copy"),
    cell("copy-new", "copy", exists=False),
    cell("copy-named", "copy", staging="named"),
    cell("copy-skip-unchanged", "copy", skip_unchanged=True),
    *(cell(f"replace-{each}", "replace", durability=each) for each in ("none", "consistent", "durable")),
    *(cell(f"remove-{each}", "remove", durability=each) for each in ("none", "durable")),
    cell("makedirs", "makedirs", exists=False),
    cell("makedirs-parents", "makedirs", exists=False, arrangement="missing parents"),
]
# A cache without entries, as its save leaves it.
EMPTY_CACHE = json.dumps({"star_imports": "another release", "files": [], "modules": {}})
BUILT_ON_IT = [
    cell("star-imports-new", "stars", exists=False),
    cell("star-imports-old", "stars", arrangement="cache", text=EMPTY_CACHE),
    cell("clean", "clean", arrangement="leftovers"),
]


def judge(rehearsal: Rehearsal, fault: Fault | None, outcome: Outcome, **how: Any) -> list[str]:
    """Judge a batch as one file is judged, once it is clear that its targets agree or that the error says which do not."""
    answer = dict(outcome.answer)
    if str(answer.get("filename")).endswith((".txt", "harness.py")):  # the latter is what is copied
        answer["filename"] = "/target.txt"
    if rehearsal.cell in BUILT_ON_IT:
        # Their errors are whoever's it was, and say nothing about the target: a failed save is a miss, and a leftover stays.
        answer |= {"errno": fault and getattr(errno, fault.error, errno.EIO), "filename": "/target.txt"}
        outcomes = [replace(outcome, answer=answer | {"committed": each}) for each in (False, True)]
        judge_it = judge_clean if rehearsal.cell.keywords["what"] == "clean" else judge_one
        return min((judge_it(rehearsal, fault, each) for each in outcomes), key=len)
    outcome = replace(outcome, answer=answer)
    if rehearsal.cell.keywords["what"] != "batch" or rehearsal.old == rehearsal.new:
        return judge_one(rehearsal, fault, outcome, **how)
    names = {
        name for name in rehearsal.old.keys() | rehearsal.new.keys()
        if name.endswith(".txt") and rehearsal.old.get(name) != rehearsal.new.get(name)
    }  # fmt: skip
    changed = {name for name in names if same(outcome.state.get(name), rehearsal.new[name])}
    if not changed or changed == names:
        return judge_one(rehearsal, fault, outcome, **how)
    broken = []
    if any(outcome.state.get(name) != rehearsal.old.get(name) for name in names - changed):
        broken.append("a target is neither old nor new")
    if outcome.ended != "killed":
        if answer.get("class") != "PartialCommitError":
            how_it_ended = answer.get("class", outcome.ended)
            broken.append(f"only {sorted(changed)} were replaced, and {how_it_ended} does not say so")
        else:
            lists = re.findall(r"\[[^]]*\]", answer["message"].partition("] ")[2])
            said = [{"file.txt" if name == "target.txt" else name for name in ast.literal_eval(each)} for each in lists]
            is_so = [{name.rpartition("/")[2] for name in each} for each in (changed, names - changed)]
            if said != is_so:
                broken.append(f"the error says {said}, but {is_so} is so")
    # For the rest (leftovers, descriptors, committed) it counts as changed.
    state = outcome.state | {name: rehearsal.new[name] for name in names - changed}
    return broken + judge_one(rehearsal, fault, replace(outcome, state=state), **how)


def judge_clean(rehearsal: Rehearsal, fault: Fault | None, outcome: Outcome) -> list[str]:
    """What is nobody's goes, or an error says what stays; the rest is what it was."""
    left = {name: what for name, what in outcome.state.items() if ".atomicio-" in name}
    kept = {name: what for name, what in outcome.state.items() if ".atomicio-" not in name}
    broken = []
    if kept != {name: what for name, what in rehearsal.old.items() if ".atomicio-" not in name}:
        broken.append("clean changed what is not its business")
    if any(rehearsal.old[name] != what for name, what in left.items()):
        broken.append("clean changed what it did not remove")
    if left and outcome.ended == "returned" and (fault is None or fault.kind != "error"):
        broken.append(f"{sorted(left)} is left, and nobody said so")
    as_it_was = replace(outcome, state=kept)
    return broken + judge_one(replace(rehearsal, old=kept, new=kept), fault, as_it_was)


def same(found: tuple[Any, ...] | None, expected: tuple[Any, ...]) -> bool:
    return found is not None and found[0] == expected[0]


@pytest.mark.parametrize("each", BATCHES + VERBS + BUILT_ON_IT, ids=lambda each: each.label)
def test_every_call_fails(each: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "judge", judge)
    monkeypatch.setattr(harness, "HARMLESS", harness.HARMLESS | {"uname"})
    # A Ctrl-C in the opener that open() calls costs a descriptor, and the cache is read by such an open().
    kinds = ("error", "kill") if each.keywords["what"] == "stars" else ("error", "kill", "interrupt")
    found = every_fault(each, tmp_path, kinds=kinds)
    assert not found, f"{len(found)} broken promises\n" + "\n".join(found)


@pytest.mark.parametrize(
    "each", [*BATCHES[:3], *(each for each in VERBS if each.keywords["what"] == "copy")], ids=lambda each: each.label
)
def test_short_writes(each: Cell, tmp_path: Path) -> None:
    """The kernel takes a part of what is written: a limit on the size of files (EFBIG) cuts a write short."""
    program = Program(each, tmp_path)
    rehearsal = rehearse(program)
    size = max(len(what[0]) for what in rehearsal.new.values() if isinstance(what[0], bytes))
    found = []
    for limit in (0, 1, 4096, size - 1):
        outcome = program.run(file_size_limit=limit)
        runs[f"{each.label}, short write"] += 1
        found += [f"limit {limit}: {broken}" for broken in judge(rehearsal, None, outcome, cut_short=True)]
        if outcome.ended == "returned":
            found.append(f"limit {limit}: it returned")
    program.close()
    assert not found, "\n".join(found)


def test_the_judge_sees_a_batch_that_is_half_committed_and_silent(tmp_path: Path) -> None:
    """A check that cannot fail is none."""
    program = harness.Program(BATCHES[0], tmp_path)
    try:
        rehearsal = harness.rehearse(program)
    finally:
        program.close()
    assert judge(rehearsal, None, rehearsal.outcome) == []
    half = {**rehearsal.new, "third.txt": rehearsal.old.get("third.txt")}
    outcome = replace(rehearsal.outcome, state={name: what for name, what in half.items() if what is not None})
    assert any("only" in each for each in judge(rehearsal, None, outcome))
