"""The judge can fail: it finds the flaw in each of the hand-written recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import harness

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(harness.untraceable() is not None, reason=str(harness.untraceable()))

FLAWS = {
    "in place": "neither old nor new",
    "one write": "neither old nor new",
    "temporary": "temporary files are left",
    "descriptor": "descriptors are left open",
    "swallowed fsync": "it returned although what it wrote may be lost",
    "name": "the error names",
    "not told": "committed is absent, but the content is old",
    "late error": "committed is False, but the content is new",
    "noise": "it wrote to standard error",
    "gap": "files are gone",
    "litter": "files nobody knows are left",
    "interrupt": "the interrupt was swallowed",
    "mode": "has the new content but",
    "silent": "it returned, but the old content is there",
    "errno": "it raised OSError",
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaw_is_found(flaw: str, tmp_path: Path) -> None:
    cell = harness.Cell(flaw, "write_bytes", library="flawed", keywords={"flaw": flaw})
    if flaw == "one write":
        program = harness.Program(cell, tmp_path)
        rehearsal = harness.rehearse(program)
        outcome = program.run(file_size_limit=len(harness.NEW) // 2)
        program.close()
        found = harness.judge(rehearsal, None, outcome)
    else:
        found = harness.every_fault(cell, tmp_path)
    assert any(FLAWS[flaw] in each for each in found), found


def test_judge_does_not_cry_wolf(tmp_path: Path) -> None:
    """A hand-written recipe without those flaws passes: what it cannot do is to survive KeyboardInterrupt."""
    cell = harness.Cell("none", "write_bytes", library="flawed", keywords={"flaw": "none"}, staging="named")
    found = harness.every_fault(cell, tmp_path, kinds=("error", "kill"))
    assert not found, "\n".join(found)
