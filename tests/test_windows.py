"""What Windows does differently: files that are open elsewhere, names that are folded or reserved, access rights, volumes.

All of it runs on the real thing, which is a Windows machine or the official Windows CPython under Wine (``tox run -e wine``).
Where Wine itself behaves differently from Windows, the test says so.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import atomicio

if sys.platform != "win32":
    pytest.skip("Windows only: run under Wine by `tox run -e wine`", allow_module_level=True)

import _winapi
import ctypes

from atomicio import _win32, _windows

UNDER_WINE = hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")
ACCESS_DENIED, SHARING_VIOLATION, LOCK_VIOLATION = 5, 32, 33
GENERIC_READ, GENERIC_WRITE = 0x80000000, 0x40000000
HIDDEN = 0x2

# Programs that hold a file open in another process until their standard input ends.
OPEN_PLAINLY = "file = open(path, 'rb')"
OPEN_SHARED = "import atomicio; file = atomicio.open_shared(path, 'rb')"
OPEN_SHARING_NOTHING = "import _winapi; handle = _winapi.CreateFile(path, 0x80000000, 0, 0, 3, 0x80, 0)"


def run(program: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "import sys, os; path = sys.argv[1]\n" + program, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, **pipes)


@contextmanager
def held(path: Path, how: str, *, then: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process has *path* open; it runs *then* once it is told to end."""
    process = run(f"{how}\nprint('held', flush=True)\nsys.stdin.read()\n{then}", path)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.communicate(timeout=150)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=150)
    return output


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.write_bytes(b"old")
    return path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(atomicio.AtomicWriter, "busy_timeout", 0.3)
    return 0.3


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second can be many on a busy machine."""
    monkeypatch.setattr(atomicio.AtomicWriter, "busy_timeout", 60.0)


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


class TestTargetThatIsOpenElsewhere:
    def test_plainly_is_refused_after_the_timeout_and_untouched(self, target: Path, impatient: float) -> None:
        with held(target, OPEN_PLAINLY):
            start = time.monotonic()
            with pytest.raises(atomicio.UnreplaceableTargetError) as caught:
                atomicio.write_bytes(target, b"new")
            assert impatient - 0.01 <= time.monotonic() - start < 60  # floats are rounded
            assert target.read_bytes() == b"old"
        error = caught.value
        assert (error.errno, error.committed, error.filename) == (errno.EACCES, False, str(target))
        assert error.winerror in {ACCESS_DENIED, SHARING_VIOLATION}
        assert names(target.parent) == ["target"]

    def test_by_this_process_is_refused_alike(self, target: Path, impatient: float) -> None:
        with target.open("rb"), pytest.raises(atomicio.UnreplaceableTargetError):
            atomicio.write_bytes(target, b"new")
        assert target.read_bytes() == b"old"
        assert names(target.parent) == ["target"]

    def test_plainly_and_then_closed_is_replaced(self, target: Path, patient: None) -> None:
        process = run("file = open(path); print('held', flush=True); import time; time.sleep(0.5)", target)
        assert process.stdout.readline() == "held\n"
        atomicio.write_bytes(target, b"new")
        finish(process)
        assert target.read_bytes() == b"new"
        assert names(target.parent) == ["target"]

    def test_sharing_nothing_and_then_closed_is_replaced(self, target: Path, patient: None) -> None:
        process = run(f"{OPEN_SHARING_NOTHING}; print('held', flush=True); import time; time.sleep(0.5)", target)
        assert process.stdout.readline() == "held\n"
        atomicio.write_bytes(target, b"new")
        finish(process)
        assert target.read_bytes() == b"new"
        assert names(target.parent) == ["target"]

    def test_shared_is_replaced_and_its_reader_keeps_the_old_content(self, target: Path, impatient: float) -> None:
        with held(target, OPEN_SHARED, then="print(file.read())") as process:
            atomicio.write_bytes(target, b"new")
            assert target.read_bytes() == b"new"
            assert "b'old'" in finish(process)
        assert names(target.parent) == ["target"]

    def test_shared_by_several_readers_over_several_writes(self, target: Path, impatient: float) -> None:
        readers = []
        for number in range(3):
            readers.append(atomicio.open_shared(target, "rb"))
            atomicio.write_bytes(target, b"%d" % number)
        assert [reader.read() for reader in readers] == [b"old", b"0", b"1"]
        for reader in readers:
            reader.close()
        assert target.read_bytes() == b"2"
        assert names(target.parent) == ["target"]

    def test_can_be_written_in_place_when_that_is_asked_for(self, target: Path, impatient: float) -> None:
        with held(target, OPEN_PLAINLY, then="print(file.read())") as process:
            atomicio.write_bytes(target, b"new", fallback="in-place")
            assert target.read_bytes() == b"new"
            assert "b'new'" in finish(process)
        assert names(target.parent) == ["target"]

    @pytest.mark.parametrize("mode", ["a", "r+"])
    def test_by_the_writer_itself_is_no_obstacle(self, target: Path, mode: str) -> None:
        writer = atomicio.atomic_write(target, mode)
        writer.busy_timeout = 0
        with writer as file:
            file.write("NEW")
        assert target.read_bytes() == (b"oldNEW" if mode == "a" else b"NEW")
        assert names(target.parent) == ["target"]

    def test_unchanged_content_needs_no_rename(self, target: Path, impatient: float) -> None:
        with held(target, OPEN_PLAINLY):
            atomicio.write_bytes(target, b"old", skip_unchanged=True)
        assert target.read_bytes() == b"old"


def test_a_staging_path_left_open_by_its_consumer_is_an_error_and_the_target_untouched(target, impatient) -> None:
    with pytest.raises(OSError) as caught, atomicio.atomic_path(target) as path:
        consumer = open(path, "wb")
        consumer.write(b"new")
    assert caught.value.winerror == SHARING_VIOLATION
    assert caught.value.committed is False
    assert target.read_bytes() == b"old"
    consumer.close()
    assert len(names(target.parent)) <= 2  # what is open cannot be removed; its name says what it is


class TestRetries:
    def failing(self, code: int, times: int = 10**6) -> tuple[Callable[[], str], list[float]]:
        calls: list[float] = []

        def function() -> str:
            calls.append(time.monotonic())
            if len(calls) <= times:
                raise OSError(0, "", "", code)
            return "done"

        return function, calls

    @pytest.mark.parametrize("code", [ACCESS_DENIED, SHARING_VIOLATION, LOCK_VIOLATION])
    def test_of_what_passes(self, code: int) -> None:
        function, calls = self.failing(code, times=5)
        assert _windows.patiently(10, function) == "done"
        assert len(calls) == 6

    @pytest.mark.parametrize("code", [2, 3, 17, 87, 112, 123, 183, 1117])
    def test_of_nothing_else(self, code: int) -> None:
        function, calls = self.failing(code)
        with pytest.raises(OSError) as caught:
            _windows.patiently(10, function)
        assert caught.value.winerror == code
        assert len(calls) == 1

    def test_end_in_time_and_are_not_a_busy_loop(self) -> None:
        function, calls = self.failing(SHARING_VIOLATION)
        start = time.monotonic()
        with pytest.raises(PermissionError):
            _windows.patiently(2, function)
        assert 1.99 <= time.monotonic() - start < 60  # the clock ticks every 15.6 ms, and floats are rounded
        assert 3 <= len(calls) < 500

    def test_are_spread(self) -> None:
        def pauses() -> list[float]:
            function, calls = self.failing(SHARING_VIOLATION, times=6)
            _windows.patiently(10, function)
            return [later - earlier for earlier, later in zip(calls, calls[1:])]

        assert len({round(pauses()[-1], 4) for _ in range(8)}) > 1


class TestBusyTimeout:
    """The time that a writer waits for others is one parameter, and bounds all its waits together."""

    @pytest.fixture
    def naps(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        naps: list[float] = []
        sleep = time.sleep
        monkeypatch.setattr(time, "sleep", lambda seconds: (naps.append(seconds), sleep(seconds))[1])
        return naps

    @pytest.mark.parametrize("timeout", [0, 0.2, 0.6])
    @pytest.mark.parametrize("mode", ["w", "a", "r+"])
    def test_of_one_writer(self, target: Path, naps: list[float], mode: str, timeout: float) -> None:
        writer = atomicio.atomic_write(target, mode)
        writer.busy_timeout = timeout
        with target.open("rb"):
            with pytest.raises(atomicio.UnreplaceableTargetError), writer as file:
                file.write("new")
        assert sum(naps) <= timeout
        assert timeout or not naps
        assert target.read_bytes() == b"old"
        assert names(target.parent) == ["target"]

    def test_of_a_writer_of_a_batch(self, target: Path, naps: list[float]) -> None:
        with target.open("rb"), pytest.raises(atomicio.UnreplaceableTargetError), atomicio.batch() as batch:
            writer = batch.atomic_write(target)
            writer.busy_timeout = 0.2
            with writer as file:
                file.write("new")
        assert sum(naps) <= 0.2
        assert target.read_bytes() == b"old"

    def test_of_all_writers(self, target: Path, naps: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(atomicio.AtomicWriter, "busy_timeout", 0.2)
        with target.open("rb"), pytest.raises(atomicio.UnreplaceableTargetError):
            atomicio.write_bytes(target, b"new")
        assert sum(naps) <= 0.2

    def test_that_is_no_number_ends(self, target: Path) -> None:
        writer = atomicio.atomic_write(target)
        writer.busy_timeout = float("nan")
        with target.open("rb"), pytest.raises(atomicio.UnreplaceableTargetError), writer as file:
            file.write("new")

    def test_for_ever(self, target: Path) -> None:
        process = run("file = open(path); print('held', flush=True); import time; time.sleep(0.5)", target)
        assert process.stdout.readline() == "held\n"
        writer = atomicio.atomic_write(target)
        writer.busy_timeout = float("inf")
        with writer as file:
            file.write("new")
        finish(process)
        assert target.read_bytes() == b"new"

    def test_for_ever_is_not_spent_on_what_a_second_step_would_get(self, target: Path) -> None:
        """A reader that shares deletion, and stays: where no rename gets past it, two do, and soon."""
        with held(target, OPEN_SHARED):
            writer = atomicio.atomic_write(target)
            writer.busy_timeout = float("inf")
            begun = time.monotonic()
            with writer as file:
                file.write("new")
            assert time.monotonic() - begun < 30
            assert target.read_bytes() == b"new"

    def test_of_a_reader(self, target: Path, naps: list[float]) -> None:
        handle = _winapi.CreateFile(str(target), GENERIC_READ, 0, 0, 3, 0x80, 0)
        try:
            for timeout in (0, 0.2):
                with pytest.raises(PermissionError) as caught:
                    atomicio.open_shared(target, busy_timeout=timeout)
                assert caught.value.filename == str(target)
                assert sum(naps) <= timeout
        finally:
            _winapi.CloseHandle(handle)


# A writer that is stopped between the two steps: its reader holds the file, so that a rename over it is refused.
BETWEEN_THE_STEPS = """
import atomicio
from atomicio import _windows
atomicio.AtomicWriter.busy_timeout = 0.1
reader = atomicio.open_shared(path, 'rb')
replace, moved = os.replace, False
def stop(source, target):
    global moved
    if moved:
        print('between', flush=True)
        {stop}
    replace(source, target)
    moved = target.endswith('.atomicio-old')
os.replace = stop
_windows.Staging._try_rename = lambda self, source, target: replace(source, target)
atomicio.write_bytes(path, b'new')
print('end', flush=True)
"""


def test_a_target_that_is_there_and_cannot_be_found_is_no_endless_loop(target: Path, monkeypatch) -> None:
    def missing(*arguments: object) -> None:
        raise OSError(0, "", str(target), 2)

    monkeypatch.setattr(_winapi, "CreateFile", missing)
    with pytest.raises(FileNotFoundError) as caught:
        atomicio.write_bytes(target, b"new")
    assert caught.value.committed is False
    monkeypatch.undo()
    assert target.read_bytes() == b"old"
    assert names(target.parent) == ["target"]


class TestTwoSteps:
    """The last resort, in its order: old aside, new in, old removed."""

    def died_between(self, target: Path) -> None:
        process = run(BETWEEN_THE_STEPS.format(stop="os._exit(9)"), target)
        assert finish(process) == "between\n"
        assert process.returncode == 9
        assert not target.exists()
        assert (target.parent / "target.atomicio-old").read_bytes() == b"old"

    def test_a_death_in_between_leaves_the_old_file_to_the_next_writer(self, target: Path) -> None:
        self.died_between(target)
        atomicio.write_bytes(target, b"newer")
        assert target.read_bytes() == b"newer"
        assert "target.atomicio-old" not in names(target.parent)

    def test_a_death_in_between_leaves_the_old_content_to_append_to(self, target: Path) -> None:
        self.died_between(target)
        with atomicio.atomic_write(target, "a") as file:
            file.write("+")
        assert target.read_bytes() == b"old+"

    def test_a_death_in_between_leaves_a_file_that_x_does_not_replace(self, target: Path) -> None:
        self.died_between(target)
        with pytest.raises(FileExistsError):
            atomicio.atomic_write(target, "x").open()
        assert target.read_bytes() == b"old"

    def test_a_death_in_between_leaves_the_old_content_to_shared_readers(self, target: Path) -> None:
        self.died_between(target)
        with atomicio.open_shared(target) as file:
            assert file.read() == "old"

    def test_a_failing_second_step_puts_the_old_file_back(self, target: Path) -> None:
        stop = "raise OSError(0, '', '', 112)"  # ERROR_DISK_FULL
        output = finish(run(BETWEEN_THE_STEPS.format(stop=stop), target))
        assert output.startswith("between\n")
        assert "end" not in output
        assert target.read_bytes() == b"old"
        assert names(target.parent) == ["target"]

    def test_an_interrupt_in_between_puts_the_old_file_back(self, target: Path) -> None:
        output = finish(run(BETWEEN_THE_STEPS.format(stop="raise KeyboardInterrupt"), target))
        assert "KeyboardInterrupt" in output
        assert target.read_bytes() == b"old"
        assert names(target.parent) == ["target"]

    def test_other_writers_wait_for_the_second_step(self, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        process = run(BETWEEN_THE_STEPS.format(stop="sys.stdin.read()"), target)
        try:
            assert process.stdout.readline() == "between\n"
            assert not target.exists()
            monkeypatch.setattr(atomicio.AtomicWriter, "busy_timeout", 0.3)
            with pytest.raises(PermissionError) as caught:
                atomicio.write_bytes(target, b"mine")
            assert caught.value.committed is False
            with atomicio.open_shared(target) as file:
                assert file.read() == "old"
        finally:
            assert finish(process) == "end\n"
        assert target.read_bytes() == b"new"
        assert names(target.parent) == ["target"]

    def test_a_writer_killed_in_between_holds_nobody_up(self, target: Path) -> None:
        process = run(BETWEEN_THE_STEPS.format(stop="sys.stdin.read()"), target)
        assert process.stdout.readline() == "between\n"
        process.kill()
        finish(process)
        atomicio.write_bytes(target, b"newer")
        assert target.read_bytes() == b"newer"
        assert names(target.parent)[1:] == ["target"]  # and the staging file of the one that was killed

    def test_an_old_file_left_aside_beside_a_new_one_is_in_nobodys_way(self, target: Path, impatient: float) -> None:
        (target.parent / "target.atomicio-old").write_bytes(b"older")
        atomicio.write_bytes(target, b"new")
        assert target.read_bytes() == b"new"
        with atomicio.open_shared(target):
            atomicio.write_bytes(target, b"newer")
        assert target.read_bytes() == b"newer"
        assert names(target.parent) == ["target"]

    @pytest.mark.skipif(not UNDER_WINE, reason="Windows has the POSIX rename, which needs no second name")
    def test_a_name_too_long_to_be_moved_aside_is_refused(self, tmp_path: Path, impatient: float) -> None:
        path = tmp_path / ("n" * 250)
        path.write_bytes(b"old")
        with atomicio.open_shared(path), pytest.raises(atomicio.UnreplaceableTargetError):
            atomicio.write_bytes(path, b"new")
        assert path.read_bytes() == b"old"
        assert names(tmp_path) == [path.name]


class TestRenameByHandle:
    def test_layout_of_the_structure(self, target: Path) -> None:
        """With FileRenameInfo, which Wine has too; FileRenameInfoEx takes the same structure."""
        source = target.parent / "source"
        source.write_bytes(b"new")
        with pytest.raises(FileExistsError):
            _win32.rename_by_handle(str(source), str(target), 3, 0)
        _win32.rename_by_handle(str(source), str(target), 3, 1)
        assert target.read_bytes() == b"new"
        assert names(target.parent) == ["target"]

    def test_over_an_open_file_where_the_system_can(self, target: Path) -> None:
        """Wine 8 does not know FileRenameInfoEx (error 87), and must be told from a failure."""
        source = target.parent / "source"
        source.write_bytes(b"new")
        with atomicio.open_shared(target) as reader:
            renamed = _win32.rename_posix(str(source), str(target))
            assert renamed is not UNDER_WINE
            assert reader.read() == "old"
        assert target.read_bytes() == (b"new" if renamed else b"old")

    def test_of_a_missing_source_is_an_error(self, target: Path) -> None:
        with pytest.raises(FileNotFoundError):
            _win32.rename_posix(str(target) + ".missing", str(target))


class TestNewFile:
    def test_x_never_replaces(self, target: Path) -> None:
        with pytest.raises(FileExistsError):
            atomicio.atomic_write(target, "x").open()
        assert target.read_bytes() == b"old"

    def test_x_is_decided_in_the_step_that_creates(self, tmp_path: Path) -> None:
        writer = atomicio.atomic_write(tmp_path / "late", "x")
        writer.open().write("mine")
        (tmp_path / "late").write_bytes(b"theirs")
        with pytest.raises(FileExistsError) as caught:
            writer.commit()
        assert caught.value.committed is False
        assert (tmp_path / "late").read_bytes() == b"theirs"
        assert names(tmp_path) == ["late"]

    def test_inherits_what_the_directory_gives(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_bytes(b"")
        atomicio.write_bytes(tmp_path / "ours", b"")
        assert _win32._dacl(str(tmp_path / "ours")) == _win32._dacl(str(tmp_path / "plain"))
        status = [os.stat(tmp_path / name) for name in ("plain", "ours")]
        assert status[0].st_file_attributes == status[1].st_file_attributes
        assert status[0].st_mode == status[1].st_mode

    def test_in_a_folder_one_may_not_write_is_refused_at_once(self, tmp_path: Path, monkeypatch) -> None:
        """tempfile.mkstemp tries 2**31 names there, since it takes the error for a name that exists."""
        if UNDER_WINE:
            folder = Path("Z:\\usr")  # Wine shows the permissions of the Unix directory
        else:
            folder = tmp_path / "closed"
            folder.mkdir()
            subprocess.run(["icacls", folder, "/deny", f"{os.environ['USERNAME']}:(WD,AD)"], check=True, stdout=-3)
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits"))
        start = time.monotonic()
        with pytest.raises(PermissionError) as caught:
            atomicio.write_bytes(folder / "atomicio-test", b"new")
        assert time.monotonic() - start < 60
        assert caught.value.committed is False
        assert not (folder / "atomicio-test").exists()


class TestMetadata:
    def test_read_only_is_refused_as_open_refuses(self, target: Path) -> None:
        os.chmod(target, stat.S_IREAD)
        with pytest.raises(PermissionError):
            target.open("wb")
        with pytest.raises(PermissionError) as caught:
            atomicio.write_bytes(target, b"new")
        assert caught.value.committed is False
        assert target.read_bytes() == b"old"
        assert names(target.parent) == ["target"]

    def test_permissions_set_and_clear_read_only(self, target: Path) -> None:
        atomicio.write_bytes(target, b"new", permissions=0o444)
        assert target.read_bytes() == b"new"
        assert not target.stat().st_mode & stat.S_IWRITE
        os.chmod(target, stat.S_IREAD | stat.S_IWRITE)
        atomicio.write_bytes(target, b"newer", permissions=0o666)
        assert target.stat().st_mode & stat.S_IWRITE

    def test_a_failed_read_only_write_leaves_nothing(self, target: Path, impatient: float) -> None:
        with held(target, OPEN_PLAINLY), pytest.raises(OSError):
            atomicio.write_bytes(target, b"new", permissions=0o444)
        assert names(target.parent) == ["target"]

    def test_hidden_stays_hidden(self, target: Path) -> None:
        """open(path, "w") of a hidden file fails on Windows (CreateFileW, CREATE_ALWAYS); "r+" does not, nor do we."""
        assert ctypes.windll.kernel32.SetFileAttributesW(str(target), HIDDEN)
        assert target.stat().st_file_attributes & HIDDEN
        atomicio.write_bytes(target, b"new")
        assert target.read_bytes() == b"new"
        assert target.stat().st_file_attributes & HIDDEN

    def test_access_rights_of_the_replaced_file_stay(self, target: Path) -> None:
        """Wine maps a DACL onto the mode of the Unix file, and back."""
        before = _win32._dacl(str(target))
        restrict(target)
        restricted = _win32._dacl(str(target))
        assert restricted != before
        atomicio.write_bytes(target, b"new")
        assert target.read_bytes() == b"new"
        assert _win32._dacl(str(target)) == restricted

    def test_creation_of_the_content_is_flushed_then_the_directory(self, target: Path, monkeypatch) -> None:
        for level, expected in (("none", []), ("consistent", ["file"]), ("durable", ["file", "directory"])):
            flushed = []

            def fsync(fd: int, real: Callable[[int], None] = os.fsync) -> None:
                flushed.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
                real(fd)

            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", fsync)
                atomicio.write_bytes(target, b"new", durability=level)
            assert flushed == expected

    @pytest.mark.parametrize("code", [5, 1, 50, 87])
    def test_a_directory_that_cannot_be_flushed_is_no_error(self, target: Path, code: int, monkeypatch) -> None:
        fail_to_flush_directories(monkeypatch, code)
        atomicio.write_bytes(target, b"new")
        assert target.read_bytes() == b"new"

    def test_a_directory_that_fails_to_be_flushed_is(self, target: Path, monkeypatch) -> None:
        fail_to_flush_directories(monkeypatch, 1117)  # ERROR_IO_DEVICE
        with pytest.raises(atomicio.NotDurableError) as caught:
            atomicio.write_bytes(target, b"new")
        assert caught.value.committed is True
        assert caught.value.errno == errno.EIO
        assert target.read_bytes() == b"new"

    def test_the_flush_says_why_it_failed(self, target: Path) -> None:
        """The C runtime turns every failure into EBADF; the reason is still in GetLastError."""
        descriptor = os.open(target, os.O_RDONLY)
        with pytest.raises(OSError) as caught:
            os.fsync(descriptor)
        assert (caught.value.errno, _winapi.GetLastError()) == (errno.EBADF, ACCESS_DENIED)
        os.close(descriptor)


def fail_to_flush_directories(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fsync(fd: int, real: Callable[[int], None] = os.fsync) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(_winapi, "GetLastError", lambda: code)


def restrict(path: Path) -> None:
    """Let only the owner in, whatever the directory gives: D:P(A;;FA;;;OW) with the owner's own SID."""
    advapi32, kernel32 = ctypes.WinDLL("advapi32"), ctypes.WinDLL("kernel32")
    size = ctypes.c_ulong()
    advapi32.GetFileSecurityW(str(path), 1, None, 0, ctypes.byref(size))
    owner = ctypes.create_string_buffer(size.value)
    assert advapi32.GetFileSecurityW(str(path), 1, owner, size, ctypes.byref(size))
    sid, defaulted, text = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_wchar_p()
    assert advapi32.GetSecurityDescriptorOwner(owner, ctypes.byref(sid), ctypes.byref(defaulted))
    assert advapi32.ConvertSidToStringSidW(sid, ctypes.byref(text))
    descriptor = ctypes.c_void_p()
    rights = f"D:P(A;;FA;;;{text.value})"
    assert advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorW(rights, 1, ctypes.byref(descriptor), None)
    assert advapi32.SetFileSecurityW(str(path), ctypes.c_ulong(0x80000004), descriptor)
    kernel32.LocalFree(descriptor)


def test_a_file_that_is_not_there_for_a_moment_is_not_said_to_have_odd_rights(tmp_path: Path) -> None:
    """A writer between its two steps: whoever asks for the old file's rights then has to be told that it is missing."""
    from atomicio import _win32

    with pytest.raises(FileNotFoundError):
        _win32._dacl(str(tmp_path / "absent"))


def test_rights_that_grow_while_they_are_read(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomicio import _win32

    real, asked = _win32._advapi32.GetFileSecurityW, []

    def once_smaller(path: str, what: int, buffer: object, room: int, size: object) -> int:
        done = real(path, what, buffer, room, size)
        asked.append(room)
        if len(asked) == 1:
            size._obj.value -= 4
        return done

    whole = _win32._dacl(str(target))
    monkeypatch.setattr(_win32._advapi32, "GetFileSecurityW", once_smaller)
    assert _win32._dacl(str(target)) == whole
    assert len(asked) == 3


class TestNames:
    def test_null_device_is_written_through(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        atomicio.write_bytes("NUL", b"new")
        with atomicio.atomic_write("nul", "w") as file:
            file.write("new")
        assert names(tmp_path) == []

    @pytest.mark.parametrize("name", ["CON", "aux.txt", "COM1", "lpt1.log", "con.", "PRN", "COM9.x"])
    def test_reserved_ones_do_what_open_does(self, tmp_path: Path, name: str, monkeypatch) -> None:
        """Devices up to Windows 10; on Windows 11 some are ordinary files."""
        monkeypatch.chdir(tmp_path)

        def outcome(function: Callable[[], object]) -> tuple[str, list[str]]:
            try:
                function()
            except OSError:
                result = "refused"
            else:
                result = "written"
            found = names(tmp_path)
            for file in found:
                os.unlink("\\\\?\\" + str(tmp_path / file))
            return result, found

        def plain() -> None:
            with open(name, "wb") as file:
                file.write(b"new")

        assert outcome(lambda: atomicio.write_bytes(name, b"new")) == outcome(plain)

    @pytest.mark.parametrize("character", [*'<>"|?*', "\x01", "\x1f"])
    def test_forbidden_characters_are_refused_on_entry(self, tmp_path: Path, character: str) -> None:
        with pytest.raises(OSError) as caught:
            atomicio.atomic_write(f"{tmp_path}\\a{character}b").open()
        assert caught.value.committed is False
        assert caught.value.errno == errno.EINVAL
        assert names(tmp_path) == []

    @pytest.mark.parametrize(
        "name", ["target.", "target ", "target. .", ".\\target", "sub\\..\\target", "sub/../target"]
    )
    def test_are_normalised_as_open_does(self, target: Path, name: str) -> None:
        atomicio.write_bytes(f"{target.parent}\\{name}", b"new")
        assert target.read_bytes() == b"new"
        assert names(target.parent) == ["target"]

    def test_streams_are_refused(self, target: Path) -> None:
        for stream in (":stream", "::$DATA", ":stream:$DATA"):
            with pytest.raises(atomicio.UnreplaceableTargetError) as caught:
                atomicio.write_bytes(f"{target}{stream}", b"new")
            assert caught.value.committed is False
        assert target.read_bytes() == b"old"
        assert names(target.parent) == ["target"]

    def test_upper_and_lower_case_stay_as_they_are(self, tmp_path: Path) -> None:
        for name in ("MiXed", "mixed", "MIXED"):
            atomicio.write_bytes(tmp_path / name, name.encode())
        assert names(tmp_path) == ["MiXed"]
        assert (tmp_path / "mixed").read_bytes() == b"MIXED"
        with pytest.raises(FileExistsError):
            atomicio.atomic_write(tmp_path / "mIxEd", "x").open()

    def test_short_names_are_the_long_ones(self, tmp_path: Path) -> None:
        path = tmp_path / "a rather long name.text"
        path.write_bytes(b"old")
        short = ctypes.create_unicode_buffer(300)
        assert ctypes.windll.kernel32.GetShortPathNameW(str(path), short, 300)
        if Path(short.value).name == path.name:
            pytest.skip("this volume has no short names")
        atomicio.write_bytes(short.value, b"new")
        assert path.read_bytes() == b"new"
        assert names(tmp_path) == [path.name]

    @pytest.mark.parametrize("length", [200, 225, 240, 250, 258, 259, 260, 261, 300, 1000])
    def test_long_paths(self, tmp_path: Path, length: int) -> None:
        """Wine and a Windows with LongPathsEnabled do not limit them; ours do not depend on either."""
        folder = str(tmp_path)
        while length - len(folder) > 240:
            folder += "\\" + "d" * 100
        os.makedirs("\\\\?\\" + folder, exist_ok=True)
        path = folder + "\\" + "n" * (length - len(folder) - 1)
        assert len(path) == length
        atomicio.write_bytes(path, b"old")
        atomicio.write_bytes(path, b"new", backup=".bak")
        with atomicio.atomic_write(path, "a") as file:
            file.write("+")
        with open("\\\\?\\" + path, "rb") as file:
            assert file.read() == b"new+"
        with atomicio.open_shared(path) as file:
            assert file.read() == "new+"
        assert len(os.listdir("\\\\?\\" + folder)) == 2

    def test_verbatim_paths(self, target: Path) -> None:
        atomicio.write_bytes(f"\\\\?\\{target}", b"new")
        assert target.read_bytes() == b"new"

    def test_component_of_255_and_256(self, tmp_path: Path) -> None:
        atomicio.write_bytes(tmp_path / ("n" * 255), b"new")
        with pytest.raises(OSError) as caught:
            atomicio.write_bytes(tmp_path / ("n" * 256), b"new")
        assert caught.value.committed is False
        assert len(names(tmp_path)) == 1

    def test_missing_parents(self, tmp_path: Path) -> None:
        atomicio.write_bytes(tmp_path / "a/b\\c/target", b"new", make_parents=True)
        assert (tmp_path / "a" / "b" / "c" / "target").read_bytes() == b"new"

    def test_directories(self, tmp_path: Path) -> None:
        for name in ("folder", "folder\\", "folder/."):
            (tmp_path / "folder").mkdir(exist_ok=True)
            with pytest.raises(IsADirectoryError):
                atomicio.write_bytes(f"{tmp_path}\\{name}", b"new")
        assert (tmp_path / "folder").is_dir()

    def test_symbolic_links(self, target: Path) -> None:
        link = target.parent / "link"
        try:
            link.symlink_to(target.name)
            made = link.is_symlink()
        except OSError:
            made = False
        if not made:
            pytest.skip("no symbolic links: Wine 8 has none, Windows wants a privilege")
        atomicio.write_bytes(link, b"new")
        assert link.is_symlink()
        assert target.read_bytes() == b"new"
        atomicio.write_bytes(link, b"newer", follow_symlinks=False)
        assert not link.is_symlink()
        assert (target.read_bytes(), link.read_bytes()) == (b"new", b"newer")


class TestVolumes:
    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Iterator[Path]:
        for letter in "DEFGH":
            volume = Path(f"{letter}:\\")
            if volume.exists() and volume.stat().st_dev != tmp_path.stat().st_dev:
                folder = volume / f"atomicio-{os.getpid()}"
                try:
                    folder.mkdir()
                except OSError:
                    continue
                yield folder
                for name in names(folder):
                    (folder / name).unlink()
                folder.rmdir()
                return
        pytest.skip("this machine has one volume")

    def test_renames_between_them_fail_at_once(self, target: Path, elsewhere: Path, monkeypatch) -> None:
        monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits"))
        with pytest.raises(OSError) as caught:
            _windows.patiently(10, os.replace, target, elsewhere / "target")
        assert (caught.value.errno, caught.value.winerror) == (errno.EXDEV, 17)

    def test_staging_is_on_the_target_s(self, tmp_path: Path, elsewhere: Path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        for content in (b"old", b"new"):
            atomicio.write_bytes(elsewhere / "target", content)
            assert (elsewhere / "target").read_bytes() == content
        with atomicio.atomic_path(elsewhere / "target") as path:
            assert Path(path).parent == elsewhere
            Path(path).write_bytes(b"newer")
        assert (elsewhere / "target").read_bytes() == b"newer"
        assert names(elsewhere) == ["target"]
        assert names(tmp_path) == []


class TestLock:
    HOLDER = (
        "import atomicio\nwith atomicio.atomic_write(path, lock=True):\n    print('held', flush=True); sys.stdin.read()"
    )

    def test_is_waited_for_and_given_up(self, target: Path) -> None:
        process = run(self.HOLDER, target)
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(OSError) as caught:
                atomicio.write_bytes(target, b"new", lock=0.3)
            assert caught.value.committed is False
            assert caught.value.errno == errno.ETIMEDOUT
            assert target.read_bytes() == b"old"
        finally:
            finish(process)
        atomicio.write_bytes(target, b"new", lock=10.0)
        assert target.read_bytes() == b"new"

    def test_of_a_killed_holder_is_free(self, target: Path) -> None:
        process = run(self.HOLDER, target)
        assert process.stdout.readline() == "held\n"
        process.kill()
        finish(process)
        atomicio.write_bytes(target, b"new", lock=10.0)
        assert target.read_bytes() == b"new"


WRITER = """
import atomicio
atomicio.AtomicWriter.busy_timeout = 30
who, count = sys.argv[2], int(sys.argv[3])
refused = 0
for number in range(count):
    try:
        atomicio.write_bytes(path, (who * 50_000).encode(), durability='none')
    except (PermissionError, atomicio.UnreplaceableTargetError):
        refused += 1
print(refused)
"""
READER = """
import atomicio, time
seen, wrong = set(), []
while not os.path.exists(path + '.stop'):
    try:
        with atomicio.open_shared(path, 'rb', busy_timeout=30) as file:
            content = file.read()
    except Exception as error:
        wrong.append(repr(error))
        continue
    seen.add(content[:1])
    if len(content) != 50_000 or len(set(content)) != 1:
        wrong.append((len(content), content[:1]))
print(wrong[:3], len(seen) > 0)
"""


class TestRaces:
    def test_writers_and_shared_readers(self, tmp_path: Path) -> None:
        """Every read sees one whole version. Writers with time are never refused: readers share, and open for moments only."""
        target = tmp_path / "target"
        target.write_bytes(b"0" * 50_000)
        readers = [run(READER, target) for _ in range(2)]
        writers = [run(WRITER, target, who, 5) for who in "ABC"]
        refused = [finish(writer) for writer in writers]
        (tmp_path / "target.stop").touch()
        assert [finish(reader) for reader in readers] == ["[] True\n"] * 2
        assert refused == ["0\n"] * 3
        content = target.read_bytes()
        assert len(content) == 50_000
        assert len(set(content)) == 1
        assert names(tmp_path) == ["target", "target.stop"]

    def test_creators(self, tmp_path: Path) -> None:
        program = """
import atomicio
while not os.path.exists(path + '.go'): pass
try:
    with atomicio.atomic_write(path, 'x') as file: file.write(sys.argv[2])
    print('made')
except FileExistsError:
    print('late')
"""
        target = tmp_path / "target"
        creators = [run(program, target, who) for who in "ABCD"]
        (tmp_path / "target.go").touch()
        results = [finish(creator).strip() for creator in creators]
        assert sorted(results) == ["late", "late", "late", "made"]
        assert target.read_text() == "ABCD"[results.index("made")]
        assert names(tmp_path) == ["target", "target.go"]

    def test_read_modify_write_under_the_lock_loses_nothing(self, tmp_path: Path) -> None:
        program = """
import atomicio
for _ in range(10):
    with atomicio.atomic_write(path, 'r+', lock=True) as file:
        number = int(file.read()); file.seek(0); file.write(str(number + 1))
"""
        target = tmp_path / "counter"
        target.write_text("0")
        for process in [run(program, target) for _ in range(3)]:
            assert finish(process) == ""
        assert target.read_text() == "30"


class TestOpenShared:
    def test_reads_as_open_does(self, target: Path) -> None:
        target.write_bytes("ä\r\nb".encode())
        with atomicio.open_shared(target) as file:
            assert file.read() == "ä\nb"
            assert file.name == str(target) or file.name == target
        with atomicio.open_shared(str(target), "rb") as file:
            assert file.read() == "ä\r\nb".encode()
        with atomicio.open_shared(os.fsencode(target), newline="") as file:
            assert file.read() == "ä\r\nb"

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError) as caught:
            atomicio.open_shared(tmp_path / "missing")
        assert caught.value.filename == str(tmp_path / "missing")

    def test_a_directory_is_refused(self, tmp_path: Path, monkeypatch) -> None:
        with pytest.raises(PermissionError):
            atomicio.open_shared(tmp_path, busy_timeout=0.1)

    def test_lets_others_remove_the_file(self, target: Path) -> None:
        with atomicio.open_shared(target) as file:
            target.unlink()
            assert file.read() == "old"
        assert names(target.parent) == []


def test_importing_and_creating_a_file_load_nothing_heavy(tmp_path: Path) -> None:
    program = """
import atomicio
before = set(sys.modules)
atomicio.write_bytes(path, b'new')
print(sorted(set(sys.modules) - before), 'ctypes' in sys.modules)
"""
    assert finish(run(program, tmp_path / "target")) == "[] False\n"


def test_replacing_works_with_the_import_system_closed(target: Path) -> None:
    """pytest writes its caches while sys.meta_path is empty. What cannot be loaded then is done without."""
    program = "import atomicio\nsys.meta_path.clear()\natomicio.write_bytes(path, b'new')"
    assert finish(run(program, target)) == ""
    assert target.read_bytes() == b"new"
