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
def save_patiently(cache):
    # Where the others had the lock for all of the five seconds that a save waits, as they may on a busy machine: again.
    return any(cache.save() or "Timeout" not in repr(cache.last_error) for _ in range(9)) and cache.last_error is None
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
    done = subprocess.run(command, env=environment((), **more), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# A process for each module, forked from one that has loaded nothing but the layer.
EACH = """
import ast
def eager(module):
    space = {}
    exec(f"from {module} import *", {"__name__": "user"}, space)
    return list(space)
def cold(module):
    c = StarImportCache(sys.argv[2])
    names = c.names(module)
    return [names, c.save()]
def warm(module):
    c = StarImportCache(sys.argv[2])
    space = {"__name__": "user"}
    early = module in sys.modules
    c.lazy_star_import(module, space)
    lazy = module not in sys.modules
    keys = [key for key in space if key != "__name__"]
    for key in keys:
        # As a program uses it, by LOAD_NAME, and as little as possible: then a proxy is replaced, and Python's own lazy
        # import resolved; but a lazy object of the package's own stays as it is in an eager star.
        exec(f"_ = {key}\\n_.__class__", space)
    again = {}
    exec(f"from {module} import *", {"__name__": "user"}, again)
    same = [key for key in keys if space[key] is again.get(key)]
    return [keys, early, lazy, len(same), list(again), [str(w) for w in c.check()]]
work, results = globals()[sys.argv[1]], {}
for module in sys.argv[3:]:
    read, write = os.pipe()
    if not os.fork():
        try:
            result = work(module)
        except BaseException as error:
            result = {"error": repr(error)}
        with open(write, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(write)
    with open(read) as pipe:
        results[module] = json.loads(pipe.read() or '{"error": "died"}')
    os.wait()
answer(results)
"""
SEEDS = ("0", "1", "2")


def equality(modules: list[str], cache: Path) -> tuple[list[str], list[str], dict[str, str]]:
    """Compare eager, cold and warm processes: the modules by a warm hit, those loaded anyway, and the absent ones.

    An eager process brings some names. A cold one brings them, too, and remembers. A warm one, under each of three hash
    seeds, has the same without importing the module, and after their first use the objects of an eager star.
    """
    # The graphical system is not what is tested.
    more = {"MPLBACKEND": "agg", "PYTHONWARNINGS": "ignore"}
    eager = answer_of(EACH, "eager", str(cache), *modules, PYTHONHASHSEED=SEEDS[0], **more)
    absent = {module: result["error"] for module, result in eager.items() if isinstance(result, dict)}
    there = [module for module in modules if module not in absent]
    wrong: dict[str, object] = {}
    for module, result in answer_of(EACH, "cold", str(cache), *there, **more).items():
        if result != [eager[module], True]:
            wrong[f"{module}, cold"] = result
    live: set[str] = set()
    for seed in SEEDS:
        theirs = eager if seed == SEEDS[0] else answer_of(EACH, "eager", str(cache), *there, PYTHONHASHSEED=seed, **more)
        for module, result in answer_of(EACH, "warm", str(cache), *there, PYTHONHASHSEED=seed, **more).items():
            if isinstance(result, dict):
                wrong[f"{module}, warm, seed {seed}"] = result
                continue
            keys, early, lazy, same, again, stale = result
            # A name's place in a star may depend on the hash seed, as in numpy: the learned one is of the first seed.
            if keys != eager[module] or set(keys) != set(again) or set(keys) != set(theirs[module]):
                wrong[f"{module}, warm, seed {seed}, names"] = sorted(set(keys) ^ set(theirs[module]))
            if same != len(keys) or stale:
                wrong[f"{module}, warm, seed {seed}, objects"] = [same, len(keys), stale]
            live |= set() if lazy and not early else {module}
    assert wrong == {}
    return [module for module in there if module not in live], sorted(live), absent


def learn(cache: object, modules: Iterable[str], *paths: object) -> None:
    """Record each module in the cache file, in a fresh process of its own."""
    for module in modules:
        code = f"c = StarImportCache({str(cache)!r}); c.names({module!r}); answer([c.save(), repr(c.last_error)])"
        assert run(code, *paths) == [True, "None"]


def recorded(cache: Path) -> dict[str, list[str]]:
    """What the file says: the names of each module."""
    return {module: entry["names"].split() for module, entry in json.loads(cache.read_text())["modules"].items()}
