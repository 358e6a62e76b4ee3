"""SageMath's own doctests for the lazy import, its cache and temporary files: the same with us as without."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from star_helpers import equality, settle

HERE = Path(__file__).parent
MODULES = ["sage.misc.lazy_import_cache", "sage.misc.lazy_import", "sage.misc.temporary_file"]

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("sage", "cysignals", "IPython")),
    reason="needs passagemath-objects, passagemath-repl and passagemath-categories",
)


def sources() -> list[str]:
    import sage.misc.lazy_import_cache

    folder = Path(sage.misc.lazy_import_cache.__file__).parent
    return [str(folder / name) for name in ("lazy_import_cache.py", "lazy_import.pyx", "temporary_file.py")]


def environment(tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join([str(HERE), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])])
    return {**os.environ, "PYTHONPATH": path, "DOT_SAGE": str(tmp_path / "dot_sage"), "HOME": str(tmp_path)}


def doctests(names: str, tmp_path: Path) -> tuple[dict[str, int], set[str]]:
    """How many examples each file has, and which of them fail."""
    command = [sys.executable, "-m", "sage.doctest", "--environment", names, "--optional=sage", "--random-seed=0"]
    done = subprocess.run(
        [*command, *sources()], env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    counts, file = {}, ""
    for line in done.stdout.splitlines():
        if line.startswith("sage -t "):
            file = os.path.basename(line.split()[-1])
        if match := re.match(r"\s+\[(\d+) tests", line):
            counts[file] = int(match[1])
    examples = re.findall(r'File "(.*?)", line (\d+), in sage', done.stdout)
    failed = {f"{os.path.basename(file)} line {line}" for file, line in examples}
    assert len(counts) == len(MODULES), done.stdout + done.stderr
    return counts, failed


def test_own_doctests_pass_as_without_us(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    counts, failed = doctests("sage.all__sagemath_categories", tmp_path / "theirs")
    our_counts, our_failed = doctests("sage_environment", tmp_path / "ours")
    print(f"doctests: {counts}, failing without us: {sorted(failed)}, with us: {sorted(our_failed)}")
    assert our_counts == counts
    assert our_failed <= failed
    assert sum(counts.values()) > 300
    # Each did what it says: without us the pickle, with us none.
    pickles = [len(list((tmp_path / who / "dot_sage" / "cache").glob("*.pickle"))) for who in ("theirs", "ours")]
    assert pickles[1] == 0 < pickles[0]


def stars() -> list[str]:
    """Every ``sage.*.all*`` module of the distributions that are installed."""
    import sage

    found = []
    for place in sage.__path__:
        for parent, _, names in os.walk(place):
            package = "sage" + parent[len(place) :].replace(os.sep, ".")
            found += [f"{package}.{name[:-3]}" for name in names if name.startswith("all") and name.endswith(".py")]
    return sorted(set(found))


def test_stars_of_sage_are_equal(tmp_path: Path) -> None:
    settle()
    equal, live, absent = equality(stars(), tmp_path / "cache" / "names.json")
    print(f"{len(equal)} of {len(stars())} sage.*.all* modules by a warm hit, failing without us: {list(absent)}")
    assert len(equal) > 20
    assert live == []
    assert len(absent) < len(equal)


def child(code: str, tmp_path: Path, *python: str) -> object:
    done = subprocess.run(
        [*python, sys.executable, "-W", "ignore::DeprecationWarning", "-c", "import json, sys, adapter\n" + code],
        env=environment(tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_lazy_import_of_a_star_uses_our_cache(tmp_path: Path) -> None:
    module = "sage.misc.lazy_list"
    code = f"""
from sage.misc.lazy_import import lazy_import, save_cache_file
lazy_import({module!r}, "*")
early = {module!r} in sys.modules
ours = sorted(name for name, value in list(globals().items()) if type(value).__name__ == "LazyImport")
save_cache_file()
real = {{}}
exec("from {module} import *", {{}}, real)
same = [repr(globals()[name]) == repr(real[name]) for name in ours]
print(json.dumps([early, ours == sorted(real), all(same), len(ours)]))
"""
    first, second = child(code, tmp_path), child(code, tmp_path)
    assert first[:3] == [True, True, True]
    (cache,) = (tmp_path / "dot_sage" / "cache").glob("*.json")
    assert module in json.loads(cache.read_text())["modules"]
    assert second[:3] == [False, True, True]
    assert not list((tmp_path / "dot_sage" / "cache").glob("*.pickle"))


def test_start_survives_an_unwritable_cache_folder(tmp_path: Path) -> None:
    """As Sage does not without us: it dies with PermissionError."""
    folder = tmp_path / "dot_sage" / "cache"
    folder.parent.mkdir()
    folder.write_text("a file where the folder should be: not even root can write into it")
    code = """
from sage.misc.lazy_import import get_star_imports, save_cache_file
import adapter
names = adapter.get_star_imports("sage.misc.lazy_list")
adapter.save_cache_file()
print(json.dumps(len(names)))
"""
    done = child("import warnings\nwarnings.simplefilter('ignore')\n" + code, tmp_path)
    assert isinstance(done, int)
    assert done > 0
