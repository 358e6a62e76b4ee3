"""The one measurement that the printed ratios, the plots and the page are made of.

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
import shutil
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import atomicio
from oracle import tmpfs_mounted
from peers_support.libraries import LIBRARIES, missing

#: How often each contender has its turn, and for about how many seconds each time.
ROUNDS, SLICE = 41, 0.004
LARGE = 1 << 26
KIBIBYTE = b"\n".join([b"0123456789abcde"] * 64)
TEXT = KIBIBYTE.decode()
CLOEXEC = getattr(os, "O_CLOEXEC", 0)
Write = Callable[[str, Any], None]


class Contender(NamedTuple):
    name: str
    write: Write
    #: What the target may suffer that it does not suffer from atomicio; empty for atomicio.
    gives_up: str = ""


# ---------------------------------------------------------------------------------------------------------------------
# By hand
# ---------------------------------------------------------------------------------------------------------------------


def hand_os(path: str, data: Any) -> None:
    temporary = path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CLOEXEC, 0o666)
    os.write(fd, data)
    os.close(fd)
    os.rename(temporary, path)


def hand_binary(path: str, data: Any) -> None:
    temporary = path + ".tmp"
    with io.open(temporary, "wb") as file:  # noqa: UP020
        file.write(data)
    os.rename(temporary, path)


def hand_text(path: str, data: Any) -> None:
    temporary = path + ".tmp"
    with io.open(temporary, "w", encoding="utf-8") as file:  # noqa: UP020
        file.write(data)
    os.rename(temporary, path)


def hand_file_sync(path: str, data: Any) -> None:
    temporary = path + ".tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | CLOEXEC, 0o666)
    os.write(fd, data)
    os.fsync(fd)
    os.close(fd)
    os.rename(temporary, path)


def hand_durable(path: str, data: Any) -> None:
    hand_file_sync(path, data)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | CLOEXEC)
    os.fsync(directory)
    os.close(directory)


HAND = "nothing kept of the old file, short writes and errors ignored, links destroyed, litter"


# ---------------------------------------------------------------------------------------------------------------------
# Ours
# ---------------------------------------------------------------------------------------------------------------------


def ours_bytes(level: Any) -> Write:
    def write(path: str, data: Any) -> None:
        atomicio.write_bytes(path, data, durability=level)

    return write


def ours_binary(level: Any) -> Write:
    def write(path: str, data: Any) -> None:
        with atomicio.atomic_write(path, "wb", durability=level) as file:
            file.write(data)

    return write


def ours_text(level: Any) -> Write:
    def write(path: str, data: Any) -> None:
        with atomicio.atomic_write(path, durability=level) as file:
            file.write(data)

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


#: Those that are called as the comparison calls them: what they sync, and what they give up.
OTHERS = {
    "django": ("none", "mode 0600, owner, ACL, links"),
    "atomicfile": ("none", "owner, ACL, links; a failure leaves the staging file"),
    "atomic-write-path": ("none", "syncs the directory, not the file; mode 0600, owner, ACL"),
    "tempfile": ("file", "mode 0600, owner, ACL, links; a kill leaves the staging file"),
    "sage": ("file", "mode, owner, ACL; changes the umask meanwhile; litter"),
    "jupyter": ("file", "writes in place: a reader sees a part, a kill destroys"),
}


def peers() -> dict[str, list[Contender]]:
    """The other libraries that are installed, by what they sync."""
    found: dict[str, list[Contender]] = {"none": [], "file": [], "file and directory": []}
    if module := peer("atomicwriter"):

        def by_atomicwriter(path: str, data: Any, module: Any = module) -> None:
            with module.AtomicWriter(path, overwrite=True) as file:
                file.write_bytes(data)

        found["file"].append(
            Contender(
                "atomicwriter",
                by_atomicwriter,
                "syncs after the rename and deletes both files if that fails; mode 0600",
            )
        )
    if module := peer("atomicwrites"):

        def by_atomicwrites(path: str, data: Any, module: Any = module) -> None:
            with module.atomic_write(path, mode="wb", overwrite=True) as file:
                file.write(data)

        found["file and directory"].append(
            Contender("atomicwrites", by_atomicwrites, "mode 0600, owner, ACL, links; raises after the commit; litter")
        )
    if module := peer("atomicreplace"):
        for level, group in (("none", "none"), ("data", "file"), ("full", "file and directory")):

            def by_atomicreplace(path: str, data: Any, module: Any = module, level: str = level) -> None:
                module.replace_bytes(path, data, durability=level)

            found[group].append(
                Contender(
                    f"atomicreplace ({level})", by_atomicreplace, "owner, ACL, xattrs; refuses links; 0600; litter"
                )
            )
    if module := peer("boltons.fileutils"):

        def by_boltons(path: str, data: Any, module: Any = module) -> None:
            with module.atomic_save(path) as file:
                file.write(data)

        found["file"].append(
            Contender("boltons", by_boltons, "owner, ACL, links; one kill blocks all later writes; 1 of 16 threads")
        )
    if module := peer("safer"):

        def by_safer(path: str, data: Any, module: Any = module) -> None:
            with module.open(path, "wb") as file:
                file.write(data)

        found["none"].append(
            Contender("safer", by_safer, "all in memory; owner, ACL; an interrupt can empty the target")
        )
    if module := peer("click.utils"):

        def by_click(path: str, data: Any, module: Any = module) -> None:
            with module.open_file(path, "wb", atomic=True) as file:
                file.write(data)

        found["none"].append(Contender("click", by_click, "publishes the partial file on an exception or a full disk"))
    if module := peer("portalocker"):

        def by_portalocker(path: str, data: Any, module: Any = module) -> None:
            if os.path.exists(path):  # it only creates
                os.unlink(path)
            with module.open_atomic(path) as file:
                file.write(data)

        found["file"].append(Contender("portalocker", by_portalocker, "only creates: replacing means being without it"))
    for name, (group, gives_up) in OTHERS.items():
        if not missing(name):
            found[group].append(Contender(name, LIBRARIES[name].write, gives_up))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Timing
# ---------------------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    contender: Contender
    microseconds: float
    ratio: float


def measure(
    contenders: list[Contender], directory: str, data: Any = KIBIBYTE, *, rounds: int = ROUNDS, slice_: float = SLICE
) -> list[Result]:
    """Time all, each in every round; the first is what the others are divided by.

    In memory by the processor time of this thread, to which nobody else adds; elsewhere by the clock.
    """
    clock = time.thread_time if kind_of(directory) == "tmpfs" else time.perf_counter
    counts, working = [], []
    for number, contender in enumerate(contenders):
        # The largest take turns on one target: there is not room for one each.
        path = os.path.join(directory, f"target-{number if len(data) < LARGE else 0}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                contender.write(path, data)
                assert os.path.getsize(path) == len(data), contender.name
                begun = clock()
                contender.write(path, data)
                took = clock() - begun
                if took < slice_:
                    begun = clock()
                    for _ in range(5):
                        contender.write(path, data)
                    took = (clock() - begun) / 5
        except (OSError, TypeError, ValueError, AttributeError) as error:
            if not contender.gives_up or contender.gives_up is HAND:
                raise
            print(f"  {contender.name}: does not run here: {error!r}")
            continue
        working.append((contender, path))
        counts.append(max(1, int(slice_ / took)))
    times: list[list[float]] = [[] for _ in working]
    gc.collect()
    gc.disable()
    try:
        for round_number in range(rounds):
            order = range(len(working)) if round_number % 2 else reversed(range(len(working)))
            for index in order:
                write, path = working[index][0].write, working[index][1]
                repetitions = range(counts[index])
                begun = clock()
                for _ in repetitions:
                    write(path, data)
                times[index].append((clock() - begun) / counts[index])
            gc.collect()
    finally:
        gc.enable()
    for path in {path for _, path in working}:
        os.unlink(path)
    return [
        Result(
            contender,
            statistics.median(taken) * 1e6,
            statistics.median(mine / base for mine, base in zip(taken, times[0], strict=True)),
        )
        for (contender, _), taken in zip(working, times, strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Places
# ---------------------------------------------------------------------------------------------------------------------

MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-K"],
    "btrfs": ["mkfs.btrfs", "-q", "-K"],
}


@contextlib.contextmanager
def mounted(kind: str, folder: Path) -> Iterator[tuple[Path, Path]]:
    """A new file system in *folder*: where it is mounted, and the statistics of its device."""
    image, mount = folder / "image", folder / "mount"
    with open(image, "wb") as file:
        file.truncate(4 << 30)  # sparse. A small btrfs commits early, for want of space to reserve
    mount.mkdir()
    subprocess.run([*MAKE[kind], image], check=True, capture_output=True)
    done = subprocess.run(["losetup", "-f", "--show", image], check=True, capture_output=True, text=True)
    device = done.stdout.strip()
    try:
        subprocess.run(["mount", "-t", kind, device, mount], check=True)
        try:
            yield mount, Path("/sys/block") / os.path.basename(device) / "stat"
        finally:
            subprocess.run(["umount", mount], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
        image.unlink()


@contextlib.contextmanager
def places(folder: Path) -> Iterator[dict[str, str]]:
    """A tmpfs, where only the processor counts, and a new ext4, where the device does; else what is at hand."""
    with contextlib.ExitStack() as stack:
        found = {}
        if os.name == "posix" and os.geteuid() == 0:
            memory = folder / "memory"
            memory.mkdir()
            stack.enter_context(tmpfs_mounted(str(memory), "4g"))
            found["tmpfs"] = str(memory)
        elif os.access("/dev/shm", os.W_OK):
            import tempfile

            found["tmpfs"] = stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        if "tmpfs" in found and os.geteuid() == 0 and shutil.which("mkfs.ext4") and shutil.which("losetup"):
            device = folder / "device"
            device.mkdir()
            found["ext4"] = str(stack.enter_context(mounted("ext4", device))[0])
        else:
            disk = folder / "disk"
            disk.mkdir()
            found[kind_of(str(disk))] = str(disk)
        yield found


def kind_of(path: str) -> str:
    """The name of the file system that *path* is on."""
    try:
        with open("/proc/self/mounts") as mounts:
            entries = [line.split()[1:3] for line in mounts]
    except OSError:
        return "disk"
    return max((point, kind) for point, kind in entries if (path + "/").startswith(point.rstrip("/") + "/"))[1]


def settle(folder: str | Path) -> None:
    """Wait for what was written before, on this file system alone."""
    subprocess.run(["sync", "-f", folder], check=True)


# ---------------------------------------------------------------------------------------------------------------------
# The series
# ---------------------------------------------------------------------------------------------------------------------

LEVELS = ("none", "consistent", "durable")
GROUPS = {"none": "none", "consistent": "file", "durable": "file and directory"}
HANDS: dict[str, Write] = {"none": hand_os, "consistent": hand_file_sync, "durable": hand_durable}
BY_HAND = "by hand"


def contenders(level: str, *, others: bool = True) -> list[Contender]:
    """What syncs as much as *level* says: by hand, ours, and the other libraries."""
    return [
        Contender(BY_HAND, HANDS[level], HAND),
        Contender("write_bytes", ours_bytes(level)),
        Contender("with atomic_write", ours_binary(level)),
        *(peers()[GROUPS[level]] if others else ()),
    ]


def levels(directory: str, *, rounds: int = ROUNDS) -> dict[str, list[Result]]:
    """One write of 1 KiB over 1 KiB at each level."""
    return {level: measure(contenders(level), directory, rounds=rounds) for level in LEVELS}


def files(directory: str, *, rounds: int = ROUNDS) -> dict[str, list[Result]]:
    """What a file object costs, against the one of ``open``; nothing synced."""
    return {
        "a binary file object": measure(
            [
                Contender("io.open/write/rename, binary", hand_binary, HAND),
                Contender("with atomic_write, binary", ours_binary("none")),
            ],
            directory,
            rounds=rounds,
        ),
        "a text file object": measure(
            [
                Contender("io.open/write/rename, text", hand_text, HAND),
                Contender("with atomic_write, text", ours_text("none")),
            ],
            directory,
            TEXT,
            rounds=rounds,
        ),
    }


def sizes(
    directory: str, level: str, exponents: tuple[int, ...], *, rounds: int, patience: float = 10
) -> dict[str, list[tuple[int, float]]]:
    """Seconds of one write, by its size. The other libraries up to 16 MiB; what would take too long is left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    for exponent in exponents:
        # By what the last size took: only the large ones are in proportion to it.
        size, seconds = found[BY_HAND][-1] if found else (1, 0)
        if exponent > 24 and seconds / size * (1 << exponent) > patience:
            break
        data = bytes(1 << exponent)
        taking_part = contenders(level, others=exponent <= 24)
        turns = rounds if exponent < 20 else max(3, rounds // 3) if exponent <= 24 else 1
        for result in measure(taking_part, directory, data, rounds=turns):
            found.setdefault(result.contender.name, []).append((1 << exponent, result.microseconds / 1e6))
        settle(directory)
    return found


def many(directory: str, numbers: tuple[int, ...], *, patience: float = 30) -> dict[str, list[tuple[int, float]]]:
    """Seconds for so many new durable files of 4 KiB: by hand, one at a time, in a batch. What takes too long is left out."""
    data = b"x" * 4096

    def by_hand(folder: str, number: int) -> None:
        for each in range(number):
            hand_durable(os.path.join(folder, str(each)), data)

    def one_at_a_time(folder: str, number: int) -> None:
        for each in range(number):
            atomicio.write_bytes(os.path.join(folder, str(each)), data)

    def batch(folder: str, number: int) -> None:
        with atomicio.batch() as together:
            for each in range(number):
                together.write_bytes(os.path.join(folder, str(each)), data)

    ways = {BY_HAND: by_hand, "write_bytes, one at a time": one_at_a_time, "batch": batch}
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in ways}
    for number in numbers:
        for name, way in ways.items():
            before = found[name]
            if before and before[-1][1] * number / before[-1][0] > patience:
                continue
            taken = []
            for turn in range(3 if number <= 100 else 1):
                folder = os.path.join(directory, f"many-{turn}")
                os.mkdir(folder)
                settle(directory)
                begun = time.perf_counter()
                way(folder, number)
                taken.append(time.perf_counter() - begun)
                shutil.rmtree(folder)
            before.append((number, statistics.median(taken)))
    return found


def processes(
    directory: str, level: str, numbers: tuple[int, ...], *, seconds: float
) -> dict[str, list[tuple[int, float]]]:
    """Writes of 1 KiB per second in all, by so many processes, each to a file of its own in one directory."""
    found: dict[str, list[tuple[int, float]]] = {}
    for number in numbers:
        for contender in contenders(level, others=False):
            rate = _together(number, contender.write, directory, seconds)
            found.setdefault(contender.name, []).append((number, rate))
    return found


def _together(number: int, write: Write, directory: str, seconds: float) -> float:
    reader, writer = os.pipe()
    begin = time.monotonic() + 0.1
    children = []
    for mine in range(number):
        child = os.fork()
        if not child:
            try:
                path = os.path.join(directory, f"process-{mine}")
                count = 0
                write(path, KIBIBYTE)
                time.sleep(max(0.0, begin - time.monotonic()))
                while time.monotonic() < begin + seconds:
                    write(path, KIBIBYTE)
                    count += 1
                os.write(writer, f"{count / (time.monotonic() - begin)}\n".encode())
            finally:
                os._exit(0)
        children.append(child)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        rates = [float(line) for line in pipe]
    for child in children:
        os.waitpid(child, 0)
    assert len(rates) == number
    return sum(rates)


def everything(folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """All that the page shows; *quick* for a try of the same code in some seconds."""
    rounds = 3 if quick else ROUNDS
    begun, load = time.time(), os.getloadavg()[0]
    found: dict[str, Any] = {}
    with places(folder) as here:
        for place, directory in here.items():
            level = "none" if place == "tmpfs" else "durable"
            results = levels(directory, rounds=rounds if place == "tmpfs" else max(3, rounds // 3))
            if place == "tmpfs":
                results |= files(directory, rounds=rounds)
            exponents = (0, 10, 16) if quick else (0, 4, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
            found[place] = {
                "levels": {
                    name: [(each.contender.name, round(each.microseconds, 1), round(each.ratio, 2)) for each in result]
                    for name, result in results.items()
                },
                "sizes": _rounded(sizes(directory, level, exponents, rounds=3 if quick else 9)),
                "many": _rounded(many(directory, (1, 10) if quick else (1, 10, 100, 1000, 10_000))),
                "processes": _rounded(
                    processes(directory, level, (1, 2) if quick else (1, 2, 4, 8, 16), seconds=0.1 if quick else 1.0)
                ),
            }
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}, {os.cpu_count()} processors",
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "seconds": round(time.time() - begun),
        "places": found,
    }


def _rounded(series: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {name: [(x, float(f"{y:.4g}")) for x, y in points] for name, points in series.items()}
