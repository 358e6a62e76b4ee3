"""500 files of 4 KiB, durable: one at a time against one batch, and how often the device is told to flush its cache.

On the kernel's file systems, each on a loop device. The two take turns in one run; the ratio is of the best of each. The
flushes are counted by the block layer, in ``/sys/block/*/stat``, so they are the same on every machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomicio

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="loop devices are for Linux"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to mount"),
]

FILES, SIZE, ROUNDS = 500, 4096, 5
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-K"],
    "btrfs": ["mkfs.btrfs", "-q", "-K"],
}
FLUSHES = 15  # the field of /sys/block/*/stat: Documentation/block/stat.rst, "flush I/Os"


@contextmanager
def mounted(kind: str, folder: Path) -> Iterator[tuple[Path, Path]]:
    """A new file system in *folder*: where it is mounted, and the statistics of its device."""
    image, mount = folder / "image", folder / "mount"
    with open(image, "wb") as file:
        file.truncate(4 << 30)  # sparse. A small btrfs commits early, for want of space to reserve
    mount.mkdir()
    subprocess.run([*MAKE[kind], image], check=True, capture_output=True)
    device = subprocess.run(
        ["losetup", "-f", "--show", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        subprocess.run(["mount", "-t", kind, device, mount], check=True)
        try:
            yield mount, Path("/sys/block") / os.path.basename(device) / "stat"
        finally:
            subprocess.run(["umount", mount], check=True)
    finally:
        subprocess.run(["losetup", "-d", device], check=True)
        image.unlink()


def one_at_a_time(folder: Path, files: int) -> None:
    for number in range(files):
        atomicio.write_bytes(folder / str(number), b"x" * SIZE)


def batch(folder: Path, files: int) -> None:
    with atomicio.batch() as batch:
        for number in range(files):
            batch.write_bytes(folder / str(number), b"x" * SIZE)


def settle(folder: Path) -> None:
    """Wait for what was written before, on this file system alone."""
    subprocess.run(["sync", "-f", folder], check=True)


def seconds(function: object, folder: Path) -> float:
    settle(folder)
    begun = time.perf_counter()
    function(folder, FILES)  # type: ignore[operator]
    return time.perf_counter() - begun


def flushes(function: object, folder: Path, files: int, stat: Path) -> int:
    """Count the flushes; the least of three, since the file system commits by itself now and then."""
    counts = []
    for _ in range(3):
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
    assert single / together >= 5
    assert each >= 100, "the flushes are not counted here"
    assert max(counts.values()) <= min(counts.values()) + 2
    assert max(counts.values()) < 12
