"""What the tests of the star-import cache share: modules on disk, and fresh processes that star-import them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

RACY = 2.1  # seconds: an entry is recorded only for files that are older than two

PRELUDE = """
import json, os, sys, warnings
from atomicio.star_imports import StarImportCache, StaleStarImportWarning, StarImportCacheWarning, lazy_star_import
def answer(value): print(json.dumps(value))
"""


def settle() -> None:
    """Wait until what has been written no longer counts as edited during the import."""
    time.sleep(RACY)


def make(folder: Path, files: Mapping[str, str]) -> None:
    """Write modules, without their byte code."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def environment(paths: Iterable[object] = (), **more: str) -> dict[str, str]:
    """The environment of a fresh process that finds modules in `paths` before everything else."""
    own = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*map(str, paths), *([own] if own else [])])
    # No byte code: a new __pycache__ changes the folder during the import, and then nothing is recorded.
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0", "PYTHONPATH": path, **more}


def start(code: str, *paths: object, python: Iterable[str] = (sys.executable,), **more: str) -> subprocess.Popen[str]:
    """Start a fresh process on PRELUDE and `code`."""
    # -P: the current folder is not to be found by chance.
    command = [*python, "-P", "-c", PRELUDE + code]
    return subprocess.Popen(
        command, env=environment(paths, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> Any:
    """What the process has answered; its failure is the test's."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1]) if out.strip() else None


def run(code: str, *paths: object, python: Iterable[str] = (sys.executable,), **more: str) -> Any:
    """Run `code` in a fresh process and return what it has answered."""
    return finish(start(code, *paths, python=python, **more))


def answer_of(code: str, *arguments: str, **more: str) -> Any:
    """What PRELUDE and `code` answer in a fresh process with `arguments`."""
    command = [sys.executable, "-P", "-c", PRELUDE + code, *arguments]
    done = subprocess.run(command, env=environment((), **more), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def learn(cache: object, modules: Iterable[str], *paths: object) -> None:
    """Record each module in the cache file, in a fresh process of its own."""
    for module in modules:
        code = f"c = StarImportCache({str(cache)!r}); c.names({module!r}); answer([c.save(), repr(c.last_error)])"
        assert run(code, *paths) == [True, "None"]


def recorded(cache: Path) -> dict[str, list[str]]:
    """What the file says: the names of each module."""
    return {module: entry["names"].split() for module, entry in json.loads(cache.read_text())["modules"].items()}
