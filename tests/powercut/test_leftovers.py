"""A run that is killed leaves no mount, no loop device and no process; what it did leave, the next run removes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import campaign
import mounts
from conftest import missing


@pytest.fixture(scope="module", autouse=True)
def _able() -> None:
    if reason := missing() or mounts.BLOCK_FILE_SYSTEMS["ext4"].missing():
        pytest.skip(reason)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT], ids=lambda end: end.name)
@pytest.mark.parametrize("attempt", range(3))
def test_a_run_that_is_ended_leaves_nothing(end, attempt, tmp_path):
    """At whatever moment: while it records, and while it judges."""
    cell = '{"system": "ext4", "operation": "batch", "level": "durable", "variant": "stepped", "states": 2000}'
    command = [sys.executable, campaign.__file__, str(tmp_path), cell]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert mounts.becomes_true(lambda: child.pid in mounts.loop_devices().values())
    time.sleep((0, 0.2, 2)[attempt])
    ours = {device for device, owner in mounts.loop_devices().items() if owner == child.pid}
    child.send_signal(end)
    child.wait(300)
    assert mounts.becomes_true(lambda: child.pid not in mounts.loop_devices().values()), ours
    assert mounts.becomes_true(lambda: not mounts.processes(str(tmp_path))), "a recorder goes on"
    with open("/proc/self/mounts") as table:
        assert str(tmp_path) not in table.read()


def test_the_next_run_removes_what_is_ours_and_nothing_else(tmp_path: Path, monkeypatch):
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    # as left by a process that is gone: without the flag that detaches a device by itself, and with its number
    child = subprocess.Popen(["true"])
    child.wait()
    with monkeypatch.context() as patch:
        patch.setattr(mounts, "_AUTOCLEAR", 0)
        with mounts.loop_device(str(image)) as foreign, mounts.loop_device(str(image)) as living:
            patch.setattr(os, "getpid", lambda: child.pid)
            with mounts.loop_device(str(image)) as left:
                pass
            patch.undo()
            _rename(foreign, b"somebody else's")
            try:
                # other runs of this suite may be under way
                found = mounts.loop_devices()
                assert (found[living], found[left], foreign in found) == (os.getpid(), child.pid, False)
                assert left in mounts.remove_leftovers()
                assert mounts.becomes_true(lambda: mounts.loop_devices().get(left) != child.pid)
                assert mounts.loop_devices()[living] == os.getpid()
                assert os.path.exists(f"/sys/block/{os.path.basename(foreign)}/loop/backing_file")
            finally:
                for device in (foreign, living):
                    _detach(device)


def _rename(device: str, name: bytes) -> None:
    descriptor = os.open(device, os.O_RDWR)
    info = list(mounts._loop_status(descriptor))
    info[9] = name
    fcntl.ioctl(descriptor, 0x4C04, mounts._LOOP_INFO.pack(*info))  # LOOP_SET_STATUS64
    os.close(descriptor)


def _detach(device: str) -> None:
    descriptor = os.open(device, os.O_RDWR)
    fcntl.ioctl(descriptor, mounts._LOOP_CLEAR)
    os.close(descriptor)
