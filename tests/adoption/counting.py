"""A pytest plugin for other tools' own tests: counts what is published through atomicio.

python -m pytest -p counting ...
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import atomicio

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

calls = 0


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def counting(*arguments: Any, **options: Any) -> Any:
        global calls
        calls += 1
        return function(*arguments, **options)

    return counting


# Before the tool is imported, which takes the names that it needs.
atomicio.atomic_write = counted(atomicio.atomic_write)
atomicio.atomic_path = counted(atomicio.atomic_path)


def pytest_sessionfinish(session: pytest.Session) -> None:
    with open(os.environ["ATOMICIO_CALLS"], "w", encoding="utf-8") as file:
        file.write(str(calls))
