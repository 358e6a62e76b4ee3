"""``python -m atomicio write TARGET``: a sponge that is safe, with the manners of a Unix tool."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from oracle import AS_ROOT, LINUX, bind_mounted, device, mode_of, read, tmpfs_mounted, umask, write

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "COLUMNS": "200"}
COMMAND = [sys.executable, "-m", "atomicio", "write"]
posix_only = pytest.mark.skipif(os.name != "posix", reason="a shell, signals or permission bits as POSIX has them")


def run(*arguments: str | bytes | Path, data: bytes = b"new\n", **keywords: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments], input=data, capture_output=True, env=ENVIRONMENT, timeout=60, check=False, **keywords
    )


def says(done: subprocess.CompletedProcess[bytes], status: int, *parts: str) -> None:
    """It failed with this status, in one line on standard error that holds these parts, and printed nothing else."""
    text = done.stderr.decode()
    assert done.returncode == status, text
    assert done.stdout == b""
    assert text.startswith("atomicio: ")
    assert text.count("\n") == 1 and text.endswith("\n"), text
    assert "Traceback" not in text
    for part in parts:
        assert part in text


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    write(path, b"old\n")
    return path


@pytest.mark.parametrize(
    "data", [b"", b"new\n", b"no newline at its end", bytes(range(256)) * 5000, b"\r\n\x1a\x00\xff"]
)
def test_standard_input_replaces_the_target(target: Path, data: bytes) -> None:
    done = run(target, data=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert read(target) == data
    assert os.listdir(target.parent) == ["target"]


def test_a_new_file(tmp_path: Path) -> None:
    assert run(tmp_path / "target").returncode == 0
    assert read(tmp_path / "target") == b"new\n"


@posix_only
def test_a_new_file_obeys_the_umask(tmp_path: Path) -> None:
    with umask(0o027):
        assert run(tmp_path / "target").returncode == 0
    assert oct(mode_of(tmp_path / "target")) == oct(0o640)


@posix_only
def test_a_replaced_file_keeps_its_mode(target: Path) -> None:
    os.chmod(target, 0o751)
    assert run(target).returncode == 0
    assert oct(mode_of(target)) == oct(0o751)


@posix_only
def test_the_target_may_be_what_the_input_is_made_from(tmp_path: Path) -> None:
    """sort f | atomicio write f: a redirection would have emptied the file before sort read it."""
    lines = [f"{number:05}\n".encode() for number in range(20_000, 0, -1)]
    write(tmp_path / "f", b"".join(lines))
    for _ in range(3):
        command = f'LC_ALL=C sort f | "{sys.executable}" -m atomicio write f'
        subprocess.run(command, shell=True, cwd=tmp_path, env=ENVIRONMENT, check=True)
        assert read(tmp_path / "f") == b"".join(sorted(lines))
    assert os.listdir(tmp_path) == ["f"]


@posix_only
def test_the_target_may_be_read_while_it_is_appended_to(tmp_path: Path) -> None:
    write(tmp_path / "f", b"line\n" * 50_000)
    subprocess.run(
        f'cat f | "{sys.executable}" -m atomicio write --append f',
        shell=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=True,
    )
    assert read(tmp_path / "f") == b"line\n" * 100_000


@pytest.mark.parametrize("option", ["--append", "-a"])
def test_append(target: Path, option: str) -> None:
    assert run(option, target).returncode == 0
    assert read(target) == b"old\nnew\n"
    assert run(option, target.with_name("absent")).returncode == 0
    assert read(target.with_name("absent")) == b"new\n"


@pytest.mark.parametrize("option", ["--no-clobber", "-n"])
def test_no_clobber(target: Path, option: str) -> None:
    done = run(option, target)
    says(done, 1, str(target), "File exists", "--no-clobber")
    assert "mode" not in done.stderr.decode()
    assert read(target) == b"old\n"
    assert run(option, target.with_name("absent")).returncode == 0
    assert read(target.with_name("absent")) == b"new\n"
    assert sorted(os.listdir(target.parent)) == ["absent", "target"]


@pytest.mark.parametrize("level", ["none", "consistent", "durable"])
def test_every_level_writes(target: Path, level: str) -> None:
    assert run("--durability", level, target).returncode == 0
    assert read(target) == b"new\n"


@pytest.mark.skipif(not LINUX or not shutil.which("strace"), reason="counting system calls takes strace")
@pytest.mark.parametrize(("level", "syncs"), [("none", 0), ("consistent", 1), ("durable", 2), (None, 2)])
def test_the_level_is_what_is_synced(target: Path, level: str | None, syncs: int) -> None:
    trace = target.with_name("trace")
    options = [] if level is None else ["--durability", level]
    command = ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(trace), *COMMAND, *options, str(target)]
    done = subprocess.run(command, input=b"new\n", env=ENVIRONMENT, capture_output=True)
    if b"ptrace" in done.stderr:
        pytest.skip("this machine does not let one trace")
    assert done.returncode == 0
    assert len(re.findall(r"\bf(?:data)?sync\(", trace.read_text())) == syncs


@posix_only
@pytest.mark.parametrize("mode", ["600", "0640", "755", "0o644", "4755"])
def test_mode(tmp_path: Path, mode: str) -> None:
    with umask(0o077):
        assert run("--mode", mode, tmp_path / "target").returncode == 0
    assert oct(mode_of(tmp_path / "target")) == oct(int(mode, 8))


@pytest.mark.parametrize("suffix", [".bak", "~", ".2026-11-24"])
def test_backup(target: Path, suffix: str) -> None:
    assert run("--backup", suffix, target).returncode == 0
    assert read(target) == b"new\n"
    assert read(Path(f"{target}{suffix}")) == b"old\n"
    assert len(os.listdir(target.parent)) == 2


def test_unchanged_content_is_left_alone(target: Path) -> None:
    before = os.stat(target)
    assert run("--skip-unchanged", target, data=b"old\n").returncode == 0
    after = os.stat(target)
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert run("--skip-unchanged", target).returncode == 0
    assert read(target) == b"new\n"


def test_the_lock_is_waited_for(target: Path) -> None:
    from filelock import FileLock

    with FileLock(f"{target}.lock"):
        with subprocess.Popen([*COMMAND, "--lock", target], stdin=subprocess.PIPE, env=ENVIRONMENT) as process:
            assert process.stdin is not None
            process.stdin.close()
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1.0)
            assert read(target) == b"old\n"
            process.kill()
    assert run("--lock", target).returncode == 0
    assert read(target) == b"new\n"


def test_somebody_elses_change_is_kept_and_the_lock_is_advised(target: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "--append", target], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(b"mine\n" * 100_000)  # more than a pipe holds: when all is written, it has begun to read
        process.stdin.flush()
        write(target, b"theirs\n")
        process.stdin.close()
        text = process.stderr.read().decode()
    assert process.returncode == 1
    assert "--lock" in text and "lock=True" not in text
    assert text.count("\n") == 1
    assert read(target) == b"theirs\n"


@posix_only
@pytest.mark.parametrize("options", [[], ["--no-follow"]])
def test_a_link_is_followed_or_replaced(target: Path, options: list[str]) -> None:
    link = target.with_name("link")
    os.symlink("target", link)
    assert run(*options, link).returncode == 0
    assert read(link) == b"new\n"
    assert link.is_symlink() is not bool(options)
    assert read(target) == (b"old\n" if options else b"new\n")


@posix_only
@pytest.mark.parametrize("name", [b"-rf", b"a b", b"\xff\xfe", "gr\u00fcn".encode(), b"%s", b"*"])
def test_odd_names(tmp_path: Path, name: bytes) -> None:
    done = run("--", name, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert os.listdir(os.fsencode(tmp_path)) == [name]


@posix_only
def test_standard_output_and_null_are_written_through(tmp_path: Path) -> None:
    os.symlink("/dev/fd/1", tmp_path / "stdout")  # as /dev/stdout is, which root could replace by mistake
    for name in ("/dev/fd/1", tmp_path / "stdout"):
        done = run(name)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"new\n", b"")
    assert (tmp_path / "stdout").is_symlink()
    null = Path(device(tmp_path / "null"))
    assert run(null).returncode == 0
    assert null.is_char_device()


# ---------------------------------------------------------------------------------------------------------------------
# Failure
# ---------------------------------------------------------------------------------------------------------------------


def test_a_missing_directory(tmp_path: Path) -> None:
    path = tmp_path / "no such directory" / "target"
    done = run(path)
    says(done, 1, str(path), "directory", "--parents")
    assert "make_parents" not in done.stderr.decode()
    assert os.listdir(tmp_path) == []
    for level in ("none", "durable"):
        assert run("--parents", "--durability", level, tmp_path / level / "made" / "target").returncode == 0
        assert read(tmp_path / level / "made" / "target") == b"new\n"


def test_a_directory(tmp_path: Path) -> None:
    says(run(tmp_path), 1, str(tmp_path), "directory")


def test_an_empty_path() -> None:
    says(run(""), 1)


@posix_only
def test_a_name_that_is_no_text_is_printed_all_the_same(tmp_path: Path) -> None:
    done = run(os.fsencode(tmp_path) + b"/\xff/target")
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1


@posix_only
def test_a_newline_in_a_name_leaves_one_line(tmp_path: Path) -> None:
    """Else a log reader, or a terminal, takes the rest of the name for a message of its own."""
    done = run(tmp_path / "a\nb" / "target")
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["one", "two"],
        ["--nonsense", "t"],
        ["--durability", "full", "t"],
        ["--mode", "abc", "t"],
        ["--mode", "888", "t"],
        ["--mode", "-1", "t"],
        ["--mode", "10000", "t"],
        ["--append", "--no-clobber", "t"],
        ["--durability"],
        ["--backup"],
        ["--app", "t"],
    ],
)
def test_wrong_usage_is_status_2_and_touches_nothing(tmp_path: Path, arguments: list[str]) -> None:
    write(tmp_path / "t", b"old")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == b""
    assert done.stderr.startswith(b"usage: ")
    assert os.listdir(tmp_path) == ["t"]
    assert read(tmp_path / "t") == b"old"


@pytest.mark.parametrize("suffix", ["", "/x", "../y"])
def test_a_backup_suffix_that_makes_no_sense(target: Path, suffix: str) -> None:
    done = run("--backup", suffix, target)
    assert done.returncode in (1, 2)
    assert b"backup" in done.stderr
    assert b"Traceback" not in done.stderr
    assert read(target) == b"old\n"
    assert os.listdir(target.parent) == ["target"]


@pytest.mark.skipif(not AS_ROOT or not LINUX, reason="a full disk takes Linux and root")
@pytest.mark.parametrize("options", [[], ["--append"], ["--durability", "none"]])
def test_a_full_disk(tmp_path: Path, options: list[str]) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    with tmpfs_mounted(str(mount), "64k"):
        write(mount / "target", b"old\n")
        says(run(*options, mount / "target", data=b"z" * 500_000), 1, str(mount / "target"), "No space left")
        assert read(mount / "target") == b"old\n"
        assert os.listdir(mount) == ["target"]


def test_a_mount_point(tmp_path: Path) -> None:
    write(tmp_path / "source", b"old\n")
    write(tmp_path / "target", b"")
    with bind_mounted(str(tmp_path / "source"), str(tmp_path / "target")):
        done = run(tmp_path / "target")
        says(done, 1, str(tmp_path / "target"), "mount point", "--in-place")
        assert "fallback" not in done.stderr.decode()
        assert read(tmp_path / "target") == b"old\n"
        assert run("--in-place", tmp_path / "target").returncode == 0
        assert read(tmp_path / "target") == b"new\n"
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


@posix_only
def test_input_that_cannot_be_read_leaves_the_target(target: Path) -> None:
    """Not open for reading: read(2) says EBADF. Half an input is no input."""
    descriptor = os.open("/dev/null", os.O_WRONLY)
    try:
        done = subprocess.run([*COMMAND, target], stdin=descriptor, capture_output=True, env=ENVIRONMENT)
    finally:
        os.close(descriptor)
    assert done.returncode == 1
    assert done.stderr.startswith(b"atomicio: ")
    assert done.stderr.count(b"\n") == 1
    assert b"standard input" in done.stderr, "it is not the target that could not be read"
    assert read(target) == b"old\n"


@posix_only
def test_closed_standard_input_leaves_the_target(target: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m atomicio write "$1" <&-', sys.executable, str(target)],
        capture_output=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 1
    assert b"standard input" in done.stderr
    assert b"Traceback" not in done.stderr
    assert read(target) == b"old\n"


@posix_only
def test_closed_standard_error_does_no_harm(target: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m atomicio write "$1" 2>&-', sys.executable, str(target)],
        input=b"new\n",
        env=ENVIRONMENT,
    )
    assert done.returncode == 0
    assert read(target) == b"new\n"


@posix_only
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_a_signal_while_it_reads_leaves_the_target(target: Path, name: str) -> None:
    """Killed before the end of the input: it dies of the signal, as a shell expects, and leaves nothing."""
    number = getattr(signal, name)
    with subprocess.Popen(
        [*COMMAND, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        process.stdin.write(b"half of it" * 10_000)
        process.stdin.flush()
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(number)
        process.wait(120)
        text = process.stderr.read()
        process.stdin.close()
    assert process.returncode in (-number, 128 + number)
    assert b"Traceback" not in text
    assert text.count(b"\n") <= 1
    assert read(target) == b"old\n"
    assert os.listdir(target.parent) == ["target"]


@posix_only
def test_the_target_is_what_it_was_until_the_input_ends(target: Path) -> None:
    with subprocess.Popen([*COMMAND, target], stdin=subprocess.PIPE, env=ENVIRONMENT) as process:
        assert process.stdin is not None
        for _ in range(5):
            process.stdin.write(b"part")
            process.stdin.flush()
            time.sleep(0.1)
            assert read(target) == b"old\n"
        process.stdin.close()
    assert process.returncode == 0
    assert read(target) == b"part" * 5


# ---------------------------------------------------------------------------------------------------------------------
# Progress, help, installation
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not LINUX, reason="the master of a Linux pseudo-terminal")
@pytest.mark.parametrize("shown", [True, False])
def test_progress_in_bytes_on_a_terminal_and_only_past_a_second(target: Path, shown: bool) -> None:
    import pty

    master, slave = pty.openpty()
    process = subprocess.Popen([*COMMAND, target], stdin=subprocess.PIPE, stderr=slave, env=ENVIRONMENT)
    os.close(slave)
    assert process.stdin is not None
    output = b""
    end = time.monotonic() + 60 * shown
    while True:
        process.stdin.write(b"z" * 10_000)
        process.stdin.flush()
        # Two lines: the second is written over the first.
        if output.count(b"\r") >= 2 or time.monotonic() >= end:
            break
        time.sleep(0.1)
        while select.select([master], [], [], 0)[0]:
            output += os.read(master, 4096)
    process.stdin.close()
    assert process.wait(60) == 0
    try:
        while data := os.read(master, 4096):
            output += data
    except OSError:
        pass  # EIO: the other side of the terminal is closed
    os.close(master)
    if shown:
        assert re.search(rb"\d+(\.\d+)? (B|KiB)", output), output
        assert b"\n" not in output, "one line that is rewritten"
        assert output.endswith(b"\r\x1b[K"), "and gone at the end"
    else:
        assert output == b""
    assert set(read(target)) == {ord("z")}


def test_no_progress_where_there_is_no_terminal(target: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, target], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        assert process.stdin is not None and process.stderr is not None
        for _ in range(15):
            process.stdin.write(b"z" * 10_000)
            process.stdin.flush()
            time.sleep(0.1)
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_help_names_every_option() -> None:
    done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0
    assert done.stderr == ""
    options = ["--append", "--no-clobber", "--durability", "--mode", "--backup", "--no-follow", "--skip-unchanged"]
    for part in ("TARGET", "standard input", *options, "--parents", "--lock", "--in-place"):
        assert part in done.stdout
    for arguments in (["--help"], ["nonsense"]):
        done = subprocess.run(
            [sys.executable, "-m", "atomicio", *arguments], capture_output=True, text=True, env=ENVIRONMENT
        )
        assert done.returncode == (0 if arguments == ["--help"] else 2)
        assert "write" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_the_version() -> None:
    import atomicio

    done = subprocess.run(
        [sys.executable, "-m", "atomicio", "--version"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert atomicio.__version__ in done.stdout


def test_installed_as_a_command_of_its_own(tmp_path: Path) -> None:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        scripts = distribution("atomicio").entry_points.select(group="console_scripts")
    except PackageNotFoundError:
        pytest.skip("the package is on the path but not installed")
    assert [entry.name for entry in scripts] == ["atomicio"]
    command = os.path.join(os.path.dirname(sys.executable), "atomicio")
    if not os.path.exists(command):
        pytest.skip("scripts are not beside this interpreter")
    done = subprocess.run([command, "write", tmp_path / "target"], input=b"new\n", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert read(tmp_path / "target") == b"new\n"
