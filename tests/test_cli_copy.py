"""``python -m atomicio copy``: the content, the bar on a terminal, and Ctrl-C, which changes nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import atomicio

if sys.platform == "emscripten":
    pytest.skip("a command is a process, which Emscripten has not", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("no_litter")

PACKAGE_PARENT = str(Path(atomicio.__file__).parent.parent)
# The command itself, on a disk that takes 0.15 s for each part. Its real calls copy.
SLOW = textwrap.dedent("""
    import errno, fcntl, os, sys, time
    from atomicio import _verbs, cli
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    real = os.copy_file_range
    def slowly(*arguments):
        print("copying", flush=True)
        time.sleep(0.15)
        return real(*arguments)
    _verbs._share = lambda *_: False
    os.copy_file_range = slowly
    _verbs._KERNEL_CHUNK = 1 << 16
    sys.exit(cli.main(sys.argv[1:]))
""")
slow = pytest.mark.skipif(sys.platform != "linux", reason="copy_file_range is for Linux")


def command(*arguments: Any, program: str | None = None, **keywords: Any) -> subprocess.Popen[bytes]:
    how = ["-m", "atomicio"] if program is None else ["-c", program]
    environment = {**os.environ, "PYTHONPATH": PACKAGE_PARENT}
    return subprocess.Popen([sys.executable, *how, "copy", *arguments], env=environment, **keywords)


def run(*arguments: Any) -> tuple[int, str]:
    process = command(*arguments, stderr=subprocess.PIPE)
    errors = process.communicate(timeout=60)[1]
    return process.returncode, errors.decode()


def test_it_copies(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "src").write_bytes(data)
    (tmp_path / "dst").write_text("old")
    assert run(tmp_path / "src", tmp_path / "dst", "--backup", ".bak", "--mode", "600") == (0, "")
    assert (tmp_path / "dst").read_bytes() == data
    assert (tmp_path / "dst.bak").read_text() == "old"
    if os.name != "nt":
        assert (tmp_path / "dst").stat().st_mode & 0o777 == 0o600
    assert run(tmp_path / "src", tmp_path / "made" / "dst", "--parents", "--durability", "none") == (0, "")
    assert (tmp_path / "made" / "dst").read_bytes() == data


def test_failures_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "src").write_text("new")
    (tmp_path / "d").mkdir()
    for src, dst, name in (("missing", "dst", "missing"), ("src", "d", "d")):
        status, errors = run(tmp_path / src, tmp_path / dst)
        assert status == 1
        assert errors.startswith(f"atomicio: {tmp_path / name}: ")
        assert errors.count("\n") == 1
    assert run(tmp_path / "src")[0] == 2
    assert not (tmp_path / "dst").exists()


@slow
def test_the_bar_on_a_terminal(tmp_path: Path) -> None:
    import pty

    (tmp_path / "src").write_bytes(os.urandom(16 << 16))
    ours, terminal = pty.openpty()
    process = command(tmp_path / "src", tmp_path / "dst", program=SLOW, stderr=terminal)
    os.close(terminal)
    shown = b""
    try:
        while data := os.read(ours, 4096):
            shown += data
    except OSError:
        pass  # EIO: nobody has the terminal open any more
    os.close(ours)
    assert process.wait(60) == 0
    shares = [int(share) for share in re.findall(rb"(\d+)%", shown)]
    assert len(shares) >= 3
    assert shares == sorted(shares)
    assert re.search(rb"\[#+\.+\] +\d+%  [\d.]+ KiB of 1\.0 MiB", shown)
    assert shown.endswith(b"\r\x1b[K"), "the line is left as it was"
    assert (tmp_path / "dst").read_bytes() == (tmp_path / "src").read_bytes()


@slow
def test_no_bar_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(os.urandom(10 << 16))
    process = command(tmp_path / "src", tmp_path / "dst", program=SLOW, stderr=subprocess.PIPE)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 0


@slow
@pytest.mark.parametrize("exists", [True, False])
def test_ctrl_c_leaves_the_target_as_it_was(exists: bool, tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(os.urandom(60 << 16))
    if exists:
        (tmp_path / "dst").write_text("old")
    slowest = SLOW.replace("sleep(0.15)", "sleep(60)")
    process = command(tmp_path / "src", tmp_path / "dst", program=slowest, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"copying\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b""
    assert process.returncode == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dst", "src"][not exists :]
    if exists:
        assert (tmp_path / "dst").read_text() == "old"
