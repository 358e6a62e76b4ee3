"""Many threads and several interpreters at once: the library keeps nothing that they would share.

On a free-threaded build the threads really run at the same time; ``tox run -e wine`` runs this file on one.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import atomicio

THREADS = 32
ROUNDS = 6


def in_threads(function: Callable[[int], None]) -> None:
    """Call *function* in 32 threads that start together, and raise what any of them raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            barrier.wait(60)
            for _ in range(ROUNDS):
                function(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise BaseExceptionGroup(f"{len(errors)} threads failed", errors)


@pytest.fixture(autouse=True)
def often_switched():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_different_targets(tmp_path: Path) -> None:
    def write(number: int) -> None:
        target = tmp_path / f"{number}"
        with atomicio.atomic_write(target, durability="none") as file:
            file.write(f"{number}\n" * 1000)
        atomicio.write_bytes(target, b"%d" % number * 1000, durability="none")
        assert target.read_bytes() == b"%d" % number * 1000

    in_threads(write)
    assert sorted(os.listdir(tmp_path), key=int) == [str(number) for number in range(THREADS)]


@pytest.mark.skipif(os.name == "nt", reason="32 threads that hold one file open against each other: see test_windows")
def test_one_target(tmp_path: Path) -> None:
    """Whoever reads sees one thread's content, whole."""
    target = tmp_path / "target"
    target.write_bytes(b"\0" * 20_000)

    def write(number: int) -> None:
        atomicio.write_bytes(target, bytes([number]) * 20_000, durability="none")
        content = target.read_bytes()
        assert (len(content), len(set(content))) == (20_000, 1)

    in_threads(write)
    assert os.listdir(tmp_path) == ["target"]


def test_one_name_that_only_one_can_create(tmp_path: Path) -> None:
    outcomes: Counter[str] = Counter()
    lock = threading.Lock()

    def create(number: int) -> None:
        try:
            with atomicio.atomic_write(tmp_path / "target", "x", durability="none") as file:
                file.write(str(number))
        except FileExistsError:
            outcome = "late"
        else:
            outcome = "created"
        with lock:
            outcomes[outcome] += 1

    in_threads(create)
    assert outcomes == {"created": 1, "late": THREADS * ROUNDS - 1}
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("kind", ["file beside the target", "lock of the caller"])
def test_no_update_is_lost_under_a_lock(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    target.write_text("0")
    lock = threading.Lock() if kind == "lock of the caller" else True

    def count(_: int) -> None:
        with atomicio.atomic_write(target, "r+", lock=lock, durability="none") as file:
            number = int(file.read())
            file.seek(0)
            file.write(str(number + 1))

    in_threads(count)
    assert target.read_text() == str(THREADS * ROUNDS)


def test_appends_without_a_lock_leave_whole_lines(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("")
    done: list[str] = []

    def append(number: int) -> None:
        try:
            with atomicio.atomic_write(target, "a", durability="none") as file:
                file.write(f"{number:02}\n")
        except (atomicio.TargetChangedError, atomicio.UnreplaceableTargetError, PermissionError) as error:
            assert error.committed is False  # type: ignore[attr-defined]
            return
        done.append(f"{number:02}")

    for number in range(4):  # alone, so that something is done for certain
        append(number)
    in_threads(append)
    content = target.read_text().split()
    assert set(content) <= set(done)
    assert len(content) >= 4
    assert os.listdir(tmp_path) == ["target"]


def test_threads_that_abort_beside_threads_that_commit(tmp_path: Path) -> None:
    def write(number: int) -> None:
        target = tmp_path / f"{number % 16}"
        if number < 16:
            atomicio.write_bytes(target, b"%d" % number, durability="none")
            return
        try:
            with atomicio.atomic_write(tmp_path / f"aborted-{number}", durability="none") as file:
                file.write("half")
                raise RuntimeError
        except RuntimeError:
            pass

    in_threads(write)
    assert sorted(os.listdir(tmp_path), key=int) == [str(number) for number in range(16)]


CONTAINERS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


def changes(node: ast.Assign | ast.AnnAssign, value: ast.expr | None) -> bool:
    """Whether something is to be put into what is assigned: what begins empty, or is not named as a constant."""
    if isinstance(value, ast.Call):
        return getattr(value.func, "id", "") in {"list", "dict", "set", "bytearray"} and not value.args
    if not isinstance(value, CONTAINERS):
        return False
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    empty = not any(getattr(value, part, None) for part in ("elts", "keys", "generators"))
    return empty or any(name.id != "__all__" and name.id != name.id.upper() for name in targets)  # type: ignore[attr-defined]


STATE_WITH_A_REASON: set[str] = set()


def test_modules_keep_nothing_that_changes() -> None:
    """Module level holds constants, functions and classes: nothing that one thread could change under another."""
    found = []
    for path in sorted(Path(atomicio.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [f"{path.name}: {node.names}" for node in ast.walk(tree) if isinstance(node, ast.Global)]
        for node in tree.body:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and changes(node, node.value):
                found.append(f"{path.name}: {ast.unparse(node)}")
    assert set(found) <= STATE_WITH_A_REASON


SUBINTERPRETERS = """
import importlib, sys, threading
interpreters = importlib.import_module(sys.argv[1])
failures = []

def run(number):
    target = f"{sys.argv[2]}/{number}"
    program = f'''
import sys; sys.path[:] = {sys.path!r}
import atomicio
for round in range(5):
    atomicio.write_bytes({target!r}, b'{number}' * 1000)
    with atomicio.atomic_write({target!r}, 'a') as file: file.write('+')
'''
    try:
        interpreter = interpreters.create()
        if sys.version_info >= (3, 14):
            interpreter.exec(program)
            interpreter.close()
            return
        if sys.version_info >= (3, 13):
            failure = interpreters.exec(interpreter, program)
            if failure is not None:
                failures.append(failure.formatted)
        else:
            interpreters.run_string(interpreter, program)
        interpreters.destroy(interpreter)
    except BaseException as error:
        failures.append(repr(error))

threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(120)
sys.exit("\\n".join(failures) or None)
"""


def test_each_interpreter_has_its_own(tmp_path: Path) -> None:
    """Subinterpreters with a GIL of their own, side by side in threads (PEP 684, PEP 734)."""
    if sys.version_info >= (3, 14):
        interpreters = pytest.importorskip("concurrent.interpreters", reason="this build has no subinterpreters")
    elif sys.version_info >= (3, 13):
        interpreters = pytest.importorskip("_interpreters", reason="this build has no subinterpreters")
    else:
        interpreters = pytest.importorskip("_xxsubinterpreters", reason="this build has no subinterpreters")
    # In a process of its own: on Windows with 3.11, filelock fails in ctypes after subinterpreters have imported that.
    done = subprocess.run(
        [sys.executable, "-c", SUBINTERPRETERS, interpreters.__name__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3"]
    for number in range(4):
        assert (tmp_path / f"{number}").read_bytes() == b"%d" % number * 1000 + b"+"
