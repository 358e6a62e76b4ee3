"""The operations whose promises are judged: naive ways of writing a file, and every one of the library's."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable

import atomicio
from promises import ANYTHING, BLOCK, OBSERVED, Scenario, Step, Tree, Unit, describe, text

LEVELS = ("durable", "consistent", "none")
_MODE = 0o640

# sizes around the page: several blocks and a rest, less than one, exactly two
_OLD, _LONG, _SHORT, _EXACT = text(0, 9_000), text(1, 21_000), text(2, 700), text(3, 2 * BLOCK)


def put(path: str, content: bytes, mode: int = _MODE) -> None:
    """Set-up: write plainly; the suite makes it durable before the first step."""
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)


def _nothing() -> None:
    pass


# --- what people do without a library -------------------------------------------------------------------------------


def _open_w(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), _MODE)


def _tmp_rename(path: str, content: bytes, *, file: bool = False, directory: bool = False) -> None:
    with open(path + ".lock", "wb") as staged:
        staged.write(content)
        staged.flush()
        os.fchmod(staged.fileno(), _MODE)
        if file:
            os.fsync(staged.fileno())
    os.rename(path + ".lock", path)
    if directory:
        parent = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        os.fsync(parent)
        os.close(parent)


def _naive(write: Callable[[str, bytes], None]) -> Callable[[str], Scenario]:
    def build(level: str) -> Scenario:
        return Scenario(
            write.__name__,
            level,
            lambda: put("target", _OLD),
            {"target": (_MODE, _OLD), "fresh": None},
            (
                Step("longer", lambda: write("target", _LONG), {"target": (_MODE, _LONG)}),
                Step("shorter", lambda: write("target", _SHORT), {"target": (_MODE, _SHORT)}),
                Step("create", lambda: write("fresh", _EXACT), {"fresh": (_MODE, _EXACT)}),
            ),
        )

    return build


def tmp_rename_nothing_synced(path: str, content: bytes) -> None:
    _tmp_rename(path, content)


def tmp_rename_directory_synced(path: str, content: bytes) -> None:
    _tmp_rename(path, content, directory=True)


def tmp_rename_file_synced(path: str, content: bytes) -> None:
    _tmp_rename(path, content, file=True)


def tmp_rename_both_synced(path: str, content: bytes) -> None:
    _tmp_rename(path, content, file=True, directory=True)


def open_w(path: str, content: bytes) -> None:
    _open_w(path, content)


NAIVE = {
    function.__name__: _naive(function)
    for function in (
        open_w,
        tmp_rename_nothing_synced,
        tmp_rename_directory_synced,
        tmp_rename_file_synced,
        tmp_rename_both_synced,
    )
}


# --- the library's --------------------------------------------------------------------------------------------------


def replace(level: str) -> Scenario:
    def write(content: bytes) -> None:
        with atomicio.atomic_write("target", "wb", durability=level) as file:
            for start in range(0, len(content), 5_000):
                file.write(content[start : start + 5_000])

    return Scenario(
        "atomic_write w, replacing",
        level,
        lambda: put("target", _OLD),
        {"target": (_MODE, _OLD)},
        tuple(
            Step(name, lambda content=content: write(content), {"target": (_MODE, content)})
            for name, content in (("longer", _LONG), ("shorter", _SHORT), ("exact", _EXACT))
        ),
    )


def create(level: str) -> Scenario:
    def write(path: str, content: bytes) -> None:
        with atomicio.atomic_write(path, "wb", durability=level, permissions=_MODE) as file:
            file.write(content)

    return Scenario(
        "atomic_write w, creating",
        level,
        lambda: os.mkdir("sub"),
        {"first": None, "sub/second": None},
        (
            Step("long", lambda: write("first", _LONG), {"first": (_MODE, _LONG)}),
            Step("below", lambda: write("sub/second", _SHORT), {"sub/second": (_MODE, _SHORT)}),
        ),
    )


def exclusive(level: str) -> Scenario:
    def write(path: str, content: bytes) -> None:
        with atomicio.atomic_write(path, "xb", durability=level, permissions=_MODE) as file:
            file.write(content)

    return Scenario(
        "atomic_write x",
        level,
        _nothing,
        {"first": None, "second": None},
        (
            Step("long", lambda: write("first", _LONG), {"first": (_MODE, _LONG)}),
            Step("short", lambda: write("second", _SHORT), {"second": (_MODE, _SHORT)}),
        ),
    )


def append(level: str) -> Scenario:
    def write(content: bytes) -> None:
        with atomicio.atomic_write("target", "ab", durability=level) as file:
            file.write(content)

    return Scenario(
        "atomic_write a",
        level,
        lambda: put("target", _OLD),
        {"target": (_MODE, _OLD)},
        (
            Step("line", lambda: write(_SHORT), {"target": (_MODE, _OLD + _SHORT)}),
            Step("blocks", lambda: write(_LONG), {"target": (_MODE, _OLD + _SHORT + _LONG)}),
        ),
    )


def update(level: str) -> Scenario:
    def write(offset: int, content: bytes) -> None:
        with atomicio.atomic_write("target", "r+b", durability=level) as file:
            file.seek(offset)
            file.write(content)

    first = _LONG[:5_000] + _SHORT + _LONG[5_000 + len(_SHORT) :]
    second = _EXACT + first[len(_EXACT) :]
    return Scenario(
        "atomic_write r+",
        level,
        lambda: put("target", _LONG),
        {"target": (_MODE, _LONG)},
        (
            Step("middle", lambda: write(5_000, _SHORT), {"target": (_MODE, first)}),
            Step("start", lambda: write(0, _EXACT), {"target": (_MODE, second)}),
        ),
    )


def whole(level: str) -> Scenario:
    def write(content: bytes, mode: int) -> None:
        atomicio.write_bytes("target", content, durability=level, permissions=mode)

    return Scenario(
        "write_bytes",
        level,
        lambda: put("target", _OLD),
        {"target": (_MODE, _OLD)},
        (
            Step("longer", lambda: write(_LONG, 0o600), {"target": (0o600, _LONG)}),
            Step("shorter", lambda: write(_SHORT, 0o644), {"target": (0o644, _SHORT)}),
            Step("exact", lambda: write(_EXACT, 0o444), {"target": (0o444, _EXACT)}),
        ),
    )


def with_backup(level: str) -> Scenario:
    def write(content: bytes) -> None:
        atomicio.write_bytes("target", content, durability=level, backup=".bak")

    return Scenario(
        "write_bytes with backup",
        level,
        lambda: put("target", _OLD),
        {"target": (_MODE, _OLD), "target.bak": None},
        (
            Step("first", lambda: write(_LONG), {"target": (_MODE, _LONG), "target.bak": (_MODE, _OLD)}),
            Step("second", lambda: write(_SHORT), {"target": (_MODE, _SHORT), "target.bak": (_MODE, _LONG)}),
        ),
    )


def with_parents(level: str) -> Scenario:
    def write() -> None:
        atomicio.write_bytes("a/b/c", _LONG, durability=level, make_parents=True, permissions=_MODE)

    return Scenario(
        "write_bytes with make_parents",
        level,
        _nothing,
        {"a/b/c": None},
        (Step("all", write, {"a/b/c": (_MODE, _LONG)}),),
    )


def by_path(level: str) -> Scenario:
    def write(content: bytes) -> None:
        with atomicio.atomic_path("target.bin", durability=level) as staging, open(staging, "wb") as file:
            file.write(content)

    return Scenario(
        "atomic_path",
        level,
        lambda: put("target.bin", _OLD),
        {"target.bin": (_MODE, _OLD)},
        (
            Step("longer", lambda: write(_LONG), {"target.bin": (_MODE, _LONG)}),
            Step("shorter", lambda: write(_SHORT), {"target.bin": (_MODE, _SHORT)}),
        ),
    )


def batch(level: str) -> Scenario:
    paths = [f"{folder}/{number:02}" for folder in ("left", "right") for number in range(10)]

    def setup() -> None:
        os.mkdir("left")
        os.mkdir("right")
        for path in paths[::2]:  # half of them are replaced, half created
            put(path, text(0, 5_000))

    def write(version: int, size: int) -> None:
        with atomicio.batch(durability=level) as files:
            for number, path in enumerate(paths):
                files.write_bytes(path, text(version, size + 900 * number), permissions=_MODE)

    def after(version: int, size: int) -> dict[Unit, object]:
        return {path: (_MODE, text(version, size + 900 * number)) for number, path in enumerate(paths)}

    return Scenario(
        "batch, 20 files in 2 directories",
        level,
        setup,
        {path: (_MODE, text(0, 5_000)) if path in paths[::2] else None for path in paths},
        (
            Step("first", lambda: write(1, 100), after(1, 100)),
            Step("second", lambda: write(2, 6_000), after(2, 6_000)),
        ),
    )


def directory(level: str) -> Scenario:
    def write(version: int, names: tuple[str, ...]) -> None:
        with atomicio.atomic_directory("site", durability=level) as staging:
            for name in names:
                path = os.path.join(staging, name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                put(path, text(version, 6_000))

    def tree(version: int, names: tuple[str, ...]) -> dict[str, object]:
        result: dict[str, object] = {}
        for name in names:
            inner = result
            *folders, last = name.split("/")
            for part in folders:
                inner = inner.setdefault(part, {})  # type: ignore[assignment]
            inner[last] = (_MODE, text(version, 6_000))
        return result

    first = ("index", "pages/one", "pages/two")
    second = ("index", "pages/one", "pages/deep/three", "style")
    return Scenario(
        "atomic_directory",
        level,
        _nothing,
        {"site": None},
        (
            Step("create", lambda: write(1, first), {"site": tree(1, first)}),
            Step("replace", lambda: write(2, second), {"site": tree(2, second)}),
        ),
    )


def remove(level: str) -> Scenario:
    return Scenario(
        "remove",
        level,
        lambda: (put("one", _OLD), put("two", _LONG)),
        {"one": (_MODE, _OLD), "two": (_MODE, _LONG)},
        (
            Step("one", lambda: atomicio.remove("one", durability=level), {"one": None}),
            Step("two", lambda: atomicio.remove("two", durability=level), {"two": None}),
        ),
    )


def move(level: str) -> Scenario:
    """Rename what the caller has just written and not synced, in one directory and across two."""

    def setup() -> None:
        os.mkdir("else")
        put("target", _OLD)
        put("else/where", _OLD)

    def fill_and_move(target: str, content: bytes) -> None:
        put("new", content)
        atomicio.replace("new", target, durability=level)

    caller: dict[Unit, tuple[object, ...]] = {
        "new": (ANYTHING,)
    }  # what the caller writes is the caller's, until it is moved

    return Scenario(
        "replace (move)",
        level,
        setup,
        {"target": (_MODE, _OLD), "else/where": (_MODE, _OLD), "new": None},
        (
            Step("same directory", lambda: fill_and_move("target", _LONG), {"target": (_MODE, _LONG)}, caller),
            Step("across", lambda: fill_and_move("else/where", _SHORT), {"else/where": (_MODE, _SHORT)}, caller),
        ),
    )


def move_kept(level: str) -> Scenario:
    """Rename a file that is on the disk already: a cut may leave it under both names, never under none."""

    def setup() -> None:
        os.mkdir("else")
        put("kept", _LONG)

    both, kept = ("kept", "else/kept"), (_MODE, _LONG)
    return Scenario(
        "replace (move), of a synced file",
        level,
        setup,
        {both: (kept, None)},
        (
            Step(
                "across",
                lambda: atomicio.replace("kept", "else/kept", durability=level),
                {both: (None, kept)},
                {both: ((kept, kept),)},
            ),
        ),
    )


def copy(level: str) -> Scenario:
    def setup() -> None:
        put("source", _LONG)
        put("other", _SHORT)
        put("target", _OLD)

    return Scenario(
        "copy",
        level,
        setup,
        {"source": (_MODE, _LONG), "other": (_MODE, _SHORT), "target": (_MODE, _OLD), "fresh": None},
        (
            Step("replace", lambda: atomicio.copy("source", "target", durability=level), {"target": (_MODE, _LONG)}),
            Step("create", lambda: atomicio.copy("other", "fresh", durability=level), {"fresh": (_MODE, _SHORT)}),
        ),
    )


def folders(level: str) -> Scenario:
    return Scenario(
        "makedirs",
        level,
        _nothing,
        {"a": None},
        (
            Step(
                "three",
                lambda: atomicio.makedirs("a/b/c", durability=level),
                {"a": {"b": {"c": {}}}},
                {"a": ({}, {"b": {}})},
            ),
        ),
    )


def star_cache(level: str) -> Scenario:
    """The cache has chosen its level, "none": what is lost is learnt again. It says so in its docs, and is judged by
    it.
    """

    def save(*modules: str) -> None:
        from atomicio.star_imports import StarImportCache

        cache = StarImportCache("cache.json")
        for module in modules:
            cache.names(module)
        assert cache.save()

    return Scenario(
        "StarImportCache.save",
        level,
        _nothing,
        {"cache.json": None},
        (
            Step("first", lambda: save("string"), {"cache.json": OBSERVED}),
            Step("merged", lambda: save("colorsys", "textwrap"), {"cache.json": OBSERVED}),
        ),
    )


LIBRARY: dict[str, Callable[[str], Scenario]] = {
    function.__name__: function
    for function in (
        replace,
        create,
        exclusive,
        append,
        update,
        whole,
        with_backup,
        with_parents,
        by_path,
        batch,
        directory,
        remove,
        move,
        move_kept,
        copy,
        folders,
        star_cache,
    )
}


#: operations that owe their level no sync at all: a name that goes away, or an empty directory, has no content to sync
NO_SYNC = {"durable": (), "consistent": ("remove", "folders")}

#: syncs that nothing here can miss, and why: the library cannot know that the file it moves was synced by its owner
NEEDLESS = {"move_kept": ("file",)}


def levels(name: str) -> tuple[str, ...]:
    """Return the levels at which an operation can be had."""
    return ("none",) if name == "star_cache" else LEVELS


def in_place(level: str, *, mount: bool = True, backup: bool = False) -> Scenario:
    """A target that is a mount point cannot be renamed over: the fallback writes into it, and says that it is not
    atomic.

    Judged by the target alone, which is lost in some cuts; with *backup* by the target or else its backup.
    """

    def setup() -> None:
        put("target", _OLD)
        if mount:
            subprocess.run(["mount", "--bind", "target", "target"], check=True)

    def write() -> None:
        try:
            atomicio.write_bytes("target", _LONG, durability=level)
        except OSError as error:
            assert error.errno == errno.EBUSY, error
        else:
            raise AssertionError("the target is no mount point")
        atomicio.write_bytes("target", _LONG, durability=level, fallback="in-place")

    def judge(tree: Tree, returned: int, begun: int) -> list[str]:
        target = tree.get("target")
        if target == (_MODE, _LONG) or (target == (_MODE, _OLD) and not returned):
            return []
        backups = [value for name, value in tree.items() if name.endswith(".backup")] if backup else []
        if any(value[1] == _OLD for value in backups if isinstance(value, tuple)):
            return []
        return [f"target: {describe(target)}, backups: {[describe(value) for value in backups]}"]

    return Scenario("in-place fallback", level, setup, {}, (Step("longer", write, {}),), custom=judge)


def scenario(name: str, level: str) -> Scenario:
    """Build one by its name in this module's tables."""
    if name.startswith("in_place"):
        return in_place(level, backup=name == "in_place_backup")
    return (LIBRARY.get(name) or NAIVE[name])(level)
