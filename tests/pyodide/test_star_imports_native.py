"""The star-import cache on Python 3.15's own lazy imports: pure Python, one process, nothing but a file system."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from atomicio.star_imports import StarImportCache

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.version_info < (3, 15), reason="lazy imports are Python 3.15's")

FILES = {
    "native_one.py": "a = [1]\nb = [2]\n_c = 3\n",
    "native_two.py": "from native_one import *\nd = [4]\n__all__ = ['a', 'd']\n",
    "native_ghost.py": "x = 1\n",
}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A cache file that knows the modules, none of which is loaded."""
    (tmp_path / "modules").mkdir()
    for name, text in FILES.items():
        (tmp_path / "modules" / name).write_text(text)
    time.sleep(2.1)  # what is younger is not recorded
    sys.path.insert(0, str(tmp_path / "modules"))
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    learner = StarImportCache(tmp_path / "names.json")
    for name in FILES:
        learner.names(name.removesuffix(".py"))
    learner.save(strict=True)
    forget()
    yield tmp_path / "names.json"
    forget()
    sys.path.remove(str(tmp_path / "modules"))
    sys.dont_write_bytecode = written


def forget() -> None:
    for name in [name for name in sys.modules if name.startswith("native_")]:
        del sys.modules[name]


def kinds(space: dict[str, Any]) -> set[str]:
    return {type(value).__name__ for value in space.values()}


def test_hit_binds_lazy_imports_and_only_those(cache: Path) -> None:
    space: dict[str, Any] = {}
    StarImportCache(cache).lazy_star_import("native_one", space)
    assert list(space) == ["a", "b"]
    assert kinds(space) == {"lazy_import"}
    assert "native_one" not in sys.modules


def test_first_use_is_the_real_object_and_that_name_only(cache: Path) -> None:
    space: dict[str, Any] = {}
    StarImportCache(cache).lazy_star_import("native_two", space)
    exec("used = a", space)
    assert space["used"] is sys.modules["native_one"].a
    assert space["a"] is space["used"]
    assert type(space["d"]).__name__ == "lazy_import"
    eager: dict[str, Any] = {}
    exec("from native_two import *", eager)
    exec("for name in 'ad': eval(name)", space)
    assert all(space[name] is eager[name] for name in ("a", "d"))


def test_from_inside_a_function_and_into_any_dict(cache: Path) -> None:
    def inside() -> dict[str, Any]:
        space: dict[str, Any] = {"mine": 1}
        StarImportCache(cache).lazy_star_import("native_one", space)
        return space

    space = inside()
    assert list(space) == ["mine", "a", "b"]


def test_planted_names_are_no_code(cache: Path) -> None:
    document = json.loads(cache.read_text())
    for planted in ("a\nimport native_ghost", "a;import native_ghost", "__builtins__", "*", "class"):
        document["modules"]["native_one"]["names"] = f"b {planted}"
        cache.write_text(json.dumps(document))
        os.chmod(cache, 0o600)
        space: dict[str, Any] = {}
        with pytest.warns(UserWarning):
            StarImportCache(cache).lazy_star_import("native_one", space)
        assert "native_ghost" not in sys.modules
        assert set(space) == {"a", "b"}
        forget()


def test_ghost_is_taken_away_by_check(cache: Path) -> None:
    document = json.loads(cache.read_text())
    document["modules"]["native_one"]["names"] = "a ghost"
    cache.write_text(json.dumps(document))
    os.chmod(cache, 0o600)
    c = StarImportCache(cache)
    space: dict[str, Any] = {}
    c.lazy_star_import("native_one", space)
    with pytest.raises(ImportError):
        exec("ghost", space)
    exec("a", space)
    with pytest.warns(UserWarning, match="ghost"):
        (stale,) = c.check()
    assert (stale.ghosts, stale.missing) == (["ghost"], ["b"])
    assert {name for name in space if name[:2] != "__"} == {"a", "b"}


def test_filter_that_makes_it_eager_is_respected(cache: Path) -> None:
    sys.set_lazy_imports_filter(lambda importer, name, names: not name.startswith("native_"))  # type: ignore[attr-defined]
    try:
        space: dict[str, Any] = {}
        StarImportCache(cache).lazy_star_import("native_one", space)
    finally:
        sys.set_lazy_imports_filter(None)  # type: ignore[attr-defined]
    assert space == {"a": [1], "b": [2]}


def test_filter_that_makes_a_ghost_eager_falls_back_to_the_real_star(cache: Path) -> None:
    document = json.loads(cache.read_text())
    document["modules"]["native_one"]["names"] = "a ghost"
    cache.write_text(json.dumps(document))
    os.chmod(cache, 0o600)
    sys.set_lazy_imports_filter(lambda importer, name, names: False)  # type: ignore[attr-defined]
    try:
        c = StarImportCache(cache)
        space: dict[str, Any] = {}
        c.lazy_star_import("native_one", space)
    finally:
        sys.set_lazy_imports_filter(None)  # type: ignore[attr-defined]
    assert space == {"a": [1], "b": [2]}
    assert c.save()
    assert "native_one" not in json.loads(cache.read_text())["modules"]
