from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("benchmarks").addoption(
        "--redraw", action="store_true", help="measure at length, and write the page's numbers and plots anew"
    )
