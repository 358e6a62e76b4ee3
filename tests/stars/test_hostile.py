"""Whatever lies where the cache file should be costs at most one warning and bounded time, and binds nothing odd."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atomicio.star_imports import StaleStarImportWarning, StarImportCache, StarImportCacheWarning
from star_helpers import learn, make, settle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULES = {"h_one.py": "a = 1\nb = 2\n", "h_two.py": "from h_one import *\nc = 3\n"}
MODULES["h_trap.py"] = "raise SystemExit('imported')\n"
SECONDS = 20  # of processor time: others use the machine too
COUNT: dict[str, int] = {}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bytes]]:
    """A cache file that would be a hit, and the folder of its modules."""
    folder = tmp_path_factory.mktemp("hostile")
    make(folder, MODULES)
    settle()
    cache = tmp_path_factory.mktemp("cache") / "names.json"
    learn(cache, ["h_one", "h_two"], folder)
    sys.path.insert(0, str(folder))
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    yield cache, cache.read_bytes()
    sys.path.remove(str(folder))
    sys.dont_write_bytecode = written
    print("\nhostile files tried:", COUNT)


def use(cache: Path, kind: str) -> None:
    """What a program does with the cache, and everything that must hold whatever the file says."""
    COUNT[kind] = COUNT.get(kind, 0) + 1
    for name in [name for name in sys.modules if name.startswith("h_")]:
        del sys.modules[name]
    space: dict[str, Any] = {}
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        c = StarImportCache(cache)
        for module in ("h_one", "h_two"):
            c.lazy_star_import(module, space)
        bound = set(space)
        for name in ("a", "b", "c"):
            with contextlib.suppress(NameError, ImportError):  # an entry without the name: check() mends it
                eval(f"str({name})", space)
        c.check()
        saved = c.save(strict=os.path.isfile(cache))
    assert time.process_time() - start < SECONDS
    assert saved or not os.path.isfile(cache)
    unusable = [w for w in caught if w.category is StarImportCacheWarning]
    assert len(unusable) <= 1
    assert all(w.category in (StarImportCacheWarning, StaleStarImportWarning) for w in caught)
    assert "h_trap" not in sys.modules
    assert "h_one" in sys.modules
    for name in bound:
        assert name.isidentifier()
        assert name not in ("__builtins__", "__name__", "__spec__", "None", "class", "import")
    # After check() the namespace is that of the real stars.
    assert {name: value for name, value in space.items() if name[:2] != "__"} == {"a": 1, "b": 2, "c": 3}


def put(valid: tuple[Path, bytes], data: bytes) -> Path:
    cache, _ = valid
    cache.write_bytes(data)
    os.chmod(cache, 0o600)
    return cache


relaxed = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@relaxed
@given(data=st.binary(max_size=2000))
def test_random_bytes(valid: tuple[Path, bytes], data: bytes) -> None:
    use(put(valid, data), "random bytes")


@relaxed
@given(data=st.data())
def test_truncated_and_flipped(valid: tuple[Path, bytes], data: st.DataObject) -> None:
    content = bytearray(valid[1])
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    use(put(valid, bytes(content)), "truncated or flipped")


@relaxed
@given(data=st.data(), value=json_values)
def test_wrong_shapes(valid: tuple[Path, bytes], data: st.DataObject, value: Any) -> None:
    """Some part of a valid document is something else."""
    document = json.loads(valid[1])
    part: Any = document
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(part[key], (dict, list)) or not part[key] or data.draw(st.booleans()):
            break
        part = part[key]
    part[key] = value
    use(put(valid, json.dumps(document).encode("utf-8", "surrogatepass")), "wrong shapes")


@relaxed
@given(value=json_values)
def test_any_json(valid: tuple[Path, bytes], value: Any) -> None:
    use(put(valid, json.dumps(value).encode("utf-8", "surrogatepass")), "any JSON")


PLANTED = [
    "__builtins__", "__name__", "__spec__", "__loader__", "__path__", "__class__", "__dict__", "__file__", "__debug__",
    "a\nimport h_trap", "a;import h_trap", "*", "a.b", "None", "True", "class", "import", "1", "a-b", "()", "ghost",
    "__import__", "print", "a ghost b", "\ud800", "\x00", "\uff41", "a,b", "__getattr__", "self", "_", "é",
]  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_planted_names(valid: tuple[Path, bytes], name: str) -> None:
    document = json.loads(valid[1])
    for module in ("h_one", "h_two"):
        document["modules"][module]["names"] += " " + name
    use(put(valid, json.dumps(document).encode()), "planted names")


@pytest.mark.parametrize("place", ["h_trap", "h_trap.sub", "os.path.x", "", "/etc/passwd", "..", "h_one\x00", "\ud800"])
def test_planted_places_import_nothing(valid: tuple[Path, bytes], place: str) -> None:
    document = json.loads(valid[1])
    document["files"].append([place, "somewhere"])
    document["modules"]["h_one"]["files"].append(len(document["files"]) - 1)
    use(put(valid, json.dumps(document).encode()), "planted places")


def bomb(what: str, document: Any) -> bytes:
    one = document["modules"]["h_one"]
    if what == "half a million names":
        one["names"] += "".join(f" n{i}" for i in range(500_000))
    elif what == "150,000 files":
        document["files"] += [[f"/{i}", ""] for i in range(150_000)]
        one["files"] = list(range(len(document["files"])))
    elif what == "one file a million times":
        one["files"] = [0] * 1_000_000
    elif what == "deep":
        return b'{"format":' + b"[" * 4_000_000
    elif what == "wide":
        return b"[" + b"[]," * 1_300_000 + b"[]]"
    elif what == "huge integers":
        document["files"][0][1] = 10**4000
    elif what == "infinity":
        return json.dumps(document).replace(json.dumps(document["files"][0][1]), "Infinity").encode()
    elif what == "a path into a device":
        document["files"][0][0] = "/dev/zero"
    elif what == "a path that is a descriptor":
        document["files"][0][0] = 0
    elif what == "a path with NUL":
        document["files"][0][0] = "a\0b"
    elif what == "a path that is no text":
        document["files"][0][0] = "\ud800"
    elif what == "a path of a megabyte":
        document["files"][0][0] = "/x" * 500_000
    elif what == "9 MiB":
        return json.dumps(document).encode() + b" " * (9 << 20)
    return json.dumps(document).encode()


BOMBS = [
    "half a million names", "150,000 files", "one file a million times", "deep", "wide", "huge integers", "infinity",
    "a path into a device", "a path that is a descriptor", "a path with NUL", "a path that is no text",
    "a path of a megabyte", "9 MiB",
]  # fmt: skip


@pytest.mark.parametrize("what", BOMBS)
def test_bombs(valid: tuple[Path, bytes], what: str) -> None:
    use(put(valid, bomb(what, json.loads(valid[1]))), "bombs")


@pytest.mark.skipif(os.name != "posix", reason="FIFOs and symbolic links as POSIX has them")
@pytest.mark.parametrize("kind", ["FIFO", "directory", "symlink loop", "dangling symlink", "device", "file as parent"])
def test_no_file_at_all(valid: tuple[Path, bytes], kind: str, tmp_path: Path) -> None:
    cache = tmp_path / "names.json"
    if kind == "FIFO":
        os.mkfifo(cache)
    elif kind == "directory":
        cache.mkdir()
    elif kind == "device":
        cache.symlink_to("/dev/zero")
    elif kind == "file as parent":
        cache.touch()
        cache = cache / "names.json"
    else:
        cache.symlink_to("names.json" if "loop" in kind else "nowhere.json")
    use(cache, kind)
