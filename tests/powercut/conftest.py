"""Run the recordings of all selected tests in a few processes, and write up what came of them."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

sys.path[:0] = [
    os.path.dirname(os.path.abspath(__file__)),
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"),
]

import campaign  # noqa: E402
import mounts  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("power cuts")
    group.addoption(
        "--states", type=int, default=45, help="judge at most so many crash states of each recording (default: 45)"
    )
    group.addoption("--seed", type=int, default=0, help="draw the random crash states with this seed (default: 0)")
    group.addoption("--report", help="write the tables of the run to this file, as reStructuredText for the docs")


def missing() -> str | None:
    """Say in one line what this machine lacks for power cuts, or None."""
    if sys.platform != "linux":
        return "power cuts are recorded on Linux only"
    if os.geteuid():
        return "mounting needs root"
    if not os.path.exists("/dev/fuse"):
        return "there is no /dev/fuse"
    if not os.path.exists("/dev/loop-control"):
        return "there are no loop devices"
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(mounts.enter_private_mounts)
    except OSError as error:
        return f"no mounts of one's own: {error}"
    return None


@dataclass
class Results:
    """What all the cells of the run came to, for the tables."""

    states: dict[tuple[str, str, str], int] = field(default_factory=dict)
    violations: dict[tuple[str, str, str], int] = field(default_factory=dict)
    mutations: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    naive: list[tuple[str, str, str, int, int]] = field(default_factory=list)

    def add(self, outcome: campaign.Outcome) -> None:
        """Count an outcome of the library."""
        key = outcome.cell.operation, outcome.cell.level, outcome.cell.system
        self.states[key] = self.states.get(key, 0) + outcome.states
        self.violations[key] = self.violations.get(key, 0) + len(outcome.violations)


_results = pytest.StashKey[Results]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_results] = Results()


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Results:
    return request.config.stash[_results]


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    if reason := missing():
        pytest.skip(reason)
    # a mount waits for the kernel about as long as it computes: more processes than cores
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=2 * (os.cpu_count() or 1),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=campaign.prepare_worker,
        initargs=(str(tmp_path_factory.mktemp("workers")),),
    ) as pool:
        yield pool
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def jobs(
    request: pytest.FixtureRequest, workers: concurrent.futures.ProcessPoolExecutor
) -> dict[str, concurrent.futures.Future[list[campaign.Outcome]]]:
    """Start the jobs of every selected test at once, in order; each test then waits for its own."""
    started = {}
    for item in request.session.items:
        job = getattr(item, "callspec", None) and item.callspec.params.get("job")  # type: ignore[attr-defined]
        if job is not None and job.missing() is None:
            options = request.config.option
            started[item.nodeid] = workers.submit(job.run, options.states, options.seed)
    return started


@pytest.fixture
def outcomes(
    request: pytest.FixtureRequest, jobs: dict[str, concurrent.futures.Future[list[campaign.Outcome]]]
) -> list[campaign.Outcome]:
    if reason := request.getfixturevalue("job").missing():
        pytest.skip(reason)
    return jobs[request.node.nodeid].result()


# --- the report -------------------------------------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash[_results]
    if not results.states and not results.mutations:
        return
    text = tables(results)
    terminalreporter.section("power cuts")
    terminalreporter.write_line(text)
    if path := config.option.report:
        Path(path).write_text(text + "\n")


def tables(results: Results) -> str:
    """Write the tables in reStructuredText."""
    systems = list(dict.fromkeys(system for _, _, system in results.states))
    rows = []
    for operation, level in dict.fromkeys((operation, level) for operation, level, _ in results.states):
        row = [operation, level]
        for system in systems:
            key = operation, level, system
            row.append(f"{results.states[key]}, {results.violations[key]}" if key in results.states else "")
        rows.append(row)
    total, broken = sum(results.states.values()), sum(results.violations.values())
    kernel = platform.release().split("-")[0]
    parts = [
        f"On Linux {kernel}, {total} distinct crash states of the library were judged; {broken} broke a promise.",
        table(
            "Operation, durability level and file system: crash states tried, promises broken",
            ["operation", "level", *systems],
            rows,
        ),
    ]
    if results.naive:
        naive = [
            [name, level, system, str(states), str(broken)]
            for name, level, system, states, broken in sorted(results.naive)
        ]
        headings = ["what", "judged as", "file system", "states tried", "promises broken"]
        parts.append(table("The same suite on what people write by hand", headings, naive))
    if results.mutations:
        headings = ["operation", "level", "sync that was left out", "power cuts", "worst-case model"]
        parts.append(
            table("The library with one sync left out: who notices", headings, [list(row) for row in results.mutations])
        )
    return "\n\n".join(parts)


def table(title: str, headings: list[str], rows: list[list[str]]) -> str:
    """Write one table."""
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in [headings, *rows]:
        lines.extend(f"   {'* -' if not index else '  -'} {cell}".rstrip() for index, cell in enumerate(row))
    return "\n".join(lines)
