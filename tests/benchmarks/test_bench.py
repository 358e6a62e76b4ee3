"""What it costs: medians and ratios against the hand-written sequences and against other libraries, all in one run.

    tox run -e bench                 # a minute: prints the ratios, and tries the code of the plots
    tox run -e bench -- --redraw     # some minutes: measures all of the page, and draws it

How it is measured is in `measure`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import atomicio
import plots
from measure import Result, everything, files, levels, peer, places

#: What is aimed at, against the hand-written sequence on a tmpfs with nothing synced; and what a run must not exceed:
#: what has been measured, with an allowance. Whoever comes nearer to the aim lowers the limit.
AIMS = {"write_bytes": 1.9, "with atomic_write, binary": 1.6, "with atomic_write, text": 1.6}
LIMITS = {"write_bytes": 6.0, "with atomic_write, binary": 6.0, "with atomic_write, text": 5.5}


#: What the printed lines say about a contender's file, shortened where the line is long.
SYNCED = {"none": "nothing synced", "consistent": "file synced", "durable": "file and directory synced"}


def show(title: str, results: list[Result]) -> dict[str, float]:
    print(f"\n{title}")
    for contender, microseconds, ratio in results:
        print(f"  {contender.name:34} {microseconds:9.1f} us  x{ratio:6.2f}   {contender.gives_up}".rstrip())
    return {contender.name: ratio for contender, _, ratio in results}


def test_small_files(tmp_path: Path) -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0
    print(
        f"\nPython {platform.python_version()}, {platform.platform()}, {os.cpu_count()} processors, load {load:.1f}; 1 KiB for 1 KiB"
    )
    with places(tmp_path) as found:
        ratios = {}
        for name, directory in found.items():
            ratios[name] = {}
            for level, results in levels(directory, rounds=21 if name == "tmpfs" else 5).items():
                shown = show(f"{name}, {SYNCED[level]}", results)
                if level == "none":
                    ratios[name] |= shown
            for kind, results in (files(directory, rounds=21) if name == "tmpfs" else {}).items():
                ratios[name] |= show(f"{name}, nothing synced, {kind}", results)
    if "tmpfs" not in ratios:
        pytest.skip("without a tmpfs the device decides, and nothing is promised")
    print("\ntmpfs, nothing synced: the aims, and what is measured")
    for name, aim in AIMS.items():
        print(f"  {name:34} aim x{aim:5.2f}, measured x{ratios['tmpfs'][name]:5.2f}")
    # By processor time, side by side: a machine that is busy slows both alike.
    worse = {name: ratios["tmpfs"][name] for name, most in LIMITS.items() if ratios["tmpfs"][name] > most}
    assert not worse, f"no more than {LIMITS} was measured before"


def test_the_page(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """With --redraw all that the page shows is measured; else the same code is tried on a little of it, and drawn."""
    if sys.platform != "linux" or os.geteuid():
        pytest.skip("the page is measured on Linux, as root")
    redraw = request.config.option.redraw
    (tmp_path / "places").mkdir()
    numbers = json.loads(json.dumps(everything(tmp_path / "places", quick=not redraw)))
    if redraw:
        plots.write(numbers)
    assert "<svg" in plots.draw(numbers, tmp_path)[0].read_text(encoding="utf-8")
    assert f"CPython {numbers['python']}" in plots.as_rst(numbers)
    if plots.NUMBERS.exists():  # not in an installed copy of the tests alone
        committed = json.loads(plots.NUMBERS.read_text(encoding="utf-8"))
        assert plots.as_rst(committed) == plots.TABLE.read_text(encoding="utf-8")
        assert {path.name for path in plots.draw(committed, tmp_path)} <= {path.name for path in plots.PLOTS.iterdir()}


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
            for _ in range(3):
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
                print(f"  atomic_write against the same by hand: x{ours:.2f}")


def test_the_import(tmp_path: Path) -> None:
    """What ``import X`` adds to a bare interpreter: -X importtime, the cumulative time of X, the least of five."""
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
        for _ in range(5):
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
