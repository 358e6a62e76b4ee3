"""Say how many interrupts there were."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    numbers = [value for report in reports for name, value in report.user_properties if name == "bytecodes"]
    terminalreporter.write_line(f"{sum(map(int, numbers))} interrupts in {len(numbers)} operations")  # type: ignore[call-overload]
