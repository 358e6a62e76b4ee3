"""KeyboardInterrupt at every bytecode of a directory's replacement; the default tests do some of them."""

from __future__ import annotations

import gc
import itertools
import sys
from typing import TYPE_CHECKING

import pytest

if sys.platform == "win32":
    pytest.skip("tests of POSIX calls", allow_module_level=True)

from test_directory import OLD, fill, form, replace, sweep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["form"]


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts bytecodes of CPython")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("backup", [None, ".bak"])
def test_an_interrupt_at_every_bytecode(
    tmp_path: Path, form: str, backup: str | None, record_property: Callable[[str, object], None]
) -> None:
    fill(tmp_path / "rehearsal", OLD)
    replace(str(tmp_path / "rehearsal"), backup)
    gc.collect()
    times = sweep(tmp_path, backup, itertools.count(1))
    record_property("bytecodes", times)
    assert times > 1500
