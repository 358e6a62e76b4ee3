"""Which names would ``from M import *`` bring? A cache, validated on every hit, knows without importing M.

It is a file of names, never of objects: JSON, replaced at once by :func:`atomicio.write_text`, merged under a lock.
An entry depends on every file outside the standard library that the import had loaded, on the directories that hold
them and on where the finder found each top-level name it loaded. Any doubt is a miss, and a miss is a real import.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import stat
import sys
import time
import zlib
from importlib.machinery import PathFinder
from importlib.util import find_spec
from keyword import iskeyword

from ._lazy_star import LazyStar, StaleStarImportWarning, StarImportCacheWarning, from_import, warn

__all__ = ["StaleStarImportWarning", "StarImportCache", "StarImportCacheWarning", "default_path", "lazy_star_import"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, TypeAlias

    # names; where the finder finds top-level names; mtime_ns and size of files, -1 for a directory that is not there
    Entry: TypeAlias = tuple[tuple[str, ...], dict[str, str], dict[str, tuple[int, int]]]

_FORMAT = "atomicio.star_imports"
_TAG = f"1 {sys.version} {sys.platform} -O{sys.flags.optimize} {sys.prefix}"  # our version, and what the stdlib is
_LIMIT = 4 << 20  # bytes: bounds what a planted file costs, and one that outgrows it starts over; 0.3 MiB are usual
_RACY = 2 * 10**9  # ns, the coarsest clock of a file system (FAT): only then must an edit from now on change the mtime
_DOUBT = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ImportError)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_STDLIB = os.path.dirname(os.__file__)
# What the interpreter reads from a module's globals is never bound to anything lazy.
_PYTHONS = "annotations builtins class debug dict file lazy_modules loader name package path spec"
_PYTHONS_OWN = {f"__{name}__" for name in _PYTHONS.split()}


class StarImportCache:
    """The names that star imports bring, in one file for all processes of an interpreter.

    An unusable file is one :class:`StarImportCacheWarning` and an empty cache, a missing one just empty. Threads may
    share an instance: each step is one dict operation, and no lock is held while something is imported.

    :param path: the cache file; default :func:`default_path`.
    :param permissions: mode bits of the file; 0o644 for one in a tree that serves other users.
    :param trust_foreign: also read a file that another user than root and oneself owns, or that others can write.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, permissions: int = 0o600, trust_foreign: bool = False
    ) -> None:
        self.path = default_path() if path is None else os.path.abspath(path)
        self.last_error: Exception | None = None  #: why the last :meth:`save` returned False
        self._permissions, self._trust_foreign, self._warned = permissions, trust_foreign, False
        self._disk: tuple[list[Any], dict[str, Any]] | None = None  # as read: files, modules
        self._news: dict[str, Entry | None] = {}  # to be saved; None: forget the module, "": forget every module
        self._served: list[LazyStar] = []  # not compared with the real thing yet

    def names(self, module: str) -> tuple[str, ...]:
        """Return what ``from module import *`` would bind now, in that order; import it only without a valid entry.

        :raises Exception: whatever that import raises.
        """
        namespace: dict[str, Any] = {}
        self.lazy_star_import(module, namespace)
        return tuple(namespace)

    def lazy_star_import(self, module: str, namespace: dict[str, Any]) -> None:
        """Do ``from module import *`` in `namespace`, a module's globals, but import at the first use of a name.

        Without a valid entry it is imported now, and remembered for :meth:`save`. With one, Python 3.15 binds its own
        lazy imports; older ones bind proxies, all of which the first use of any replaces.

        :raises Exception: what the import raises: now, and nothing has been bound; or at each use until it succeeds.
        """
        entry = self._valid(module)
        if entry is None:
            return namespace.update(self._import(module))
        try:
            return self._served.append(LazyStar(module, entry[0], namespace, self.invalidate))
        except ImportError:  # a filter made the lazy import eager: a ghost, or the module's own error
            self.invalidate(module)
            return namespace.update(from_import(module, "*"))

    def invalidate(self, module: str | None = None) -> None:
        """Forget `module`, or everything; the file follows at the next :meth:`save`."""
        if module is None:
            self._news = {"": None}
        else:
            self._news[module] = None

    def check(self) -> list[StaleStarImportWarning]:
        """Compare what was served with the modules loaded since: what no stat sees (environment, data files) shows.

        A difference is warned about and returned; ghosts that are still lazy leave the namespace, missing names are
        bound unless something else has taken the name, and the entry is forgotten.
        """
        waiting, self._served, found = self._served, [], []
        for star in waiting:
            if (stale := star.check()) is None:
                self._served.append(star)
            else:
                found += stale
        return found

    def save(self, *, strict: bool = False) -> bool:
        """Merge what was learned and forgotten into the file; without news, nothing is locked or written.

        The file is re-read and replaced under the lock ``<path>.lock``; the old one stays until the new one is there.

        :return: False if it could not be replaced and is as it was; :attr:`last_error` says why.
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
        self._news = {module: entry for module, entry in self._news.items() if news.get(module, ()) is not entry}
        return True

    def _merge(self, news: dict[str, Entry | None]) -> None:
        from filelock import FileLock  # noqa: PLC0415 - only who has news pays for it

        from . import write_text  # noqa: PLC0415

        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        with FileLock(self.path + ".lock", timeout=5, poll_interval=0.01):  # the file's own would be renamed away
            files, modules = self._read(strict=True)
            old = {module: self._decode(module, files, raw) for module, raw in modules.items()}
            new = {module: entry for module, entry in (news if "" in news else old | news).items() if entry}
            if new != old:
                write_text(self.path, _encode(new), durability="none", permissions=self._permissions)  # loss is a miss
            self._disk = None

    def _import(self, module: str) -> dict[str, Any]:
        before, start = set(sys.modules), time.time_ns()
        values = from_import(module, "*")
        try:
            # What was loaded before has submodules that others imported: they are in its star in this process only.
            if module not in before:
                self._news[module] = _observe(module, values, before, start)
        except (OSError, *_DOUBT):
            pass  # served, not recorded
        return values

    def _valid(self, module: str) -> Entry | None:
        files, modules = self._disk = self._disk or self._read()
        if module in sys.modules or module not in modules or not self._news.keys().isdisjoint(("", module)):
            return None  # what is loaded already speaks for itself
        try:
            if (entry := self._decode(module, files, modules[module])) is None:
                return None
            same = all(_place(top) == place for top, place in entry[1].items())
            return entry if same and all(_state(path)[:2] == state for path, state in entry[2].items()) else None
        except (OSError, *_DOUBT):
            return None

    def _read(self, *, strict: bool = False) -> tuple[list[Any], dict[str, Any]]:
        try:
            # Not looked at before: it could go meanwhile. O_NONBLOCK: a FIFO in its place must not hang the program.
            with open(self.path, "rb", opener=lambda p, flags: os.open(p, flags | _NONBLOCK)) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "Not a regular file", self.path)
                if hasattr(os, "geteuid") and not self._trust_foreign:  # not on Windows and Emscripten
                    if status.st_uid not in (0, os.geteuid()):
                        raise PermissionError(errno.EPERM, "Owned by another user", self.path)
                    if status.st_mode & 0o022:
                        raise ValueError("others can write it")
                data = file.read(_LIMIT + 1)
            document = json.loads(data) if len(data) <= _LIMIT else {}
            files, modules = document["files"], document["modules"]
            if document["format"] != _FORMAT or type(files) is not list or type(modules) is not dict:
                raise ValueError("wrong shape")
            return (files, modules) if document["tag"] == _TAG else ([], {})  # another release's is no corruption
        except FileNotFoundError:
            return [], {}
        except (OSError, *_DOUBT) as error:
            if strict and isinstance(error, OSError):
                raise
            self._warn(error)
            return [], {"": None}  # an entry like none, so that the next save replaces the file

    def _decode(self, module: str, files: list[Any], raw: dict[str, Any]) -> Entry | None:
        try:
            names, places = tuple(raw["names"].split()), raw["places"]
            states = {path + "": (mtime, size) for path, mtime, size in [files[number] for number in set(raw["files"])]}
            # A dotted place is refused, because the finder would import its parent.
            top = module.partition(".")[0]
            if type(places) is dict and top in places and "." not in "".join(places) and all(map(_bindable, names)):
                return names, places, states
            raise ValueError(module)
        except _DOUBT as error:
            self._warn(error)
            return None

    def _warn(self, reason: Exception) -> None:
        if not self._warned:
            self._warned = True
            warn(StarImportCacheWarning(f"star import cache {self.path!r} is not used: {reason!r}"))


_default_cache: list[StarImportCache] = []


def lazy_star_import(
    module: str, namespace: dict[str, Any] | None = None, cache: StarImportCache | None = None
) -> None:
    """Do :meth:`StarImportCache.lazy_star_import` in `namespace` (default: the caller's globals).

    :param cache: default: the process's own, at :func:`default_path` and saved at exit if there is news.
    """
    if cache is None and not _default_cache:
        _default_cache.append(StarImportCache())
        atexit.register(_default_cache[0].save)
    namespace = sys._getframe(1).f_globals if namespace is None else namespace
    (cache or _default_cache[0]).lazy_star_import(module, namespace)


def default_path() -> str:
    """Return this interpreter's and prefix's file in the user's cache directory, or ``""`` where there is no home."""
    choice = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}
    variable, place = choice.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    base = os.environ.get(variable, "")
    base = base if os.path.isabs(base) else os.path.join(os.path.expanduser("~"), place)  # XDG: relative is ignored
    name = f"star-imports-{sys.implementation.cache_tag}-{zlib.crc32(_TAG.encode(errors='replace')):08x}.json"
    return os.path.join(base, "atomicio", name) if os.path.isabs(base) else ""


def _observe(module: str, values: Mapping[str, Any], before: set[str], start: int) -> Entry:
    """Return the entry for a star import just done; any error means that a stat could not tell when it changes."""
    tops, states = {module.partition(".")[0]}, {}
    files: set[str] = set()
    folders: set[str] = set()
    for name, loaded in list(sys.modules.items()):
        attributes = getattr(loaded, "__dict__", None) or {}
        file = getattr(attributes.get("__loader__"), "archive", attributes.get("__file__"))  # zipimport's, or its own
        places = [os.path.abspath(place) for place in (*(attributes.get("__path__") or ()), *((file,) if file else ()))]
        if places and name != "__main__" and (not places[0].startswith(_STDLIB) or "-packages" in places[0]):
            files.update(places[-1:] if file else ())
            folders.update(places, map(os.path.dirname, places))
            tops.update(() if name in before else (name.partition(".")[0],))
    for path in files | folders:
        states[path] = state = _state(path)
        if (path in files and -1 in state) or max(state) > start - _RACY:  # no size is as large as a time
            raise ValueError(path)
    for name, value in values.items():
        dotted = value.__name__ if type(value) is type(sys) else ""
        # A submodule of a package that others had loaded is not there in every process.
        leaked = "." in dotted and dotted in before and dotted.partition(".")[0] not in sys.stdlib_module_names
        if leaked or not _bindable(name):
            raise ValueError(name)
    spec = sys.modules[module].__spec__
    if not (spec and (spec.origin or spec.submodule_search_locations)):
        raise ValueError(module)
    # Cython's shared _cyutility is loaded as top level from inside a package: no finder would find it there.
    homes = {top: _place(top) for top in tops if top == module.partition(".")[0] or PathFinder.find_spec(top)}
    return tuple(values), homes, {path: state[:2] for path, state in states.items()}


def _encode(entries: dict[str, Entry]) -> str:
    table: dict[tuple[Any, ...], int] = {}
    modules = {}
    for module, (names, places, states) in entries.items():
        numbers = [table.setdefault((path, *state), len(table)) for path, state in states.items()]
        modules[module] = {"names": " ".join(names), "places": places, "files": numbers}
    document = {"format": _FORMAT, "tag": _TAG, "files": list(table), "modules": modules}
    return json.dumps(document, separators=(",", ":"))


def _bindable(name: str) -> bool:
    return name.isidentifier() and not iskeyword(name) and name not in _PYTHONS_OWN


def _place(top: str) -> str:
    """Say where the finder finds a top-level name; a dotted name it would find by importing the parent."""
    spec = find_spec(top)
    return str(spec and (spec.origin or list(spec.submodule_search_locations or ())))


def _state(path: str) -> tuple[int, int, int]:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return -1, -1, -1  # it may appear
    return status.st_mtime_ns, status.st_size, status.st_ctime_ns
