"""A plugin of pytest for Wine: a process that could not be started is started again, and the run says so.

CreateProcess has been seen to raise once, in a whole run on a busy machine; with what error and why is not known. What is printed
at the end is the evidence to look at: it may be Wine, and it may be a handle that was closed twice.
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
