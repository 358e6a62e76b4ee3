"""KeyboardInterrupt at every bytecode of every operation: the whole of what tests/test_interrupts.py does for a few."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import test_interrupts
from test_interrupts import CASES, Case, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = test_interrupts.pytestmark


@pytest.mark.parametrize("case", CASES, ids=str)
def test_interrupt_at_every_bytecode(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    record_property("bytecodes", check(case, tmp_path, monkeypatch))
