"""What it costs: medians and ratios against the hand-written sequences and against other libraries, all in one run.

    tox run -e bench

Every round times every contender once, one after the other, so that what the machine does besides hits all alike. A
ratio is the median over the rounds of (this contender / the hand-written sequence of the same sync in the same round).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import atomicio
from oracle import tmpfs_mounted

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 41
#: About how long a contender is timed for in each round, in seconds.
SLICE = 0.004
KIBIBYTE = b"\n".join([b"0123456789abcde"] * 64)
TEXT = KIBIBYTE.decode()
CLOEXEC = getattr(os, "O_CLOEXEC", 0)
#: How much slower than promised a median may be before the run is red: a noisy machine is no regression.
ALLOWANCE = 1.25

#: What is aimed at, against the hand-written sequence on a tmpfs with nothing synced; and what a run must not exceed:
#: what has been measured, with an allowance. Whoever comes nearer to the aim lowers the limit.
AIMS = {"write_bytes": 1.9, "with atomic_write, binary": 1.6, "with atomic_write, text": 1.6}
LIMITS = {"write_bytes": 6.0, "with atomic_write, binary": 6.0, "with atomic_write, text": 5.5}

Write = Callable[[str], None]


class Contender(NamedTuple):
    name: str
    write: Write
    #: What the target may suffer that it does not suffer from atomicio; empty for atomicio.
    gives_up: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# By hand
# ---------------------------------------------------------------------------------------------------------------------


def hand_os(path: str) -> None:
    temporary = path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CLOEXEC, 0o666)
    os.write(fd, KIBIBYTE)
    os.close(fd)
    os.rename(temporary, path)


def hand_binary(path: str) -> None:
    temporary = path + ".tmp"
    with io.open(temporary, "wb") as file:  # noqa: UP020
        file.write(KIBIBYTE)
    os.rename(temporary, path)


def hand_text(path: str) -> None:
    temporary = path + ".tmp"
    with io.open(temporary, "w", encoding="utf-8") as file:  # noqa: UP020
        file.write(TEXT)
    os.rename(temporary, path)


def hand_file_sync(path: str) -> None:
    temporary = path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CLOEXEC, 0o666)
    os.write(fd, KIBIBYTE)
    os.fsync(fd)
    os.close(fd)
    os.rename(temporary, path)


def hand_durable(path: str) -> None:
    hand_file_sync(path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | CLOEXEC)
    os.fsync(directory)
    os.close(directory)


HAND = "nothing kept of the old file, short writes and errors ignored, links destroyed, litter"


# ---------------------------------------------------------------------------------------------------------------------
# Ours
# ---------------------------------------------------------------------------------------------------------------------


def ours_bytes(level: Any) -> Write:
    def write(path: str) -> None:
        atomicio.write_bytes(path, KIBIBYTE, durability=level)

    return write


def ours_binary(level: Any) -> Write:
    def write(path: str) -> None:
        with atomicio.atomic_write(path, "wb", durability=level) as file:
            file.write(KIBIBYTE)

    return write


def ours_text(level: Any) -> Write:
    def write(path: str) -> None:
        with atomicio.atomic_write(path, durability=level) as file:
            file.write(TEXT)

    return write


# ---------------------------------------------------------------------------------------------------------------------
# Others. What each gives up was run, by the tests of this project turned on it or by scripts of their own.
# ---------------------------------------------------------------------------------------------------------------------


def peer(name: str) -> Any:
    """The module *name*, or None where it does not install."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


def peers() -> dict[str, list[Contender]]:
    """The other libraries that are installed, by what they sync."""
    found: dict[str, list[Contender]] = {"none": [], "file": [], "file and directory": []}
    if module := peer("atomicwriter"):

        def by_atomicwriter(path: str, module: Any = module) -> None:
            with module.AtomicWriter(path, overwrite=True) as file:
                file.write_bytes(KIBIBYTE)

        found["file"].append(
            Contender(
                "atomicwriter",
                by_atomicwriter,
                "syncs after the rename and deletes both files if that fails; mode 0600",
            )
        )
    if module := peer("atomicwrites"):

        def by_atomicwrites(path: str, module: Any = module) -> None:
            with module.atomic_write(path, mode="wb", overwrite=True) as file:
                file.write(KIBIBYTE)

        found["file and directory"].append(
            Contender("atomicwrites", by_atomicwrites, "mode 0600, owner, ACL, links; raises after the commit; litter")
        )
    if module := peer("atomicreplace"):
        for level, group in (("none", "none"), ("data", "file"), ("full", "file and directory")):

            def by_atomicreplace(path: str, module: Any = module, level: str = level) -> None:
                module.replace_bytes(path, KIBIBYTE, durability=level)

            found[group].append(
                Contender(
                    f"atomicreplace ({level})", by_atomicreplace, "owner, ACL, xattrs; refuses links; 0600; litter"
                )
            )
    if module := peer("boltons.fileutils"):

        def by_boltons(path: str, module: Any = module) -> None:
            with module.atomic_save(path) as file:
                file.write(KIBIBYTE)

        found["file"].append(
            Contender("boltons", by_boltons, "owner, ACL, links; one kill blocks all later writes; 1 of 16 threads")
        )
    if module := peer("safer"):

        def by_safer(path: str, module: Any = module) -> None:
            with module.open(path, "wb") as file:
                file.write(KIBIBYTE)

        found["none"].append(
            Contender("safer", by_safer, "all in memory; owner, ACL; an interrupt can empty the target")
        )
    if module := peer("click.utils"):

        def by_click(path: str, module: Any = module) -> None:
            with module.open_file(path, "wb", atomic=True) as file:
                file.write(KIBIBYTE)

        found["none"].append(Contender("click", by_click, "publishes the partial file on an exception or a full disk"))
    if module := peer("portalocker"):

        def by_portalocker(path: str, module: Any = module) -> None:
            if os.path.exists(path):  # it only creates
                os.unlink(path)
            with module.open_atomic(path) as file:
                file.write(KIBIBYTE)

        found["file"].append(Contender("portalocker", by_portalocker, "only creates: replacing means being without it"))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Timing
# ---------------------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    contender: Contender
    microseconds: float
    ratio: float


def measure(contenders: list[Contender], directory: str) -> list[Result]:
    """Time all; the first is what the others are divided by.

    In memory by the processor time of this thread, to which nobody else adds; elsewhere by the clock.
    """
    clock = time.thread_time if kind_of(directory) == "tmpfs" else time.perf_counter
    counts, working = [], []
    for number, contender in enumerate(contenders):
        path = os.path.join(directory, f"target-{number}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for _ in range(3):
                    contender.write(path)
                with open(path, "rb") as file:
                    assert file.read() == KIBIBYTE, contender.name
                begun = clock()
                for _ in range(5):
                    contender.write(path)
                took = (clock() - begun) / 5
        except (OSError, TypeError, ValueError, AttributeError) as error:
            if not contender.gives_up or contender.gives_up is HAND:
                raise
            print(f"  {contender.name}: does not run here: {error!r}")
            continue
        working.append((contender, path))
        counts.append(max(1, int(SLICE / took)))
    times: list[list[float]] = [[] for _ in working]
    gc.collect()
    gc.disable()
    try:
        for round_number in range(ROUNDS):
            order = range(len(working)) if round_number % 2 else reversed(range(len(working)))
            for index in order:
                write, path = working[index][0].write, working[index][1]
                repetitions = range(counts[index])
                begun = clock()
                for _ in repetitions:
                    write(path)
                times[index].append((clock() - begun) / counts[index])
            gc.collect()
    finally:
        gc.enable()
    return [
        Result(
            contender,
            statistics.median(taken) * 1e6,
            statistics.median(mine / base for mine, base in zip(taken, times[0], strict=True)),
        )
        for (contender, _), taken in zip(working, times, strict=True)
    ]


def show(title: str, results: list[Result]) -> dict[str, float]:
    print(f"\n{title}")
    for contender, microseconds, ratio in results:
        print(f"  {contender.name:34} {microseconds:9.1f} us  x{ratio:6.2f}   {contender.gives_up}".rstrip())
    return {contender.name: ratio for contender, _, ratio in results}


@contextlib.contextmanager
def places(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A tmpfs, where only the processor counts, and the file system at hand, where the device does."""
    disk = tmp_path / "disk"
    disk.mkdir()
    found = {f"{kind_of(str(disk))}": str(disk)}
    if os.name == "posix" and os.geteuid() == 0:
        memory = tmp_path / "memory"
        memory.mkdir()
        with tmpfs_mounted(str(memory), "256m"):
            yield {"tmpfs": str(memory), **found}
    elif os.access("/dev/shm", os.W_OK):
        import tempfile

        with tempfile.TemporaryDirectory(dir="/dev/shm") as memory_name:
            yield {"tmpfs": memory_name, **found}
    else:
        yield found


def kind_of(path: str) -> str:
    """The name of the file system that *path* is on."""
    try:
        with open("/proc/self/mounts") as mounts:
            entries = [line.split()[1:3] for line in mounts]
    except OSError:
        return "disk"
    return max((point, kind) for point, kind in entries if (path + "/").startswith(point.rstrip("/") + "/"))[1]


def test_small_files(tmp_path: Path) -> None:
    others = peers()
    print(f"\nPython {platform.python_version()}, {platform.platform()}, {os.cpu_count()} processors; 1 KiB for 1 KiB")
    with places(tmp_path) as found:
        ratios = {}
        for name, directory in found.items():
            ratios[name] = show(
                f"{name}, nothing synced, bytes",
                measure(
                    [
                        Contender("os.open/write/close/rename", hand_os, HAND),
                        Contender("write_bytes", ours_bytes("none")),
                        *others["none"],
                    ],
                    directory,
                ),
            )
            ratios[name] |= show(
                f"{name}, nothing synced, a binary file object",
                measure(
                    [
                        Contender("io.open/write/rename, binary", hand_binary, HAND),
                        Contender("with atomic_write, binary", ours_binary("none")),
                    ],
                    directory,
                ),
            )
            ratios[name] |= show(
                f"{name}, nothing synced, a text file object",
                measure(
                    [
                        Contender("io.open/write/rename, text", hand_text, HAND),
                        Contender("with atomic_write, text", ours_text("none")),
                    ],
                    directory,
                ),
            )
            show(
                f"{name}, file synced",
                measure(
                    [
                        Contender("the same by hand with fsync", hand_file_sync, HAND),
                        Contender("write_bytes (consistent)", ours_bytes("consistent")),
                        Contender("with atomic_write (consistent)", ours_binary("consistent")),
                        *others["file"],
                    ],
                    directory,
                ),
            )
            ratios[name] |= show(
                f"{name}, file and directory synced",
                measure(
                    [
                        Contender("the same by hand with both fsyncs", hand_durable, HAND),
                        Contender("write_bytes (durable)", ours_bytes("durable")),
                        Contender("with atomic_write (durable)", ours_binary("durable")),
                        *others["file and directory"],
                    ],
                    directory,
                ),
            )
    if "tmpfs" not in ratios:
        pytest.skip("without a tmpfs the device decides, and nothing is promised")
    print("\ntmpfs, nothing synced: the aims, and what is measured")
    for name, aim in AIMS.items():
        print(f"  {name:34} aim x{aim:5.2f}, measured x{ratios['tmpfs'][name]:5.2f}")
    worse = {name: ratios["tmpfs"][name] for name, most in LIMITS.items() if ratios["tmpfs"][name] > most}
    assert not worse, f"no more than {LIMITS} was measured before"


def test_a_stream(tmp_path: Path) -> None:
    """64 MiB in chunks of 1 MiB: the library must not stand between the caller and the kernel."""
    chunk = os.urandom(1 << 20)
    count = 64

    def stream(opener: Callable[[str], Any]) -> Callable[[str], None]:
        def write(path: str) -> None:
            with opener(path) as file:
                for _ in range(count):
                    file.write(chunk)

        return write

    def hand(path: str) -> None:
        stream(lambda path: open(path + ".tmp", "wb"))(path)
        os.rename(path + ".tmp", path)

    contenders = {
        "open": stream(lambda path: open(path, "wb")),
        "io.open/write/rename": hand,
        "with atomic_write": stream(lambda path: atomicio.atomic_write(path, "wb", durability="none")),
    }
    if module := peer("boltons.fileutils"):
        contenders["boltons (file synced)"] = stream(module.atomic_save)
    if module := peer("safer"):
        contenders["safer (in memory)"] = stream(lambda path, module=module: module.open(path, "wb"))
    if module := peer("click.utils"):
        contenders["click"] = stream(lambda path, module=module: module.open_file(path, "wb", atomic=True))
    with places(tmp_path) as found:
        for name, directory in found.items():
            print(f"\n{name}, a stream of {count} MiB")
            times: dict[str, list[float]] = {contender: [] for contender in contenders}
            for _ in range(5):
                for contender, write in contenders.items():
                    path = os.path.join(directory, "stream")
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                    begun = time.perf_counter()
                    write(path)
                    times[contender].append(time.perf_counter() - begun)
                    assert os.path.getsize(path) == count << 20
            for contender, taken in times.items():
                ratio = statistics.median(
                    mine / base for mine, base in zip(taken, times["io.open/write/rename"], strict=True)
                )
                print(f"  {contender:34} {count / statistics.median(taken):9.0f} MiB/s  x{ratio:6.2f}")
            if name == "tmpfs":
                ours = statistics.median(
                    mine / base
                    for mine, base in zip(times["with atomic_write"], times["io.open/write/rename"], strict=True)
                )
                assert ours < 1.5


def test_the_import(tmp_path: Path) -> None:
    """What ``import X`` adds to a bare interpreter: -X importtime, the cumulative time of X, the least of eleven."""
    # Compiled once, in a place of our own: the time to compile says nothing.
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    modules = [
        "atomicio",
        "tempfile",
        "shutil",
        "filelock",
        "atomicwrites",
        "boltons.fileutils",
        "safer",
        "portalocker",
    ]
    modules += ["click", "atomicreplace", "atomicwriter"]
    print("\nimport, milliseconds beyond the bare interpreter, and modules loaded")
    least: dict[str, float] = {}
    for module in modules:
        taken, loaded = [], 0
        for _ in range(11):
            done = subprocess.run(
                [sys.executable, "-X", "importtime", "-W", "ignore", "-c", f"import {module}"],
                capture_output=True,
                text=True,
                env=environment,
            )
            if done.returncode:
                break
            lines = [line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if "|" in line]
            names = [name for _, _, name in lines]
            # What is nested under the module stands before it, indented more.
            last = len(names) - 1 - names[::-1].index(f" {module}")
            taken.append(int(lines[last][1]) / 1000)
            first = last
            while first > 0 and names[first - 1].startswith("   "):
                first -= 1
            loaded = last - first + 1
        else:
            least[module] = min(taken)
            print(f"  {module:34} {min(taken):9.2f} ms  {loaded:4} modules")
            continue
        print(f"  {module:34} not installed")
    # 2 ms where tempfile takes 10: said so, it holds on a machine that is busy or slow.
    assert least["atomicio"] < least["tempfile"] / 5 * ALLOWANCE
