"""Mount what the tests need in a mount table of this process alone, and write up what holds where."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "support")]

import mounts  # noqa: E402

#: what is not one of the promises, in a column of its own
OTHER_SUITES = ("functional tests", "system calls that fail")
_table = pytest.StashKey[dict[str, dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("file systems").addoption(
        "--table", help="write what holds where to this file, as reStructuredText"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_table] = {}


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> dict[str, dict[str, str]]:
    return request.config.stash[_table]


@pytest.fixture(scope="session")
def private_mounts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Have a mount table of our own, and return a tmpfs for the images: a loop device on a real disk is slow."""
    if sys.platform != "linux":
        pytest.skip("the places are mounted as Linux mounts them")
    if os.geteuid():
        pytest.skip("mounting needs root")
    try:
        mounts.enter_private_mounts()
    except OSError as error:
        pytest.skip(f"no mounts of one's own: {error}")
    mounts.outlive_servers()
    mounts.remove_leftovers()
    ram = tmp_path_factory.mktemp("ram")
    mounts.mount("none", str(ram), "tmpfs")
    return ram


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Come back from wherever the test goes, before its file system is unmounted."""
    before = os.getcwd()
    yield
    os.chdir(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[_table]
    if not rows:
        return
    terminalreporter.section("what holds where")
    for place, row in rows.items():
        promises = {promise: value for promise, value in row.items() if promise not in OTHER_SUITES}
        holding = sum(value == "holds" for value in promises.values())
        terminalreporter.write_line(f"{place}: {holding} of {len(promises)} as everywhere")
        for promise, value in row.items():
            if value != "holds":
                terminalreporter.write_line(f"    {promise.replace('_', ' ')}: {value}")
    if path := config.option.table:
        Path(path).write_text(as_rst(rows))


def as_rst(rows: dict[str, dict[str, str]]) -> str:
    """Write the table for the docs."""
    lines = [
        f"Linux {platform.release().split('-')[0]}, Python {platform.python_version()}.",
        "The numbers count the promises that hold as they do everywhere; what differs is named.",
        "",
        ".. list-table:: What holds where",
        "   :header-rows: 1",
        "   :widths: 30 12 40 18",
        "",
        "   * - place",
        "     - as everywhere",
        "     - what differs",
        "     - the other suites",
    ]
    for place, row in rows.items():
        differing: dict[str, list[str]] = {}
        promises = {promise: value for promise, value in row.items() if promise not in OTHER_SUITES}
        for promise, value in promises.items():
            if value != "holds":
                differing.setdefault(value, []).append(promise.replace("_", " "))
        words = "; ".join(f"{', '.join(names)}: *{value}*" for value, names in differing.items()) or "nothing"
        lines += [
            f"   * - {place}",
            f"     - {len(promises) - sum(map(len, differing.values()))} of {len(promises)}",
            f"     - {words}",
            "     - " + ("; ".join(f"{suite}: {row[suite]}" for suite in OTHER_SUITES if suite in row) or "–"),
        ]
    return "\n".join(lines) + "\n"
