"""Every error: its class, its errno, the target's name, whether the target changed, and what a person can do."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import atomicio
from oracle import (
    AS_ROOT,
    LINUX,
    ORDINARY_USER,
    OTHER_USER,
    as_ordinary_user,
    bind_mounted,
    left_behind,
    mode_of,
    public_directory,
    read,
    tmpfs_mounted,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

root_only = pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
posix_only = pytest.mark.skipif(os.name != "posix", reason="permission bits as POSIX has them")
linux_only = pytest.mark.skipif(not LINUX, reason="takes Linux's mounts or /proc")

MODES = ("w", "x", "a", "r+", "wb", "xb", "ab", "r+b", "w+", "a+")


@pytest.fixture
def public() -> Iterator[str]:
    with public_directory() as directory:
        yield directory


def enter(path: Any, mode: str = "w", **keywords: Any) -> None:
    with atomicio.atomic_write(path, mode, **keywords) as file:
        file.write(b"new" if "b" in mode else "new")


def whole_value(path: Any, mode: str = "w", **keywords: Any) -> None:
    atomicio.write_bytes(path, b"new", **keywords)


def whole_text(path: Any, mode: str = "w", **keywords: Any) -> None:
    atomicio.write_text(path, "new", **keywords)


def by_path(path: Any, mode: str = "w", **keywords: Any) -> None:
    with atomicio.atomic_path(path, **keywords) as staging:
        write(staging, b"new")


WAYS = (enter, whole_value, whole_text, by_path)
every_way = pytest.mark.parametrize("way", WAYS)


def check(error: OSError, number: int, path: Any, committed: bool = False) -> str:
    """The four things that every error of the library says; its message, for what is particular to it."""
    assert error.errno == number, error
    assert error.filename is not None, "the error names no file"
    assert os.fspath(error.filename) == os.fspath(path)
    assert error.committed is committed  # type: ignore[attr-defined]
    assert error.strerror
    assert error.filename2 is None
    assert ".atomicio-" not in str(error), "the staging file's name means nothing to the caller"
    return str(error)


def picklable(error: BaseException) -> BaseException:
    """*error* as another process gets it from a worker: multiprocessing pickles what is raised."""
    import pickle

    return pickle.loads(pickle.dumps(error))


# ---------------------------------------------------------------------------------------------------------------------
# The classes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        atomicio.NotDurableError,
        atomicio.TargetChangedError,
        atomicio.UnreplaceableTargetError,
        atomicio.WriterStateError,
    ],
)
def test_every_class_is_an_oserror_and_survives_pickling(kind: type[OSError]) -> None:
    assert issubclass(kind, OSError)
    error = kind(errno.EIO, "what happened", "target")
    assert error.committed is (kind is atomicio.NotDurableError)  # type: ignore[attr-defined]
    copy = picklable(error)
    assert type(copy) is kind
    assert isinstance(copy, OSError)
    assert (copy.errno, copy.filename, str(copy)) == (errno.EIO, "target", str(error))
    assert copy.committed == error.committed  # type: ignore[attr-defined]


def test_a_misuse_is_a_valueerror_as_well() -> None:
    """As open's "I/O operation on closed file" is one."""
    assert issubclass(atomicio.WriterStateError, ValueError)


# ---------------------------------------------------------------------------------------------------------------------
# Bad arguments, refused on the call
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "rb", "rt", "br"])
def test_a_mode_that_only_reads_is_refused_on_the_call(tmp_path: Path, mode: str) -> None:
    write(tmp_path / "target", b"old")
    with pytest.raises(ValueError, match="r"):
        atomicio.atomic_write(tmp_path / "target", mode)


@pytest.mark.parametrize("mode", ["", "q", "rw", "wbt", "w++", "ww", "wU"])
def test_a_nonsense_mode_is_refused_on_the_call(tmp_path: Path, mode: str) -> None:
    with pytest.raises(ValueError):
        atomicio.atomic_write(tmp_path / "target", mode)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [None, 3, b"w"])
def test_a_mode_that_is_no_string_is_a_typeerror_as_with_open(tmp_path: Path, mode: Any) -> None:
    with pytest.raises(TypeError):
        open(tmp_path / "plain", mode)
    with pytest.raises(TypeError):
        atomicio.atomic_write(tmp_path / "target", mode)


@pytest.mark.parametrize(
    ("mode", "keywords"),
    [
        ("w", {"buffering": 0}),
        ("wb", {"encoding": "utf-8"}),
        ("wb", {"errors": "strict"}),
        ("wb", {"newline": "\n"}),
        ("w", {"newline": "\n\n"}),
        ("w", {"newline": "x"}),
    ],
)
def test_combinations_that_open_refuses_are_refused(tmp_path: Path, mode: str, keywords: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        open(tmp_path / "plain", mode, **keywords)
    with pytest.raises(ValueError):
        atomicio.atomic_write(tmp_path / "target", mode, **keywords).open()
    # open has created or truncated the file by the time it refuses some of these; nothing is left here.
    assert "target" not in os.listdir(tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".atomicio")]


@pytest.mark.parametrize("keywords", [{"encoding": "no-such-encoding"}, {"errors": "no-such-handler"}])
@pytest.mark.parametrize("mode", ["w", "a", "r+"])
def test_an_unknown_encoding_leaves_the_old_file(tmp_path: Path, mode: str, keywords: dict[str, Any]) -> None:
    write(tmp_path / "target", b"old")
    write(tmp_path / "plain", b"old")
    try:
        with open(tmp_path / "plain", mode, **keywords) as plain:
            plain.write("new\u20ac")
        expected: type[BaseException] | None = None
    except LookupError as error:
        expected = type(error)
    if expected is not None:
        with pytest.raises(expected), atomicio.atomic_write(tmp_path / "target", mode, **keywords) as file:
            file.write("new\u20ac")
        assert read(tmp_path / "target") == b"old"
    assert sorted(os.listdir(tmp_path)) == ["plain", "target"]


@pytest.mark.parametrize(
    "keywords",
    [
        {"durability": "full"},
        {"durability": ""},
        {"durability": None},
        {"durability": True},
        {"fallback": "copy"},
        {"fallback": None},
        {"fallback": True},
        {"backup": ""},
        {"backup": "/elsewhere"},
        {"permissions": -1},
        {"permissions": 0o10000},
        {"lock": float("nan")},
    ],
)
@every_way
def test_an_option_that_means_nothing_is_a_valueerror_and_names_itself(
    tmp_path: Path, way: Callable[..., None], keywords: dict[str, Any]
) -> None:
    """A mistyped level must not quietly become another one."""
    write(tmp_path / "target", b"old")
    (name,) = keywords
    with pytest.raises((ValueError, TypeError), match=name):
        way(tmp_path / "target", **keywords)
    assert os.listdir(tmp_path) == ["target"]
    assert read(tmp_path / "target") == b"old"


@every_way
@pytest.mark.parametrize("keywords", [{"permissions": "644"}, {"permissions": 6.44}, {"lock": "yes"}, {"backup": 1}])
def test_an_option_of_the_wrong_type_is_a_typeerror(
    tmp_path: Path, way: Callable[..., None], keywords: dict[str, Any]
) -> None:
    write(tmp_path / "target", b"old")
    (name,) = keywords
    with pytest.raises(TypeError, match=name):
        way(tmp_path / "target", **keywords)
    assert read(tmp_path / "target") == b"old"
    assert os.listdir(tmp_path) == ["target"]


@every_way
@pytest.mark.parametrize("descriptor", [0, 1, 99, True, -1])
def test_a_descriptor_is_refused_clearly(way: Callable[..., None], descriptor: int) -> None:
    """There is nothing to replace: a descriptor is the file itself and has no name."""
    with pytest.raises(TypeError, match="descriptor"):
        way(descriptor)


@every_way
def test_a_nul_in_the_path_is_a_valueerror(tmp_path: Path, way: Callable[..., None]) -> None:
    for path in (f"{tmp_path}/tar\0get", os.fsencode(tmp_path) + b"/tar\0get", "\0"):
        with pytest.raises(ValueError, match="null"):
            way(path)
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------------
# Bad targets, refused on entry
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_missing_directory_is_named_on_entry(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "no such directory" / "target"
    writer = atomicio.atomic_write(path, mode)
    with pytest.raises(FileNotFoundError) as caught:
        writer.open()
    message = check(caught.value, errno.ENOENT, path)
    assert "no such directory" in message
    assert "directory" in (caught.value.strerror or "")
    assert os.listdir(tmp_path) == []


@every_way
def test_a_missing_directory_is_named_whatever_the_way(tmp_path: Path, way: Callable[..., None]) -> None:
    path = tmp_path / "missing" / "target"
    with pytest.raises(FileNotFoundError) as caught:
        way(path)
    assert "missing" in check(caught.value, errno.ENOENT, path)


@pytest.mark.parametrize("mode", MODES)
def test_a_directory_is_refused_on_entry(tmp_path: Path, mode: str) -> None:
    (tmp_path / "target").mkdir()
    writer = atomicio.atomic_write(tmp_path / "target", mode)
    with pytest.raises(FileExistsError if mode.startswith("x") else IsADirectoryError) as caught:
        writer.open()
    check(caught.value, errno.EEXIST if mode.startswith("x") else errno.EISDIR, tmp_path / "target")
    assert os.listdir(tmp_path) == ["target"]


@every_way
def test_a_directory_is_refused_whatever_the_way(tmp_path: Path, way: Callable[..., None]) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        way(tmp_path)
    check(caught.value, errno.EISDIR, tmp_path)


@posix_only
@every_way
def test_a_file_in_the_place_of_a_directory(tmp_path: Path, way: Callable[..., None]) -> None:
    write(tmp_path / "file", b"old")
    with pytest.raises(NotADirectoryError) as caught:
        way(tmp_path / "file" / "target")
    check(caught.value, errno.ENOTDIR, tmp_path / "file" / "target")


@posix_only
@every_way
def test_a_name_too_long(tmp_path: Path, way: Callable[..., None]) -> None:
    for name in ("n" * 256, "\u00fc" * 128):
        with pytest.raises(OSError) as caught:
            way(tmp_path / name)
        check(caught.value, errno.ENAMETOOLONG, tmp_path / name)
    assert os.listdir(tmp_path) == []


@posix_only
@every_way
def test_a_loop_of_links(tmp_path: Path, way: Callable[..., None]) -> None:
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(OSError) as caught:
        way(tmp_path / "loop")
    check(caught.value, errno.ELOOP, tmp_path / "loop")


@pytest.mark.parametrize("mode", ["x", "xb", "x+"])
def test_exclusive_creation_of_what_exists_fails_on_entry(tmp_path: Path, mode: str) -> None:
    """Before the work of the block is done, and again at the commit, which alone is decisive."""
    write(tmp_path / "target", b"old")
    writer = atomicio.atomic_write(tmp_path / "target", mode)
    with pytest.raises(FileExistsError) as caught:
        writer.open()
    check(caught.value, errno.EEXIST, tmp_path / "target")
    assert read(tmp_path / "target") == b"old"


@pytest.mark.parametrize("level", ["none", "consistent", "durable"])
def test_exclusive_creation_that_is_overtaken_fails_at_the_commit(tmp_path: Path, level: str) -> None:
    with pytest.raises(FileExistsError) as caught:
        with atomicio.atomic_write(tmp_path / "target", "x", durability=level) as file:
            file.write("new")
            write(tmp_path / "target", b"the other's")
    check(caught.value, errno.EEXIST, tmp_path / "target")
    assert read(tmp_path / "target") == b"the other's"
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("mode", ["r+", "r+b"])
def test_an_absent_file_cannot_be_updated(tmp_path: Path, mode: str) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        atomicio.atomic_write(tmp_path / "target", mode).open()
    check(caught.value, errno.ENOENT, tmp_path / "target")
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------------
# Somebody else was faster
# ---------------------------------------------------------------------------------------------------------------------


def replaced(path: Path) -> None:
    write(path.with_name("other"), b"the other's")
    os.replace(path.with_name("other"), path)


def rewritten(path: Path) -> None:
    write(path, b"the other's")


def appended(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"!")


def removed(path: Path) -> None:
    os.unlink(path)


def same_size_within_the_clocks_tick(path: Path) -> None:
    """As many bytes, and the time set back by hand: only the inode's ctime could tell; a new inode does."""
    status = os.stat(path)
    write(path.with_name("other"), b"OLD")
    os.utime(path.with_name("other"), ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(path.with_name("other"), path)


@pytest.mark.parametrize("mode", ["a", "r+", "ab", "r+b", "a+"])
@pytest.mark.parametrize("change", [replaced, rewritten, appended, removed, same_size_within_the_clocks_tick])
def test_another_writers_update_is_never_dropped(tmp_path: Path, mode: str, change: Callable[[Path], None]) -> None:
    target = tmp_path / "target"
    write(target, b"old")
    with pytest.raises(atomicio.TargetChangedError) as caught, atomicio.atomic_write(target, mode) as file:
        file.write(b"new" if "b" in mode else "new")
        change(target)
        # Where there are no unnamed files, the staging file is there too.
        wanted = {name: what for name, what in left_behind(str(tmp_path)).items() if not name.startswith(".atomicio-")}
    check(caught.value, caught.value.errno or 0, target)
    assert caught.value.errno
    assert "lock" in str(caught.value), "the way out is a lock"
    assert left_behind(str(tmp_path)) == wanted


@pytest.mark.parametrize("mode", ["a", "a+"])
def test_an_absent_file_that_appears_meanwhile_is_not_replaced_by_an_append(tmp_path: Path, mode: str) -> None:
    target = tmp_path / "target"
    with pytest.raises(atomicio.TargetChangedError) as caught, atomicio.atomic_write(target, mode) as file:
        file.write("new")
        write(target, b"the other's")
    check(caught.value, caught.value.errno or 0, target)
    assert read(target) == b"the other's"
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("mode", ["w", "wb", "w+"])
def test_a_plain_write_replaces_whatever_is_there(tmp_path: Path, mode: str) -> None:
    """The last writer wins, as with open: nothing was read, so nothing is lost that was meant to be kept."""
    target = tmp_path / "target"
    write(target, b"old")
    with atomicio.atomic_write(target, mode) as file:
        file.write(b"new" if "b" in mode else "new")
        replaced(target)
    assert read(target) == b"new"


@posix_only
@pytest.mark.parametrize("mode", ["w", "a", "r+", "x"])
def test_a_directory_that_appears_meanwhile_is_not_harmed(tmp_path: Path, mode: str) -> None:
    target = tmp_path / "target"
    if mode == "r+":
        write(target, b"old")
    with pytest.raises(OSError) as caught, atomicio.atomic_write(target, mode) as file:
        file.write("new")
        if mode == "r+":
            os.unlink(target)
        target.mkdir()
    check(caught.value, caught.value.errno or 0, target)
    assert caught.value.errno in (errno.EISDIR, errno.EEXIST, errno.ESTALE, errno.EBUSY)
    assert target.is_dir()
    assert os.listdir(tmp_path) == ["target"]


@posix_only
@pytest.mark.parametrize("mode", ["w", "x", "a", "r+"])
@pytest.mark.parametrize("level", ["none", "consistent", "durable"])
def test_a_directory_that_disappears_meanwhile(tmp_path: Path, mode: str, level: str) -> None:
    """open would write into a file that nobody can reach any more; here nothing can be published, so that is said."""
    target = tmp_path / "sub" / "target"
    target.parent.mkdir()
    if mode == "r+":
        write(target, b"old")
    with pytest.raises(OSError) as caught, atomicio.atomic_write(target, mode, durability=level) as file:
        file.write("new")
        for name in os.listdir(target.parent):
            os.unlink(target.parent / name)
        target.parent.rmdir()
    check(caught.value, caught.value.errno or 0, target)
    assert isinstance(caught.value, (FileNotFoundError, atomicio.TargetChangedError))
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------------
# Rights
# ---------------------------------------------------------------------------------------------------------------------


def failing(action: Callable[[], object]) -> tuple[Any, ...]:
    """What an ordinary user's write raised, as plain values, for it happens in another process."""
    try:
        action()
    except OSError as error:
        return (
            type(error).__name__,
            isinstance(error, PermissionError),
            error.errno,
            error.filename,
            getattr(error, "committed", "missing"),
            str(error),
        )
    return ("nothing was raised",)


@root_only
@every_way
def test_an_unwritable_directory_is_blamed_and_the_way_out_is_named(public: str, way: Callable[..., None]) -> None:
    """The file may be written, its directory may not: open would have succeeded, so say why this did not."""
    target = f"{public}/sub/target"
    os.mkdir(f"{public}/sub", 0o755)
    write(target, b"old")
    os.chown(target, ORDINARY_USER, ORDINARY_USER)
    kind, _, number, filename, committed, message = as_ordinary_user(lambda: failing(lambda: way(target)))
    assert kind == "UnreplaceableTargetError"
    assert number in (errno.EACCES, errno.EPERM)
    assert filename == target
    assert committed is False
    assert f"the directory '{public}/sub'" in message
    assert "fallback='in-place'" in message
    assert read(target) == b"old"
    assert os.listdir(f"{public}/sub") == ["target"]


@root_only
@every_way
def test_an_unwritable_directory_and_the_fallback(public: str, way: Callable[..., None]) -> None:
    target = f"{public}/sub/target"
    os.mkdir(f"{public}/sub", 0o755)
    write(target, b"the old content, longer")
    os.chown(target, ORDINARY_USER, ORDINARY_USER)
    os.chmod(target, 0o640)
    inode = os.stat(target).st_ino
    as_ordinary_user(lambda: way(target, fallback="in-place"))
    assert read(target) == b"new"
    assert os.stat(target).st_ino == inode
    assert oct(mode_of(target)) == oct(0o640)
    assert os.listdir(f"{public}/sub") == ["target"]


@root_only
@pytest.mark.parametrize("mode", ["w", "x", "a"])
def test_an_absent_file_in_an_unwritable_directory(public: str, mode: str) -> None:
    """Here open fails too, and there is nothing to fall back on."""
    os.mkdir(f"{public}/sub", 0o755)
    target = f"{public}/sub/target"
    for fallback in ("raise", "in-place"):
        _, is_permission_error, number, filename, committed, message = as_ordinary_user(
            lambda fallback=fallback: failing(lambda: enter(target, mode, fallback=fallback))
        )
        assert is_permission_error or number == errno.EACCES
        assert (number, filename, committed) == (errno.EACCES, target, False)
        assert "directory" in message
    assert os.listdir(f"{public}/sub") == []


@root_only
@every_way
def test_a_sticky_directory_with_somebody_elses_file(public: str, way: Callable[..., None]) -> None:
    """/tmp: one may write the file (0666) but not rename over it."""
    target = f"{public}/sub/target"
    os.mkdir(f"{public}/sub")
    os.chmod(f"{public}/sub", 0o1777)
    write(target, b"old")
    os.chown(target, OTHER_USER, OTHER_USER)
    os.chmod(target, 0o666)
    kind, _, number, filename, committed, message = as_ordinary_user(lambda: failing(lambda: way(target)))
    assert kind == "UnreplaceableTargetError"
    assert number in (errno.EPERM, errno.EACCES)
    assert (filename, committed) == (target, False)
    assert "sticky" in message
    assert "fallback='in-place'" in message
    assert read(target) == b"old"
    assert os.listdir(f"{public}/sub") == ["target"]
    as_ordinary_user(lambda: way(target, fallback="in-place"))
    assert read(target) == b"new"
    assert os.stat(target).st_uid == OTHER_USER
    assert os.listdir(f"{public}/sub") == ["target"]


@root_only
@pytest.mark.parametrize("fallback", ["raise", "in-place"])
@pytest.mark.parametrize("mode", ["w", "a", "r+", "wb"])
def test_a_file_that_open_may_not_write_is_refused_alike(public: str, mode: str, fallback: str) -> None:
    """Being able to rename is no permission to write."""
    target = f"{public}/target"
    write(target, b"old")
    os.chown(target, ORDINARY_USER, ORDINARY_USER)
    os.chmod(target, 0o444)

    def plain() -> None:
        with open(target, mode):
            pass

    expected = as_ordinary_user(lambda: failing(plain))
    got = as_ordinary_user(lambda: failing(lambda: atomicio.atomic_write(target, mode, fallback=fallback).open()))
    assert expected[1:4] == got[1:4] == (True, errno.EACCES, target)
    assert got[4] is False
    assert read(target) == b"old"
    assert os.listdir(public) == ["target"]


@root_only
@every_way
def test_a_file_that_open_may_not_write_is_refused_whatever_the_way(public: str, way: Callable[..., None]) -> None:
    target = f"{public}/target"
    write(target, b"old")
    os.chmod(target, 0o644)
    got = as_ordinary_user(lambda: failing(lambda: way(target)))
    assert got[1:5] == (True, errno.EACCES, target, False)
    assert read(target) == b"old"
    assert os.listdir(public) == ["target"]


@root_only
@pytest.mark.parametrize("mode", ["a", "ab", "a+"])
def test_what_may_not_be_read_cannot_be_copied(public: str, mode: str) -> None:
    """The one case where open could and a copy cannot: extending a file that one may only write (0200)."""
    target = f"{public}/target"
    write(target, b"old")
    os.chown(target, ORDINARY_USER, ORDINARY_USER)
    os.chmod(target, 0o200)
    got = as_ordinary_user(lambda: failing(lambda: enter(target, mode)))
    assert got[1:5] == (True, errno.EACCES, target, False)
    assert read(target) == b"old"
    assert os.listdir(public) == ["target"]


@root_only
@every_way
@pytest.mark.parametrize("level", ["none", "consistent", "durable"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_directory_that_may_be_written_but_not_read(
    public: str, way: Callable[..., None], level: str, old: bytes | None
) -> None:
    """A drop box (0333). open works there. A level that cannot be had may be refused, but before anything changes."""
    target = f"{public}/sub/target"
    os.mkdir(f"{public}/sub")
    if old is not None:
        write(target, old)
        os.chown(target, ORDINARY_USER, ORDINARY_USER)
    os.chmod(f"{public}/sub", 0o333)

    import ctypes  # noqa: F401  (the ordinary user may not be able to read where Python is installed)


    def act() -> object:
        os.sync = lambda: pytest.fail("it waits for the disks of the whole machine")  # in a process of its own
        return failing(lambda: way(target, durability=level))

    got = as_ordinary_user(act)
    if got == ("nothing was raised",):
        assert read(target) == b"new"
        assert os.listdir(f"{public}/sub") == ["target"]
    else:
        assert level == "durable", "only the sync of the directory takes the right to read it"
        assert got[2:5] == (errno.EACCES, target, False), got
        assert "directory" in got[5]
        assert (read(target) if old else None) == old
        assert os.listdir(f"{public}/sub") == (["target"] if old else [])


@linux_only
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_a_sync_around_an_unreadable_directory_reports_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """sync(2), which says nothing, must not take the place of a syncfs(2) that says what was lost."""
    from atomicio import _syscalls

    fsync = os.fsync

    def files_only(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        fsync(fd)

    def lost(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", files_only)
    monkeypatch.setattr(_syscalls, "syncfs", lost)
    with pytest.raises(atomicio.NotDurableError) as caught:
        atomicio.write_bytes(tmp_path / "target", b"new")
    assert (caught.value.errno, caught.value.committed) == (code, True)
    assert read(tmp_path / "target") == b"new"


# ---------------------------------------------------------------------------------------------------------------------
# Mounts
# ---------------------------------------------------------------------------------------------------------------------


@linux_only
@every_way
def test_a_mount_point_is_named_and_so_is_the_way_out(tmp_path: Path, way: Callable[..., None]) -> None:
    """A single file mounted into a container: rename says EBUSY and nothing more."""
    target = tmp_path / "target"
    write(tmp_path / "source", b"old")
    write(target, b"covered")
    with bind_mounted(str(tmp_path / "source"), str(target)):
        with pytest.raises(atomicio.UnreplaceableTargetError) as caught:
            way(target)
        message = check(caught.value, errno.EBUSY, target)
        assert "mount point" in message
        assert "fallback='in-place'" in message
        assert read(target) == b"old"
        assert sorted(os.listdir(tmp_path)) == ["source", "target"]
    assert read(target) == b"covered"


@linux_only
@pytest.mark.parametrize("mode", ["a", "r+"])
def test_a_mount_point_can_be_extended_in_place(tmp_path: Path, mode: str) -> None:
    target = tmp_path / "target"
    write(tmp_path / "source", b"old and longer")
    write(target, b"")
    with bind_mounted(str(tmp_path / "source"), str(target)):
        with pytest.raises(atomicio.UnreplaceableTargetError):
            enter(target, mode)
        assert read(target) == b"old and longer"
        enter(target, mode, fallback="in-place")
        assert read(target) == (b"old and longernew" if mode == "a" else b"new and longer")
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


@linux_only
@every_way
def test_a_mount_point_is_no_absent_file(tmp_path: Path, way: Callable[..., None]) -> None:
    target = tmp_path / "target"
    write(tmp_path / "source", b"old")
    write(target, b"")
    with bind_mounted(str(tmp_path / "source"), str(target)):
        with pytest.raises(FileExistsError) as caught:
            enter(target, "x", fallback="in-place")
        check(caught.value, errno.EEXIST, target)
        assert read(target) == b"old"


@linux_only
@every_way
@pytest.mark.parametrize("fallback", ["raise", "in-place"])
def test_a_read_only_file_system(tmp_path: Path, way: Callable[..., None], fallback: str) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    with tmpfs_mounted(str(mount)):
        write(mount / "target", b"old")
        subprocess.run(["mount", "-o", "remount,ro", str(mount)], check=True)
        for name in ("target", "absent"):
            with pytest.raises(OSError) as caught:
                way(mount / name, fallback=fallback)
            check(caught.value, errno.EROFS, mount / name)
        assert read(mount / "target") == b"old"
        assert os.listdir(mount) == ["target"]


@linux_only
@pytest.mark.parametrize("level", ["none", "consistent", "durable"])
@every_way
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, way: Callable[..., None], level: str) -> None:
    """Not one inode free: neither a staging file nor anything else can be made."""
    mount = tmp_path / "mount"
    mount.mkdir()
    with tmpfs_mounted(str(mount), size="64k"):
        write(mount / "target", b"old")
        with open(mount / "filler", "wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                if filler.write(b"z" * 4096) < 4096:
                    break
            filler.write(b"z" * 4096)
        with pytest.raises(OSError) as caught:
            way(mount / "target", durability=level)
        assert caught.value.errno == errno.ENOSPC
        if way is not by_path:  # there, the caller's own write failed, on the staging file it was given
            check(caught.value, errno.ENOSPC, mount / "target")
        assert read(mount / "target") == b"old"
        assert sorted(os.listdir(mount)) == ["filler", "target"]


@linux_only
@pytest.mark.parametrize("mode", ["w", "a", "r+", "x"])
def test_an_error_in_the_block_names_the_target(tmp_path: Path, mode: str) -> None:
    """A write that fails inside the block is the caller's to see: with the target's name and committed=False."""
    mount = tmp_path / "mount"
    mount.mkdir()
    with tmpfs_mounted(str(mount), size="64k"):
        if mode != "x":
            write(mount / "target", b"old")
        with pytest.raises(OSError) as caught, atomicio.atomic_write(mount / "target", mode) as file:
            for _ in range(100):
                file.write("z" * 4096)
        check(caught.value, errno.ENOSPC, mount / "target")
        assert os.listdir(mount) == ([] if mode == "x" else ["target"])


def test_an_error_of_the_callers_own_is_not_touched(tmp_path: Path) -> None:
    """The library speaks for its own errors; the caller's exception goes through as the object it is."""
    for error in (OSError(errno.EIO, "mine", "elsewhere"), KeyError("mine"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as caught, atomicio.atomic_write(tmp_path / "target") as file:
            file.write("partial")
            raise error
        assert caught.value is error
        assert caught.value.__cause__ is None
        if isinstance(error, OSError):
            assert error.filename == "elsewhere"
    assert os.listdir(tmp_path) == []


def test_the_interpreter_prints_an_error_with_the_targets_name(tmp_path: Path) -> None:
    """What a person sees at the end of a traceback."""
    code = f"import atomicio; atomicio.write_text({str(tmp_path / 'missing' / 'target')!r}, 'x')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("FileNotFoundError: [Errno 2] ", "FileNotFoundError: [WinError 2] "))
    assert "missing" in last
