"""The star-import cache: the names are those of a real star import, and the file never costs anybody the program."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import pytest

from atomicio.star_imports import (
    StaleStarImportWarning,
    StarImportCache,
    StarImportCacheWarning,
    default_path,
    lazy_star_import,
)
from star_helpers import environment, finish, learn, make, recorded, run, settle, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

if sys.platform == "emscripten":
    pytest.skip("fresh processes are what is tested: Emscripten has none", allow_module_level=True)

POSIX = pytest.mark.skipif(os.name != "posix", reason="owners, modes, FIFOs and forks are POSIX's")

RING = """
import os as _os
from atomicio.star_imports import StarImportCache as _Cache, lazy_star_import as _lazy
_lazy("{}", cache=_Cache(_os.environ["M_CACHE"]))
def {}(): return from_b
"""
# Every way to say what a star brings, and some that are errors.
MODULES = {
    "m_plain.py": "a = 1\n_b = 2\n__c__ = 3\nD = 4\n",
    "m_all_list.py": "__all__ = ['b', 'a', '_hidden', '__version__']\n"
    "a = 1; b = 2; c = 3; _hidden = 4; __version__ = '5'\n",
    "m_all_tuple.py": "__all__ = ('a', 'b', 'a')\na = 1; b = 2\n",
    "m_all_sequence.py": "class Names:\n    def __getitem__(self, i): return 'ab'[i]\n"
    "__all__ = Names()\na = 1; b = 2\n",
    "m_all_empty.py": "__all__ = []\na = 1\n",
    "m_nothing.py": "",
    "m_chain.py": "from m_plain import *\nfrom m_all_list import *\nextra = 1\n",
    "m_update.py": "import m_plain\nglobals().update(vars(m_plain))\n",
    "m_dir.py": "real = 1\ndef __dir__(): return ['ghost']\n",
    "m_getattr.py": "__all__ = ['made']\n_made = [1]\n"
    "def __getattr__(name):\n    if name == 'made': return _made\n    raise AttributeError(name)\n",
    "m_all_by_getattr.py": "x = 1\n"
    "def __getattr__(name):\n    if name == '__all__': return ['x']\n    raise AttributeError(name)\n",
    "m_shadow.py": "__all__ = ['abs', 'sum']\ndef abs(x): return 'ours'\nsum = 7\n",
    "m_class.py": "import sys\nclass M:\n    __all__ = ['q']\n    __spec__ = __spec__\n    q = object()\n"
    "sys.modules[__name__] = M()\n",
    "m_class_dict.py": "import sys\nclass M:\n    def __init__(self):\n"
    "        self.v = [1]; self._w = 2; self.__spec__ = __spec__\nsys.modules[__name__] = M()\n",
    "m_odd.py": "globals()['not an id'] = 1; globals()['class'] = 2; globals()['a\\nimport os'] = 3; x = 1\n",
    "m_own.py": "__all__ = ['__builtins__', '__name__', 'x']\nx = 1\n",
    "m_unicode.py": "π = 3\ndéjà = 4\n",
    "m_pkg/__init__.py": "from . import first\nfrom .first import value\n__all__ = ['value', 'first', 'second']\n",
    "m_pkg/first.py": "value = 1\n",
    "m_pkg/second.py": "two = 2\n",
    "m_pkg/inner/__init__.py": "from ..second import *\n",
    "m_open/__init__.py": "from . import part\nfrom .part import thing\n",
    "m_open/part.py": "thing = 1\n",
    "m_space/leaf.py": "leaf = 1\n",
    "m_bad_missing.py": "__all__ = ['a', 'nowhere']\na = 1\n",
    "m_bad_int.py": "__all__ = [1]\n",
    "m_bad_set.py": "__all__ = {'a'}\na = 1\n",
    "m_bad_generator.py": "__all__ = (n for n in 'a')\na = 1\n",
    "m_bad_raises.py": "a = 1\nraise RuntimeError('no')\n",
    "m_bad_import.py": "import nowhere_at_all\n",
    "m_pkg_bad/__init__.py": "__all__ = ['broken']\n",
    "m_pkg_bad/broken.py": "raise LookupError('inside')\n",
    "m_zoo/__init__.py": "zoo = 1\n",
    "m_zoo/late.py": "",
    "m_lib/__init__.py": "base = 1\n",
    "m_lib/extra.py": "",
    "m_user.py": "from m_lib import *\n",
    "m_env.py": "import os as _os\nalways = 1\n"
    "if _os.environ.get('M_ENV') == 'x': only_x = 1\nelse: only_y = 2\n",
    "m_flaky.py": "import os as _os\nif _os.environ.get('BROKEN'): raise RuntimeError('broken')\nvalue = [1]\n",
    "m_moody.py": "import os as _os\n__all__ = ['made']\ndef __getattr__(name):\n"
    "    if name == 'made' and 'MOODY' in _os.environ: return 1 / 0\n"
    "    if name == 'made': return 7\n    raise AttributeError(name)\n",
    "m_slow.py": "import time as _time\n_time.sleep(0.2)\nthing = object()\nother = object()\n",
    # Modules whose bodies use a cache themselves.
    "m_ring_a.py": RING.format("m_ring_b", "ask_b"),
    "m_ring_b.py": "from_b = 'b'\n" + RING.format("m_ring_a", "ask_a"),
    "m_shared.py": "import os, threading\nfrom atomicio.star_imports import StarImportCache\n"
    "cache = StarImportCache(os.environ['M_CACHE'])\nbarrier = threading.Barrier(2)\n",
    "m_left.py": "import m_shared as _m\n_m.barrier.wait()\n_m.cache.names('m_plain')\n_m.cache.save()\nx = 1\n",
    "m_right.py": "import m_shared as _m\n_m.barrier.wait()\n_m.cache.names('m_dir')\n_m.cache.save()\ny = 1\n",
}
STARS = [
    *(name.removesuffix(".py") for name in MODULES if name.startswith(("m_all", "m_bad", "m_class"))),
    *("m_plain", "m_nothing", "m_chain", "m_update", "m_dir", "m_getattr", "m_shadow", "m_odd", "m_own", "m_unicode"),
    *("m_pkg", "m_pkg.inner", "m_pkg.first", "m_open", "m_open.part", "m_space", "m_space.leaf", "m_pkg_bad", "m_zoo"),
    *("m_sourceless", "m_zipped", "m_zipped.sub", "m_absent", "m_plain.absent", "textwrap", "os.path", "builtins"),
    "__hello__",
]

# What one process makes of modules: the names, or the error.
EACH_STAR = """
def real(module):
    space = {}
    # With locals of their own the names are what the statement binds, and nothing that exec() adds.
    exec(f"from {module} import *", {"__name__": "user"}, space)
    return space
c = StarImportCache(%r)
results = {}
for module in %r:
    try:
        results[module] = list(%s(module))
    except Exception as error:
        results[module] = [type(error).__name__, str(error)]
c.save()
answer(results)
"""


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of modules old enough to be recorded."""
    folder = tmp_path_factory.mktemp("modules")
    make(folder, MODULES)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("m_zipped/__init__.py", "from .sub import *\nz = 1\n")
        archive.writestr("m_zipped/sub.py", "s = 2\n")
    make(folder, {"m_sourceless.py": "pyc = 1\n"})
    source = str(folder / "m_sourceless.py")
    run(f"import py_compile; py_compile.compile({source!r}, {source + 'c'!r})")
    (folder / "m_sourceless.py").unlink()
    settle()
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where a test's cache file is to be: not in a folder of modules, whose entries it would make stale."""
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache" / "names.json"


@pytest.fixture
def importable(modules: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The modules can be imported in this process, and are gone from it afterwards."""
    monkeypatch.syspath_prepend(str(modules))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield modules
    for name in [name for name in sys.modules if name.startswith("m_")]:
        del sys.modules[name]


def served(cache: StarImportCache, module: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    cache.lazy_star_import(module, namespace)
    assert module not in sys.modules
    return namespace


def test_names_are_those_of_the_real_star_import(modules: Path, cache: Path) -> None:
    paths = modules, modules / "archive.zip"
    inner = [module for module in STARS if "." in module]  # loaded with their packages, so in processes of their own
    groups = [[module for module in STARS if module not in inner], *([module] for module in inner)]
    eager = [start(EACH_STAR % (str(cache), group, "real"), *paths) for group in groups]
    expected = {module: names for process in eager for module, names in finish(process).items()}
    cold = [start(EACH_STAR % (str(cache), group, "c.names"), *paths) for group in groups]
    assert {module: names for process in cold for module, names in finish(process).items()} == expected
    entries = recorded(cache)
    assert run(EACH_STAR % (str(cache), STARS, "c.names"), *paths) == expected
    # Errors and names that cannot be bound lazily are not recorded; what the cache itself has loaded needs no entry.
    unrecordable = {"m_odd", "m_own", "m_absent", "m_plain.absent", *(name for name in STARS if "bad" in name)}
    assert set(STARS) - set(entries) == {*unrecordable, "os.path", "builtins"}
    assert all(names == expected[module] for module, names in entries.items())
    assert expected["m_all_tuple"] == ["a", "b"]
    assert expected["m_bad_raises"] == ["RuntimeError", "no"]


def test_hit_imports_nothing_and_first_use_binds_the_real_objects(modules: Path, cache: Path) -> None:
    names = ["m_plain", "m_all_list", "m_chain", "m_pkg", "m_pkg.inner", "m_open", "m_space.leaf", "m_shadow"]
    names += ["m_class", "m_getattr"]
    learn(cache, names, modules)
    code = f"""
names = {names!r}
c = StarImportCache({str(cache)!r})
spaces = {{}}
for module in names:
    c.lazy_star_import(module, spaces.setdefault(module, {{}}))
lazy = [module for module in sys.modules if module.startswith("m_")]
identical = []
for module in names:
    space = spaces[module]
    keys = list(space)
    for name in keys:
        eval(f"str({{name}})", space)  # as a program uses it: by LOAD_NAME in that namespace
        space.pop("__builtins__", None)
    real = {{}}
    exec(f"from {{module}} import *", {{}}, real)
    identical.append([keys == list(real), all(space[name] is real[name] for name in real)])
answer([lazy, identical, [str(w) for w in c.check()], c.save(), c._news == {{}}])
"""
    lazy, identical, stale, saved, no_news = run(code, modules)
    assert lazy == []
    assert identical == [[True, True]] * len(names)
    assert (stale, saved, no_news) == ([], True, True)


def test_default_namespace_is_the_callers(modules: Path, cache: Path, tmp_path: Path) -> None:
    learn(cache, ["m_plain"], modules)
    make(tmp_path, {"user.py": f"""
from atomicio.star_imports import StarImportCache, lazy_star_import
lazy_star_import("m_plain", cache=StarImportCache({str(cache)!r}))
def total(): return a + D
"""})  # fmt: skip
    code = "import user; early = 'm_plain' in sys.modules; answer([early, user.total(), user.a, sorted(vars(user))])"
    early, total, a, keys = run(code, modules, tmp_path)
    assert (early, total, a) == (False, 5, 1)
    assert {"a", "D", "total"} < set(keys)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG_CACHE_HOME is where other systems keep caches")
def test_default_cache_is_saved_at_exit_and_only_with_news(modules: Path, tmp_path: Path) -> None:
    code = "lazy_star_import('m_plain'); answer([a + 0, D + 0])"
    for _ in range(2):
        assert run(code, modules, XDG_CACHE_HOME=str(tmp_path)) == [1, 4]
        (file,) = (tmp_path / "atomicio").glob("star-imports-*.json")
        assert recorded(file) == {"m_plain": ["a", "D"]}
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        inode = file.stat().st_ino
    assert file.stat().st_ino == inode
    assert len(os.listdir(tmp_path / "atomicio")) == 2  # and the lock


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG_CACHE_HOME is where other systems keep caches")
def test_default_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_path().startswith(str(tmp_path / ".cache" / "atomicio") + os.sep)
    assert sys.implementation.cache_tag in default_path()
    monkeypatch.setattr(sys, "prefix", "/another")
    assert run("from atomicio.star_imports import default_path; answer(default_path())", HOME="") != default_path()


@POSIX
def test_without_a_home_nothing_is_read_or_written(modules: Path, tmp_path: Path) -> None:
    code = f"""
os.chdir({str(tmp_path)!r})
c = StarImportCache()
answer([c.path, c.names("m_plain"), c.save(), type(c.last_error).__name__, os.listdir(".")])
"""
    # expanduser() answers a relative path where there is neither HOME nor an entry in the password database
    homeless = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\ndel os.environ['HOME']\n"
    assert run(homeless + code, modules, XDG_CACHE_HOME="") == ["", ["a", "D"], False, "FileNotFoundError", []]


def test_nothing_new_is_no_write_at_all(modules: Path, cache: Path) -> None:
    learn(cache, ["m_plain"], modules)
    before = cache.stat()
    (cache.parent / "names.json.lock").unlink()
    hit = f"c = StarImportCache({str(cache)!r}); c.names('m_plain'); answer([c.save(), 'filelock' in sys.modules])"
    assert run(hit, modules) == [True, False]
    assert os.listdir(cache.parent) == ["names.json"]
    # The same learned by another process at the same time is no news either.
    again = f"c = StarImportCache({str(cache)!r}); c._disk = {{'x': None}}; c.names('m_plain')\n"
    again += "answer([len(c._news), c.save()])"
    assert run(again, modules) == [1, True]
    assert (cache.stat().st_ino, cache.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_concurrent_savers_lose_no_entry(modules: Path, cache: Path) -> None:
    names = ["m_plain", "m_all_list", "m_all_tuple", "m_chain", "m_update", "m_dir", "m_pkg", "m_shadow"]
    go = cache.with_name("go")
    code = f"""
import time
c = StarImportCache({str(cache)!r})
c.names(%r)
while not os.path.exists({str(go)!r}): time.sleep(0.001)
answer([save_patiently(c), repr(c.last_error)])
"""
    processes = [start(code % name, modules) for name in names]
    go.touch()
    assert [finish(process) for process in processes] == [[True, "None"]] * len(names)
    assert set(recorded(cache)) == set(names)
    assert sorted(os.listdir(cache.parent)) == ["go", "names.json", "names.json.lock"]


def test_no_lock_is_held_across_an_import(modules: Path, cache: Path) -> None:
    """Two threads, each importing what saves the cache while the other holds an import lock: nobody waits for ever."""
    code = """
import m_shared, threading
results = {}
def work(name): results[name] = list(m_shared.cache.names(name))
threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in ("m_left", "m_right")]
for t in threads: t.start()
for t in threads: t.join(50)
answer([results, m_shared.cache.save()])
"""
    assert run(code, modules, M_CACHE=str(cache)) == [{"m_left": ["x"], "m_right": ["y"]}, True]
    assert {"m_plain", "m_dir"} <= set(recorded(cache))


def test_invalidate_one_and_all(modules: Path, cache: Path) -> None:
    learn(cache, ["m_plain", "m_dir", "m_chain"], modules)
    one = StarImportCache(cache)
    one.invalidate("m_dir")
    assert set(recorded(cache)) == {"m_plain", "m_dir", "m_chain"}
    assert one.save()
    assert set(recorded(cache)) == {"m_plain", "m_chain"}
    one.invalidate()
    assert one.save()
    assert recorded(cache) == {}


def test_invalidated_entry_is_learned_anew(modules: Path, cache: Path) -> None:
    learn(cache, ["m_plain"], modules)
    code = f"c = StarImportCache({str(cache)!r}); c.invalidate('m_plain'); c.names('m_plain')\n"
    assert run(code + "answer(['m_plain' in sys.modules, c.save()])", modules) == [True, True]
    assert recorded(cache) == {"m_plain": ["a", "D"]}


GARBAGE = {
    "empty": b"",
    "garbage": b"\x80\x04\x95 not json",
    "truncated": None,
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "another program's": b'{"format": "x", "tag": "y", "files": [], "modules": {}}',
    "no files": b'{"star_imports": "%s", "modules": {}}',
    "modules is a list": b'{"star_imports": "%s", "files": [], "modules": []}',
    "a list is a name": b'{"star_imports": "%s", "files": [["x", []]], "modules": {}}',
    "deep": b"[" * 200_000,
    "huge number": b"9" * 100_000,
    "not UTF-8": b'{"format": "\xff"}',
    "larger than 4 MiB": b" " * (4 << 20) + b"{}",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_corrupt_file_is_one_warning_and_healed_by_the_next_save(what: str, importable: Path, cache: Path) -> None:
    learn(cache, ["m_dir"], importable)
    tag = json.loads(cache.read_text())["star_imports"]
    garbage = GARBAGE[what].replace(b"%s", json.dumps(tag)[1:-1].encode()) if GARBAGE[what] else b""
    cache.write_bytes(garbage if GARBAGE[what] is not None else cache.read_bytes()[:-20])
    broken = StarImportCache(cache)
    with pytest.warns(StarImportCacheWarning, match="names.json") as caught:
        assert broken.names("m_plain") == ("a", "D")
        assert broken.names("m_dir") == ("real",)
        assert broken.save(strict=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert recorded(cache) == {"m_plain": ["a", "D"], "m_dir": ["real"]}


def test_broken_entry_is_a_broken_file(importable: Path, cache: Path) -> None:
    learn(cache, ["m_plain", "m_dir", "m_chain"], importable)
    document = json.loads(cache.read_text())
    document["modules"]["m_plain"]["files"] = [10**6]
    cache.write_text(json.dumps(document))
    os.chmod(cache, 0o600)
    broken = StarImportCache(cache)
    with pytest.warns(StarImportCacheWarning) as caught:
        assert broken.names("m_plain") == ("a", "D")
        assert broken.save(strict=True)
    assert len(caught) == 1
    assert set(recorded(cache)) == {"m_plain"}


@pytest.mark.parametrize("tag", ["0 another release", "1 another interpreter"])
def test_other_release_or_interpreter_is_silently_empty_and_replaced(tag: str, importable: Path, cache: Path) -> None:
    learn(cache, ["m_plain", "m_dir"], importable)
    document = json.loads(cache.read_text())
    cache.write_text(json.dumps({**document, "star_imports": tag}))
    os.chmod(cache, 0o600)
    other = StarImportCache(cache)
    assert other.names("m_plain") == ("a", "D")  # filterwarnings = error
    assert "m_plain" in sys.modules
    assert other.save()
    assert set(recorded(cache)) == {"m_plain"}


def test_missing_file_is_silent(importable: Path, cache: Path) -> None:
    fresh = StarImportCache(cache.parent / "not" / "yet" / "there.json")
    assert fresh.names("m_plain") == ("a", "D")
    assert fresh.save()
    assert recorded(cache.parent / "not" / "yet" / "there.json") == {"m_plain": ["a", "D"]}


def in_the_way(kind: str, path: Path) -> None:
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "symlink loop":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.relpath(path))


@POSIX
@pytest.mark.parametrize("kind", ["directory", "FIFO", "symlink loop", "device", "socket"])
def test_no_regular_file_is_one_warning_and_no_save(
    kind: str, importable: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(cache.parent)  # the name of a socket has at most 107 bytes
    in_the_way(kind, cache)
    blocked = StarImportCache(cache)
    with pytest.warns(StarImportCacheWarning) as caught:
        assert blocked.names("m_plain") == ("a", "D")
        assert blocked.save() is False
        assert blocked.names("m_dir") == ("real",)
    assert len(caught) == 1
    assert isinstance(blocked.last_error, OSError)
    with pytest.raises(OSError):
        blocked.save(strict=True)
    assert stat.S_IFMT(os.lstat(cache).st_mode) != stat.S_IFREG


@POSIX
def test_dangling_symlink_is_followed(importable: Path, cache: Path) -> None:
    cache.symlink_to("elsewhere.json")
    linked = StarImportCache(cache)
    linked.names("m_plain")
    assert linked.save(strict=True)
    assert cache.is_symlink()
    assert recorded(cache.parent / "elsewhere.json") == {"m_plain": ["a", "D"]}


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="giving a file away needs root")
def test_file_of_another_user_is_refused_unless_trusted(importable: Path, cache: Path) -> None:
    learn(cache, ["m_plain"], importable)
    os.chown(cache, 12345, -1)
    content = cache.read_bytes()
    foreign = StarImportCache(cache)
    with pytest.warns(StarImportCacheWarning, match="Owned by another user"):
        foreign.names("m_plain")
    assert "m_plain" in sys.modules
    assert not foreign.save()
    assert isinstance(foreign.last_error, PermissionError)
    assert (cache.read_bytes(), cache.stat().st_uid) == (content, 12345)
    del sys.modules["m_plain"]
    assert list(served(StarImportCache(cache, trust_foreign=True), "m_plain")) == ["a", "D"]


@POSIX
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_file_that_others_can_write_is_refused_and_healed(mode: int, importable: Path, cache: Path) -> None:
    learn(cache, ["m_plain"], importable)
    os.chmod(cache, mode)
    assert list(served(StarImportCache(cache, trust_foreign=True), "m_plain")) == ["a", "D"]
    exposed = StarImportCache(cache)
    with pytest.warns(StarImportCacheWarning, match="others can write it"):
        exposed.names("m_plain")
        assert exposed.save()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o600


@POSIX
def test_permissions_are_exact_whatever_the_umask(importable: Path, cache: Path) -> None:
    old = os.umask(0o077)
    try:
        shared = StarImportCache(cache, permissions=0o644)
        shared.names("m_plain")
        assert shared.save(strict=True)
    finally:
        os.umask(old)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o644


@POSIX
def test_unwritable_directory_costs_nothing_but_the_save(modules: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    cache = folder / "names.json"
    learn(cache, ["m_plain"], modules)
    folder.chmod(0o555)
    # Root may write anywhere unless it gives up the capability.
    mortal = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if mortal and not shutil.which("setpriv"):
        pytest.skip("needs setpriv to take root's power to write anywhere away")
    code = f"""
c = StarImportCache({str(cache)!r})
hit = list(c.names("m_plain")), "m_plain" in sys.modules
miss = list(c.names("m_dir"))
answer([hit, miss, c.save(), c.last_error.errno])
"""
    try:
        expected = [[["a", "D"], False], ["real"], False, errno.EACCES]
        assert run(code, modules, python=[*mortal, sys.executable]) == expected
        folder.chmod(0o755)
        (folder / "names.json.lock").unlink()
        folder.chmod(0o555)
        assert run(code, modules, python=[*mortal, sys.executable]) == expected
        assert os.listdir(folder) == ["names.json"]
    finally:
        folder.chmod(0o755)


@POSIX
def test_lock_held_by_others_costs_nothing_but_the_save(
    importable: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from filelock import FileLock

    waiting = StarImportCache(cache)
    waiting.names("m_plain")
    with FileLock(str(cache) + ".lock"):
        assert waiting.save() is False
    assert isinstance(waiting.last_error, TimeoutError)
    assert not cache.exists()
    assert waiting.save()
    assert waiting.last_error is None
    assert recorded(cache) == {"m_plain": ["a", "D"]}


def test_cache_removed_between_load_and_save(importable: Path, cache: Path) -> None:
    learn(cache, ["m_dir"], importable)
    c = StarImportCache(cache)
    c.names("m_dir")
    cache.unlink()
    c.names("m_plain")
    assert c.save()
    assert recorded(cache) == {"m_plain": ["a", "D"]}


def plant(cache: Path, module: str, **changes: object) -> None:
    document = json.loads(cache.read_text())
    document["modules"][module].update(changes)
    cache.write_text(json.dumps(document))
    os.chmod(cache, 0o600)


@pytest.mark.parametrize(
    "names",
    ["__builtins__ a", "a a.b", "a *", "a class", "__name__", "__spec__", "__path__", "1 2", ["a"], 7, None, "a None"],
)
def test_planted_names_are_never_bound(names: object, importable: Path, cache: Path) -> None:
    learn(cache, ["m_plain"], importable)
    plant(cache, "m_plain", names=names)
    namespace: dict[str, Any] = {}
    with pytest.warns(StarImportCacheWarning):
        StarImportCache(cache).lazy_star_import("m_plain", namespace)
    assert namespace == {"a": 1, "D": 4}


def test_planted_place_imports_nothing(importable: Path, cache: Path) -> None:
    learn(cache, ["m_plain"], importable)
    document = json.loads(cache.read_text())
    document["files"].append(["m_pkg.first", "x"])
    document["modules"]["m_plain"]["files"].append(len(document["files"]) - 1)
    cache.write_text(json.dumps(document))
    os.chmod(cache, 0o600)
    with pytest.warns(StarImportCacheWarning):
        StarImportCache(cache).names("m_plain")
    assert "m_pkg" not in sys.modules


def test_planted_ghost_is_found_and_taken_away(importable: Path, cache: Path) -> None:
    learn(cache, ["m_plain"], importable)
    plant(cache, "m_plain", names="a ghost")
    c = StarImportCache(cache)
    space = served(c, "m_plain")
    with pytest.warns(StaleStarImportWarning) as caught:
        exec("b = a + 1", space)
        c.check()
    assert len(caught) == 1
    stale = caught[0].message
    assert isinstance(stale, StaleStarImportWarning)
    assert (stale.module, stale.ghosts, stale.missing) == ("m_plain", ["ghost"], ["D"])
    assert {name: value for name, value in space.items() if name[:2] != "__"} == {"a": 1, "b": 2, "D": 4}
    assert c.save()
    assert recorded(cache) == {}


def test_check_mends_what_a_stat_cannot_see(modules: Path, cache: Path) -> None:
    run(f"c = StarImportCache({str(cache)!r}); c.names('m_env'); c.save()", modules, M_ENV="x")
    assert recorded(cache) == {"m_env": ["always", "only_x"]}
    code = f"""
warnings.simplefilter("always")
c = StarImportCache({str(cache)!r})
space, taken, kept = {{}}, {{}}, {{}}
for s in space, taken, kept: c.lazy_star_import("m_env", s)
taken["only_y"] = "mine"
kept["only_x"] = "mine"
import m_env  # by somebody else
with warnings.catch_warnings(record=True) as caught:
    found = c.check()
answer([
    [[w.module, w.ghosts, w.missing] for w in found], [w.category.__name__ for w in caught],
    ["only_x" in space, space["only_y"]], ["only_x" in taken, taken["only_y"]], [kept["only_x"], kept["only_y"]],
    [str(w) for w in c.check()], c.save(),
])
"""
    found, caught, *spaces, again, saved = run(code, modules, M_ENV="")
    assert found == [["m_env", ["only_x"], ["only_y"]]] * 3
    assert caught == ["StaleStarImportWarning"] * 3
    assert spaces == [[False, 2], [False, "mine"], ["mine", 2]]
    assert (again, saved) == ([], True)
    assert recorded(cache) == {}


def test_submodule_loaded_since_is_no_difference(importable: Path, cache: Path) -> None:
    learn(cache, ["m_zoo"], importable)
    c = StarImportCache(cache)
    served(c, "m_zoo")
    __import__("m_zoo.late")
    assert c.check() == []


def test_failed_import_binds_nothing_now_and_is_retried_at_first_use(importable: Path, cache: Path) -> None:
    space: dict[str, Any] = {"a": "mine"}
    with pytest.raises(RuntimeError, match="no"):
        StarImportCache(cache).lazy_star_import("m_bad_raises", space)
    assert space == {"a": "mine"}
    learn(cache, ["m_flaky"], importable)
    code = f"""
c = StarImportCache({str(cache)!r})
c.lazy_star_import("m_flaky", globals())
os.environ["BROKEN"] = "1"
errors = []
for _ in range(3):
    try:
        value.append
    except RuntimeError as error:
        errors.append(str(error))
    except ImportError as error:  # as Python 3.15 reports it
        errors.append(str(error.__cause__ or error))
del os.environ["BROKEN"]
value.append(2)
answer([errors, value, value is sys.modules["m_flaky"].value])
"""
    assert run(code, importable) == [["broken"] * 3, [1, 2], True]


def test_later_assignment_and_del_win(importable: Path, cache: Path) -> None:
    learn(cache, ["m_all_list", "m_plain"], importable)
    c = StarImportCache(cache)
    space = served(c, "m_all_list")
    space["a"] = "mine"
    del space["b"]
    exec("v = __version__ + '!'", space)
    assert (space["a"], space["v"], "b" in space) == ("mine", "5!", False)
    assert c.check() == []


def test_of_two_stars_the_later_wins(importable: Path, cache: Path) -> None:
    learn(cache, ["m_plain", "m_shadow", "m_all_list"], importable)
    c = StarImportCache(cache)
    space = served(c, "m_all_list")
    c.lazy_star_import("m_plain", space)
    exec("first = b; second = D; third = a", space)
    assert (space["third"], space["first"], space["second"]) == (1, 2, 4)


def test_threads_first_touching_one_star_get_one_object(modules: Path, cache: Path) -> None:
    learn(cache, ["m_slow"], modules)
    code = f"""
import threading
c = StarImportCache({str(cache)!r})
c.lazy_star_import("m_slow", globals())
barrier, seen = threading.Barrier(16), []
def touch(i):
    barrier.wait()
    seen.append(hash(thing if i % 2 else other))
threads = [threading.Thread(target=touch, args=(i,)) for i in range(16)]
for t in threads: t.start()
for t in threads: t.join(50)
m = sys.modules["m_slow"]
answer([len(seen), set(seen) == {{hash(m.thing), hash(m.other)}}, thing is m.thing, other is m.other, c.check() == []])
"""
    assert run(code, modules) == [16, True, True, True, True]


def test_circular_imports(modules: Path, cache: Path) -> None:
    code = f"""
c = StarImportCache({str(cache)!r})
space = {{}}
early = "m_ring_a" in sys.modules
c.lazy_star_import("m_ring_a", space)
exec("result = [ask_b(), ask_a()]", space)
answer([early, space["result"], c.save()])
"""
    for _ in range(3):
        assert run(code, modules, M_CACHE=str(cache)) == [False, ["b", "b"], True]
    assert {"ask_a", "ask_b"} < set(recorded(cache)["m_ring_a"])


def test_what_was_loaded_before_speaks_for_itself_and_is_not_recorded(modules: Path, cache: Path) -> None:
    code = f"""
import m_open.part, m_zoo
m_zoo.more = 1
c = StarImportCache({str(cache)!r})
answer([c.names("m_open"), c.names("m_zoo"), c.save(), os.path.exists({str(cache)!r})])
"""
    assert run(code, modules) == [["part", "thing"], ["zoo", "more"], True, False]


def test_submodules_that_others_loaded_are_not_recorded(modules: Path, cache: Path) -> None:
    code = f"{{}}\nc = StarImportCache({str(cache)!r}); answer([c.names('m_user'), c.save()])"
    names, saved = run(code.format("import m_lib.extra"), modules)
    assert (set(names), saved) == ({"base", "extra"}, True)
    assert not cache.exists()
    assert run(code.format(""), modules) == [["base"], True]
    assert recorded(cache) == {"m_user": ["base"]}


def test_edited_just_now_is_served_and_not_recorded(modules: Path, cache: Path, tmp_path: Path) -> None:
    edit = f"""
with open({str(tmp_path / "m_new.py")!r}, "w") as file: file.write("x = 1\\n")
"""
    code = f"c = StarImportCache({str(cache)!r}); answer([c.names('m_new'), c.save()])"
    assert run(edit + code, tmp_path) == [["x"], True]
    assert not cache.exists()
    # Nor with an old date, as cp -p or a move would leave it: it was put there just now.
    old = f"os.utime({str(tmp_path / 'm_new.py')!r}, (1, 1))\n"
    assert run(edit + old + code, tmp_path) == [["x"], True]
    assert not cache.exists()


def test_instance_is_shared_by_threads(importable: Path, cache: Path) -> None:
    c = StarImportCache(cache)
    names = ["m_plain", "m_dir", "m_shadow", "m_pkg", "m_open", "m_zoo", "m_all_list", "m_unicode"]
    failures: list[BaseException] = []

    def work(module: str) -> None:
        try:
            for _ in range(20):
                c.names(module)
                c.check()
                c.save(strict=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(module,)) for module in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert set(recorded(cache)) == set(names)


def test_wrong_arguments(cache: Path) -> None:
    c = StarImportCache(cache)
    with pytest.raises(ModuleNotFoundError):
        c.names("a\nimport os")
    with pytest.raises((TypeError, ValueError)):
        c.names(3)  # type: ignore[arg-type]
    with pytest.raises(ModuleNotFoundError):
        lazy_star_import("m_nowhere", {}, c)


def test_hit_loads_nothing_heavy(modules: Path, cache: Path) -> None:
    learn(cache, ["m_plain"], modules)
    code = f"StarImportCache({str(cache)!r}).names('m_plain'); answer(sorted(sys.modules))"
    heavy = {"filelock", "typing", "tempfile", "shutil", "pathlib", "dataclasses", "m_plain"}
    assert heavy.isdisjoint(run(code, modules))


# The cache with its lazy binding, the proxy, and the command: how many lines each may have.
LAYER = {"star_imports.py": 300, "_lazy_proxy.py": 80, "_star_imports_cli.py": 100}


def layer() -> Iterator[tuple[str, str]]:
    import atomicio

    for file in LAYER:
        with open(os.path.join(os.path.dirname(atomicio.__file__), file), encoding="utf-8") as source:
            yield file, source.read()


def test_layer_stays_thin() -> None:
    assert {file: len(text.splitlines()) for file, text in layer() if len(text.splitlines()) > LAYER[file]} == {}
    assert all(len(line) <= 120 or "noqa" in line for _, text in layer() for line in text.splitlines())


def test_layer_uses_only_public_names_of_the_package() -> None:
    import atomicio

    own = {file.removesuffix(".py") for file in LAYER}
    for file, text in layer():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("atomicio")):
                names = {alias.name for alias in node.names}
                assert node.module in own or (node.module is None and names <= set(atomicio.__all__)), file
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("atomicio") for alias in node.names), file


def test_threads_may_learn_forget_and_save_at_the_same_time(importable: Path, cache: Path) -> None:
    c = StarImportCache(cache)
    modules = ["m_plain", "m_dir", "m_shadow", "m_pkg", "m_open", "m_zoo", "m_all_list", "m_unicode"]
    failures: list[BaseException] = []
    end = time.monotonic() + 2

    def work(do: Callable[[int], object]) -> None:
        number = 0
        try:
            while time.monotonic() < end:
                number += 1
                do(number)
        except BaseException as error:
            failures.append(error)

    works: list[Callable[[int], object]] = [
        lambda number: c.invalidate(f"{modules[number % 8]}{number % 1000}"),
        lambda number: c.invalidate(modules[number % 8]),
        lambda number: c.save(strict=True),
        lambda number: c.names(modules[number % 8]),
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(do,)) for do in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_names_asked_for_again_and_again_take_no_memory(importable: Path, cache: Path) -> None:
    learn(cache, ["m_chain"], importable)
    c = StarImportCache(cache)
    c.names("m_chain")
    tracemalloc.start()
    try:
        for _ in range(300):
            c.names("m_chain")
        assert tracemalloc.get_traced_memory()[0] < 30_000
    finally:
        tracemalloc.stop()
    assert "m_chain" not in sys.modules


def test_module_that_raises_oddly_costs_check_and_save_nothing(modules: Path, cache: Path) -> None:
    learn(cache, ["m_moody"], modules)
    code = f"""
c = StarImportCache({str(cache)!r})
space = {{}}
c.lazy_star_import("m_moody", space)
os.environ["MOODY"] = "1"
import m_moody
m_moody.__all__ = ["made"]
result = [c.check(), c.save()]
try:
    exec("made + 1", space)
except Exception as error:
    result.append(type(error.__cause__ or error).__name__)
del os.environ["MOODY"]
answer([*result, eval("made + 1", space)])
"""
    assert run(code, modules) == [[], True, "ZeroDivisionError", 8]


def test_path_entries_that_are_no_text_are_ignored_as_the_finder_does(modules: Path, cache: Path) -> None:
    code = f"import pathlib\nsys.path += [pathlib.Path('/'), b'/']\nc = StarImportCache({str(cache)!r})\n"
    assert run(code + "c.names('m_plain'); answer(c.save(strict=True))", modules) is True
    assert set(recorded(cache)) == {"m_plain"}


def test_name_that_was_handed_on_before_its_first_use_keeps_forwarding(importable: Path, cache: Path) -> None:
    learn(cache, ["m_plain"], importable)
    space = served(StarImportCache(cache), "m_plain")
    elsewhere = {"D": space["D"]}  # as `from user import D` of another module does
    exec("first = a + 0", space)
    assert (type(space["a"]), eval("D + 1", elsewhere), eval("D + 1", space)) == (int, 5, 5)


def command(*arguments: str, paths: tuple[Path, ...] = ()) -> tuple[int, list[str], str]:
    code = """
import argparse, sys
from atomicio import _star_imports_cli
parser = argparse.ArgumentParser()
_star_imports_cli.add_command(parser.add_subparsers())
arguments = parser.parse_args()
try:
    arguments.run(arguments)
except OSError as error:
    sys.exit(str(error))
"""
    whole = [sys.executable, "-P", "-c", code, "star-imports", *arguments]
    done = subprocess.run(whole, env=environment(paths), capture_output=True, text=True)
    return done.returncode, done.stdout.splitlines(), done.stderr.strip()


def test_command_warms_shows_lists_and_clears(modules: Path, cache: Path, tmp_path: Path) -> None:
    at = "--cache", str(cache)
    assert command(*at, "--warm", "m_plain", "m_pkg", "json", "m_fresh", paths=(modules,))[0] == 1
    make(tmp_path / "new", {"m_fresh.py": "f = 1\n"})  # edited just now: the command waits
    paths = modules, tmp_path / "new"
    assert command(*at, "--warm", "m_fresh", paths=paths) == (0, [], "")
    assert recorded(cache) == {"m_plain": ["a", "D"], "m_pkg": ["value", "first", "second"], "m_fresh": ["f"]}
    assert command(*at, "--show", "m_pkg", paths=paths) == (0, ["value", "first", "second"], "")
    listing = [str(cache), "m_fresh: 1 names", "m_pkg: 3 names", "m_plain: 2 names"]
    assert command(*at, paths=paths) == (0, listing, "")
    make(tmp_path / "new", {"m_fresh.py": "f = 1\ng = 2\n"})
    assert command(*at, paths=paths)[1][1] == "m_fresh: stale"
    assert command(*at, "--clear", paths=paths) == (0, [], "")
    assert recorded(cache) == {}
    status, _, error = command(*at, "--show", "m_nowhere", paths=paths)
    assert status == 1
    assert "m_nowhere" in error
    status, _, error = command(*at, "--warm", "m_odd", "m_dir", paths=paths)
    assert (status, error) == (1, "not remembered: m_odd")
    assert recorded(cache) == {"m_dir": ["real"]}


def test_warnings_are_not_errors_by_default(importable: Path, cache: Path) -> None:
    cache.write_bytes(b"garbage")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        c = StarImportCache(cache)
        assert c.names("m_plain") == ("a", "D")
    assert [w.category for w in caught] == [StarImportCacheWarning]
