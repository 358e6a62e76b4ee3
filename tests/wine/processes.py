"""A plugin of pytest: what Wine does badly when it starts a process is no failure of a test.

Now and then CreateProcess fails on a busy machine, where the same call succeeds a moment later. It is tried again, and said.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

ATTEMPTS = 4
failures: list[str] = []


def pytest_configure() -> None:
    import _winapi

    create = _winapi.CreateProcess

    def create_process(*arguments: Any) -> Any:
        for attempt in range(1, ATTEMPTS):
            try:
                return create(*arguments)
            except OSError as error:
                failures.append(f"{error!r}, {arguments[1]!r}"[:200])
                time.sleep(attempt)
        return create(*arguments)

    _winapi.CreateProcess = create_process


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for failure in failures:
        terminalreporter.write_line(f"tried again: CreateProcess: {failure}")
