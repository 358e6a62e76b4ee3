"""500 files of 4 KiB, durable: one at a time against one batch, and how often the device is told to flush its cache.

On the kernel's file systems, each on a loop device. The two take turns in one run; the ratio is of the best of each, and is
printed, not judged: a machine has other work. The flushes are counted by the block layer, in ``/sys/block/*/stat``, so they
are the same on every machine, and are judged.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest

import atomicio
from measure import MAKE, mounted, settle

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="loop devices are for Linux"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to mount"),
]

FILES, SIZE, ROUNDS = 500, 4096, 3
FLUSHES = 15  # the field of /sys/block/*/stat: Documentation/block/stat.rst, "flush I/Os"


def one_at_a_time(folder: Path, files: int) -> None:
    for number in range(files):
        atomicio.write_bytes(folder / str(number), b"x" * SIZE)


def batch(folder: Path, files: int) -> None:
    with atomicio.batch() as batch:
        for number in range(files):
            batch.write_bytes(folder / str(number), b"x" * SIZE)


def seconds(function: object, folder: Path) -> float:
    settle(folder)
    begun = time.perf_counter()
    function(folder, FILES)  # type: ignore[operator]
    return time.perf_counter() - begun


def flushes(function: object, folder: Path, files: int, stat: Path) -> int:
    """Count the flushes; the least of five, since the file system commits by itself now and then."""
    counts = []
    for _ in range(5):
        settle(folder)
        before = int(stat.read_text().split()[FLUSHES])
        function(folder, files)  # type: ignore[operator]
        counts.append(int(stat.read_text().split()[FLUSHES]) - before)
    return min(counts)


@pytest.mark.parametrize("kind", MAKE)
def test_batch(kind: str, tmp_path: Path) -> None:
    if not shutil.which(MAKE[kind][0]):
        pytest.skip(f"{MAKE[kind][0]} is not installed")
    with mounted(kind, tmp_path) as (mount, stat):
        folder = mount / "folder"
        folder.mkdir()
        times: dict[object, list[float]] = {one_at_a_time: [], batch: []}
        for _ in range(ROUNDS):
            for function, taken in times.items():
                taken.append(seconds(function, folder))
        single, together = (min(taken) for taken in times.values())
        counts = {files: flushes(batch, folder, files, stat) for files in (10, 100, 500)}
        each = flushes(one_at_a_time, folder, 100, stat)
    print(
        f"\n{kind:6} {FILES} x {SIZE} B durable: one at a time {1000 * single:.0f} ms, batch {1000 * together:.0f} ms, "
        f"{single / together:.1f}x; flushes of a batch of 10, 100, 500: {', '.join(map(str, counts.values()))}; "
        f"of 100 one at a time: {each}"
    )
    assert each >= 100, "the flushes are not counted here"
    assert max(counts.values()) <= min(counts.values()) + 2
    assert max(counts.values()) < 12
