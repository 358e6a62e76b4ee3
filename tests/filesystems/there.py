"""A pytest plugin: the tests of another suite work in a folder of the place, and what came of each is written down."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

_found: dict[str, dict[str, str]] = {"passed": {}, "failed": {}, "skipped": {}}


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest) -> Path:
    """Return a folder for the test, as pytest does, but without its symbolic link: not every file system has them."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    path = Path(os.environ["ATOMICIO_THERE"], f"{name}{sum(map(len, _found.values()))}")
    path.mkdir()
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "call" or not report.passed:
        name = item.nodeid.replace("tests/", "")
        _found[report.outcome][name] = str(report.longrepr or "")
        if report.failed:
            _found["passed"].pop(name, None)
    return report


def pytest_sessionfinish() -> None:
    Path(os.environ["ATOMICIO_FOUND"]).write_text(json.dumps(_found))
