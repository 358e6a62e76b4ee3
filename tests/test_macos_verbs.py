"""What the library asks of macOS: the flush past the drive's cache, and renames that refuse or swap.

None of this ran on macOS. These tests load the modules as they are there (``sys.platform`` says ``darwin``) and replace the system
calls at the boundary; they show which calls are made, in which order, and what is made of the answers. What the calls do, Apple's
manual pages say: fcntl(2) for F_FULLFSYNC and F_BARRIERFSYNC, rename(2) for renameatx_np, clonefile(2) for fclonefileat.
"""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

import atomicio
import atomicio._writer

fcntl = pytest.importorskip("fcntl", reason="macOS is a POSIX system, and so must be what pretends to be it")

F_FULLFSYNC, F_BARRIERFSYNC = 51, 85  # <sys/fcntl.h>
AT_FDCWD, RENAME_SWAP, RENAME_EXCL = -2, 2, 4  # <fcntl.h>, <sys/stdio.h>
CLONE_NOOWNERCOPY = 2  # <sys/clonefile.h>
NOT_HERE = [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY]


def as_on_macos(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A second copy of the module ``atomicio.name``, as it is where sys.platform is darwin."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        path = Path(atomicio.__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(f"atomicio.{name}_as_on_macos", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


class Kernel:
    """Records the flushes and renames that it is asked for, and answers with the errors that it was given."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errors: dict[str, int] = {}

    def called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.errors:
            raise OSError(self.errors[name], os.strerror(self.errors[name]))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    names = {F_FULLFSYNC: "F_FULLFSYNC", F_BARRIERFSYNC: "F_BARRIERFSYNC"}
    real_fcntl, real_rename = fcntl.fcntl, os.rename

    def call_fcntl(fd: int, command: int, *arguments: object) -> object:
        if command in names:
            return kernel.called(names[command] + (" directory" if is_directory(fd) else ""))
        return real_fcntl(fd, command, *arguments)

    def rename(*arguments: object, **options: object) -> None:
        kernel.called("rename")
        real_rename(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", F_FULLFSYNC, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", call_fcntl)
    monkeypatch.setattr(os, "fsync", lambda fd: kernel.called("fsync" + (" directory" if is_directory(fd) else "")))
    monkeypatch.setattr(os, "rename", rename)
    for name in ("O_TMPFILE", "copy_file_range", "listxattr"):
        monkeypatch.delattr(os, name, raising=False)
    posix = as_on_macos("_posix", monkeypatch)
    monkeypatch.setattr(atomicio._writer, "_platform", posix)
    monkeypatch.setattr(atomicio.AtomicWriter, "_verbs", posix.Staging)
    return kernel


def is_directory(fd: int) -> bool:
    return (os.fstat(fd).st_mode & 0o170000) == 0o040000


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.write_bytes(b"old")
    return path


@pytest.mark.parametrize(
    ("level", "calls"),
    [
        ("none", ["rename"]),
        ("consistent", ["F_FULLFSYNC", "rename"]),
        ("durable", ["F_FULLFSYNC", "rename", "F_FULLFSYNC directory"]),
    ],
)
def test_each_level_flushes_past_the_cache_of_the_drive(
    target: Path, kernel: Kernel, level: str, calls: list[str]
) -> None:
    atomicio.write_bytes(target, b"new", durability=level)  # type: ignore[arg-type]
    assert kernel.calls == calls
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["target"]


@pytest.mark.parametrize("code", NOT_HERE)
def test_a_file_system_without_the_flush_gets_the_barrier(target: Path, kernel: Kernel, code: int) -> None:
    kernel.errors = {"F_FULLFSYNC": code}
    atomicio.write_bytes(target, b"new", durability="consistent")
    assert kernel.calls == ["F_FULLFSYNC", "F_BARRIERFSYNC", "rename"]


@pytest.mark.parametrize("code", NOT_HERE)
def test_a_file_system_without_the_barrier_gets_fsync(target: Path, kernel: Kernel, code: int) -> None:
    kernel.errors = {"F_FULLFSYNC": code, "F_BARRIERFSYNC": code}
    atomicio.write_bytes(target, b"new", durability="consistent")
    assert kernel.calls == ["F_FULLFSYNC", "F_BARRIERFSYNC", "fsync", "rename"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("step", ["F_FULLFSYNC", "F_BARRIERFSYNC", "fsync"])
def test_a_flush_that_failed_is_not_tried_in_another_way(target: Path, kernel: Kernel, step: str, code: int) -> None:
    """After EIO the pages are gone: a weaker flush would report success over lost data."""
    steps = ["F_FULLFSYNC", "F_BARRIERFSYNC", "fsync"]
    before = steps[: steps.index(step)]
    kernel.errors = dict.fromkeys(before, errno.ENOTSUP) | {step: code}
    with pytest.raises(OSError) as caught:
        atomicio.write_bytes(target, b"new")
    assert (caught.value.errno, caught.value.committed) == (code, False)  # type: ignore[attr-defined]
    assert kernel.calls == [*before, step]
    assert target.read_bytes() == b"old"
    assert os.listdir(target.parent) == ["target"]


def test_a_directory_that_fails_to_be_flushed_is_told(target: Path, kernel: Kernel) -> None:
    kernel.errors = {"F_FULLFSYNC directory": errno.EIO}
    with pytest.raises(atomicio.NotDurableError):
        atomicio.write_bytes(target, b"new")
    assert kernel.calls == ["F_FULLFSYNC", "rename", "F_FULLFSYNC directory"]
    assert target.read_bytes() == b"new"


class Library:
    """libSystem as ctypes shows it."""

    def __init__(self, code: int = 0, names: tuple[str, ...] = ("renameatx_np",)) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.code = code
        for name in names:
            setattr(self, name, self._rename)

    def _rename(self, *arguments: object) -> int:
        self.calls.append(tuple(getattr(argument, "value", argument) for argument in arguments))
        ctypes.set_errno(self.code)
        return -1 if self.code else 0


@pytest.fixture
def syscalls(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return as_on_macos("_syscalls", monkeypatch)


@pytest.mark.parametrize("directory", [None, 7])
def test_a_rename_that_refuses_to_replace(syscalls: ModuleType, monkeypatch, directory: int | None) -> None:
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: library)
    syscalls.rename_new("source", "tärget", directory)
    at = AT_FDCWD if directory is None else directory
    assert library.calls == [(at, b"source", at, os.fsencode("tärget"), RENAME_EXCL)]


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EEXIST, FileExistsError), (errno.ENOENT, FileNotFoundError), (errno.ENOTSUP, OSError)]
)
def test_its_errors_are_those_of_open(syscalls: ModuleType, monkeypatch, code: int, kind: type[OSError]) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: Library(code))
    with pytest.raises(kind) as caught:
        syscalls.rename_new("source", "target", None)
    assert caught.value.errno == code


def test_a_macos_without_the_call_says_so(syscalls: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: Library(names=()))
    with pytest.raises(OSError) as caught:
        syscalls.rename_new("source", "target", None)
    assert caught.value.errno == errno.ENOSYS


def test_a_file_system_without_hard_links_gets_that_rename(target: Path, kernel: Kernel, syscalls, monkeypatch) -> None:
    """Mode x on exFAT or SMB: link(2) answers ENOTSUP, and nothing may be replaced all the same."""

    def link(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    library = Library(errno.EEXIST)
    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: library)
    monkeypatch.setitem(sys.modules, "atomicio._syscalls", syscalls)
    monkeypatch.setattr(os, "link", link)
    writer = atomicio.atomic_write(target.with_name("new"), "x")
    writer.open().write("mine")
    target.with_name("new").write_text("theirs")
    with pytest.raises(FileExistsError):
        writer.commit()
    assert [call[4] for call in library.calls] == [RENAME_EXCL]
    assert target.with_name("new").read_text() == "theirs"
    assert sorted(os.listdir(target.parent)) == ["new", "target"]


def test_two_files_change_places(syscalls: ModuleType, monkeypatch) -> None:
    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: library)
    syscalls.exchange("one", "other", 7)
    assert library.calls == [(7, b"one", 7, b"other", RENAME_SWAP)]


class Cloning(Library):
    """fclonefileat(2): a new file with the content, mode, times and attributes of its source; and the calls for attributes."""

    def __init__(self, code: int = 0) -> None:
        super().__init__(code)
        self.removed: list[bytes] = []

    def fclonefileat(self, source: int, directory: int, name: bytes, flags: int) -> int:
        self.calls.append((directory, name, flags))
        ctypes.set_errno(self.code)
        if self.code:
            return -1
        where = None if directory == AT_FDCWD else directory
        mode = os.fstat(source).st_mode & 0o7777
        clone = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=where)
        os.fchmod(clone, mode)
        os.write(clone, os.pread(source, 1 << 20, 0))
        os.utime(clone, (1, 1))
        os.close(clone)
        return 0

    def flistxattr(self, fd: int, names: object, size: object, options: int) -> int:
        listed = b"user.one\0com.apple.two\0"
        if names is not None:
            names.raw = listed  # type: ignore[attr-defined]
        return len(listed)

    def fremovexattr(self, fd: int, name: bytes, options: int) -> int:
        self.removed.append(name)
        return 0


class Source:
    """What fstat(2) says on macOS: flags too."""

    st_flags = 0

    def __init__(self, status: os.stat_result) -> None:
        self.st_mode = status.st_mode


@pytest.fixture
def cloning(kernel: Kernel, syscalls: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Cloning:
    library = Cloning()
    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: library)
    monkeypatch.setitem(sys.modules, "atomicio._syscalls", syscalls)
    verbs = as_on_macos("_verbs", monkeypatch)
    clone = verbs._Copy._clone

    def as_there(writer: object, source: int, status: os.stat_result) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "platform", "darwin")
            return clone(writer, source, Source(status))

    monkeypatch.setattr(verbs._Copy, "_clone", as_there)
    library.copy = verbs.copy  # type: ignore[attr-defined]
    return library


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"new")
    path.chmod(0o640)
    return path


def test_a_copy_is_a_clone_with_nothing_but_the_content(source: Path, cloning: Cloning, kernel: Kernel) -> None:
    seen: list[tuple[int, int | None]] = []
    copy = source.with_name("copy")
    cloning.copy(source, copy, progress=lambda *done: seen.append(done))  # type: ignore[attr-defined]
    ((_, name, flags),) = cloning.calls
    assert flags == CLONE_NOOWNERCOPY
    assert name.startswith(b".atomicio-")
    assert cloning.removed == [b"user.one", b"com.apple.two"]
    assert copy.read_bytes() == b"new"
    assert copy.stat().st_mode & 0o777 == 0o640
    assert copy.stat().st_mtime > 1
    assert seen == [(3, 3)]
    assert kernel.calls == ["rename", "F_FULLFSYNC", "rename", "F_FULLFSYNC directory"]
    assert sorted(os.listdir(source.parent)) == ["copy", "source"]


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.EXDEV, errno.ENOSPC])
def test_a_copy_without_clones_reads_and_writes(source: Path, cloning: Cloning, code: int) -> None:
    cloning.code = code
    copy = source.with_name("copy")
    cloning.copy(source, copy)  # type: ignore[attr-defined]
    assert len(cloning.calls) == 1
    assert copy.read_bytes() == b"new"
    assert sorted(os.listdir(source.parent)) == ["copy", "source"]


def test_no_clone_that_others_could_read_before_its_time(source: Path, target: Path, cloning: Cloning) -> None:
    target.chmod(0o600)
    cloning.copy(source, target)  # type: ignore[attr-defined]
    assert cloning.calls == []
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o600


def test_no_clone_of_a_file_whose_content_is_elsewhere(source: Path, cloning: Cloning, monkeypatch) -> None:
    """UF_COMPRESSED: the content is in an attribute, which the copy is not to have."""
    monkeypatch.setattr(Source, "st_flags", 0x20)
    cloning.copy(source, source.with_name("copy"))  # type: ignore[attr-defined]
    assert cloning.calls == []
    assert source.with_name("copy").read_bytes() == b"new"


def test_a_clone_that_fails_half_way_leaves_nothing(source: Path, cloning: Cloning, monkeypatch) -> None:
    def utime(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def clone_and_fail(*arguments: object) -> int:
        monkeypatch.setattr(os, "utime", utime)
        return 0

    monkeypatch.setattr(cloning, "fremovexattr", clone_and_fail)
    with pytest.raises(OSError) as caught:
        cloning.copy(source, source.with_name("copy"))  # type: ignore[attr-defined]
    assert (caught.value.errno, caught.value.committed) == (errno.EIO, False)  # type: ignore[attr-defined]
    assert os.listdir(source.parent) == ["source"]
