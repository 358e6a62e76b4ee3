"""KeyboardInterrupt at every bytecode: old or new, never a leftover file, no descriptor that stays open.

A signal handler runs between two bytecodes, so whatever happens inside one is one step. The sweep raises
KeyboardInterrupt at the first bytecode of an operation, then at the second, until the operation comes through: more
places than a signal really finds, for the interpreter looks for signals only at calls and jumps. The storm sends real
signals at random moments.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import random
import signal
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import CodeType, FrameType, ModuleType
from typing import TYPE_CHECKING, Any

import pytest

import atomicio
from atomicio import _syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

pytestmark = [
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="counts bytecodes of CPython"),
    pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="no /dev/fd to list the open descriptors"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

OLD = b"the old content\n" * 10
NEW = b"what is to be there\n" * 20


class BodyError(Exception):
    pass


# -- the operations ---------------------------------------------------------------------------------------------------
# Plain functions without a cleanup of their own: what they leave is what the library leaves.


def with_block(target: str, **keywords: Any) -> None:
    with atomicio.atomic_write(target, "wb", **keywords) as file:
        file.write(NEW)


def text_block(target: str) -> None:
    with atomicio.atomic_write(target, durability="none") as file:
        file.write(NEW.decode())


def unbuffered(target: str) -> None:
    with_block(target, buffering=0, durability="none")


def durable(target: str) -> None:
    with_block(target)


def exclusive(target: str, durability: str = "none") -> None:
    with atomicio.atomic_write(target, "xb", durability=durability) as file:
        file.write(NEW)


def exclusive_synced(target: str) -> None:
    exclusive(target, "consistent")


def append(target: str) -> None:
    with atomicio.atomic_write(target, "ab", durability="none") as file:
        file.write(NEW)


def update(target: str) -> None:
    with atomicio.atomic_write(target, "r+b", durability="none") as file:
        file.read()
        file.seek(0)
        file.truncate()
        file.write(NEW)


def whole(target: str) -> None:
    atomicio.write_bytes(target, NEW, durability="none")


def whole_text(target: str) -> None:
    atomicio.write_text(target, NEW.decode())


def commit(target: str) -> None:
    writer = atomicio.atomic_write(target, "wb", durability="none")
    file = writer.open()
    file.write(NEW)
    writer.commit()


def abort(target: str) -> None:
    writer = atomicio.atomic_write(target, "wb", durability="none")
    writer.open().write(NEW)
    writer.abort()


def body_raises(target: str) -> None:
    with atomicio.atomic_write(target, "wb", durability="none") as file:
        file.write(NEW)
        raise BodyError


def dropped(target: str) -> None:
    writer = atomicio.atomic_write(target, "wb", durability="none")
    writer.open().write(NEW)


def generator(target: str) -> None:
    def write() -> Iterator[None]:
        with atomicio.atomic_write(target, "wb", durability="none") as file:
            file.write(NEW)
            yield

    generator = write()
    next(generator)
    generator.close()


def closed_early(target: str) -> None:
    with atomicio.atomic_write(target, "wb", durability="none") as file:
        file.write(NEW)
        file.close()


def path(target: str) -> None:
    with atomicio.atomic_path(target, durability="none") as staging, open(staging, "wb") as file:
        file.write(NEW)


def backup(target: str) -> None:
    with_block(target, backup=".bak", durability="none")


def skip_unchanged(target: str) -> None:
    with_block(target, skip_unchanged=True, durability="none")


def parents(target: str) -> None:
    atomicio.write_bytes(os.path.join(os.path.dirname(target), "made", "here", "target"), NEW, make_parents=True)


def permissions(target: str) -> None:
    atomicio.write_bytes(target, NEW, permissions=0o604, durability="none")


def lock_file(target: str) -> None:
    atomicio.write_bytes(target, NEW, lock=True, durability="none")


THREAD_LOCK = threading.Lock()


def own_lock(target: str) -> None:
    with_block(target, lock=THREAD_LOCK, durability="none")


REPLACING = [with_block, text_block, unbuffered, durable, append, update, whole, whole_text, commit, closed_early, path]
REPLACING += [backup, skip_unchanged, permissions, lock_file, own_lock]
CREATING = [exclusive, exclusive_synced, with_block, whole, append, path, parents]
GIVING_UP = [abort, body_raises, dropped, generator]
NAMED = [with_block, exclusive, update, whole, commit, body_raises, dropped, generator, backup, own_lock]


# -- interrupting -----------------------------------------------------------------------------------------------------


def in_filelock(frame: FrameType | None) -> bool:
    """Tell whether filelock calls *frame*: it has places of its own where an interrupt leaves its lock locked."""
    while frame is not None:
        if f"{os.sep}filelock{os.sep}" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


class Tracer:
    """Raise KeyboardInterrupt at the *n*-th bytecode, with sys.settrace."""

    def __init__(self, modules: list[ModuleType], operation: Callable[[str], None]) -> None:
        self.countdown = 0
        self.where = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def run(self, operation: Callable[[str], None], target: str, n: int) -> None:
        self.countdown, self.where = n, ""
        sys.settrace(self._call)
        try:
            operation(target)
        finally:
            sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        if (frame.f_code.co_filename == __file__ and frame.f_code.co_name == "run") or in_filelock(frame):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            self.countdown -= 1
            if self.countdown == 0:
                self.where = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
                raise KeyboardInterrupt
        return self._step


class Monitor(Tracer):
    """The same with sys.monitoring: opcode events of sys.settrace are unreliable in Python 3.12."""

    def __init__(self, modules: list[ModuleType], operation: Callable[[str], None]) -> None:
        super().__init__(modules, operation)
        self.codes = {code for module in modules for value in vars(module).values() for code in codes(value, module)}
        self.codes |= {
            code for each in (operation, with_block, exclusive) for code in codes(each, sys.modules[__name__])
        }

    def __enter__(self) -> Self:
        monitoring = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        monitoring.use_tool_id(monitoring.DEBUGGER_ID, "interrupts")
        monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, self._instruction)
        for code in self.codes:
            monitoring.set_local_events(monitoring.DEBUGGER_ID, code, monitoring.events.INSTRUCTION)
        return self

    def __exit__(self, *_: object) -> None:
        monitoring = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
        for code in self.codes:
            monitoring.set_local_events(monitoring.DEBUGGER_ID, code, 0)
        monitoring.register_callback(monitoring.DEBUGGER_ID, monitoring.events.INSTRUCTION, None)
        monitoring.free_tool_id(monitoring.DEBUGGER_ID)

    def run(self, operation: Callable[[str], None], target: str, n: int) -> None:
        self.countdown, self.where = n, ""
        try:
            operation(target)
        finally:
            self.countdown = 0 if self.where else max(self.countdown, 1)
            self.countdown, self.left = 0, self.countdown

    def _instruction(self, code: CodeType, offset: int) -> None:
        if self.countdown > 0:
            self.countdown -= 1
            if self.countdown == 0:
                lines = (line for start, end, line in code.co_lines() if start <= offset < end)
                self.where = f"{os.path.basename(code.co_filename)}:{next(lines, '?')} {code.co_name}"
                raise KeyboardInterrupt


def codes(value: Any, module: ModuleType) -> Iterator[CodeType]:
    """All code of a function or a class of *module*, with what is nested in it."""
    if isinstance(value, type) and value.__module__ == module.__name__:
        for each in vars(value).values():
            yield from codes(each, module)
    elif isinstance(value, property):
        yield from codes(value.fget, module)
    elif isinstance(code := getattr(value, "__code__", None), CodeType):
        found = [code]
        while found:
            code = found.pop()
            yield code
            found += [each for each in code.co_consts if isinstance(each, CodeType)]


def descriptors() -> set[str]:
    return {fd for fd in os.listdir("/dev/fd") if os.path.exists(f"/dev/fd/{fd}")}  # without the one listdir had


@dataclass(frozen=True)
class Case:
    """An operation on a target with the content *old*, or without one."""

    operation: Callable[[str], None]
    old: bytes | None
    named: bool = False
    new: Callable[[bytes], bool] = frozenset({NEW, OLD + NEW}).__contains__
    gives_up: bool = False
    removes: bool = False
    in_place: bool = False
    claimed: bool = False

    def __str__(self) -> str:
        how = "-claimed" if self.claimed else "-named" if self.named else ""
        return f"{self.operation.__name__}-{'old' if self.old else 'new'}{how}"


def sweep(case: Case, directory: Path) -> tuple[int, Counter[str]]:
    """Interrupt an operation at each of its bytecodes; return how many there are, and where a promise was broken.

    In a thread of its own: an exception at the bytecode that ends an ``except`` leaves the interpreter believing that
    the thread still handles the exception before it, and later ones would get that as their context.
    """
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(sweep_here, case, directory).result()


def sweep_here(case: Case, directory: Path) -> tuple[int, Counter[str]]:
    import codecs
    import genericpath
    import posixpath
    import warnings

    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "atomicio"]
    modules += [os, posixpath, genericpath, codecs, warnings]
    broken: Counter[str] = Counter()
    lost: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, lost.append
    gc.disable()
    try:
        with (Tracer if sys.version_info < (3, 12) else Monitor)(modules, case.operation) as tracer:
            for n in range(1, 100_000):
                place = directory / str(n)
                place.mkdir()
                with mounted(place / "target") if case.in_place else nullcontext():
                    if not interrupt(tracer, case, place, n, broken, lost):
                        return n - 1, broken
    finally:
        sys.unraisablehook = hook
        gc.enable()
    raise AssertionError("the operation does not end")


@contextmanager
def mounted(target: Path) -> Iterator[None]:
    """A file that cannot be renamed over: itself, bind-mounted over itself."""
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(target)
    target.write_bytes(b"")
    if libc.mount(path, path, None, ctypes.c_ulong(4096), None):  # MS_BIND, <linux/mount.h>
        raise OSError(ctypes.get_errno(), "mount")
    try:
        yield
    finally:
        libc.umount2(path, 2)  # MNT_DETACH


def interrupt(tracer: Tracer, case: Case, place: Path, n: int, broken: Counter[str], lost: list[Any]) -> bool:
    """Run the operation in *place*, interrupted at bytecode *n*; return False when it had come through before."""
    operation, old = case.operation, case.old
    target = place / "target"
    if old is not None:
        target.write_bytes(old)
    before = descriptors()
    lost.clear()
    interrupted = False
    try:
        tracer.run(operation, str(target), n)
    except KeyboardInterrupt:
        interrupted = True
    except BodyError:
        pass
    where = tracer.where
    ignored = [(each.exc_type, getattr(each.object, "__qualname__", str(each.object))) for each in lost]
    lost.clear()  # with what the tracebacks hold
    for kind, finalizer in ignored:
        if kind is not KeyboardInterrupt:
            broken[f"{where}: {kind.__name__} in {finalizer}"] += 1
    if where and not interrupted and not any(kind is KeyboardInterrupt for kind, _ in ignored):
        broken[f"{where}: KeyboardInterrupt was swallowed"] += 1
    if leaked := descriptors() - before:
        broken[f"{where}: descriptor leaked"] += 1
        gc.collect()
        for fd in leaked & descriptors():
            broken[f"{where}: descriptor leaked for good"] += 1
            os.close(int(fd))
    for found in place.rglob("*"):
        if found.name == "target":
            content = b"" if found.is_dir() else found.read_bytes()
            if content != old and not case.new(content):
                broken[f"{where}: neither old nor new: {content[:40]!r}"] += 1
            if not where and not case.gives_up and not case.new(content):
                broken["it came through, and the old content is there"] += 1
        elif found.name == "target.bak":
            if found.read_bytes() != old:
                broken[f"{where}: the backup is not the old content"] += 1
        elif found.name != "target.lock" and not found.is_dir():
            broken[f"{where}: {found.name} is left"] += 1
    if old is not None and not target.exists() and not case.removes:
        broken[f"{where}: the target is gone"] += 1
    if THREAD_LOCK.locked():
        broken[f"{where}: the lock is still held"] += 1
        THREAD_LOCK.release()
    return bool(where)


def named_staging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stage as systems without unnamed files do."""
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)


def no_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse what names a file or fails: link(2) and renameat2(2), as exFAT through FUSE does."""
    from atomicio import _posix

    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(_posix, "hard_link", refuse)
    monkeypatch.setattr(_syscalls, "rename_new", refuse)


CASES = [
    *(Case(operation, OLD) for operation in REPLACING),
    *(Case(operation, None) for operation in CREATING),
    *(Case(operation, OLD, gives_up=True) for operation in GIVING_UP),
    *(Case(operation, None, gives_up=True) for operation in GIVING_UP[:2]),
    *(
        Case(operation, None if operation is exclusive else OLD, named=True, gives_up=operation in GIVING_UP)
        for operation in NAMED
    ),
    Case(exclusive, None, named=True, claimed=True),
]
# The others are swept by tests/interrupts.
FEW = [
    "with_block-old",
    "durable-old",
    "exclusive-new",
    "exclusive-new-claimed",
    "update-old",
    "whole-old",
    "dropped-old",
    "generator-old-named",
    "own_lock-old",
]


def check(case: Case, directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sweep *case*, and return the number of its bytecodes."""
    if case.named:
        named_staging(monkeypatch)
    if case.claimed:
        no_one_step(monkeypatch)
    rehearsal = directory / "rehearsal" / "target"
    rehearsal.parent.mkdir()
    with mounted(rehearsal) if case.in_place else nullcontext():
        if case.old is not None:
            rehearsal.write_bytes(case.old)
        try:
            case.operation(str(rehearsal))  # imports what is imported on first use
        except BodyError:
            pass
    (directory / "sweep").mkdir()
    bytecodes, broken = sweep(case, directory / "sweep")
    assert bytecodes > 200
    assert not broken, "\n".join(f"{count:4} {what}" for what, count in broken.most_common())
    return bytecodes


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in FEW], ids=str)
def test_interrupt_at_every_bytecode(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


def leaky(target: str) -> None:
    """The recipe that everybody writes: interrupted, it leaves its file, or its descriptor."""
    name = target + ".tmp"
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        os.write(fd, NEW)
    finally:
        os.close(fd)
    try:
        os.replace(name, target)
    except BaseException:
        if os.path.exists(name):
            os.unlink(name)
        raise


def plain(target: str) -> None:
    """Empties the file before it has what is to be there, and leaves the lock locked."""
    THREAD_LOCK.acquire()
    with open(target, "wb") as file:
        file.write(NEW)
    THREAD_LOCK.release()


def gap(target: str) -> None:
    """Takes the old file away before the new one is there."""
    os.unlink(target)
    os.link(target + ".bak", target)


def swallowing(target: str) -> None:
    """Goes on as if it had not been interrupted."""
    try:
        whole(target)
    except KeyboardInterrupt:
        pass


def idle(target: str) -> None:
    """Does nothing at all."""
    os.path.exists(target)


FLAWS = [
    (leaky, "target.tmp is left"),
    (leaky, "descriptor leaked"),
    (plain, "neither old nor new"),
    (plain, "the lock is still held"),
    (gap, "the target is gone"),
    (swallowing, "KeyboardInterrupt was swallowed"),
    (idle, "it came through, and the old content is there"),
]


@pytest.mark.parametrize(("operation", "flaw"), FLAWS)
def test_the_sweep_finds_each_flaw(
    operation: Callable[[str], None], flaw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if operation is gap:  # what is to be there lies ready
        link = os.link
        (tmp_path / "ready").write_bytes(NEW)
        monkeypatch.setattr(os, "link", lambda _, target: link(tmp_path / "ready", target))
    _, broken = sweep(Case(operation, OLD), tmp_path)
    assert any(flaw in what for what in broken), broken


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no interval timer on this system")
def test_storm_of_signals(tmp_path: Path) -> None:
    """Three thousand writes, a Ctrl-C at a random moment of each."""
    armed = False

    def ring(number: int, frame: FrameType | None) -> None:
        if armed:
            raise KeyboardInterrupt

    target = tmp_path / "target"
    target.write_bytes(OLD)
    operations = [with_block, text_block, update, whole, abort, generator, path, backup, closed_early]
    chance = random.Random(0)
    before = descriptors()
    interrupted = 0
    handler = signal.signal(signal.SIGALRM, ring)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # an interrupt in a finalizer is printed and lost
    try:
        for number in range(3000):
            operation = operations[number % len(operations)]
            try:
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 2e-4))
                    operation(str(target))
                finally:
                    armed = False
            except KeyboardInterrupt:
                armed = False
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            content = target.read_bytes()
            assert content in (OLD, NEW), (operation.__name__, content[:60])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        sys.unraisablehook = hook
    assert {each.name for each in tmp_path.iterdir()} <= {"target", "target.bak"}
    assert descriptors() == before
    assert interrupted > 300, "the signals came too late or too early"
