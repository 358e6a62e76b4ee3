"""Writers that take turns: the lock beside the target, a timeout, any other lock; and what it costs who needs none."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import filelock
import pytest

import atomicio
from oracle import AS_ROOT, LINUX, as_ordinary_user, bind_mounted, public_directory, read, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
posix_only = pytest.mark.skipif(os.name != "posix", reason="links and names as POSIX has them")


class Recorder:
    """A lock that notes when it is held, and what the directory looks like then."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = directory
        self.events: list[str] = []
        self.held = False
        self.arguments: tuple[object, ...] = ()

    def __enter__(self) -> Self:
        self.events.append("enter")
        self.held = True
        return self

    def __exit__(self, *arguments: object) -> None:
        self.events.append("exit")
        self.held = False
        self.arguments = arguments


def lock_file(target: Path) -> Path:
    return target.with_name(target.name + ".lock")


def held(target: Path) -> bool:
    """Whether somebody else has the lock beside *target*."""
    try:
        with filelock.FileLock(lock_file(target), timeout=0):
            return False
    except filelock.Timeout:
        return True


def by_block(target: Path, **keywords: Any) -> None:
    with atomicio.atomic_write(target, **keywords) as file:
        file.write("new")


def by_update(target: Path, **keywords: Any) -> None:
    with atomicio.atomic_write(target, "a", **keywords) as file:
        file.write("new")


def by_bytes(target: Path, **keywords: Any) -> None:
    atomicio.write_bytes(target, b"new", **keywords)


def by_text(target: Path, **keywords: Any) -> None:
    atomicio.write_text(target, "new", **keywords)


def by_path(target: Path, **keywords: Any) -> None:
    with atomicio.atomic_path(target, **keywords) as staging:
        write(staging, b"new")


every_way = pytest.mark.parametrize("way", [by_block, by_update, by_bytes, by_text, by_path])


def test_the_lock_beside_the_target_is_held_for_the_block_and_free_afterwards(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with atomicio.atomic_write(target, lock=True) as file:
        file.write("new")
        assert held(target)
    assert not held(target)
    assert read(target) == b"new"
    assert set(os.listdir(tmp_path)) <= {"target", "target.lock"}


@every_way
def test_any_context_manager_is_held_once_and_given_back(tmp_path: Path, way: Callable[..., None]) -> None:
    lock = Recorder()
    way(tmp_path / "target", lock=lock)
    assert lock.events == ["enter", "exit"]
    assert lock.arguments == (None, None, None)
    assert os.listdir(tmp_path) == ["target"]


@every_way
def test_the_lock_is_held_from_before_the_copy_until_after_the_last_sync(
    tmp_path: Path, way: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    write(target, b"old")
    lock = Recorder()
    unlocked: list[str] = []
    calls: list[str] = []
    for name in ("rename", "link", "fsync", "copy_file_range", "fchmod", "fchown", "write"):
        if not hasattr(os, name):
            continue
        real = getattr(os, name)

        def watched(*arguments: Any, _name: str = name, _real: Any = real, **keywords: Any) -> Any:
            calls.append(_name)
            if not lock.held:
                unlocked.append(_name)
            return _real(*arguments, **keywords)

        monkeypatch.setattr(os, name, watched)
    way(target, lock=lock, durability="durable")
    monkeypatch.undo()
    assert calls.count("fsync") == 2, "of the file and of its directory"
    assert unlocked == []


@pytest.mark.parametrize("mode", ["w", "a", "r+"])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, SystemExit])
def test_an_exception_gives_the_lock_back(tmp_path: Path, mode: str, error: type[BaseException]) -> None:
    target = tmp_path / "target"
    write(target, b"old")
    lock = Recorder()
    for given in (lock, True):
        with pytest.raises(error), atomicio.atomic_write(target, mode, lock=given) as file:
            file.write("new")
            raise error
    assert lock.events == ["enter", "exit"]
    assert not held(target)
    assert read(target) == b"old"


def test_an_error_on_entry_gives_the_lock_back(tmp_path: Path) -> None:
    lock = Recorder()
    with pytest.raises(FileNotFoundError):
        atomicio.atomic_write(tmp_path / "target", "r+", lock=lock).open()
    assert lock.events in ([], ["enter", "exit"])
    with pytest.raises(FileNotFoundError):
        atomicio.atomic_write(tmp_path / "target", "r+", lock=True).open()
    assert not held(tmp_path / "target")


def test_abort_and_a_dropped_writer_give_the_lock_back(tmp_path: Path) -> None:
    lock = Recorder()
    writer = atomicio.atomic_write(tmp_path / "target", lock=lock)
    writer.open()
    writer.abort()
    assert lock.events == ["enter", "exit"]
    lock = Recorder()
    writer = atomicio.atomic_write(tmp_path / "target", lock=lock)
    writer.open()
    with pytest.warns(ResourceWarning):
        del writer
    assert lock.events == ["enter", "exit"]


def test_a_lock_that_fails_leaves_everything(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(target, b"old")

    class Broken:
        def __enter__(self) -> None:
            raise RuntimeError("no lock today")

        def __exit__(self, *_: object) -> None:
            pytest.fail("it was never held")

    with pytest.raises(RuntimeError, match="no lock today"):
        atomicio.write_bytes(target, b"new", lock=Broken())
    assert read(target) == b"old"
    assert os.listdir(tmp_path) == ["target"]


# ---------------------------------------------------------------------------------------------------------------------
# Timeouts
# ---------------------------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("timeout", [0, 0.2, 1])
def test_a_lock_that_is_not_obtained_in_time_is_an_error_that_says_so(
    tmp_path: Path, way: Callable[..., None], timeout: float
) -> None:
    target = tmp_path / "target"
    write(target, b"old")
    with other_process_holds(lock_file(target)):
        begun = time.monotonic()
        with pytest.raises(OSError) as caught:
            way(target, lock=timeout)
        took = time.monotonic() - begun
    assert timeout <= took + 0.05
    assert took < timeout + 60
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert error.errno == errno.ETIMEDOUT
    assert os.fspath(error.filename) == os.fspath(target)
    assert error.committed is False  # type: ignore[attr-defined]
    assert "lock" in str(error)
    assert read(target) == b"old"


@pytest.mark.parametrize("timeout", [0, 0.7, 30])
def test_the_timeout_is_what_filelock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timeout: float) -> None:
    """No clock could tell: what a busy machine takes longer is no fault."""
    told: list[float] = []

    class Recording(filelock.FileLock):
        def acquire(self, timeout: float | None = None, *arguments: Any, **keywords: Any) -> Any:
            told.append(self.timeout if timeout is None else timeout)
            return super().acquire(timeout, *arguments, **keywords)

    monkeypatch.setattr(filelock, "FileLock", Recording)
    atomicio.write_bytes(tmp_path / "target", b"new", lock=timeout)
    assert told == [timeout]


@contextlib.contextmanager
def other_process_holds(lock: Path) -> Iterator[None]:
    code = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"held"
        yield
        process.communicate()


def test_true_waits_until_the_lock_is_free(tmp_path: Path) -> None:
    target = tmp_path / "target"
    done: list[float] = []

    def work() -> None:
        atomicio.write_bytes(target, b"new", lock=True)
        done.append(time.monotonic())

    with other_process_holds(lock_file(target)):
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.4)
        assert not done
        assert not target.exists()
        freed = time.monotonic()
    thread.join(120)
    assert done and done[0] >= freed
    assert read(target) == b"new"


@pytest.mark.parametrize("lock", [None, False])
def test_without_a_lock_nobody_waits(tmp_path: Path, lock: Any) -> None:
    with other_process_holds(lock_file(tmp_path / "target")):
        atomicio.write_bytes(tmp_path / "target", b"new", lock=lock)
    assert read(tmp_path / "target") == b"new"


# ---------------------------------------------------------------------------------------------------------------------
# No lost update
# ---------------------------------------------------------------------------------------------------------------------


def increment(target: str, count: int, lock: Any) -> None:
    for _ in range(count):
        with atomicio.atomic_write(target, "r+", lock=lock, durability="none") as file:
            number = int(file.read()) + 1
            file.seek(0)
            file.write(str(number))


def test_processes_that_count_together_lose_nothing(tmp_path: Path) -> None:
    """8 processes x 1,000 increments."""
    target = tmp_path / "counter"
    write(target, b"0")
    context = multiprocessing.get_context("fork" if LINUX else "spawn")
    processes = [context.Process(target=increment, args=(str(target), 1000, True)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * 8
    assert read(target) == b"8000"
    assert not [name for name in os.listdir(tmp_path) if ".tmp" in name]


@pytest.mark.parametrize(
    "make", [threading.Lock, threading.RLock, lambda: threading.Semaphore(1), lambda: threading.Condition()]
)
def test_threads_that_count_together_by_their_own_lock_lose_nothing(tmp_path: Path, make: Callable[[], Any]) -> None:
    target = tmp_path / "counter"
    write(target, b"0")
    lock = make()
    threads = [threading.Thread(target=increment, args=(str(target), 100, lock)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(target) == b"800"


def test_threads_that_count_together_by_the_lock_beside_lose_nothing(tmp_path: Path) -> None:
    """Each writer has a FileLock object of its own; two in one process must not let each other in."""
    target = tmp_path / "counter"
    write(target, b"0")
    threads = [threading.Thread(target=increment, args=(str(target), 50, True)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read(target) == b"400"


def test_without_a_lock_a_lost_update_is_an_error_and_never_silent(tmp_path: Path) -> None:
    target = tmp_path / "counter"
    write(target, b"0")
    refused: list[BaseException] = []

    def work() -> None:
        for _ in range(100):
            try:
                increment(str(target), 1, None)
            except atomicio.TargetChangedError as error:
                refused.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The check and the rename are two steps: without a lock an update can still be lost between them, never gained.
    assert int(read(target)) + len(refused) <= 400
    assert all(error.committed is False for error in refused)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------------------
# Ready-made locks, and which file is the lock
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [filelock.FileLock, filelock.SoftFileLock])
def test_a_filelock_of_ones_own(tmp_path: Path, kind: Any) -> None:
    (tmp_path / "locks").mkdir()
    lock = kind(tmp_path / "locks" / "mine")
    with atomicio.atomic_write(tmp_path / "target", lock=lock) as file:
        assert lock.is_locked
        file.write("new")
    assert not lock.is_locked
    assert sorted(os.listdir(tmp_path)) == ["locks", "target"]


def test_a_lock_that_is_held_already_may_be_given_again(tmp_path: Path) -> None:
    """filelock's locks are reentrant as objects: several files under one lock."""
    lock = filelock.FileLock(tmp_path / "mine.lock")
    with lock:
        atomicio.write_bytes(tmp_path / "a", b"new", lock=lock)
        assert lock.is_locked
        atomicio.write_bytes(tmp_path / "b", b"new", lock=lock)
    assert not lock.is_locked


@posix_only
@pytest.mark.parametrize(
    "alias", ["relative", "absolute", "chain", "through-directory", "dots", "bytes", "relative-path"]
)
def test_every_spelling_of_a_path_shares_the_lock(tmp_path: Path, alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    real.mkdir()
    target = real / "target"
    write(target, b"old")
    monkeypatch.chdir(tmp_path)
    path: Any = tmp_path / "link"
    if alias == "relative":
        os.symlink("real/target", path)
    elif alias == "absolute":
        os.symlink(target, path)
    elif alias == "chain":
        os.symlink("second", path)
        os.symlink(target, tmp_path / "second")
    elif alias == "through-directory":
        os.symlink("real", path)
        path = path / "target"
    elif alias == "dots":
        path = f"{tmp_path}/real/../real/./target"
    elif alias == "bytes":
        path = os.fsencode(target)
    else:
        path = "real/target"
    with atomicio.atomic_write(path, lock=True) as file:
        file.write("new")
        assert held(target)
        with pytest.raises(TimeoutError):
            atomicio.write_bytes(target, b"other", lock=0)
    with atomicio.atomic_write(target, lock=True) as file:
        file.write("newer")
        with pytest.raises(TimeoutError):
            atomicio.write_bytes(path, b"other", lock=0)
    assert read(target) == b"newer"
    assert not (tmp_path / "link.lock").exists()


@posix_only
@pytest.mark.parametrize("length", [249, 250, 251, 255])
def test_the_longest_names_have_a_lock_too(tmp_path: Path, length: int) -> None:
    target = tmp_path / ("n" * length)
    with atomicio.atomic_write(target, lock=True) as file:
        file.write("new")
        with pytest.raises(TimeoutError):
            atomicio.write_bytes(target, b"other", lock=0)
    with atomicio.atomic_write(tmp_path / ("m" * length), lock=True):
        atomicio.write_bytes(target, b"newer", lock=0)
    assert read(target) == b"newer"


def test_the_lock_of_a_missing_directory_is_no_new_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        atomicio.write_bytes(tmp_path / "missing" / "target", b"new", lock=True)
    assert "missing" in str(caught.value)
    atomicio.write_bytes(tmp_path / "made" / "target", b"new", lock=True, make_parents=True)
    assert read(tmp_path / "made" / "target") == b"new"


@pytest.mark.skipif(not AS_ROOT or not LINUX, reason="takes Linux and an ordinary user")
def test_a_lock_that_cannot_be_made_is_an_error_that_names_the_target() -> None:
    with public_directory() as directory:
        os.mkdir(f"{directory}/sub", 0o755)
        write(f"{directory}/sub/target", b"old")
        os.chmod(f"{directory}/sub/target", 0o666)

        def act() -> tuple[Any, ...]:
            try:
                atomicio.write_bytes(f"{directory}/sub/target", b"new", lock=True)
            except OSError as error:
                return error.errno, error.filename, error.committed, str(error)  # type: ignore[attr-defined]
            return ()

        number, filename, committed, message = as_ordinary_user(act)
        assert (number, filename, committed) == (errno.EACCES, f"{directory}/sub/target", False)
        assert "lock" in message
        assert read(f"{directory}/sub/target") == b"old"


@pytest.mark.skipif(not AS_ROOT or not LINUX, reason="takes Linux and root")
def test_in_place_is_written_under_the_lock(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(tmp_path / "source", b"old")
    write(target, b"")
    lock = Recorder()
    with bind_mounted(str(tmp_path / "source"), str(target)):
        with atomicio.atomic_write(target, lock=lock, fallback="in-place") as file:
            file.write("new")
            assert read(target) == b"old"
            assert lock.held
        assert read(target) == b"new"
        with other_process_holds(lock_file(target)), pytest.raises(TimeoutError):
            atomicio.write_bytes(target, b"other", lock=0, fallback="in-place")
        assert read(target) == b"new"
    assert lock.events == ["enter", "exit"]


def test_the_content_is_looked_at_only_under_the_lock(tmp_path: Path) -> None:
    """What another writer did while one waited is not "changed meanwhile": the copy is made afterwards."""
    target = tmp_path / "target"
    write(target, b"1")

    class Slow:
        def __enter__(self) -> None:
            write(target, b"2")

        def __exit__(self, *_: object) -> None:
            pass

    with atomicio.atomic_write(target, "r+", lock=Slow()) as file:
        assert file.read() == "2"
        file.write("3")
    assert read(target) == b"23"
    os.unlink(target)
    with pytest.raises(FileExistsError):  # the file is made by whoever had the lock before
        atomicio.atomic_write(target, "x", lock=Slow()).open()


# ---------------------------------------------------------------------------------------------------------------------
# What it costs who needs none
# ---------------------------------------------------------------------------------------------------------------------


def test_filelock_is_imported_only_when_a_lock_beside_the_target_is_asked_for(tmp_path: Path) -> None:
    code = (
        "import sys, threading, atomicio\n"
        "target = sys.argv[1]\n"
        "assert 'filelock' not in sys.modules, 'by the import'\n"
        "atomicio.write_bytes(target, b'x')\n"
        "with atomicio.atomic_write(target, 'a') as f: f.write('x')\n"
        "assert 'filelock' not in sys.modules, 'by a write'\n"
        "atomicio.write_bytes(target, b'x', lock=threading.Lock())\n"
        "assert 'filelock' not in sys.modules, 'by a lock of ones own'\n"
        "atomicio.write_bytes(target, b'x', lock=True)\n"
        "assert 'filelock' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "target")], check=True, env=ENVIRONMENT)


def test_without_filelock_everything_but_the_lock_beside_works(tmp_path: Path) -> None:
    code = (
        "import sys, threading, atomicio\n"
        "sys.modules['filelock'] = None\n"
        "target = sys.argv[1]\n"
        "atomicio.write_bytes(target, b'new', lock=threading.Lock())\n"
        "try: atomicio.write_bytes(target, b'newer', lock=True)\n"
        "except ImportError: pass\n"
        "else: raise SystemExit('written without the lock that was asked for')\n"
        "import os; assert os.listdir(os.path.dirname(target)) == ['target'], os.listdir(os.path.dirname(target))\n"
        "assert open(target).read() == 'new'\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "target")], check=True, env=ENVIRONMENT)


@pytest.mark.parametrize("end", ["commit", "abort"])
def test_a_writer_that_goes_from_thread_to_thread_takes_its_lock_with_it(end: str, no_litter: Path) -> None:
    """As the threads of an executor: none of them has ended, so none gives up what it holds by ending."""
    target = no_litter / "target"
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as another:
        writer = atomicio.atomic_write(target, lock=True)
        one.submit(writer.open).result().write("new")
        assert held(target)
        another.submit(getattr(writer, end)).result()
        assert not held(target)
