"""Record an operation on a real file system, cut the power in every way that matters, mount, and judge.

One :class:`Cell` is one recording; :func:`run` does it from beginning to end in a process that has its own mount table
(:func:`prepare_worker`), so that nothing stays mounted whatever happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))

import mounts
import operations
import recorder
from atomicio import _syscalls
from crash_states import BLOCK, CrashState, crash_states
from patched_os import patched_os, real_function
from promises import LITTER, Scenario, tree_at
from sync_sites import Site, running

#: after these calls the "stepped" variant has the file system commit its metadata
_STEPS = (
    "open",
    "close",
    "write",
    "fsync",
    "fdatasync",
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
    "fchown",
    "setxattr",
    "copy_file_range",
    "exchange",
    "rename_new",
    "syncfs",
    "sync",
)
_SYNCS = ("fsync", "fdatasync", "syncfs", "sync")
_BARRIERS = {"syncfs": "file system", "sync": "everything"}
_BLKFLSBUF = 0x1261


@dataclass(frozen=True)
class Cell:
    """One recording to make and to judge."""

    system: str
    operation: str
    level: str
    #: "plain" lets the file system batch as it likes; "stepped" has it commit its metadata between the library's calls,
    #: "flushed" everything: it may do either by itself at any time
    variant: str
    states: int
    seed: int = 0
    #: leave out the sync call of this number, counted from 0 over all steps
    without_sync: int | None = None
    #: leave out all syncs that come from this line of the library
    without: Site | None = None
    #: one violation is enough
    stop_at_first: bool = False


@dataclass
class Outcome:
    """What came of a cell."""

    cell: Cell
    states: int = 0
    flushes: int = 0
    violations: list[str] = field(default_factory=list)
    #: what each sync call of the workload was given: "file", "directory", "file system"
    syncs: list[str] = field(default_factory=list)
    #: the lines of the library that each of them came from
    sites: list[tuple[Site, ...]] = field(default_factory=list)
    seconds: float = 0.0


_ram = ""


def prepare_worker(folder: str) -> None:
    """Make this process ready: its own mount table, its own tmpfs, and death with its parent."""
    global _ram
    mounts.die_with_parent()
    mounts.enter_private_mounts()
    _ram = tempfile.mkdtemp(dir=folder)
    mounts.mount("none", _ram, "tmpfs")


@functools.cache
def _template(name: str) -> tuple[str, dict[int, bytes]]:
    """Format once per worker: the image's path and its blocks that are not zero."""
    image = os.path.join(_ram, f"{name}.template")
    mounts.BLOCK_FILE_SYSTEMS[name].format(image)
    return image, _blocks(image)


def _blocks(image: str) -> dict[int, bytes]:
    blocks = {}
    zero = bytes(BLOCK)
    descriptor = os.open(image, os.O_RDONLY)
    try:
        offset, size = 0, os.fstat(descriptor).st_size
        while offset < size:
            try:
                offset = os.lseek(descriptor, offset, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole up to the end
                break
            hole = os.lseek(descriptor, offset, os.SEEK_HOLE)
            for number in range(offset // BLOCK, -(-hole // BLOCK)):
                block = os.pread(descriptor, BLOCK, number * BLOCK)
                if block != zero:
                    blocks[number] = block
            offset = hole
    finally:
        os.close(descriptor)
    return blocks


def run(cell: Cell) -> Outcome:
    """Record, enumerate and judge one cell."""
    started = time.monotonic()
    system = mounts.BLOCK_FILE_SYSTEMS[cell.system]
    template, base = _template(cell.system)
    work = tempfile.mkdtemp(dir=_ram)
    try:
        log = os.path.join(work, "log")
        _record(cell, system, template, work, log)
        events = list(recorder.read_log(log))
        outcome = Outcome(cell, flushes=sum(event.kind == "F" for event in events))
        observed = {}
        for event in events:
            if event.kind == "M":
                line, _, payload = event.data.partition(b"\n")
                word, number, rest = [*line.decode().split(" ", 2), "", ""][:3]
                if word == "return":
                    observed[int(number)] = pickle.loads(payload)
                elif word == "sync":
                    outcome.syncs.append(rest)
                    outcome.sites.append(pickle.loads(payload))
        states = crash_states(base, events, cell.states, cell.seed)
        scenario = operations.scenario(cell.operation, cell.level)
        with contextlib.closing(_judge_all(system, base, work, states, scenario, observed)) as judged:
            for state, broken in judged:
                outcome.states += 1
                if broken:
                    outcome.violations.append(f"{state.description}: {'; '.join(broken)}")
                    if cell.stop_at_first:
                        break
        outcome.seconds = time.monotonic() - started
        return outcome
    finally:
        shutil.rmtree(work)


# --- recording ------------------------------------------------------------------------------------------------------


def _record(cell: Cell, system: mounts.BlockFileSystem, template: str, work: str, log: str) -> None:
    image = os.path.join(work, "image")
    subprocess.run(["cp", "--sparse=always", template, image], check=True)
    served, mounted = os.path.join(work, "served"), os.path.join(work, "mounted")
    os.mkdir(served)
    os.mkdir(mounted)
    command = [sys.executable, recorder.__file__, served, image, log, str(os.getpid())]
    disk = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert disk.stdout is not None
        if disk.stdout.readline() != "ready\n":
            raise RuntimeError("the recorder did not start")
        try:
            with (
                mounts.loop_device(os.path.join(served, "disk"), direct=True) as device,
                mounts.mounted(device, mounted, system.kind, system.options),
            ):
                _work_in_a_child(cell, system, mounted, os.path.join(served, "marks"))
        finally:
            mounts.unmount(served)
        if disk.wait(300):
            raise RuntimeError(f"the recorder ended with {disk.returncode}")
    finally:
        disk.kill()
        disk.wait()
        assert disk.stdout is not None
        disk.stdout.close()
    os.unlink(image)


def _work_in_a_child(cell: Cell, system: mounts.BlockFileSystem, mounted: str, marks: str) -> None:
    """The workload patches ``os`` and may leave anything behind: it gets a process of its own."""
    worker = os.getpid()
    child = os.fork()
    if not child:
        status = 1
        try:
            mounts.die_with_parent(worker)
            mounts.enter_private_mounts()  # what it mounts by itself goes with it
            _work(cell, system, mounted, marks)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"the workload of {cell} failed: see the error output")


def _work(cell: Cell, system: mounts.BlockFileSystem, mounted: str, marks: str) -> None:
    folder = os.path.join(mounted, "work")
    os.mkdir(folder)
    os.chdir(folder)
    scenario = operations.scenario(cell.operation, cell.level)
    scenario.setup()
    unrelated = os.open(os.path.join(mounted, "unrelated"), os.O_RDWR | os.O_CREAT, 0o600)
    _syscalls.syncfs(unrelated)  # not sync: it would wait for every other disk of the machine as well
    remarks = os.open(marks, os.O_WRONLY)

    def mark(line: str, payload: bytes = b"") -> None:
        real_write(remarks, f"{line}\n".encode() + payload)

    real_write = os.write
    def commit() -> None:
        if cell.variant == "stepped":
            system.commit_metadata(unrelated)
        elif cell.variant == "flushed":
            real_syncfs(unrelated)

    real_syncfs = _syscalls.syncfs
    with _patched(cell, commit, mark):
        for number, step in enumerate(scenario.steps, 1):
            mark(f"begin {number} {step.name}")
            step.run()
            mark(f"return {number} {step.name}", pickle.dumps(scenario.observe(folder, number)))
    # afterwards the file system commits by itself, first what it knows of names, later the data
    system.commit_metadata(unrelated)
    mark("committed")
    _syscalls.syncfs(unrelated)
    mark("synced")
    os.chdir("/")


@contextlib.contextmanager
def _patched(cell: Cell, commit: Callable[[], None], mark: Callable[..., None]) -> Iterator[None]:
    """Number the sync calls, leave some out if asked to, and commit after each call."""
    real = {name: function for name in _STEPS if (function := real_function(name))}
    numbers = itertools.count()

    def sync(name: str, *descriptor: int) -> object:
        sites = running()
        if not sites:  # the caller's own
            return real[name](*descriptor)
        number = next(numbers)
        mark(f"sync {number} {_BARRIERS.get(name) or _kind(*descriptor)}", pickle.dumps(sites))
        return None if number == cell.without_sync or cell.without in sites else real[name](*descriptor)

    def wrapper(name: str) -> Callable[..., object]:
        def call(*arguments: Any, **named: Any) -> object:
            result = sync(name, *arguments, **named) if name in _SYNCS else real[name](*arguments, **named)
            commit()
            return result

        return call

    with patched_os({name: wrapper(name) for name in real}):
        yield


def _kind(descriptor: int) -> str:
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    name = os.path.basename(path)
    if os.path.isdir(path):
        return "staging directory" if LITTER.fullmatch(name) else f"directory {name}"
    return "staging file" if LITTER.fullmatch(name) or path.endswith(" (deleted)") else f"file {name}"


# --- cutting and judging --------------------------------------------------------------------------------------------


def _judge_all(
    system: mounts.BlockFileSystem,
    base: dict[int, bytes],
    work: str,
    states: list[CrashState],
    scenario: Scenario,
    observed: dict[int, object],
) -> Generator[tuple[CrashState, list[str]], None, None]:
    """Mount each state as it would be after the power came back, and have the scenario judge what is there."""
    image, mounted = os.path.join(work, "crashed"), os.path.join(work, "recovered")
    os.mkdir(mounted)
    size = system.megabytes << 20
    descriptor = os.open(image, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(descriptor, size)
        with mounts.loop_device(image) as device:
            loop = os.open(device, os.O_RDONLY)
            try:
                for state in states:
                    os.ftruncate(descriptor, 0)
                    os.ftruncate(descriptor, size)
                    _write_blocks(descriptor, {**base, **state.blocks})
                    fcntl.ioctl(loop, _BLKFLSBUF)  # the device's cache still knows the state before
                    # read-only for us; the journal is replayed all the same, since the device can be written
                    with mounts.mounted(device, mounted, system.kind, f"ro,{system.options}"):
                        tree = tree_at(os.path.join(mounted, "work"), scenario.litter)
                        yield state, scenario.judge(tree, state.returned, state.begun, observed)  # type: ignore[arg-type]
            finally:
                os.close(loop)
    finally:
        os.close(descriptor)


def _write_blocks(descriptor: int, blocks: dict[int, bytes]) -> None:
    run: list[bytes] = []
    start = -1
    for number in sorted(blocks):
        if run and number != start + len(run):
            os.pwrite(descriptor, b"".join(run), start * BLOCK)
            run = []
        if not run:
            start = number
        run.append(blocks[number])
    if run:
        os.pwrite(descriptor, b"".join(run), start * BLOCK)


def main() -> None:
    """For one's own look: ``campaign.py FOLDER '{"system": "xfs", ...}'`` prints the outcome of one cell."""
    prepare_worker(sys.argv[1])
    print(run(Cell(**json.loads(sys.argv[2]))))


if __name__ == "__main__":
    main()
