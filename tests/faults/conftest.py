"""Say how many runs there were: a matrix that shrank to nothing would pass as well."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

_private = False
"""Whether this process has mounts of its own."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--thorough", action="store_true", help="every error for ever, and every operation with named staging files"
    )


    parser.addoption("--on-disk", action="store_true", help="on the file system of pytest's folder, not on a tmpfs")


def pytest_configure(config: pytest.Config) -> None:
    harness.thorough = config.getoption("--thorough", default=False)
    global _private
    if sys.platform == "linux" and os.geteuid() == 0:
        # unshare(CLONE_NEWNS), <linux/sched.h>: what is mounted here is gone with this process, even if it is killed.
        if ctypes.CDLL(None).unshare(0x00020000) == 0:
            _private = subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode == 0


@pytest.fixture(scope="session", autouse=True)
def in_memory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A tmpfs to work in: what is tested are the answers to failed calls, and a disk's syncs would take half of the time."""
    base = tmp_path_factory.getbasetemp()
    mount = _private and not request.config.getoption("--on-disk")
    if mount:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700,size=512m", "tmpfs", base], check=True)
    yield
    if mount:
        subprocess.run(["umount", "--lazy", base], check=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if harness.runs:
        terminalreporter.write_line(f"{harness.runs.total()} runs with a fault, {len(harness.runs)} operations")
        for label, number in sorted(harness.runs.items()):
            terminalreporter.write_line(f"    {number:5} {label}")
