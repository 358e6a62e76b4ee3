"""Many files after one wait for the disk: all of them, or none, and never many descriptors."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomicio
from atomicio import _filesystem
from oracle import device

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_litter", "no_leaked_descriptors") if sys.platform == "linux" else []

LEVELS = ("none", "consistent", "durable")
STRACE = [
    pytest.mark.skipif(sys.platform != "linux", reason="strace is for Linux"),
    pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed"),
]


class BodyError(Exception):
    pass


def litter(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob(".atomicio-*"))


def contents(folder: Path) -> dict[str, bytes]:
    """All files, the ends of lines as Python has them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().replace(os.linesep.encode(), b"\n")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(params=["syncfs", "fsync"])
def barrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to wait: where the file system here has only one of them, the other is tried all the same."""
    monkeypatch.setattr(_filesystem, "syncs_whole", lambda fd: request.param == "syncfs")
    if request.param == "syncfs" and sys.platform != "linux":
        pytest.skip("syncfs is for Linux")
    return str(request.param)


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", LEVELS)
def test_all_are_replaced_when_the_block_ends(durability: Any, barrier: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "a").write_text("old a")
    with atomicio.batch(durability=durability) as batch:
        batch.write_bytes(tmp_path / "a", b"new a")
        batch.write_text(tmp_path / "other" / "b", "new b\n")
        with batch.atomic_write(tmp_path / "c", "wb") as file:
            file.write(b"new c")
        assert contents(tmp_path).get("a") == b"old a"
        assert not (tmp_path / "c").exists()
    assert contents(tmp_path) == {"a": b"new a", "c": b"new c", "other/b": b"new b\n"}
    assert batch.committed_paths == [str(tmp_path / "a"), str(tmp_path / "other" / "b"), str(tmp_path / "c")]
    assert batch.uncommitted_paths == []


def test_modes(barrier: str, tmp_path: Path) -> None:
    for name in ("a", "r"):
        (tmp_path / name).write_text("old\n")
    with atomicio.batch() as batch:
        with batch.atomic_write(tmp_path / "a", "a") as file:
            file.write("more\n")
        with batch.atomic_write(tmp_path / "r", "r+") as file:
            assert file.read() == "old\n"
            file.seek(0)
            file.write("new\n")
        with batch.atomic_write(tmp_path / "x", "x") as file:
            file.write("created\n")
        with batch.atomic_write(tmp_path / "a-new", "a") as file:
            file.write("appended to nothing\n")
    assert contents(tmp_path) == {
        "a": b"old\nmore\n",
        "a-new": b"appended to nothing\n",
        "r": b"new\n",
        "x": b"created\n",
    }


def test_they_are_replaced_in_the_order_in_which_their_blocks_ended(tmp_path: Path) -> None:
    with atomicio.batch(durability="none") as batch:
        with batch.atomic_write(tmp_path / "outer") as outer:
            outer.write("outer")
            batch.write_text(tmp_path / "inner", "inner")
        batch.write_text(tmp_path / "last", "last")
    assert [os.path.basename(path) for path in batch.committed_paths] == ["inner", "outer", "last"]


def test_an_empty_batch(tmp_path: Path) -> None:
    with atomicio.batch() as batch:
        pass
    assert (batch.committed_paths, batch.uncommitted_paths) == ([], [])


def test_open_and_commit_without_with(tmp_path: Path) -> None:
    with atomicio.batch() as batch:
        writer = batch.atomic_write(tmp_path / "f", "wb")
        writer.open().write(b"new")
        writer.commit()
        writer.commit()
        assert not writer.committed
        assert not (tmp_path / "f").exists()
    assert writer.committed
    assert (tmp_path / "f").read_bytes() == b"new"


def test_bytes_paths_and_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with atomicio.batch() as batch:
        batch.write_bytes(b"bytes", b"1")
        batch.write_bytes("relative", b"2")
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert contents(tmp_path) == {"bytes": b"1", "relative": b"2"}
    assert batch.committed_paths == [b"bytes", "relative"]


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_metadata_and_permissions(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(0o640)
    (tmp_path / "unreadable").write_text("old")
    (tmp_path / "unreadable").chmod(0o200)
    with atomicio.batch() as batch:
        batch.write_bytes(tmp_path / "old", b"new")
        batch.write_bytes(tmp_path / "unreadable", b"new")
        batch.write_bytes(tmp_path / "nothing", b"new", permissions=0)
        batch.write_bytes(tmp_path / "asked", b"new", permissions=0o604)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"old": 0o640, "unreadable": 0o200, "nothing": 0, "asked": 0o604}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_a_mode_that_is_set_meanwhile_stays(barrier: str, tmp_path: Path) -> None:
    target = tmp_path / "secret"
    target.write_text("old")
    target.chmod(0o644)
    with atomicio.batch() as batch:
        batch.write_bytes(target, b"new")
        target.chmod(0o600)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.read_bytes() == b"new"


def test_backup_and_make_parents(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    with atomicio.batch() as batch:
        batch.write_text(tmp_path / "f", "new", backup=".bak")
        batch.write_text(tmp_path / "made" / "here" / "g", "new", make_parents=True)
    assert contents(tmp_path) == {"f": b"new", "f.bak": b"old", "made/here/g": b"new"}


def test_skip_unchanged(barrier: str, tmp_path: Path) -> None:
    for name in ("same", "differs"):
        (tmp_path / name).write_text("old")
    inodes = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    with atomicio.batch() as batch:
        batch.write_text(tmp_path / "same", "old", skip_unchanged=True)
        batch.write_text(tmp_path / "differs", "new", skip_unchanged=True)
    assert contents(tmp_path) == {"same": b"old", "differs": b"new"}
    assert (tmp_path / "same").stat().st_ino == inodes["same"]
    assert batch.committed_paths == [str(tmp_path / "same"), str(tmp_path / "differs")]


@pytest.mark.skipif(os.name == "nt", reason="making symbolic links needs a privilege on Windows")
def test_symlinks(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real/file")
    (tmp_path / "other").symlink_to("real/other")
    with atomicio.batch() as batch:
        batch.write_text(tmp_path / "link", "followed")
        batch.write_text(tmp_path / "other", "replaced", follow_symlinks=False)
    assert (tmp_path / "link").is_symlink()
    assert not (tmp_path / "other").is_symlink()
    assert contents(tmp_path / "real") == {"file": b"followed"}


def test_locks_are_held_until_the_batch_is_over(tmp_path: Path) -> None:
    locks = threading.Lock(), threading.Lock()
    with atomicio.batch() as batch:
        for number, lock in enumerate(locks):
            batch.write_text(tmp_path / str(number), "new", lock=lock)
            assert lock.locked()
        with pytest.raises(UnicodeEncodeError):
            batch.write_text(tmp_path / "bad", "ä", encoding="ascii", lock=(bad := threading.Lock()))
        assert not bad.locked()
        assert all(lock.locked() for lock in locks)
    assert not any(lock.locked() for lock in locks)


@pytest.mark.parametrize("option", ["durability", "fallback"])
def test_what_a_batch_cannot_do_per_file_is_refused(option: str, tmp_path: Path) -> None:
    with atomicio.batch() as batch, pytest.raises(TypeError, match=option):
        batch.write_bytes(tmp_path / "f", b"", **{option: "none"})  # type: ignore[arg-type]


def test_wrong_options() -> None:
    with pytest.raises(ValueError, match="durability"):
        atomicio.batch(durability="maybe")  # type: ignore[arg-type]


# -- none of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [BodyError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_in_the_block_leaves_all_as_they_were(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    lock = threading.Lock()
    with pytest.raises(error), atomicio.batch() as batch:
        batch.write_text(tmp_path / "f", "new", lock=lock)
        batch.write_text(tmp_path / "g", "new")
        file = batch.atomic_write(tmp_path / "open").open()
        file.write("never complete")
        raise error
    assert contents(tmp_path) == {"f": b"old"}
    assert not lock.locked()
    assert batch.committed_paths == []
    assert batch.uncommitted_paths == [str(tmp_path / "f"), str(tmp_path / "g")]


def test_a_file_whose_block_raises_is_not_in_the_batch(tmp_path: Path) -> None:
    with atomicio.batch() as batch:
        batch.write_text(tmp_path / "good", "new")
        with contextlib.suppress(BodyError), batch.atomic_write(tmp_path / "bad") as file:
            file.write("new")
            raise BodyError
        with contextlib.suppress(BodyError), batch.atomic_write(tmp_path / "again") as file:
            raise BodyError
        batch.write_text(tmp_path / "again", "at last")
    assert contents(tmp_path) == {"good": b"new", "again": b"at last"}


def test_a_file_that_is_still_open_fails_the_batch(tmp_path: Path) -> None:
    with pytest.raises(atomicio.WriterStateError) as caught, atomicio.batch() as batch:
        batch.write_text(tmp_path / "f", "new")
        file = batch.atomic_write(tmp_path / "open").open()
        file.write("half")
    assert (caught.value.filename, caught.value.committed) == (str(tmp_path / "open"), False)
    assert contents(tmp_path) == {}
    del file


def test_the_same_target_twice_is_an_error_and_the_first_stays(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with atomicio.batch() as batch:
        batch.write_text(tmp_path / "f", "first")
        with pytest.raises(atomicio.WriterStateError) as caught:
            batch.write_text(tmp_path / "there" / ".." / "f", "second")
        assert caught.value.errno == errno.EEXIST
    assert contents(tmp_path) == {"f": b"first"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with atomicio.batch() as batch:
        for target in (tmp_path / "fifo", device(tmp_path / "null")):
            with pytest.raises(atomicio.UnreplaceableTargetError) as caught:
                batch.write_bytes(target, b"new")
            assert (caught.value.errno, caught.value.committed) == (errno.EINVAL, False)
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


@pytest.mark.parametrize("kind", ["a", "r+"])
def test_somebody_elses_change_fails_the_batch(kind: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("old")
    with pytest.raises(atomicio.TargetChangedError) as caught, atomicio.batch() as batch:
        batch.write_text(tmp_path / "f", "new")
        with batch.atomic_write(tmp_path / "log", kind) as file:
            file.write("mine")
        (tmp_path / "log").write_text("theirs")
    assert (caught.value.filename, caught.value.committed) == (str(tmp_path / "log"), False)
    assert contents(tmp_path) == {"log": b"theirs"}


def test_x_whose_target_appears_fails_the_batch(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError) as caught, atomicio.batch() as batch:
        batch.write_text(tmp_path / "f", "new")
        with batch.atomic_write(tmp_path / "x", "x") as file:
            file.write("mine")
        (tmp_path / "x").write_text("theirs")
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert contents(tmp_path) == {"x": b"theirs"}


def test_a_target_that_becomes_a_directory_fails_the_batch(tmp_path: Path) -> None:
    with pytest.raises(atomicio.TargetChangedError), atomicio.batch() as batch:
        batch.write_text(tmp_path / "f", "new")
        batch.write_text(tmp_path / "g", "new")
        (tmp_path / "g").mkdir()
    assert contents(tmp_path) == {}


def test_a_staging_file_that_somebody_removed_fails_the_batch(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, atomicio.batch() as batch:
        batch.write_text(tmp_path / "f", "new")
        batch.write_text(tmp_path / "g", "new")
        for path in litter(tmp_path):
            os.unlink(path)
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert contents(tmp_path) == {}


def test_a_swallowed_write_error_fails_the_file(tmp_path: Path) -> None:
    if sys.platform in ("win32", "emscripten"):
        pytest.skip("needs RLIMIT_FSIZE")
    import resource

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with atomicio.batch() as batch:
            batch.write_text(tmp_path / "good", "new")
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, old[1]))
            with (
                pytest.raises(OSError) as caught,
                batch.atomic_write(tmp_path / "bad", "wb", 0) as file,
                contextlib.suppress(OSError),
            ):
                file.write(b"more than ten bytes")
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
            assert caught.value.errno == errno.EFBIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, previous)
    assert contents(tmp_path) == {"good": b"new"}


# -- some of them ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="on Windows files are synced before the last look: see test_windows_trees")
def test_a_failure_in_the_middle_of_the_renames_lists_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target becomes a directory in the one moment that is left: after the last look, before its rename."""
    wait = os.fsync
    appeared: list[Path] = []

    def appear(fd: int) -> None:
        wait(fd)
        if not appeared:
            appeared.append(tmp_path / "3")
            appeared[0].mkdir()

    monkeypatch.setattr(os, "fsync", appear)
    with pytest.raises(atomicio.PartialCommitError) as caught, atomicio.batch() as batch:
        for number in range(6):
            batch.write_text(str(tmp_path / str(number)), "new")
    error = caught.value
    assert appeared
    assert (error.errno, error.filename, error.committed) == (errno.EISDIR, str(tmp_path / "3"), True)
    assert error.committed_paths == batch.committed_paths == [str(tmp_path / name) for name in "012"]
    assert error.uncommitted_paths == batch.uncommitted_paths == [str(tmp_path / name) for name in "345"]
    assert contents(tmp_path) == dict.fromkeys("012", b"new")


@pytest.mark.skipif(os.name == "nt", reason="on Windows files are synced before the last look: see test_windows_trees")
def test_the_first_rename_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (wait(fd), os.makedirs(tmp_path / "0", exist_ok=True))[0])
    with pytest.raises(IsADirectoryError) as caught, atomicio.batch(durability="consistent") as batch:
        batch.write_text(str(tmp_path / "0"), "new")
        batch.write_text(str(tmp_path / "1"), "new")
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert contents(tmp_path) == {}
    assert batch.committed_paths == []


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux, to mount")
@pytest.mark.parametrize("mounted", [0, 3])
def test_a_target_that_is_a_mount_point(mounted: int, tmp_path: Path) -> None:
    """EBUSY, which only the rename itself tells; there is no writing in place in a batch, since that can't be taken back."""
    (tmp_path / "other").write_bytes(b"mounted")
    for number in range(6):
        (tmp_path / str(number)).write_bytes(b"old")
    target = str(tmp_path / str(mounted))
    subprocess.run(["mount", "--bind", tmp_path / "other", target], check=True)
    try:
        with pytest.raises(OSError) as caught, atomicio.batch() as batch:
            for number in range(6):
                batch.write_bytes(str(tmp_path / str(number)), b"new")
        assert caught.value.errno == errno.EBUSY
        assert caught.value.filename == target
        assert Path(target).read_bytes() == b"mounted"
    finally:
        subprocess.run(["umount", target], check=True)
    error = caught.value
    paths = [str(tmp_path / str(number)) for number in range(6)]
    assert batch.committed_paths == paths[:mounted]
    assert batch.uncommitted_paths == paths[mounted:]
    if mounted:
        assert isinstance(error, atomicio.PartialCommitError)
        assert (error.committed_paths, error.uncommitted_paths) == (paths[:mounted], paths[mounted:])
    else:
        assert isinstance(error, atomicio.UnreplaceableTargetError)
        assert "outside the batch, fallback='in-place'" in str(error), "a batch has none"
    found = contents(tmp_path)
    assert [found[str(number)] for number in range(6)] == [b"new"] * mounted + [b"old"] * (6 - mounted)


@pytest.mark.skipif(sys.platform == "win32", reason="signals do not interrupt on Windows")
def test_ctrl_c_comes_before_the_renames_or_after_all_of_them(tmp_path: Path) -> None:
    """A signal at every moment of the end of a batch: never some of the targets."""
    program = textwrap.dedent("""
        import os, signal, sys
        import atomicio
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        for step in range(30):
            folder = f"{sys.argv[1]}/{step}"
            os.mkdir(folder)
            try:
                with atomicio.batch(durability="none") as batch:
                    for number in range(200):
                        batch.write_bytes(f"{folder}/{number}", b"new")
                    signal.setitimer(signal.ITIMER_REAL, 0.00002 + step * 0.0002)
                signal.setitimer(signal.ITIMER_REAL, 0)  # it may come as late as here
            except KeyboardInterrupt:
                pass
            committed, at_once = len(batch.committed_paths), len(os.listdir(folder))
            del batch  # an interrupt at the entry of __exit__ leaves it to the finalizer to clean up
            print(committed, len(os.listdir(folder)), at_once)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(atomicio.__file__).parent.parent,
    )
    ends = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(ends) == 30
    assert {end[:2] for end in ends} <= {(0, 0), (200, 200)}
    assert (0, 0, 0) in ends, "no signal came before the renames, or what it interrupted was not cleaned up at once"


# -- syncing -----------------------------------------------------------------------------------------------------------


class Recorder:
    """What is synced and renamed, in order, while the real calls are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from atomicio import _syscalls

        self.calls: list[tuple[str, str]] = []
        for owner, name in ((os, "fsync"), (_syscalls, "syncfs")):
            monkeypatch.setattr(owner, name, self._record(name, getattr(owner, name)))
        monkeypatch.setattr(os, "rename", self._record("rename", os.rename))

    def _record(self, name: str, real: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            subject = arguments[1] if name == "rename" else os.readlink(f"/proc/self/fd/{arguments[0]}")
            self.calls.append((name, subject))
            return real(*arguments, **keywords)

        return call

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("durability", LEVELS)
def test_the_content_is_synced_before_the_first_rename_and_each_directory_once_after_the_last(
    durability: Any, barrier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    recorder = Recorder(monkeypatch)
    with atomicio.batch(durability=durability) as batch:
        for number in range(10):
            batch.write_bytes(folders[number % 2] / str(number), b"new")
        assert recorder.calls == []
    names = recorder.names()
    first, last = names.index("rename"), len(names) - names[::-1].index("rename")
    before, after = recorder.calls[:first], recorder.calls[last:]
    if durability == "none":
        assert before == []
    elif barrier == "syncfs":
        assert [name for name, _ in before] == ["syncfs", "fsync"]
    else:
        assert len({subject for _, subject in before}) == len(before) == 10
        assert all(".atomicio-" in subject for _, subject in before), "btrfs makes nothing durable that has no name"
    assert sorted(after) == ([("fsync", str(folder)) for folder in folders] if durability == "durable" else [])


@pytest.mark.skipif(sys.platform != "linux", reason="syncfs is for Linux")
def test_many_directories_are_synced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_filesystem, "syncs_whole", lambda fd: True)
    for number in range(100):
        (tmp_path / str(number)).mkdir()
    recorder = Recorder(monkeypatch)
    with atomicio.batch() as batch:
        for number in range(100):
            batch.write_bytes(tmp_path / str(number) / "f", b"new")
    assert [name for name in recorder.names() if name != "rename"] == ["syncfs", "fsync", "syncfs", "fsync"]


@pytest.mark.skipif(sys.platform != "linux", reason="syncfs is for Linux")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP])
def test_without_syncfs_each_file_is_synced(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old kernels, and filters of system calls that let only known ones through."""
    from atomicio import _syscalls

    monkeypatch.setattr(_filesystem, "syncs_whole", lambda fd: True)
    recorder = Recorder(monkeypatch)

    def refuse(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_syscalls, "syncfs", refuse)
    with atomicio.batch() as batch:
        for number in range(5):
            batch.write_bytes(tmp_path / str(number), b"new")
    assert recorder.names() == ["fsync"] * 5 + ["rename"] * 5 + ["fsync"]


@pytest.mark.skipif(sys.platform != "linux", reason="syncfs is for Linux")
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_content_that_cannot_be_synced_changes_nothing(
    code: int, barrier: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atomicio import _syscalls

    def fail(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "1").write_text("old")
    monkeypatch.setattr(_syscalls if barrier == "syncfs" else os, barrier, fail)
    with pytest.raises(OSError) as caught, atomicio.batch() as batch:
        for number in range(3):
            batch.write_text(str(tmp_path / str(number)), "new")
    assert caught.value.errno == code
    assert caught.value.filename in {str(tmp_path / name) for name in "012"}
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert contents(tmp_path) == {"1": b"old"}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_directory_that_cannot_be_synced_is_reported_after_all_others_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = os.fsync
    synced = []

    def fail(fd: int) -> None:
        if (path := os.readlink(f"/proc/self/fd/{fd}")).endswith("/bad"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        synced.append(path)
        wait(fd)

    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(_filesystem, "syncs_whole", lambda fd: False)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(atomicio.NotDurableError) as caught, atomicio.batch() as batch:
        batch.write_text(str(tmp_path / "bad" / "f"), "new")
        batch.write_text(str(tmp_path / "good" / "f"), "new")
    assert caught.value.filename == str(tmp_path / "bad" / "f")
    assert str(tmp_path / "good") in synced
    assert contents(tmp_path) == {"bad/f": b"new", "good/f": b"new"}
    assert batch.uncommitted_paths == []


# -- many of them ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_ten_thousand_files_with_256_descriptors(tmp_path: Path) -> None:
    """In more directories than there may be descriptors."""
    folders = 500
    program = textwrap.dedent("""
        import os, resource, sys
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        import atomicio
        folder, folders, most = sys.argv[1], int(sys.argv[2]), 0
        for number in range(folders):
            os.mkdir(f"{folder}/{number}")
        with atomicio.batch() as batch:
            for number in range(10_000):
                batch.write_bytes(f"{folder}/{number % folders}/{number}", b"%d" % number)
                if number % 500 == 0:
                    most = max(most, len(os.listdir("/dev/fd")))
        print(most, len(batch.committed_paths))
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, str(folders)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(atomicio.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    most, committed = map(int, done.stdout.split())
    assert committed == 10_000
    assert most < 80
    assert (tmp_path / str(9_999 % folders) / "9999").read_bytes() == b"9999"
    assert sum(len(files) for _, _, files in os.walk(tmp_path)) == 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_fsync_of_each_file_needs_few_descriptors_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_filesystem, "syncs_whole", lambda fd: False)
    most = 0
    wait = os.fsync

    def count(fd: int) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))
        wait(fd)

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "fsync", count)
    with atomicio.batch() as batch:
        for number in range(150):
            batch.write_bytes(tmp_path / str(number) / "f", b"new", make_parents=True)
    assert len(batch.committed_paths) == 150
    # 64 directories, a file for each of 8 threads, and for each the folder that it counts in; what 150 directories would take is more.
    assert most - before < 90


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_does_not_grow_with_the_content(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys, atomicio
        def resident():
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        piece = b"x" * (1 << 20)
        with atomicio.batch(durability="none") as batch:
            before = resident()
            for number in range(8):
                with batch.atomic_write(f"{sys.argv[1]}/{number}", "wb") as file:
                    for _ in range(8):
                        file.write(piece)
            print(resident() - before)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(atomicio.__file__).parent.parent,
    )
    assert int(done.stdout) < 4096, "64 MiB were written"


@pytest.mark.skipif(sys.platform == "win32", reason="a directory in use can't be renamed on Windows")
def test_a_directory_that_is_renamed_while_its_descriptor_is_open(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    with atomicio.batch() as batch:
        batch.write_text(tmp_path / "before" / "f", "new")
        (tmp_path / "before").rename(tmp_path / "after")
    assert contents(tmp_path) == {"after/f": b"new"}


@pytest.mark.skipif(sys.platform != "linux", reason="directories by descriptor")
def test_another_directory_under_the_same_name_is_never_written_to(tmp_path: Path) -> None:
    """Beyond 64 directories the first is closed. Another under its name, when it is needed again, is not it."""
    (tmp_path / "0").mkdir()
    with pytest.raises(OSError) as caught, atomicio.batch() as batch:
        for number in range(80):
            batch.write_text(tmp_path / str(number) / "f", "new", make_parents=True)
        (tmp_path / "0").rename(tmp_path / "moved")
        (tmp_path / "0").mkdir()
    assert caught.value.errno == errno.ESTALE
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert contents(tmp_path / "0") == {}
    assert not [name for name in contents(tmp_path) if name.endswith("/f")]
    left = litter(tmp_path)  # where nobody could find it any more
    assert {os.path.dirname(path) for path in left} == {str(tmp_path / "moved")}
    assert [os.path.splitext(path)[1] for path in left] in ([".batch", ".tmp"], [".tmp", ".batch"])
    for path in left:
        os.unlink(path)


# -- misuse ------------------------------------------------------------------------------------------------------------


def test_a_batch_serves_one_block(tmp_path: Path) -> None:
    batch = atomicio.batch()
    with pytest.raises(atomicio.WriterStateError):
        batch.write_bytes(tmp_path / "f", b"")
    with batch:
        pass
    with pytest.raises(atomicio.WriterStateError):
        batch.write_bytes(tmp_path / "f", b"")
    with pytest.raises(atomicio.WriterStateError), batch:
        pass
    assert contents(tmp_path) == {}


def test_a_writer_that_outlives_its_batch(tmp_path: Path) -> None:
    with atomicio.batch() as batch:
        writer = batch.atomic_write(tmp_path / "f")
    with pytest.raises(atomicio.WriterStateError):
        writer.open()
    del batch
    gc.collect()
    with pytest.raises(atomicio.WriterStateError):
        atomicio.batch().atomic_write(tmp_path / "f").open()
    assert contents(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_neither_commits_nor_discards(tmp_path: Path) -> None:
    lock = threading.Lock()
    with atomicio.batch() as batch:
        batch.write_text(tmp_path / "f", "new", lock=lock)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                try:
                    batch.write_text(tmp_path / "g", "from the child")
                except atomicio.WriterStateError:
                    batch.__exit__(None, None, None)
            except atomicio.WriterStateError:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(litter(tmp_path)) == 2, "the file, and what shows that it belongs to somebody alive"
    assert contents(tmp_path) == {"f": b"new"}


def test_a_generator_that_is_closed(tmp_path: Path) -> None:
    def generate() -> Iterator[None]:
        with atomicio.batch() as batch:
            batch.write_text(tmp_path / "f", "new")
            yield

    generator = generate()
    next(generator)
    generator.close()
    assert contents(tmp_path) == {}


def test_a_batch_that_is_dropped_leaves_nothing(tmp_path: Path) -> None:
    batch = atomicio.batch()
    batch.__enter__()
    batch.write_text(tmp_path / "f", "new")
    assert litter(tmp_path)
    gc.disable()
    try:
        del batch
        assert litter(tmp_path) == [], "no cycle keeps what nobody has any more"
    finally:
        gc.enable()
