"""The statement ``from module import *``: as the interpreter runs it, or bound lazily from names known beforehand."""

from __future__ import annotations

import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any


class StarImportCacheWarning(UserWarning):
    """A cache file was not used: corrupt, no regular file, or others could have written it."""


class StaleStarImportWarning(StarImportCacheWarning):
    """Names served for :attr:`module` were not the real ones: :attr:`ghosts` do not exist, :attr:`missing` do."""

    def __init__(self, module: str, ghosts: list[str], missing: list[str]) -> None:
        self.module, self.ghosts, self.missing = module, ghosts, missing
        super().__init__(f"cached names of {module!r} were stale: ghosts {ghosts[:9]}, missing {missing[:9]}")


class LazyStar:
    """One star import served from known names: what was bound where, until it has been compared with the real one."""

    def __init__(
        self, module: str, names: tuple[str, ...], namespace: dict[str, Any], stale: Callable[[str], object]
    ) -> None:
        self.module, self.names, self._namespace, self._stale = module, names, namespace, stale
        self._values: dict[str, Any] | None = None
        if sys.version_info >= (3, 15):
            self._bound = from_import(module, names, lazy=True)
        else:
            from ._lazy_proxy import LazyName  # noqa: PLC0415 - not where the language has its own

            self._bound = {name: LazyName(self._load, name) for name in names}
        namespace.update(self._bound)

    def _load(self) -> dict[str, Any]:
        """Return all names with their values; the first call imports the module and replaces the proxies."""
        if self._values is None:
            values = from_import(self.module, "*")
            if initializing(self.module):
                return values  # a circular import: what there is so far
            self._values = values
            for name, proxy in self._bound.items():
                if name in self._namespace and name in values and self._namespace[name] is proxy:
                    self._namespace[name] = values[name]  # no call since the look: no thread could store another
            self._compare(values)
        return self._values

    def check(self) -> list[StaleStarImportWarning] | None:
        """Mend what differs from the loaded module; None if it is not loaded yet."""
        if self._values is not None:
            return []
        if self.module not in sys.modules or initializing(self.module):
            return None
        loaded = sys.modules[self.module]  # the statement's rule, but without its look at the values: they may be lazy
        return self._compare(getattr(loaded, "__all__", [name for name in vars(loaded) if name[:1] != "_"]))

    def _compare(self, names: Iterable[str]) -> list[StaleStarImportWarning]:
        real, loaded, namespace = dict.fromkeys(names), sys.modules[self.module], self._namespace
        ghosts = [name for name in self.names if name not in real]
        # A submodule that somebody imported since is an attribute now, but was none when the star was served.
        missing = sorted(name for name in real.keys() - self.names if f"{self.module}.{name}" not in sys.modules)
        if not ghosts and not missing:
            return []
        for name in ghosts:
            if namespace.get(name) is self._bound[name]:
                del namespace[name]
        namespace.update({n: getattr(loaded, n) for n in missing if n not in namespace and hasattr(loaded, n)})
        self._stale(self.module)
        warn(warning := StaleStarImportWarning(self.module, ghosts, missing))
        return [warning]


def from_import(module: str, names: Iterable[str], *, lazy: bool = False) -> dict[str, Any]:
    """Run ``from module import names`` in a namespace of its own and return what it has bound.

    The statement is built as a syntax tree: in text, a name with a newline in it would be code. With a star, the names
    are the interpreter's own answer, not an imitation of its rule.
    """
    import ast  # noqa: PLC0415 - only for who imports

    statement = ast.ImportFrom(module=module, names=[ast.alias(name=name) for name in names], level=0)
    statement.is_lazy = lazy  # type: ignore[attr-defined,unused-ignore] # since Python 3.15
    tree = ast.fix_missing_locations(ast.Module(body=[statement] if names else [], type_ignores=[]))
    space: dict[str, Any] = {"__name__": __name__}
    bound: dict[str, Any] = {}
    # Lazy imports are allowed where locals are globals, and then there are Python's own names too.
    exec(compile(tree, f"<from {module} import *>", "exec"), space, space if lazy else bound)  # noqa: S102
    return {name: space[name] for name in names} if lazy else bound


def initializing(module: str) -> bool:
    """Return whether the module's body is still running."""
    return bool(getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False))


def warn(warning: Warning) -> None:
    """Warn about the first frame that is not of this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back and str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
        level, frame = level + 1, frame.f_back
    warnings.warn(warning, stacklevel=level)
