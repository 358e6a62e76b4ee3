"""A run that is killed leaves no mount, no loop device and no FUSE program, and holds up no sync(2) of the machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import places
import pytest

import mounts


@pytest.mark.parametrize(("place", "seconds"), [("exFAT", 0), ("NTFS", 1), ("sshfs", 0), ("complete", 1)])
@pytest.mark.usefixtures("private_mounts")
def test_a_run_that_is_killed_leaves_nothing(place: str, seconds: float, tmp_path: Path) -> None:
    where = tmp_path / "run"
    tests = os.path.join(places.HERE, "test_filesystems.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--basetemp={where}", tests, "-k", f"functional and {place}"]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def served() -> bool:
        """The file system is mounted by its program, and the tests work in it."""
        return len(mounts.processes(f"{where}/")) >= 2

    try:
        assert mounts.becomes_true(lambda: served() or child.poll() is not None), "nothing is mounted"
        if child.poll() == 0:  # it had nothing to do but to skip
            pytest.skip(f"{place} is not to be had here")
        assert child.poll() is None
        time.sleep(seconds)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait(60)
    assert mounts.becomes_true(lambda: child.pid not in mounts.loop_devices().values())
    assert mounts.becomes_true(lambda: not mounts.processes(str(where))), "a program goes on"
    with open("/proc/self/mounts") as table:
        assert str(where) not in table.read()
    subprocess.run(["sync"], check=True, timeout=120)
