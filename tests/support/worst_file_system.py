"""The worst file system that POSIX and the manual pages allow, as a model in pure Python.

:class:`Recording` watches what an operation does to a real folder: around every call that the library makes through
``os`` it looks at the folder, so it knows between which calls which name and which content changed, whoever changed it.
:class:`Disk` then says what may be left of it after a power cut.  The rules, with their sources, are in
``docs/explanation/worst-file-system.rst``; in short:

1. content that was not synced: each 4 KiB block is old, new, any state in between, or zero; the size likewise;
2. permission bits that were not synced: any that the file had since;
3. names that were not synced, by fsync of *their directory*: each for itself is what it was at any moment since;
4. fsync of a file says nothing about its name, and nothing at all while the file has no name;
5. syncfs writes everything to the device, whose cache is flushed only by the next fsync;
6. a rename is one step: the old name does not go before the new one is there, and a replaced name is never without a
   file. (Not relied upon once a durable operation has returned: then it is judged without this rule as well.)
"""

from __future__ import annotations

import errno
import os
import random
import re
import stat
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from patched_os import patched_os, real_function
from promises import BLOCK, LITTER, Scenario, Tree, Unit, Value
from sync_sites import Site, running

_CALLS = (
    "open",
    "close",
    "write",
    "pwrite",
    "rename",
    "replace",
    "link",
    "symlink",
    "unlink",
    "remove",
    "mkdir",
    "rmdir",
    "truncate",
    "ftruncate",
    "chmod",
    "fchmod",
    "chown",
    "fchown",
    "setxattr",
    "copy_file_range",
    "sendfile",
    "exchange",
    "rename_new",
)

#: a choice among so many: what a hypothesis strategy or a random generator makes
Choose = Callable[[int], int]


@dataclass
class _File:
    """An inode: what its content and mode were since the last sync, oldest first."""

    contents: list[bytes | str]
    modes: list[int]


@dataclass
class _Directory:
    """An inode: for each name what it stood for since the last sync, oldest first; None where it did not exist."""

    entries: dict[str, list[int | None]] = field(default_factory=dict)
    synced: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Move:
    """Rule 6: when the *old* entry has got to its step, the *new* one has got to its own."""

    old: tuple[int, str, int]
    new: tuple[int, str, int]


@dataclass(frozen=True)
class _Written:
    """What the cache of the device holds: the newest content and mode of each file, and where they stand in its
    history.
    """

    values: dict[int, tuple[bytes | str, int]]
    positions: dict[int, tuple[int, int]]
    names: dict[tuple[int, str], int]


class Disk:
    """What the disk may hold: the possibilities are the histories since the last syncs."""

    def __init__(self) -> None:
        self.root = 0
        self.files: dict[int, _File] = {}
        self.directories: dict[int, _Directory] = {}
        self.moves: list[_Move] = []

    def copy(self) -> Disk:
        """Return a disk that later steps do not change."""
        other = Disk()
        other.root = self.root
        other.files = {key: _File(list(file.contents), list(file.modes)) for key, file in self.files.items()}
        other.directories = {
            key: _Directory(
                {name: list(history) for name, history in directory.entries.items()}, dict(directory.synced)
            )
            for key, directory in self.directories.items()
        }
        other.moves = list(self.moves)
        return other

    def sync_content(self, key: int, *, mode: bool = True) -> None:
        """Have the content of a file on the disk, and its mode with it."""
        file = self.files[key]
        del file.contents[:-1]
        if mode:
            del file.modes[:-1]

    def sync_names(self, key: int) -> None:
        """Have the names in a directory on the disk."""
        directory = self.directories[key]
        for name, history in directory.entries.items():
            directory.synced[name] = directory.synced.get(name, 0) + len(history) - 1
            del history[:-1]

    def write_out(self) -> _Written:
        """Have everything in the cache of the device, as syncfs does: return what :meth:`flush` is to make durable."""
        files = {key: (len(file.contents) - 1, len(file.modes) - 1) for key, file in self.files.items()}
        names = {
            (key, name): directory.synced.get(name, 0) + len(history) - 1
            for key, directory in self.directories.items()
            for name, history in directory.entries.items()
        }
        return _Written({key: (file.contents[-1], file.modes[-1]) for key, file in self.files.items()}, files, names)

    def flush(self, written: _Written) -> None:
        """Have on the disk what an earlier :meth:`write_out` had written; what came since is as uncertain as before."""
        for key, (content, mode) in written.positions.items():
            file = self.files[key]
            # a sync since then has cut the histories short, and covers this
            if len(file.contents) > content and file.contents[content] is written.values[key][0]:
                del file.contents[:content]
            if len(file.modes) > mode and file.modes[mode] == written.values[key][1]:
                del file.modes[:mode]
        for (key, name), position in written.names.items():
            directory = self.directories[key]
            gone = position - directory.synced.get(name, 0)
            if gone > 0:
                del directory.entries[name][:gone]
                directory.synced[name] = position

    def after_a_cut(
        self, choose: Choose, *, torn_renames: bool = False, litter: re.Pattern[str] = LITTER
    ) -> Tree:
        """Return the files that are found after a power cut; *choose* picks among the possibilities.

        With *torn_renames* rule 6 does not hold. Names that *litter* describes are left out.
        """
        picked: dict[tuple[int, str], int] = {}
        for key, directory in self.directories.items():
            for name, history in directory.entries.items():
                picked[key, name] = directory.synced.get(name, 0) + (choose(len(history)) if len(history) > 1 else 0)
        settled = torn_renames
        while not settled:
            settled = True
            for move in self.moves:
                old, new = (*move.old[:2],), (*move.new[:2],)
                if picked[old] >= move.old[2] and picked[new] < move.new[2]:
                    picked[new] = move.new[2]
                    settled = False
        contents: dict[int, Value] = {}  # one file under two names is one file

        def build(key: int) -> Value:
            if key in self.directories:
                directory = self.directories[key]
                tree: Tree = {}
                for name, history in sorted(directory.entries.items()):
                    inner = history[picked[key, name] - directory.synced.get(name, 0)]
                    if inner is not None and not litter.fullmatch(name):
                        tree[name] = build(inner)
                return tree
            if key not in contents:
                contents[key] = _content_after_a_cut(self.files[key], choose)
            return contents[key]

        found = build(self.root)
        assert isinstance(found, dict)
        return found


def _content_after_a_cut(file: _File, choose: Choose) -> Value:
    versions = file.contents
    last = versions[-1]
    if isinstance(last, str):
        return last
    mode = file.modes[choose(len(file.modes))] if len(file.modes) > 1 else file.modes[0]
    if len(versions) == 1:
        return mode, last
    lengths = {len(version) for version in versions}
    sizes = sorted(lengths | {size for size in range(0, max(lengths), BLOCK) if size > min(lengths)})
    size = sizes[choose(len(sizes))] if len(sizes) > 1 else sizes[0]
    blocks = []
    for start in range(0, size, BLOCK):
        length = min(BLOCK, size - start)
        choices = {bytes(version[start : start + length]).ljust(length, b"\0"): None for version in versions}  # type: ignore[arg-type]
        choices[bytes(length)] = None
        candidates = list(choices)
        blocks.append(candidates[choose(len(candidates))])
    return mode, b"".join(blocks)


@dataclass(frozen=True)
class CrashPoint:
    """A moment at which the power may go: the disk, and how many steps had returned and begun."""

    disk: Disk
    returned: int
    begun: int
    after: str


class Recording:
    """Watches a folder while a scenario runs in it."""

    def __init__(
        self, folder: str, *, without_sync: int | None = None, without: Site | None = None, mount_point: str | None = None
    ) -> None:
        self.folder = folder
        self.points: list[CrashPoint] = []
        #: what each sync call of the library was given, and the lines of its source that it came from
        self.syncs: list[str] = []
        self.sites: list[tuple[Site, ...]] = []
        self.observed: dict[int, dict[Unit, object]] = {}
        self._without_sync = without_sync
        self._without = without
        self._mount_point = mount_point
        self._disk = Disk()
        self._returned = self._begun = 0
        self._keys: dict[tuple[int, int], int] = {}
        self._next_key = 0
        self._busy = False
        self._in_cache: _Written | None = None
        self._lock = threading.RLock()

    def run(self, scenario: Scenario) -> None:
        """Run it: set-up first, which is on the disk when the first step begins."""
        scenario.setup()
        self._look("set-up")
        self._sync_everything()
        self.points.clear()
        with patched_os(self._functions()):
            for number, step in enumerate(scenario.steps, 1):
                self._begun = number
                self._point(f"begin {step.name}")
                step.run()
                self._look("the caller")
                self._returned = number
                self.observed[number] = scenario.observe(self.folder, number)
                self._point(f"return {step.name}")

    # -- watching the calls ------------------------------------------------------------------------------------------

    def _functions(self) -> dict[str, Callable[..., Any]]:
        functions = {name: self._watch(name) for name in _CALLS if real_function(name)}
        functions["fsync"] = lambda descriptor: self._sync(descriptor, mode=True)
        functions["fdatasync"] = lambda descriptor: self._sync(descriptor, mode=False)
        functions["sync"] = self._sync_all
        functions["syncfs"] = self._write_out
        return {name: function for name, function in functions.items() if real_function(name)}

    def _watch(self, name: str) -> Callable[..., Any]:
        real = real_function(name)
        assert real is not None

        def call(*arguments: Any, **named: Any) -> Any:
            with self._lock:  # the library may sync in several threads
                if self._busy:
                    return real(*arguments, **named)
                self._look("the caller")
                if name in ("rename", "replace") and os.path.basename(arguments[1]) == self._mount_point:
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                try:
                    return real(*arguments, **named)
                finally:
                    self._look(name)

        return call

    # -- syncs -------------------------------------------------------------------------------------------------------

    def _dropped(self, what: str) -> bool:
        sites = running()
        if not sites:  # the caller's own
            return False
        self.syncs.append(what)
        self.sites.append(sites)
        return len(self.syncs) - 1 == self._without_sync or self._without in sites

    def _sync(self, descriptor: int, *, mode: bool) -> None:
        """Stand in for fsync: nothing reaches a real disk here, which makes the model fast."""
        with self._lock:
            self._look("the caller")
            status = os.fstat(descriptor)
            key = self._keys.get((status.st_dev, status.st_ino))
            directory = stat.S_ISDIR(status.st_mode)
            if self._dropped("directory" if directory else "file"):
                return
            if self._in_cache is not None:
                self._disk.flush(self._in_cache)
                self._in_cache = None
            if directory and key is not None:
                self._disk.sync_names(key)
            elif key is not None:  # a file without a name is not in the folder: rule 4
                self._disk.sync_content(key, mode=mode)
            self._point("fsync")

    def _write_out(self, descriptor: int) -> None:
        with self._lock:
            self._look("the caller")
            if not self._dropped("file system"):
                self._in_cache = self._disk.write_out()

    def _sync_all(self) -> None:
        with self._lock:
            self._look("the caller")
            if not self._dropped("everything"):
                self._sync_everything()
            self._point("sync")

    def _sync_everything(self) -> None:
        for key in self._keys.values():
            if key in self._disk.directories:
                self._disk.sync_names(key)
            else:
                self._disk.sync_content(key)

    # -- looking at the folder ---------------------------------------------------------------------------------------

    def _point(self, after: str) -> None:
        self.points.append(CrashPoint(self._disk.copy(), self._returned, self._begun, after))

    def _look(self, after: str) -> None:
        """Enter into the disk's histories whatever has changed since the last look."""
        self._busy = True
        try:
            now = dict(self._walk())
            identities = {identity for identity, _, _, _ in now.values()}
            # a number that had left the folder and is back is another file: the old one is gone, its number was used
            # again
            self._keys = {identity: key for identity, key in self._keys.items() if identity in identities}
            disk = self._disk
            changed = False
            for identity, mode, content, _ in now.values():
                if identity in self._keys:
                    continue
                self._keys[identity] = key = self._next_key
                self._next_key += 1
                changed = True
                if content is None:
                    disk.directories[key] = _Directory()
                else:
                    disk.files[key] = _File([b"" if isinstance(content, bytes) else content], [mode])
            for identity, mode, content, _ in now.values():
                if content is not None:
                    file = disk.files[self._keys[identity]]
                    if content != file.contents[-1]:
                        file.contents.append(content)
                        changed = True
                    if mode != file.modes[-1]:
                        file.modes.append(mode)
                        changed = True
            changed |= self._look_at_names(now)
            if changed:
                self._point(after)
        finally:
            self._busy = False

    def _look_at_names(self, now: dict[str, tuple[tuple[int, int], int, bytes | str | None, list[str] | None]]) -> bool:
        disk = self._disk
        lost: dict[int, list[tuple[int, str, int]]] = {}
        gained: dict[int, list[tuple[int, str, int]]] = {}
        for path, (identity, _, _, names) in now.items():
            if names is None:
                continue
            key = self._keys[identity]
            directory = disk.directories[key]
            present = {name: self._keys[now[os.path.join(path, name)][0]] for name in names}
            for name in [*present, *(name for name in directory.entries if name not in present)]:
                history = directory.entries.setdefault(name, [None])
                before, after = history[-1], present.get(name)
                if before == after:
                    continue
                history.append(after)
                place = key, name, directory.synced.get(name, 0) + len(history) - 1
                if before is not None:
                    lost.setdefault(before, []).append(place)
                if after is not None:
                    gained.setdefault(after, []).append(place)
        for inode, places in lost.items():
            disk.moves.extend(_Move(old, new) for old in places for new in gained.get(inode, ()))
        return bool(lost or gained)

    def _walk(self) -> Iterator[tuple[str, tuple[tuple[int, int], int, bytes | str | None, list[str] | None]]]:
        waiting = [self.folder]
        while waiting:
            path = waiting.pop()
            status = os.lstat(path)
            identity, mode = (status.st_dev, status.st_ino), stat.S_IMODE(status.st_mode)
            if stat.S_ISDIR(status.st_mode):
                names = os.listdir(path)
                waiting.extend(os.path.join(path, name) for name in names)
                yield path, (identity, mode, None, names)
            elif stat.S_ISLNK(status.st_mode):
                yield path, (identity, mode, os.readlink(path), None)
            else:
                yield path, (identity, mode, _read(path), None)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (
        PermissionError
    ):  # a staging file with no permission yet, and we are not root: the descriptor's owner may read it
        status = os.lstat(path)
        os.chmod(path, 0o600)
        try:
            with open(path, "rb") as file:
                return file.read()
        finally:
            os.chmod(path, stat.S_IMODE(status.st_mode))


def oldest(count: int) -> int:
    """Choose the cut that loses everything that was not synced."""
    return 0


def newest(count: int) -> int:
    """Choose the cut that keeps every name and size, and of unsynced content nothing but zeros."""
    return count - 1


def violations(
    scenario: Scenario, recording: Recording, cuts: int, randomness: random.Random, *, first: bool = False
) -> tuple[int, list[str]]:
    """Cut the power at every point, in the two extreme ways and *cuts* random ones; return how many and what broke.

    With *first* stop at the first that breaks, and look at the latest points first, where most is promised.
    """
    judged, broken = 0, []
    known: dict[object, list[str]] = {}  # many cuts come to the same files
    for point in reversed(recording.points) if first else recording.points:
        if first and broken:
            break
        at_rest = scenario.level == "durable" and point.returned == point.begun
        for choose in (oldest, newest, *[randomness.randrange] * cuts):
            for torn_renames in {False, at_rest}:
                tree = point.disk.after_a_cut(choose, torn_renames=torn_renames, litter=scenario.litter)
                key = _frozen(tree), point.returned, point.begun
                if key not in known:
                    known[key] = scenario.judge(tree, point.returned, point.begun, recording.observed)
                judged += 1
                broken.extend(f"after {point.after}: {line}" for line in known[key])
    return judged, broken


def _frozen(value: Value) -> object:
    if isinstance(value, dict):
        return tuple((name, _frozen(inner)) for name, inner in value.items())
    return value
