"""What an operation promises about a power cut, written so that any way of cutting the power can be judged by it.

A :class:`Scenario` sets files up, then runs steps one after the other.  For every *unit* (a path, or several paths that
must change together) each step states the value that stands there afterwards.  After a cut the judge is told how many
steps had returned and how many had begun; from the durability level follows which of the values may be found:

* ``"durable"``: that of the last step that had returned, or of a step that had begun since;
* ``"consistent"``: that of any step that had begun, or the first one: old or new, but always whole;
* ``"none"``: as ``"consistent"``; besides, a regular file that was written may have lost any of its blocks.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

BLOCK = 4096
#: what a cut may leave beside the files, by its name: the library's own temporaries and its lock files
LITTER = re.compile(r"\.atomicio-[0-9a-f]{16}\.(tmp(\.[^/]*)?|dir|recover)|.*\.lock")
#: besides, where directories are replaced in two renames, a copy of the old one
_LITTER_OR_COPY = re.compile(rf"{LITTER.pattern}|\.atomicio-[0-9a-f]{{16}}\.backup")
_NO_NAME = re.compile(r"(?!)")
_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

#: a regular file is (mode, content), a directory {name: value}, a symbolic link its text, an absent name None
Value = None | str | tuple[int, bytes] | dict[str, "Value"]
Tree = dict[str, Value]


def value_at(path: str, litter: re.Pattern[str] = LITTER) -> Value:
    """Read what stands at *path*; litter inside directories is left out."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if stat.S_ISDIR(status.st_mode):
        names = [name for name in os.listdir(path) if not litter.fullmatch(name)]
        return {name: value_at(os.path.join(path, name), litter) for name in sorted(names)}
    with open(path, "rb") as file:
        return stat.S_IMODE(status.st_mode), file.read()


def describe(value: Value) -> str:
    """Say in a few words what a value is."""
    if value is None:
        return "absent"
    if isinstance(value, str):
        return f"link to {value}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {describe(inner)}" for name, inner in value.items()) + "}"
    mode, content = value
    zeros = content.count(0)
    start = bytes(content[:12]).decode("ascii", "replace")
    return f"{mode:04o} {len(content)} bytes {start!r}" + (f" with {zeros} zero bytes" if zeros else "")


def text(version: int, size: int) -> bytes:
    """Content that names its version in every line, so that a mixture of two shows."""
    line = b"version %04d of the content, line %%06d\n" % version
    lines = b"".join(line % number for number in range(size // len(line % 0) + 1))
    return lines[:size]


#: stands for "whatever the step left, as seen when it returned"
OBSERVED = object()
#: stands for a value that nothing is promised of while a step is under way
ANYTHING = object()

Unit = str | tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """One call of the library and what stands in each unit once it has returned.

    *between* lists further values that a unit may have while the step is under way.
    """

    name: str
    run: Callable[[], object]
    after: Mapping[Unit, object]
    between: Mapping[Unit, tuple[object, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """Set-up, steps and the level at which they are judged.  Paths are relative to the scenario's own folder."""

    name: str
    level: str
    setup: Callable[[], object]
    before: Mapping[Unit, object]
    steps: tuple[Step, ...]
    #: names that may appear besides the units
    ignore: tuple[str, ...] = ()
    #: an invariant of its own, in place of the levels' (the in-place fallback promises something else)
    custom: Callable[[Tree, int, int], list[str]] | None = None
    #: what the user is told to call after a power cut, before anything is judged; then litter is part of what is found
    recover: Callable[[str], object] | None = None

    @property
    def litter(self) -> re.Pattern[str]:
        """What is no part of the tree that :meth:`judge` is given."""
        return _NO_NAME if self.recover else LITTER

    def observe(self, folder: str, step: int) -> dict[Unit, object]:
        """Read the units of a step that has just returned whose value could not be said beforehand."""
        tree = tree_at(folder)
        return {unit: _found(tree, unit) for unit, value in self.steps[step - 1].after.items() if value is OBSERVED}

    def judge(
        self,
        tree: Tree,
        returned: int,
        begun: int,
        observed: Mapping[int, Mapping[Unit, object]] = MappingProxyType({}),
    ) -> list[str]:
        """Name every promise that the files in *tree* break.

        *returned* and *begun* count the steps; *observed* maps a step's number, from 1, to what :meth:`observe`
        returned.
        """
        if self.custom is not None:
            return self.custom(tree, returned, begun)
        if self.recover is not None:
            if any(name.endswith(".recover") for name in tree):
                with tempfile.TemporaryDirectory(dir=_MEMORY) as folder:
                    _put_back(tree, folder)
                    self.recover(folder)
                    tree = tree_at(folder)
            tree = _without_litter(tree)
        broken = []
        for unit, first in self.before.items():
            found = _found(tree, unit)
            history = [first]
            for number, step in enumerate(self.steps, 1):
                value = step.after.get(unit, history[-1])
                history.append(observed[number][unit] if value is OBSERVED else value)
            oldest = returned if self.level == "durable" else 0
            allowed = history[oldest : begun + 1]
            for step in self.steps[oldest:begun]:
                allowed.extend(step.between.get(unit, ()))
            if found in allowed or any(value is ANYTHING for value in allowed):
                continue
            if self.level == "none" and any(_lossy(found, value) for value in allowed):
                continue
            wanted = " or ".join(dict.fromkeys(_describe_unit(value) for value in allowed))
            broken.append(f"{unit}: {_describe_unit(found)}, expected {wanted}")
        return broken + self._strangers(tree)

    def _strangers(self, tree: Tree) -> list[str]:
        known = set(self.ignore)
        for unit in self.before:
            known.update((unit,) if isinstance(unit, str) else unit)
        parents = {""}
        for path in known:
            while path := os.path.dirname(path):
                parents.add(path)
        broken = []
        for parent in sorted(parents):
            inner = _look(tree, parent)
            if inner is None:
                continue
            if not isinstance(inner, dict):
                broken.append(f"{parent}: no longer a directory")
                continue
            paths = (f"{parent}/{name}" if parent else name for name in inner)
            broken.extend(f"{path}: nobody wrote it" for path in paths if path not in known and path not in parents)
        return broken


def tree_at(folder: str, litter: re.Pattern[str] = LITTER) -> Tree:
    """Read everything in *folder*; litter is left out."""
    value = value_at(folder, litter)
    return value if isinstance(value, dict) else {}


def _without_litter(tree: Tree) -> Tree:
    return {
        name: _without_litter(value) if isinstance(value, dict) else value
        for name, value in tree.items()
        if not _LITTER_OR_COPY.fullmatch(name)
    }


def _put_back(tree: Tree, folder: str) -> None:
    """Make the files of *tree* in *folder*, so that a program can work on them."""
    for name, value in tree.items():
        path = os.path.join(folder, name)
        if isinstance(value, dict):
            os.mkdir(path)
            _put_back(value, path)
        elif isinstance(value, str):
            os.symlink(value, path)
        elif value is not None:
            mode, content = value
            with open(path, "wb") as file:
                file.write(content)
            os.chmod(path, mode)


def _look(tree: Tree, path: str) -> Value:
    value: Value = tree
    for part in path.split("/") if path else ():
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def _found(tree: Tree, unit: Unit) -> object:
    return _look(tree, unit) if isinstance(unit, str) else tuple(_look(tree, path) for path in unit)


def _describe_unit(value: object) -> str:
    if isinstance(value, tuple) and not (len(value) == 2 and isinstance(value[0], int)):
        return "(" + ", ".join(describe(part) for part in value) + ")"
    return describe(value)  # type: ignore[arg-type]


def _lossy(found: object, whole: object) -> bool:
    """Is *found* what an unsynced write may leave of *whole*: any size up to its own, each block there or zero?"""
    if isinstance(whole, dict) and isinstance(found, dict):
        return all(
            name in whole and (inner is None or inner == whole[name] or _lossy(inner, whole[name]))
            for name, inner in found.items()
        )
    if not (_is_file(found) and _is_file(whole)):
        if isinstance(whole, tuple) and isinstance(found, tuple) and len(whole) == len(found):
            return all(part == other or _lossy(part, other) for part, other in zip(found, whole, strict=True))
        return False
    content, full = found[1], whole[1]  # type: ignore[index]
    if len(content) > -(-len(full) // BLOCK) * BLOCK:
        return False
    for start in range(0, len(content), BLOCK):
        block, other = content[start : start + BLOCK], full[start : start + BLOCK]
        if block.rstrip(b"\0") and block.rstrip(b"\0") != other[: len(block)].rstrip(b"\0"):
            return False
    return True


def _is_file(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], int)
