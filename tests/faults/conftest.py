"""Say how many runs there were: a matrix that shrank to nothing would pass as well."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import harness

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="every error for ever, and every operation with named staging files"
    )


def pytest_configure(config: pytest.Config) -> None:
    harness.thorough = config.getoption("--thorough", default=False)
    if sys.platform == "linux" and os.geteuid() == 0:
        # unshare(CLONE_NEWNS), <linux/sched.h>: what is mounted here is gone with this process, even if it is killed.
        if ctypes.CDLL(None).unshare(0x00020000) == 0:
            subprocess.run(["mount", "--make-rprivate", "/"], check=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if harness.runs:
        terminalreporter.write_line(f"{harness.runs.total()} runs with a fault, {len(harness.runs)} operations")
        for label, number in sorted(harness.runs.items()):
            terminalreporter.write_line(f"    {number:5} {label}")
