"""What a lazy star import costs: against the import itself, and eleven packages from one file.

pytest does not collect this file by itself; it is run by its name, ``tox run -e stars -- -s tests/stars/benchmark_star_imports.py``,
and prints. Each line is of one run, in which all ways take turns in fresh processes; the best of each counts, because
whatever else the machine does hits all alike and only ever adds.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from star_helpers import answer_of, learn, settle

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("ATOMICIO_ROUNDS", "20"))
PACKAGES = "sympy numpy numpy.ma matplotlib.pyplot matplotlib.pylab tkinter networkx pandas scipy.stats scipy.linalg mpmath"

CLOCK = """
import time
def took(work):
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": (time.perf_counter() - wall) * 1e3, "cpu": (time.process_time() - cpu) * 1e3}
"""
EAGER = CLOCK + "answer(took(lambda: exec('from %s import *' % sys.argv[1], {})))"
LAZY = CLOCK + """
modules, space = sys.argv[1].split(), {}
def work():
    cache = StarImportCache(sys.argv[2])
    for module in modules:
        cache.lazy_star_import(module, space)
    if "save" in sys.argv:
        cache.save()
result = took(work)
answer({**result, "names": len(space), "loaded": [module for module in modules if module in sys.modules]})
"""


def best(results: list[dict[str, Any]]) -> dict[str, float]:
    return {clock: min(result[clock] for result in results) for clock in ("cpu", "wall")}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MPLBACKEND", "agg")  # what a graphical system would be asked for is not what is measured
    settle()
    return str(tmp_path / "cache" / "names.json")


def missing(modules: str) -> list[str]:
    return [module for module in modules.split() if not importlib.util.find_spec(module.partition(".")[0])]


@pytest.mark.skipif(bool(missing("sympy")), reason="needs sympy")
def test_one_package(cache: str, tmp_path: Path) -> None:
    learn(cache, ["sympy"])
    eager, warm, cold = [], [], []
    for number in range(ROUNDS):
        eager.append(answer_of(EAGER, "sympy"))
        warm.append(answer_of(LAZY, "sympy", cache))
        cold.append(answer_of(LAZY, "sympy", str(tmp_path / f"cold{number}" / "names.json")))
    assert all(result["loaded"] == [] for result in warm)
    assert all(result["loaded"] == ["sympy"] for result in cold)
    for clock, unit in (("cpu", "of processor time"), ("wall", "by the clock")):
        eagerly, warmly, coldly = best(eager)[clock], best(warm)[clock], best(cold)[clock]
        print(
            f"sympy, {warm[0]['names']} names, {unit}: eager {eagerly:.0f} ms; warm, all validated, {warmly:.2f} ms: "
            f"{eagerly / warmly:.0f} times faster; cold {coldly:.0f} ms, {coldly / eagerly - 1:+.1%} of the import"
        )


@pytest.mark.skipif(bool(missing(PACKAGES)), reason=f"needs {', '.join(missing(PACKAGES))}")
def test_eleven_packages_from_one_file(cache: str) -> None:
    learn(cache, PACKAGES.split())
    eager, warm = [], []
    for _ in range(ROUNDS):
        warm.append(answer_of(LAZY, PACKAGES, cache))
    for module in PACKAGES.split():
        eager.append(best([answer_of(EAGER, module) for _ in range(2)]))
    assert all(result["loaded"] == [] for result in warm)
    size = os.path.getsize(cache) / 1024
    for clock, unit in (("cpu", "of processor time"), ("wall", "by the clock")):
        print(
            f"{len(PACKAGES.split())} packages, {warm[0]['names']} names, {size:.0f} KiB, {unit}: eager, each by itself, "
            f"{sum(result[clock] for result in eager):.0f} ms; warm, all validated, {best(warm)[clock]:.1f} ms"
        )
    print(f"Python {sys.version.split()[0]}, {ROUNDS} rounds")
