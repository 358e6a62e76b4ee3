"""What every test folder shares: nothing left behind, and no test skipped without a word."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STAGING_NAME = re.compile(r"\.atomicio-[0-9a-f]{16}\.tmp")


def litter(folder: str | os.PathLike[str]) -> list[str]:
    """Every name under `folder` that has the shape of our temporary names."""
    return sorted(
        os.path.join(parent, name)
        for parent, folders, files in os.walk(folder)
        for name in (*folders, *files)
        if STAGING_NAME.match(name)
    )


def open_descriptors() -> dict[int, str]:
    """What this process has open. The descriptor of the listing itself is gone by the time it is looked at."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass
    return found


@pytest.fixture
def no_litter(tmp_path: Path) -> Iterator[Path]:
    """`tmp_path`, which must hold no temporary name of ours when the test is over."""
    yield tmp_path
    assert litter(tmp_path) == []


@pytest.fixture
def no_leaked_descriptors() -> Iterator[None]:
    """The process has the same descriptors open after the test as before it."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc/self/fd to list open descriptors")
    before = open_descriptors()
    yield
    assert open_descriptors() == before


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which interpreter ran and why what was skipped was skipped, in lines that `.ci/run` collects."""
    build = " free-threaded" if not getattr(sys, "_is_gil_enabled", lambda: True)() else ""
    version = f"{platform.python_implementation()} {platform.python_version()}{build}"
    terminalreporter.write_line(f"ran on {version}, {sys.platform}")
    skipped = terminalreporter.stats.get("skipped", [])
    # A skipped report's `longrepr` is (file, line, "Skipped: reason").
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    terminalreporter.write_line(f"skips: {len(skipped)}")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"  {count} x {reason}")
