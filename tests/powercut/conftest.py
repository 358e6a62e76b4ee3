"""Run the recordings of all selected tests in a few processes, and write up what came of them."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [
    os.path.dirname(os.path.abspath(__file__)),
    os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"),
]

import campaign  # noqa: E402
import mounts  # noqa: E402
from results import Results  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("power cuts")
    group.addoption(
        "--states", type=int, default=24, help="judge at most so many crash states of each recording (default: 24)"
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
    mounts.remove_leftovers()
    # a mount waits for the kernel about as long as it computes: more processes than cores, the more so on a busy machine
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=4 * (os.cpu_count() or 1),
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
    text = results.as_rst()
    terminalreporter.section("power cuts")
    terminalreporter.write_line(text)
    if path := config.option.report:
        Path(path).write_text(text + "\n")
