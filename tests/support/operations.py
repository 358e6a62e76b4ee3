"""The operations whose promises are judged: naive ways of writing a file, and every one of the library's."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import atomicio
from atomicio._recovery import BACKUP, Record, recover
from patched_os import patched_os, real_function
from promises import ANYTHING, BLOCK, OBSERVED, Scenario, Step, Tree, Unit, Value, describe, text

if TYPE_CHECKING:
    from sync_sites import Site

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


@contextlib.contextmanager
def lacking(*calls: str) -> Iterator[None]:
    """Have the system lack some *calls*, as others do: ``link``, ``exchange``, ``syncfs``, or ``O_TMPFILE`` of open.

    Or, with ``fsync of directories``, be that of a user who may not read the directory; with ``rename of site``, an
    overlay that has this directory from a lower layer.
    """
    codes = {"link": errno.EPERM, "exchange": errno.EINVAL, "syncfs": errno.ENOSYS}

    def refuse(name: str) -> Callable[..., object]:
        def call(*_: object, **__: object) -> object:
            raise OSError(codes[name], os.strerror(codes[name]))

        return call

    functions: dict[str, Callable[..., Any]] = {name: refuse(name) for name in calls if name in codes}
    if "rename of site" in calls:
        real_rename = os.rename

        def rename(source: str, target: str, **named: Any) -> None:
            if os.path.basename(source) == "site":
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), source)
            real_rename(source, target, **named)

        functions["rename"] = rename
    if "fsync of directories" in calls:
        real_fsync = os.fsync

        def sync_files_only(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            real_fsync(descriptor)

        functions["fsync"] = sync_files_only
    if "O_TMPFILE" in calls and hasattr(os, "O_TMPFILE"):
        real = os.open

        def open_named(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
            return real(path, flags, *rest, **named)

        functions["open"] = open_named
    with patched_os({name: function for name, function in functions.items() if real_function(name)}):
        yield


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


def _whole_once_returned(level: str, expected: Mapping[str, Value], new: Collection[str]) -> Callable[..., list[str]]:
    """Judge files that the caller had written and not synced: theirs until the library returns, then they are whole.

    At "consistent" a name among the *new* ones may be missing.
    """

    def judge(tree: Tree, returned: int, begun: int) -> list[str]:
        if not returned or level == "none":
            return []
        return [
            f"{path}: {describe(tree.get(path))}"
            for path, value in expected.items()
            if tree.get(path) != value and not (level == "consistent" and path in new and path not in tree)
        ]

    return judge


def unchanged(level: str) -> Scenario:
    """Content that somebody wrote and did not sync is equal: it has to be made to survive all the same."""

    def write() -> None:
        put("fresh", _LONG)
        atomicio.write_bytes("fresh", _LONG, durability=level, skip_unchanged=True)

    return Scenario(
        "write_bytes, skip_unchanged",
        level,
        _nothing,
        {},
        (Step("equal", write, {}),),
        custom=_whole_once_returned(level, {"fresh": (_MODE, _LONG)}, ("fresh",)),
    )


def named(level: str) -> Scenario:
    """The staging file has a name from the start, as where there are no unnamed ones."""

    def write(content: bytes) -> None:
        with (
            lacking("O_TMPFILE"),
            atomicio.atomic_write("target", "wb", durability=level, permissions=_MODE) as file,
        ):
            file.write(content)

    return Scenario(
        "atomic_write w, no O_TMPFILE",
        level,
        _nothing,
        {"target": None},
        (
            Step("create", lambda: write(_LONG), {"target": (_MODE, _LONG)}),
            Step("replace", lambda: write(_SHORT), {"target": (_MODE, _SHORT)}),
        ),
    )


def backup_copied(level: str) -> Scenario:
    """The backup is a copy, as where there are no hard links."""

    def write(content: bytes) -> None:
        with lacking("link"):
            atomicio.write_bytes("target", content, durability=level, backup=".bak")

    return Scenario(
        "write_bytes with backup, no link",
        level,
        lambda: put("target", _OLD),
        {"target": (_MODE, _OLD), "target.bak": None},
        (
            Step("first", lambda: write(_LONG), {"target": (_MODE, _LONG), "target.bak": (_MODE, _OLD)}),
            Step("second", lambda: write(_SHORT), {"target": (_MODE, _SHORT), "target.bak": (_MODE, _LONG)}),
        ),
    )


def exclusive_by_rename(level: str) -> Scenario:
    def write() -> None:
        with lacking("link"), atomicio.atomic_write("first", "xb", durability=level, permissions=_MODE) as file:
            file.write(_LONG)

    return Scenario(
        "atomic_write x, no link",
        level,
        _nothing,
        {"first": None},
        (Step("long", write, {"first": (_MODE, _LONG)}),),
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


def batch_each(level: str) -> Scenario:
    """Each file synced by itself, several at a time, as where syncfs cannot be had."""
    paths = [f"{number:02}" for number in range(6)]

    def write() -> None:
        with lacking("syncfs"), atomicio.batch(durability=level) as files:
            for number, path in enumerate(paths):
                files.write_bytes(path, text(1, 900 * number + 900), permissions=_MODE)

    return Scenario(
        "batch, no syncfs",
        level,
        lambda: put("00", _OLD),
        {path: (_MODE, _OLD) if path == "00" else None for path in paths},
        (Step("all", write, {path: (_MODE, text(1, 900 * number + 900)) for number, path in enumerate(paths)}),),
    )


def batch_wide(level: str) -> Scenario:
    """More directories than are synced one by one."""
    folders = [f"d{number}" for number in range(6)]

    def setup() -> None:
        for folder in folders:
            os.mkdir(folder)
            if folder != "d0":
                put(f"{folder}/f", _OLD)

    def write() -> None:
        with atomicio.batch(durability=level) as files:
            for folder in folders:
                files.write_bytes(f"{folder}/f", _SHORT, permissions=_MODE)

    return Scenario(
        "batch, 6 directories",
        level,
        setup,
        {f"{folder}/f": None if folder == "d0" else (_MODE, _OLD) for folder in folders},
        (Step("all", write, {f"{folder}/f": (_MODE, _SHORT) for folder in folders}),),
    )


def batch_each_unchanged(level: str) -> Scenario:
    """A file of the batch has its content already, unsynced, and there is no syncfs."""

    def write() -> None:
        put("one", _SHORT)
        with lacking("syncfs"), atomicio.batch(durability=level) as files:
            files.write_bytes("one", _SHORT, permissions=_MODE, skip_unchanged=True)
            files.write_bytes("two", _SHORT, permissions=_MODE)

    expected = {"one": (_MODE, _SHORT), "two": (_MODE, _SHORT)}
    return Scenario(
        "batch, skip_unchanged, no syncfs",
        level,
        lambda: put("one", _OLD),
        {},
        (Step("all", write, {}),),
        custom=_whole_once_returned(level, expected, ("two",)),
    )


def batch_partial(level: str) -> Scenario:
    """The second of three cannot be replaced: the first, of which the error says that it was, keeps its promise."""

    def write() -> None:
        real = os.rename

        def rename(source: str, target: str, **named: Any) -> None:
            if os.path.basename(target) == "two":
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            real(source, target, **named)

        try:
            with patched_os({"rename": rename}), atomicio.batch(durability=level) as files:
                for path in ("one", "two", "three"):
                    files.write_bytes(path, _SHORT)
        except atomicio.PartialCommitError as error:
            assert [os.path.basename(path) for path in error.committed_paths] == ["one"]

    before = dict.fromkeys(("one", "two", "three"), (_MODE, _OLD))
    return Scenario(
        "batch that fails half way",
        level,
        lambda: [put(path, _OLD) for path in before],
        before,
        (Step("some", write, {"one": (_MODE, _SHORT)}),),
    )


def _grow(staging: str, version: int, names: Sequence[str]) -> None:
    for name in names:
        path = os.path.join(staging, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        put(path, text(version, 6_000))


def _grown(version: int, names: Sequence[str]) -> dict[str, object]:
    result: dict[str, object] = {}
    for name in names:
        inner = result
        *folders, last = name.split("/")
        for part in folders:
            inner = inner.setdefault(part, {})  # type: ignore[assignment]
        inner[last] = (_MODE, text(version, 6_000))
    return result


_FIRST = ("index", "pages/one", "pages/two")
_SECOND = ("index", "pages/one", "pages/deep/three", "style")
_MANY = tuple(f"{number % 3}/{number:02}" for number in range(20))


def _directory(
    name: str,
    level: str,
    first: Sequence[str],
    second: Sequence[str],
    *,
    backup: bool = False,
    without: Sequence[str] = (),
) -> Scenario:
    def write(version: int, names: Sequence[str]) -> None:
        options = {"backup": ".bak"} if backup else {}
        with lacking(*without), atomicio.atomic_directory("site", durability=level, **options) as staging:
            _grow(staging, version, names)

    if not backup and not without:
        return Scenario(
            name,
            level,
            _nothing,
            {"site": None},
            (
                Step("create", lambda: write(1, first), {"site": _grown(1, first)}),
                Step("replace", lambda: write(2, second), {"site": _grown(2, second)}),
            ),
        )
    gap: dict[Unit, tuple[object, ...]] = {}
    if level == "none" and "exchange" in without:
        # with nothing synced the record of two renames may be lost, or be there before the names that it is about
        gap = {"site": (None,)}
    # a directory cannot be renamed over another: for a moment the older backup has a temporary name
    bare: dict[Unit, tuple[object, ...]] = {"site.bak": (ANYTHING if gap else None,)}
    kept: list[dict[str, object]] = [{}, {}]
    if backup:
        kept = [{"site.bak": _grown(1, first)}, {"site.bak": _grown(2, second)}]
    return Scenario(
        name,
        level,
        lambda: (os.mkdir("site"), _grow("site", 1, first)),
        {"site": _grown(1, first)} | ({"site.bak": None} if backup else {}),
        (
            Step("replace", lambda: write(2, second), {"site": _grown(2, second), **kept[0]}, {**gap, **bare} if gap else {}),
            Step("again", lambda: write(3, first), {"site": _grown(3, first), **kept[1]}, {**gap, **bare}),
        ),
        recover=lambda folder: list(recover(folder)),
    )


def directory(level: str) -> Scenario:
    return _directory("atomic_directory", level, _FIRST, _SECOND)


def directory_large(level: str) -> Scenario:
    """So many entries that one syncfs is cheaper than an fsync of each."""
    return _directory("atomic_directory, 20 files", level, _MANY, _MANY)


def directory_large_each(level: str) -> Scenario:
    """As many, synced one by one, as where syncfs cannot be had."""
    names = _MANY[:15]  # and three directories

    def write() -> None:
        with lacking("syncfs"), atomicio.atomic_directory("site", durability=level) as staging:
            _grow(staging, 1, names)

    return Scenario(
        "atomic_directory, 15 files in 3 directories, no syncfs",
        level,
        _nothing,
        {"site": None},
        (Step("create", write, {"site": _grown(1, names)}),),
    )


def directory_backup(level: str) -> Scenario:
    return _directory("atomic_directory with backup", level, _FIRST, _SECOND, backup=True)


def directory_two_renames(level: str) -> Scenario:
    """Two directories cannot change places: after a cut ``atomicio recover`` closes the gap."""
    return _directory("atomic_directory, two renames", level, _FIRST, _SECOND, without=("exchange",))


def directory_two_renames_backup(level: str) -> Scenario:
    return _directory(
        "atomic_directory, two renames, backup", level, _FIRST, _SECOND, backup=True, without=("exchange",)
    )


def directory_copied(level: str) -> Scenario:
    """The old tree can be neither exchanged nor renamed, as in a lower layer of an overlay: it is copied and removed."""
    first, second = ("index", "pages/one"), ("index",)

    def write() -> None:
        with (
            lacking("exchange", "rename of site"),
            atomicio.atomic_directory("site", durability=level) as staging,
        ):
            _grow(staging, 2, second)

    # with nothing synced the copy may be lost that is to be put back
    between: dict[Unit, tuple[object, ...]] = {"site": (ANYTHING,)} if level == "none" else {}
    return Scenario(
        "atomic_directory, old tree copied",
        level,
        lambda: (os.mkdir("site"), _grow("site", 1, first)),
        {"site": _grown(1, first)},
        (Step("replace", write, {"site": _grown(2, second)}, between),),
        recover=lambda folder: list(recover(folder)),
    )


def directory_interrupted(level: str) -> Scenario:
    """Ctrl-C right after the exchange: what it replaced is removed on the way out, and not before that is safe."""

    def write(version: int, names: Sequence[str]) -> None:
        real = real_function("exchange")
        assert real is not None

        def exchange(*arguments: Any) -> None:
            real(*arguments)
            raise KeyboardInterrupt

        with (
            contextlib.suppress(KeyboardInterrupt),
            patched_os({"exchange": exchange}),
            atomicio.atomic_directory("site", durability=level) as staging,
        ):
            _grow(staging, version, names)

    return Scenario(
        "atomic_directory, interrupted",
        level,
        lambda: (os.mkdir("site"), _grow("site", 1, _FIRST)),
        {"site": _grown(1, _FIRST)},
        (Step("replace", lambda: write(2, _SECOND), {"site": _grown(2, _SECOND)}),),
    )


def unreadable_directory(level: str, *also: str) -> Scenario:
    def write() -> None:
        with lacking("fsync of directories", *also):
            atomicio.write_bytes("target", _LONG, durability=level, permissions=_MODE)

    return Scenario(
        "write_bytes in a directory that may not be read" + (", no syncfs" if also else ""),
        level,
        _nothing,
        {"target": None},
        (Step("create", write, {"target": (_MODE, _LONG)}),),
    )


def unreadable_directory_no_syncfs(level: str) -> Scenario:
    return unreadable_directory(level, "syncfs")


def recovered(level: str) -> Scenario:
    """A process was killed between the two renames; when ``atomicio recover`` has returned, the directory is there."""
    old = ".atomicio-0123456789abcdef"

    def setup() -> None:
        os.mkdir(old + BACKUP)
        _grow(old + BACKUP, 1, _FIRST)
        record = Record("", None, "site")
        record.create(old, None, sync=False)
        record.close()

    return Scenario(
        "recover",
        level,
        setup,
        {"site": None},
        (Step("recover", lambda: list(recover("site")), {"site": _grown(1, _FIRST)}),),
        ignore=(old + BACKUP,),
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


def move_directory(level: str) -> Scenario:
    """Rename a directory in which the caller has just made names; its files were synced by whoever wrote them."""

    def fill_and_move() -> None:
        os.mkdir("new")
        put("new/file", _SHORT)
        file = os.open("new/file", os.O_RDONLY)
        os.fsync(file)
        os.close(file)
        atomicio.replace("new", "tree", durability=level)

    return Scenario(
        "replace (move), of a directory",
        level,
        _nothing,
        {"tree": None, "new": None},
        (Step("move", fill_and_move, {"tree": {"file": (_MODE, _SHORT)}}, {"new": (ANYTHING,)}),),
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
        unchanged,
        named,
        unreadable_directory,
        unreadable_directory_no_syncfs,
        with_backup,
        backup_copied,
        exclusive_by_rename,
        with_parents,
        by_path,
        batch,
        batch_each,
        batch_wide,
        batch_each_unchanged,
        batch_partial,
        directory,
        directory_large,
        directory_large_each,
        directory_backup,
        directory_two_renames,
        directory_two_renames_backup,
        directory_copied,
        directory_interrupted,
        recovered,
        remove,
        move,
        move_kept,
        move_directory,
        copy,
        folders,
        star_cache,
    )
}


#: operations that owe their level no sync at all: a name that goes away, or an empty directory, has no content to sync
NO_SYNC = {"durable": (), "consistent": ("remove", "folders")}

#: syncs that nothing can miss, by the function that makes them, and why
NEEDLESS = {
    # the library cannot know that the file it moves was synced by its owner
    "move_kept": ("_Name.sync_content",),
    # of these two, one is needed before an older backup is removed, and none where there is no older one
    "directory_backup": ("_DirectoryWriter._publish", "Tree.remove_replaced"),
    "directory_two_renames_backup": ("_DirectoryWriter._publish", "Tree.remove_replaced"),
    # the first record is replaced by one that tells of the copy, and a later sync of the directory covers an earlier one
    "directory_copied": ("Record.create", "_DirectoryWriter._publish"),
    # the staged content is not used, and the name of the target is not new; the library finds out later, or never
    "in_place_backup": ("Staging._prepare", "AtomicWriter._publish"),
}


def needless(name: str, sites: Iterable[Site]) -> bool:
    """Whether nothing can miss a sync that comes from these lines of the library."""
    return any(site.function in NEEDLESS.get(name, ()) for site in sites)


def levels(name: str) -> tuple[str, ...]:
    """Return the levels at which an operation can be had."""
    return {"star_cache": ("none",), "recovered": ("durable",), "in_place_backup": LEVELS[:2]}.get(name, LEVELS)


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
