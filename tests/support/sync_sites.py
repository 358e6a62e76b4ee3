"""Where in the library's source something is synced, so that each such line can be left out in turn."""

from __future__ import annotations

import ast
import functools
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import atomicio

_PACKAGE = os.path.dirname(os.path.abspath(atomicio.__file__)) + os.sep
#: system calls, and the library's own functions around them
_SYNCS = frozenset(
    {
        "fsync",
        "fdatasync",
        "sync",
        "syncfs",
        "sync_content",
        "sync_directory",
        "sync_file",
        "sync_fully",
        "sync_or_doubt",
        "sync_target",
        "sync_tree",
        "_sync_directories",
        "_sync_each",
    }
)


@dataclass(frozen=True, order=True)
class Site:
    """One call in the source that syncs something, directly or not."""

    module: str
    line: int
    last_line: int
    function: str
    call: str

    def __str__(self) -> str:
        return f"{self.module}: {self.function} calls {self.call}"


class _Finder(ast.NodeVisitor):
    def __init__(self, module: str) -> None:
        self._module = module
        self._inside: list[str] = []
        self.sites: list[Site] = []

    def _enter(self, node: ast.FunctionDef | ast.ClassDef) -> None:
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()

    visit_FunctionDef = visit_ClassDef = _enter

    def visit_Call(self, node: ast.Call) -> None:
        # `partial(writer.sync)` and `_try(writer, writer.sync_target)` call it as well, a little later
        for called in (node.func, *node.args):
            name = getattr(called, "attr", None) or getattr(called, "id", None)
            if name in _SYNCS and not (called is not node.func and name == "sync"):  # that is a flag
                line, last = node.lineno, node.end_lineno or node.lineno
                self.sites.append(Site(self._module, line, last, ".".join(self._inside), name))
        self.generic_visit(node)


@functools.cache
def sites() -> tuple[Site, ...]:
    """Find them all, but for those in the modules that only Windows runs."""
    found: list[Site] = []
    for name in sorted(os.listdir(_PACKAGE)):
        if name.endswith(".py") and name not in ("_windows.py", "_win32.py"):
            with open(_PACKAGE + name, encoding="utf-8") as file:
                finder = _Finder(name)
                finder.visit(ast.parse(file.read()))
            found.extend(finder.sites)
    return tuple(found)


#: functions that only pass on what another asked for
_HELPERS = ("sync_file", "sync_directory", "Staging.sync_directory", "Tree.sync_or_doubt", "Record.sync_directory")


def step(running: Sequence[Site]) -> Site:
    """Return the line that says why there is this sync: the innermost that is not in a mere helper."""
    return next((site for site in running if site.function not in _HELPERS), running[-1])


def running() -> tuple[Site, ...]:
    """Return the sites that are being executed, the innermost first; nothing if the library is not on the stack."""
    return tuple(dict.fromkeys(site for line in _lines() for site in _sites_by_line().get(line, ())))


def _lines() -> Iterator[tuple[str, int]]:
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(_PACKAGE):
            yield path[len(_PACKAGE) :], frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]


@functools.cache
def _sites_by_line() -> dict[tuple[str, int], tuple[Site, ...]]:
    found: dict[tuple[str, int], tuple[Site, ...]] = {}
    for site in sites():
        for line in range(site.line, site.last_line + 1):
            found[site.module, line] = (*found.get((site.module, line), ()), site)
    return found
