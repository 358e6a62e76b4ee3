"""Which names would ``from M import *`` bring? A cache, validated on every hit, knows without importing M.

It is a file of names, never of objects: JSON, replaced at once by :func:`atomicio.write_text`, merged under a lock.
An entry depends on every file outside the standard library that the import had loaded, on the folders that hold them
or are searched, and on where the finder found each top-level name it loaded. Any doubt is a miss: a real import.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import stat
import sys
import time
import warnings
import zlib
from importlib.machinery import PathFinder
from importlib.util import find_spec
from keyword import kwlist

from . import write_text
from ._lazy_proxy import LazyName

__all__ = ["StaleStarImportWarning", "StarImportCache", "StarImportCacheWarning", "default_path", "lazy_star_import"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias
    Entry: TypeAlias = tuple[tuple[str, ...], dict[str, str]]  # names; what `_look` says of all that they depend on

_TAG = f"1 {sys.version} {sys.platform} -O{sys.flags.optimize} {sys.prefix}"  # our version, and what the stdlib is
_NATIVE = sys.version_info >= (3, 15)
_STDLIB = os.path.dirname(os.__file__) + os.sep
_READ = "annotations builtins class debug dict file lazy_modules loader name package path spec".split()  # noqa: SIM905
_NEVER_BOUND = {*kwlist, *(f"__{name}__" for name in _READ)}  # the interpreter reads these from globals


class StarImportCacheWarning(UserWarning):
    """A cache file was not used: corrupt, no regular file, or others could have written it."""


class StaleStarImportWarning(StarImportCacheWarning):
    """Names served for :attr:`module` were not the real ones: :attr:`ghosts` do not exist, :attr:`missing` do."""

    def __init__(self, module: str, ghosts: list[str], missing: list[str]) -> None:
        self.module, self.ghosts, self.missing = module, ghosts, missing
        super().__init__(f"cached names of {module!r} were stale: ghosts {ghosts[:9]}, missing {missing[:9]}")


class StarImportCache:
    """The names that star imports bring, in one file for all processes of an interpreter.

    An unusable file is one :class:`StarImportCacheWarning` and an empty cache, a missing one just empty. Threads may
    share an instance: each step is one dict operation, and no lock is held while something is imported.

    :param path: the cache file; default :func:`default_path`. Not beside modules: there a save looks like an edit.
    :param permissions: mode bits of the file; 0o644 for one in a tree that serves other users.
    :param trust_foreign: also read a file that another user than root and oneself owns, or that others can write.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, permissions: int = 0o600, trust_foreign: bool = False
    ) -> None:
        self.path = default_path() if path is None else os.path.abspath(path)
        self.last_error: Exception | None = None  #: why the last :meth:`save` returned False
        self._permissions, self._trust_foreign = permissions, trust_foreign
        self._disk: dict[str, Entry | None] | None = None  # as read
        self._news: dict[str, Entry | None] = {}  # to be saved; None: forget the module, "": forget every module
        self._served: dict[tuple[str, int], tuple[dict[str, Any], dict[str, Any]]] = {}  # not checked: what, where

    def names(self, module: str) -> tuple[str, ...]:
        """Return what ``from module import *`` binds, or raise what it raises; without a valid entry, by doing it."""
        if (entry := self._valid(module)) is None:
            return tuple(self._import(module))
        self._served[module, 0] = dict.fromkeys(entry[0]), {}
        return entry[0]

    def lazy_star_import(self, module: str, namespace: dict[str, Any]) -> None:
        """Do ``from module import *`` in `namespace`, a module's globals, but import at the first use of a name.

        Without a valid entry it is imported now, and remembered for :meth:`save`. With one, Python 3.15 binds its own
        lazy imports; older ones bind proxies, all of which the first use of any replaces. What the import raises is
        raised now, and nothing has been bound, or at each use until it succeeds.
        """
        if entry := self._valid(module):
            try:
                lazy = {name: LazyName(module, name, self.check) for name in entry[0] if not _NATIVE}
                bound = lazy or _from_import(module, entry[0], lazy=_NATIVE)
                self._served[module, id(namespace)] = bound, namespace
                return namespace.update(bound)
            except ImportError:  # a filter made the lazy import eager: a ghost, or the module's own error
                self.invalidate(module)
        return namespace.update(self._import(module))

    def invalidate(self, module: str | None = None) -> None:
        """Forget `module`, or everything; the file follows at the next :meth:`save`."""
        self._news = self._news if module else {}
        self._news[module or ""] = None

    def check(self) -> list[StaleStarImportWarning]:
        """Compare what was served with the modules loaded since: what no stat sees (environment, data files) shows.

        A difference is warned about and returned; ghosts that are still lazy leave the namespace, missing names are
        bound unless something else has the name, and the entry is forgotten. Proxies give way to the real objects.
        """
        found = []
        for (module, place), (bound, namespace) in list(self._served.items()):
            loaded = sys.modules.get(module)
            if loaded is None or getattr(getattr(loaded, "__spec__", None), "_initializing", False):
                continue
            try:
                # The statement's rule, but on 3.15 without its look at the values: they may be lazy.
                names = getattr(loaded, "__all__", [name for name in vars(loaded) if name[:1] != "_"])
                real = _from_import(module, tuple(names) if _NATIVE else "*", lazy=_NATIVE)
            except Exception:  # noqa: BLE001, S112 - a module's `__getattr__`: the next use of a name says so
                continue
            self._served.pop((module, place), None)
            ghosts = sorted(bound.keys() - real)
            # A submodule that somebody imported since is an attribute now, but was none when the star was served.
            missing = sorted(name for name in real.keys() - bound if f"{module}.{name}" not in sys.modules)
            for name in bound:
                if name in real and name in namespace and namespace[name] is bound[name]:
                    namespace[name] = real[name]  # no call since the look: no thread could store another
                elif namespace.get(name, real) is bound[name]:
                    del namespace[name]
            namespace.update((name, real[name]) for name in missing if name not in namespace)
            if ghosts or missing:
                self.invalidate(module)
                found.append(StaleStarImportWarning(module, ghosts, missing))
                _warn(found[-1])
        return found

    def save(self, *, strict: bool = False) -> bool:
        """Merge what was learned and forgotten into the file; without news, nothing is locked or written.

        The file is re-read and replaced under the lock ``<path>.lock``; the old one stays until the new one is there.

        :return: False if that failed: :attr:`last_error` says why. The file is as it was, unless only unlocking failed.
        :raises OSError: with `strict`: no place, permission, space; a lock held for 5 s; another's or no regular file.
        """
        self.check()
        news, self.last_error = dict(self._news), None
        try:
            if news:
                self._merge(news)
        except (OSError, NotImplementedError) as error:  # the latter from filelock where there is no flock()
            self.last_error = error
            if strict:
                raise
            return False
        for module in [module for module, entry in news.items() if self._news.get(module, ()) is entry]:
            self._news.pop(module, None)
        return True

    def _merge(self, news: dict[str, Entry | None]) -> None:
        from filelock import FileLock  # noqa: PLC0415 - only who has news pays for it

        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        with FileLock(self.path + ".lock", timeout=5, poll_interval=0.01):  # the file's own would be renamed away
            old, rows, modules = self._read(strict=True), dict[tuple[str, str], int](), {}
            new = {module: entry for module, entry in (news if "" in news else old | news).items() if entry}
            for m, (names, seen) in new.items():
                modules[m] = {"names": " ".join(names), "files": [rows.setdefault(f, len(rows)) for f in seen.items()]}
            if new != old:
                text = json.dumps({"star_imports": _TAG, "files": [*rows], "modules": modules}, separators=(",", ":"))
                write_text(self.path, text, durability="none", permissions=self._permissions)  # loss is a miss
            self._disk = None

    def _read(self, *, strict: bool = False) -> dict[str, Entry | None]:
        try:
            # Not looked at before: it could go meanwhile. O_NONBLOCK: a FIFO in its place must not hang the program.
            with open(self.path, "rb", opener=lambda p, mode: os.open(p, mode | getattr(os, "O_NONBLOCK", 0))) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "Not a regular file", self.path)
                if hasattr(os, "geteuid") and not self._trust_foreign:  # not on Windows and Emscripten
                    if status.st_uid not in (0, os.geteuid()):
                        raise PermissionError(errno.EPERM, "Owned by another user", self.path)
                    if status.st_mode & 0o022:
                        raise ValueError("others can write it")
                document = json.loads(file.read(4 << 20))  # 0.3 MiB are usual; half of a longer one is no JSON
            if document["star_imports"] != _TAG:
                return {}  # another release's or interpreter's is no corruption
            rows = [(key + "", seen + "") for key, seen in document["files"]]
            found: dict[str, Entry | None] = {}
            for module, raw in document["modules"].items():
                found[module] = names, seen = tuple(raw["names"].split()), dict(map(rows.__getitem__, raw["files"]))
                words = [*names, *(key for key in seen if os.sep not in key)]  # a dotted one the finder would import
                bindable = all(map(str.isidentifier, words)) and _NEVER_BOUND.isdisjoint(words)
                if not bindable or module.partition(".")[0] not in seen:
                    raise ValueError(module)
            return found
        except FileNotFoundError:
            return {}
        except Exception as error:  # JSON's, or any that a wrong shape makes
            if strict and isinstance(error, OSError):
                raise
            if "" not in (self._disk or ()):  # not known yet
                _warn(StarImportCacheWarning(f"star import cache {self.path!r} is not used: {error!r}"))
            return {"": None}  # an entry like none, so that the next save replaces the file

    def _valid(self, module: str) -> Entry | None:
        disk = self._disk = self._read() if self._disk is None else self._disk
        try:  # what is loaded already speaks for itself
            entry = module not in sys.modules and self._news.keys().isdisjoint(("", module)) and disk.get(module)
            return entry if entry and all(_look(key) == seen for key, seen in entry[1].items()) else None
        except Exception:  # noqa: BLE001 - whatever a finder raises
            return None

    def _import(self, module: str) -> dict[str, Any]:
        # Two seconds are the coarsest clock of a file system (FAT's): what is older, an edit from now on must change.
        before, newest = set(sys.modules), time.time_ns() - 2 * 10**9
        values = _from_import(module, "*")
        try:
            if module not in before:  # else submodules that others imported are in its star, in this process only
                self._news[module] = tuple(values), _observe(module, values, before, newest)
        except Exception:  # noqa: BLE001 - any doubt: served, not recorded
            pass
        return values


def default_path() -> str:
    """Return this interpreter's and prefix's file in the user's cache directory, or ``""`` where there is no home."""
    choice = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
    variable, place = choice.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    base = os.environ.get(variable, "")
    base = base if os.path.isabs(base) else os.path.join(os.path.expanduser("~"), place)  # XDG: relative is ignored
    name = f"star-imports-{sys.implementation.cache_tag}-{zlib.crc32(_TAG.encode(errors='replace')):08x}.json"
    return os.path.join(base, "atomicio", name) if os.path.isabs(base) else ""


atexit.register((_own := StarImportCache()).save)


def lazy_star_import(module: str, namespace: dict[str, Any] | None = None, cache: StarImportCache = _own) -> None:
    """Do :meth:`StarImportCache.lazy_star_import` in `namespace` (default: the caller's globals).

    :param cache: default: the process's own, at :func:`default_path` and saved at exit if there is news.
    """
    cache.lazy_star_import(module, sys._getframe(1).f_globals if namespace is None else namespace)


def _observe(module: str, values: dict[str, Any], before: set[str], newest: int) -> dict[str, str]:
    """Return what a star import just done depends on; any error means that no look could tell when that changes."""
    # Where a name that was not found may appear some day, but for the program's own folder: others have another.
    keys = {module.partition(".")[0], *filter(os.path.isabs, map(str, sys.path[not sys.flags.safe_path :]))}
    for name, loaded in list(sys.modules.items()):
        attributes = getattr(loaded, "__dict__", None) or {}
        file = getattr(attributes.get("__loader__"), "archive", attributes.get("__file__"))  # zipimport's, or its own
        places = [os.path.abspath(place) for place in (*(attributes.get("__path__") or ()), *((file,) if file else ()))]
        if places and name != "__main__" and (not places[0].startswith(_STDLIB) or "-packages" in places[0]):
            os.stat(file or os.sep)  # what is not there would not show when it changes
            keys.update(places, map(os.path.dirname, places))
            # Cython's shared _cyutility is loaded as top level from inside a package: no finder would find it there.
            if name not in before and (top := name.partition(".")[0]) not in keys and PathFinder.find_spec(top):
                keys.add(top)
    shared = {v.__name__ for v in values.values() if type(v) is type(sys) and "." in v.__name__} & before
    leaked = {name.partition(".")[0] for name in shared} - sys.stdlib_module_names  # submodules that others had loaded
    spec: Any = sys.modules[module].__spec__
    bindable = all(map(str.isidentifier, values)) and _NEVER_BOUND.isdisjoint(values)
    if leaked or not bindable or not (spec.origin or spec.submodule_search_locations):
        raise ValueError(module)
    return {key: _look(key, newest) for key in sorted(map(os.path.normpath, keys))}


def _look(key: str, newest: float = float("inf")) -> str:
    """Say where the finder finds a top-level name, or in what state a path is."""
    if os.sep not in key:
        spec = find_spec(key)
        return str(spec and (spec.origin or list(spec.submodule_search_locations or ())))
    try:
        status = os.stat(key)
    except (FileNotFoundError, NotADirectoryError):
        return ""  # it may appear
    if status.st_mtime_ns > newest or status.st_ctime_ns > newest:
        raise ValueError(key)
    return f"{status.st_mtime_ns} {status.st_size}"


def _from_import(module: str, names: str | tuple[str, ...], *, lazy: bool = False) -> dict[str, Any]:
    """Run ``from module import names`` and return what it binds: of a star, the interpreter's own answer."""
    import ast  # noqa: PLC0415 - only for who imports; in text, a name with a newline in it would be code

    statement = ast.ImportFrom(module=module, names=[ast.alias(name=name) for name in names], level=0)
    statement.is_lazy = lazy  # type: ignore[attr-defined,unused-ignore] # since Python 3.15
    tree = ast.fix_missing_locations(ast.Module(body=[statement] if names else [], type_ignores=[]))
    space: dict[str, Any] = {"__name__": __name__}
    bound: dict[str, Any] = space if lazy else {}  # lazy imports are allowed where locals are globals
    exec(compile(tree, f"<from {module} import *>", "exec"), space, bound)  # noqa: S102
    return {name: bound[name] for name in (names if lazy else bound)}


def _warn(warning: Warning) -> None:
    """Warn about the first frame that is not of this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(warning, stacklevel=level)
