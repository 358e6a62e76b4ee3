"""The writer as an object, and its options: open, commit, abort, special files, fallback, backup, parents, names."""

from __future__ import annotations

import errno
import gc
import io
import os
import re
import stat
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomicio
from oracle import (
    AS_ROOT,
    LINUX,
    ORDINARY_USER,
    as_ordinary_user,
    bind_mounted,
    device,
    left_behind,
    mode_of,
    public_directory,
    read,
    tmpfs_mounted,
    umask,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

posix_only = pytest.mark.skipif(os.name != "posix", reason="files as POSIX has them")
linux_only = pytest.mark.skipif(not LINUX, reason="takes Linux's /proc or mounts")
root_only = pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if LINUX else 0


@pytest.fixture(scope="module", autouse=True)
def little_to_collect() -> Iterator[None]:
    """What other tests have imported is left alone: else half of the time here goes into looking through it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    gc.collect()
    before = descriptors()
    yield
    gc.collect()
    assert descriptors() == before


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    write(path, b"old")
    return path


def only(path: Path) -> bool:
    """Nothing but *path* is in its directory."""
    return os.listdir(path.parent) == [path.name]


# ---------------------------------------------------------------------------------------------------------------------
# open, commit, abort
# ---------------------------------------------------------------------------------------------------------------------


def test_without_with(target: Path) -> None:
    writer = atomicio.atomic_write(target)
    assert isinstance(writer, atomicio.AtomicWriter)
    assert writer.target == os.fspath(target)
    assert writer.committed is False
    file = writer.open()
    file.write("new")
    assert read(target) == b"old"
    writer.commit()
    assert writer.committed is True
    assert file.closed
    assert read(target) == b"new"
    assert only(target)


def test_abort_leaves_everything(target: Path) -> None:
    writer = atomicio.atomic_write(target)
    file = writer.open()
    file.write("new")
    file.flush()
    writer.abort()
    assert writer.committed is False
    assert file.closed
    assert read(target) == b"old"
    assert only(target)


def test_both_are_safe_to_call_twice(target: Path) -> None:
    writer = atomicio.atomic_write(target)
    writer.open().write("new")
    writer.commit()
    inode = target.stat().st_ino
    writer.commit()
    assert target.stat().st_ino == inode
    other = atomicio.atomic_write(target)
    other.open().write("newer")
    other.abort()
    other.abort()
    assert read(target) == b"new"
    assert only(target)


def test_abort_after_commit_undoes_nothing(target: Path) -> None:
    writer = atomicio.atomic_write(target)
    writer.open().write("new")
    writer.commit()
    writer.abort()
    assert writer.committed is True
    assert read(target) == b"new"


def test_commit_after_abort_is_refused(target: Path) -> None:
    """It must not look like a success."""
    writer = atomicio.atomic_write(target)
    writer.open().write("new")
    writer.abort()
    with pytest.raises(atomicio.WriterStateError) as caught:
        writer.commit()
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert read(target) == b"old"


def test_commit_before_open_is_refused(target: Path) -> None:
    with pytest.raises(atomicio.WriterStateError) as caught:
        atomicio.atomic_write(target).commit()
    assert os.fspath(caught.value.filename) == os.fspath(target)
    assert caught.value.errno
    assert read(target) == b"old"


def test_abort_before_open_is_fine(target: Path) -> None:
    atomicio.atomic_write(target).abort()
    assert only(target)


def test_a_writer_is_opened_once(target: Path) -> None:
    writer = atomicio.atomic_write(target)
    writer.open().write("new")
    with pytest.raises(atomicio.WriterStateError):
        writer.open()
    writer.commit()
    with pytest.raises(atomicio.WriterStateError):
        writer.open()
    with pytest.raises(atomicio.WriterStateError), writer:
        pass
    assert read(target) == b"new"
    assert only(target)


def test_nothing_is_touched_before_open(tmp_path: Path) -> None:
    atomicio.atomic_write(tmp_path / "target")
    atomicio.atomic_write(tmp_path / "missing" / "target")
    assert os.listdir(tmp_path) == []


def test_commit_within_the_block(target: Path) -> None:
    with (writer := atomicio.atomic_write(target)) as file:
        file.write("new")
        writer.commit()
        assert read(target) == b"new"
        write(target, b"later")
    assert read(target) == b"later"
    assert only(target)


def test_abort_within_the_block(target: Path) -> None:
    """A decision against the write is no error."""
    with (writer := atomicio.atomic_write(target)) as file:
        file.write("new")
        writer.abort()
    assert writer.committed is False
    assert read(target) == b"old"
    assert only(target)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_an_exception_in_the_block_leaves_everything(target: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), atomicio.atomic_write(target) as file:
        file.write("new")
        file.flush()
        raise error
    assert read(target) == b"old"
    assert only(target)


def test_a_generator_closed_in_the_block_leaves_everything(target: Path) -> None:
    def generator() -> Iterator[None]:
        with atomicio.atomic_write(target) as file:
            file.write("new")
            yield

    running = generator()
    next(running)
    running.close()
    assert read(target) == b"old"
    assert only(target)


def test_return_break_and_continue_commit(target: Path) -> None:
    for _ in range(3):
        with atomicio.atomic_write(target) as file:
            file.write("new")
            break
    assert read(target) == b"new"


# ---------------------------------------------------------------------------------------------------------------------
# Dropped, closed early, detached
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["w", "wb", "x", "a", "r+"])
def test_a_dropped_writer_aborts_and_warns(tmp_path: Path, mode: str) -> None:
    target = tmp_path / "target"
    if mode != "x":
        write(target, b"old")
    wanted = left_behind(str(tmp_path))
    writer = atomicio.atomic_write(target, mode)
    file = writer.open()
    file.write(b"new" if "b" in mode else "new")
    with pytest.warns(ResourceWarning, match="target"):
        del writer, file
        gc.collect()
    assert left_behind(str(tmp_path)) == wanted


def test_a_file_kept_longer_than_its_writer_publishes_nothing(target: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        file = atomicio.atomic_write(target).open()
        gc.collect()
        try:
            file.write("new")
            file.close()
        except ValueError:
            pass  # closed with its writer
        del file
        gc.collect()
    assert read(target) == b"old"
    assert only(target)


def test_no_warning_when_nothing_was_dropped(target: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atomicio.atomic_write(target)
        with atomicio.atomic_write(target) as file:
            file.write("new")
        writer = atomicio.atomic_write(target)
        writer.open()
        writer.abort()
        del writer, file
        gc.collect()


def test_a_writer_dropped_at_exit_leaves_everything(target: Path) -> None:
    code = f"import atomicio; w = atomicio.atomic_write({str(target)!r}); f = w.open(); f.write('new'); f.flush()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0
    assert done.stderr == ""
    assert read(target) == b"old"
    assert only(target)


@pytest.mark.parametrize("mode", ["w", "wb", "w+b", "a", "r+", "x"])
@pytest.mark.parametrize("level", ["none", "consistent", "durable"])
def test_a_file_closed_early_is_committed_at_the_end_of_the_block(tmp_path: Path, mode: str, level: str) -> None:
    target = tmp_path / "target"
    if mode != "x":
        write(target, b"old")
    with atomicio.atomic_write(target, mode, durability=level) as file:
        file.write(b"new" if "b" in mode else "new")
        file.close()
        assert file.closed
        assert not target.exists() if mode == "x" else read(target) == b"old"
        with pytest.raises(ValueError, match="closed"):
            file.write(b"more" if "b" in mode else "more")
    assert read(target) == (b"oldnew" if mode == "a" else b"new")
    assert only(target)


def test_a_file_closed_early_is_still_aborted_by_an_exception(target: Path) -> None:
    with pytest.raises(KeyError), atomicio.atomic_write(target) as file:
        file.write("new")
        file.close()
        raise KeyError
    assert read(target) == b"old"
    assert only(target)


def test_the_file_as_a_context_manager_of_its_own(target: Path) -> None:
    with atomicio.atomic_write(target) as outer, outer as inner:
        inner.write("new")
    assert read(target) == b"new"


@pytest.mark.parametrize("closed_by", ["nobody", "the caller"])
def test_a_detached_text_layer(target: Path, closed_by: str) -> None:
    """As for TextIOWrapper(f.detach(), other encoding) and for zipfile-like consumers."""
    with atomicio.atomic_write(target, "w", encoding="utf-8") as file:
        file.write("f\u00fcr ")
        binary = file.detach()
        again = io.TextIOWrapper(binary, encoding="latin-1", write_through=True)
        again.write("m\u00fcde")
        if closed_by == "the caller":
            again.close()
        else:
            again.flush()
    assert read(target) == "f\u00fcr ".encode() + "m\u00fcde".encode("latin-1")
    assert only(target)


def test_a_detached_buffer(target: Path) -> None:
    with atomicio.atomic_write(target, "wb") as file:
        file.write(b"new ")
        raw = file.detach()
        raw.write(b"content")
    assert read(target) == b"new content"
    assert only(target)


def test_a_wrapper_of_the_callers_own_that_is_still_alive(target: Path) -> None:
    """What the caller has not flushed is not the library's to know; what was flushed is there; nothing is torn."""
    with atomicio.atomic_write(target, "wb") as file:
        wrapper = io.TextIOWrapper(file, encoding="utf-8")
        wrapper.write("new")
        wrapper.flush()
    assert read(target) == b"new"
    del wrapper
    gc.collect()
    assert read(target) == b"new"


@posix_only
def test_the_descriptor_may_be_used_directly(target: Path) -> None:
    """numpy.tofile and subprocess write by the descriptor, past the buffer."""
    with atomicio.atomic_write(target, "wb") as file:
        os.write(file.fileno(), b"new ")
        subprocess.run(["echo", "content"], stdout=file, check=True)
    assert read(target) == b"new content\n"


@posix_only
def test_the_descriptor_is_not_inherited(target: Path) -> None:
    with atomicio.atomic_write(target, "wb") as file:
        assert not os.get_inheritable(file.fileno())
        if LINUX:
            before = set(os.listdir("/proc/self/fd"))
            done = subprocess.run(
                [sys.executable, "-c", "import os; print(*os.listdir('/proc/self/fd'))"],
                capture_output=True,
                text=True,
                close_fds=False,
                check=True,
            )
            assert str(file.fileno()) in before
            assert str(file.fileno()) not in done.stdout.split()


# ---------------------------------------------------------------------------------------------------------------------
# A write that failed and was not noticed
# ---------------------------------------------------------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize("buffering", [-1, 0, 4096])
@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_write_error_that_was_swallowed_makes_the_commit_refuse(tmp_path: Path, buffering: int, mode: str) -> None:
    if mode == "w" and buffering == 0:
        buffering = 1
    mount = tmp_path / "mount"
    mount.mkdir()
    with tmpfs_mounted(str(mount), size="64k"):
        target = mount / "target"
        write(target, b"old")
        part: Any = b"z" * 40000 if mode == "wb" else "z" * 40000 + "\n"
        with pytest.raises(OSError) as caught, atomicio.atomic_write(target, mode, buffering) as file:
            for _ in range(4):
                try:
                    file.write(part)
                    file.flush()
                except OSError as error:
                    assert error.errno == errno.ENOSPC
            try:
                file.seek(0)
                file.truncate()
                file.write(part[:5])
            except OSError:
                pass
        assert caught.value.committed is False  # type: ignore[attr-defined]
        assert caught.value.errno
        assert os.fspath(caught.value.filename) == os.fspath(target)
        assert read(target) == b"old"
        assert only(target)


@linux_only
@pytest.mark.parametrize("mode", ["wb", "w"])
def test_a_close_that_failed_and_was_swallowed_makes_the_commit_refuse(tmp_path: Path, mode: str) -> None:
    mount = tmp_path / "mount"
    mount.mkdir()
    with tmpfs_mounted(str(mount), size="64k"):
        target = mount / "target"
        write(target, b"old")
        write(mount / "filler", b"z" * (60 * 1024))
        with pytest.raises(OSError) as caught, atomicio.atomic_write(target, mode, 1 << 20) as file:
            file.write(b"z" * 40000 if mode == "wb" else "z" * 40000)
            try:
                file.close()
            except OSError as error:
                assert error.errno == errno.ENOSPC
            else:
                pytest.fail("the disk is full")
        assert caught.value.committed is False  # type: ignore[attr-defined]
        assert read(target) == b"old"
        assert sorted(os.listdir(mount)) == ["filler", "target"]


@linux_only
def test_unbuffered_writes_are_whole_or_say_so(tmp_path: Path) -> None:
    """On a full disk a raw write may take less than it was given, without an error: the end would be missing."""
    mount = tmp_path / "mount"
    mount.mkdir()
    with tmpfs_mounted(str(mount), size="64k"):
        target = mount / "target"
        write(target, b"old")
        with pytest.raises(OSError) as caught, atomicio.atomic_write(target, "wb", 0) as file:
            file.write(b"z" * 200_000)
        assert caught.value.errno == errno.ENOSPC
        assert read(target) == b"old"
        with pytest.raises(OSError) as caught:
            atomicio.write_bytes(target, b"z" * 200_000)
        assert caught.value.errno == errno.ENOSPC
        assert read(target) == b"old"
        assert only(target)


def test_errors_that_lost_no_data_do_not_stop_the_commit(target: Path) -> None:
    """Reading a file that is write-only, a wrong type, an unencodable character: caught, they change nothing."""
    with atomicio.atomic_write(target, "w", encoding="ascii") as file:
        with pytest.raises(io.UnsupportedOperation):
            file.read()
        with pytest.raises(TypeError):
            file.write(b"bytes")  # type: ignore[arg-type]
        with pytest.raises(UnicodeEncodeError):
            file.write("\u00fc")
        with pytest.raises(ValueError):
            file.seek(-1)
        file.write("new")
    assert read(target) == b"new"


# ---------------------------------------------------------------------------------------------------------------------
# Special files
# ---------------------------------------------------------------------------------------------------------------------


@posix_only
@pytest.mark.parametrize("mode", ["w", "a", "wb", "ab"])
def test_dev_null_swallows_and_stays(tmp_path: Path, mode: str) -> None:
    null = device(tmp_path / "null")
    before = os.lstat(null)
    with atomicio.atomic_write(null, mode) as file:
        file.write(b"new" if "b" in mode else "new")
    after = os.lstat(null)
    assert stat.S_ISCHR(after.st_mode)
    assert (after.st_ino, after.st_rdev, after.st_mode) == (before.st_ino, before.st_rdev, before.st_mode)
    assert os.listdir(tmp_path) == ["null"]


@posix_only
def test_whole_values_to_dev_null(tmp_path: Path) -> None:
    null = device(tmp_path / "null")
    before = os.lstat(null)
    atomicio.write_bytes(null, b"new")
    atomicio.write_text(null, "new")
    assert (os.lstat(null).st_ino, os.lstat(null).st_rdev) == (before.st_ino, before.st_rdev)
    assert os.listdir(tmp_path) == ["null"]


@linux_only
def test_dev_full_says_what_open_says(tmp_path: Path) -> None:
    full = device(tmp_path / "full", "/dev/full")
    before = os.lstat(full)
    for level in ("none", "durable"):
        with pytest.raises(OSError) as caught:
            atomicio.write_bytes(full, b"new", durability=level)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == full
    assert (os.lstat(full).st_ino, os.lstat(full).st_rdev) == (before.st_ino, before.st_rdev)
    assert os.listdir(tmp_path) == ["full"]


@posix_only
@pytest.mark.parametrize("way", ["block", "bytes", "text"])
@pytest.mark.parametrize("level", ["none", "durable"])
def test_a_fifo_is_written_through(tmp_path: Path, way: str, level: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read(fifo)), daemon=True)
    reader.start()
    if way == "block":
        with atomicio.atomic_write(fifo, durability=level) as file:
            file.write("new")
    elif way == "bytes":
        atomicio.write_bytes(fifo, b"new", durability=level)
    else:
        atomicio.write_text(fifo, "new", durability=level)
    reader.join(60)
    assert got == [b"new"]
    assert stat.S_ISFIFO(os.lstat(fifo).st_mode)
    assert os.listdir(tmp_path) == ["fifo"]


@posix_only
def test_a_fifo_waits_for_its_reader_as_open_does(tmp_path: Path) -> None:
    """open blocks until somebody reads; ENXIO, or a message lost, would be a surprise."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Timer(0.3, lambda: got.append(read(fifo)))
    reader.daemon = True
    reader.start()
    atomicio.write_bytes(fifo, b"new")
    reader.join(60)
    assert got == [b"new"]


@posix_only
def test_exclusive_creation_refuses_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.symlink("/dev/fd/1", tmp_path / "stdout")
    for path in (tmp_path / "fifo", tmp_path / "stdout", device(tmp_path / "null")):
        with pytest.raises(FileExistsError):
            atomicio.atomic_write(path, "x").open()


@posix_only
def test_a_socket_is_refused_as_open_refuses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(OSError) as expected:
            open("socket", "w")
        with pytest.raises(OSError) as caught:
            atomicio.write_text("socket", "new")
        assert caught.value.errno == expected.value.errno == errno.ENXIO
        assert stat.S_ISSOCK(os.lstat("socket").st_mode)


# A link of our own: /dev/stdout is one, which root could replace by mistake.
STANDARD_OUTPUT = ["stdout", "/dev/fd/1", "/proc/self/fd/1", *([] if AS_ROOT else ["/dev/stdout"])]


@posix_only
@pytest.mark.parametrize("name", STANDARD_OUTPUT)
def test_standard_output_is_written_through(tmp_path: Path, name: str) -> None:
    """To a pipe, and to a regular file: there, too, the shell's redirection is what is meant, not a file to replace."""
    if name == "stdout":
        name = str(tmp_path / name)
        os.symlink("/dev/fd/1", name)
    if not os.path.lexists(name):
        pytest.skip(f"there is no {name} on this platform")
    code = f"import atomicio; atomicio.write_text({name!r}, 'new\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"new\n", b"")


@linux_only
def test_standard_output_that_is_a_file(tmp_path: Path) -> None:
    """Compared with open: what the file ends up with, through a link that is like /dev/stdout."""
    link = str(tmp_path / "stdout")
    os.symlink("/proc/self/fd/1", link)
    for opener in ("open({0!r}, 'w')", "__import__('atomicio').atomic_write({0!r}, 'w')"):
        with open(tmp_path / "out", "wb") as out:
            code = f"with {opener.format(link)} as f: f.write('new\\n')"
            subprocess.run([sys.executable, "-c", code], stdout=out, env=ENVIRONMENT, check=True)
        assert read(tmp_path / "out") == b"new\n"
    assert sorted(os.listdir(tmp_path)) == ["out", "stdout"]
    assert os.path.islink(link)


@linux_only
@pytest.mark.parametrize("mode", ["w", "wb"])
def test_files_of_proc_and_sys_are_written_through(mode: str) -> None:
    """They look regular, but no file can be created beside them; the kernel takes what is written as a command."""
    path = "/proc/self/comm"
    before = read(path)
    try:
        with atomicio.atomic_write(path, mode, fallback="in-place") as file:
            file.write(b"atomicio-test" if "b" in mode else "atomicio-test")
        assert read(path) == b"atomicio-test\n"
    finally:
        write(path, before.strip())


# ---------------------------------------------------------------------------------------------------------------------
# In place, when a rename is impossible and the caller has agreed
# ---------------------------------------------------------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize("level", ["none", "consistent", "durable"])
def test_in_place_writes_shorter_and_longer_content(tmp_path: Path, level: str) -> None:
    target = tmp_path / "target"
    write(tmp_path / "source", b"old" * 100)
    write(target, b"")
    with bind_mounted(str(tmp_path / "source"), str(target)):
        for content in (b"short", b"much longer" * 1000, b""):
            atomicio.write_bytes(target, content, fallback="in-place", durability=level)
            assert read(target) == content
            with atomicio.atomic_write(target, "wb", fallback="in-place", durability=level) as file:
                file.write(content * 2)
            assert read(target) == content * 2
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


@linux_only
def test_in_place_is_touched_only_at_the_commit(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(tmp_path / "source", b"old")
    write(target, b"")
    with bind_mounted(str(tmp_path / "source"), str(target)):
        with pytest.raises(KeyError), atomicio.atomic_write(target, fallback="in-place") as file:
            file.write("new")
            file.flush()
            assert read(target) == b"old"
            raise KeyError
        assert read(target) == b"old"


@linux_only
def test_in_place_is_not_used_where_a_rename_works(target: Path) -> None:
    inode = target.stat().st_ino
    atomicio.write_bytes(target, b"new", fallback="in-place")
    assert target.stat().st_ino != inode


@linux_only
def test_in_place_that_fails_puts_the_old_content_back(tmp_path: Path) -> None:
    """The disk behind the mount is full: what was there before must still be there, and the error must say so."""
    mount, target = tmp_path / "mount", tmp_path / "target"
    mount.mkdir()
    write(target, b"")
    old = b"old" * 1000
    with tmpfs_mounted(str(mount), size="64k"):
        write(mount / "source", old)
        with bind_mounted(str(mount / "source"), str(target)):
            with pytest.raises(OSError) as caught:
                atomicio.write_bytes(target, b"z" * 200_000, fallback="in-place")
            assert caught.value.errno == errno.ENOSPC
            assert caught.value.committed is False  # type: ignore[attr-defined]
            assert os.fspath(caught.value.filename) == os.fspath(target)
            assert read(target) == old


# ---------------------------------------------------------------------------------------------------------------------
# skip_unchanged
# ---------------------------------------------------------------------------------------------------------------------


def rewrite(target: Path, way: str, content: bytes, **keywords: Any) -> None:
    if way == "bytes":
        atomicio.write_bytes(target, content, **keywords)
    elif way == "text":
        atomicio.write_text(target, content.decode(), newline="", **keywords)
    elif way == "path":
        with atomicio.atomic_path(target, **keywords) as staging:
            write(staging, content)
    elif way == "update":
        with atomicio.atomic_write(target, "r+b", **keywords) as file:
            file.write(content)
            file.truncate()
    else:
        with atomicio.atomic_write(target, "wb", **keywords) as file:
            file.write(content)


every_way = pytest.mark.parametrize("way", ["bytes", "text", "path", "block", "update"])


@every_way
@pytest.mark.parametrize("content", [b"", b"same", b"same\r\n" * 100_000])
def test_equal_content_leaves_inode_and_times(tmp_path: Path, way: str, content: bytes) -> None:
    target = tmp_path / "target"
    write(target, content)
    os.utime(target, ns=(1_000_000_000, 2_000_000_000))
    before = target.stat()
    rewrite(target, way, content, skip_unchanged=True)
    after = target.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_ctime_ns) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_ctime_ns,
    )
    assert only(target)


@every_way
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"same", b"samE"),
        (b"same", b"same more"),
        (b"same", b"sam"),
        (b"same", b""),
        (b"", b"x"),
        (b"z" * 70000, b"z" * 69999 + b"y"),
    ],
)
def test_other_content_is_written(tmp_path: Path, way: str, old: bytes, new: bytes) -> None:
    target = tmp_path / "target"
    write(target, old)
    before = target.stat()
    rewrite(target, way, new, skip_unchanged=True)
    assert read(target) == new
    assert target.stat().st_ino != before.st_ino


@pytest.mark.parametrize("way", ["bytes", "text", "path", "block"])
def test_an_absent_file_is_written_although_it_is_empty(tmp_path: Path, way: str) -> None:
    rewrite(tmp_path / "target", way, b"", skip_unchanged=True)
    assert read(tmp_path / "target") == b""


@posix_only
@every_way
def test_equal_content_with_other_permissions_gets_them(target: Path, way: str) -> None:
    """Whatever is skipped, what was asked for holds afterwards."""
    os.chmod(target, 0o644)
    rewrite(target, way, b"old", skip_unchanged=True, permissions=0o600)
    assert oct(mode_of(target)) == oct(0o600)
    assert read(target) == b"old"


@every_way
def test_a_skipped_write_has_no_backup(target: Path, way: str) -> None:
    rewrite(target, way, b"old", skip_unchanged=True, backup=".bak")
    assert only(target)


# ---------------------------------------------------------------------------------------------------------------------
# backup
# ---------------------------------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("level", ["none", "consistent", "durable"])
def test_the_old_content_stays_under_the_backups_name(target: Path, way: str, level: str) -> None:
    inode = target.stat().st_ino
    rewrite(target, way, b"new", backup=".bak", durability=level)
    assert read(target) == b"new"
    backup = target.with_name("target.bak")
    assert read(backup) == b"old"
    assert backup.stat().st_ino == inode, "a hard link, where possible"
    assert sorted(os.listdir(target.parent)) == ["target", "target.bak"]


@every_way
def test_an_older_backup_is_replaced(target: Path, way: str) -> None:
    for content in (b"1", b"2", b"3"):
        rewrite(target, way, content, backup="~")
    assert read(target) == b"3"
    assert read(target.with_name("target~")) == b"2"
    assert sorted(os.listdir(target.parent)) == ["target", "target~"]


@pytest.mark.parametrize("way", ["bytes", "text", "path", "block"])
def test_a_new_file_has_no_backup(tmp_path: Path, way: str) -> None:
    rewrite(tmp_path / "target", way, b"new", backup=".bak")
    assert os.listdir(tmp_path) == ["target"]


def test_a_failed_write_leaves_the_older_backup(target: Path) -> None:
    write(target.with_name("target.bak"), b"older")
    with pytest.raises(KeyError), atomicio.atomic_write(target, backup=".bak") as file:
        file.write("new")
        raise KeyError
    assert read(target) == b"old"
    assert read(target.with_name("target.bak")) == b"older"
    assert sorted(os.listdir(target.parent)) == ["target", "target.bak"]


@posix_only
def test_the_backup_of_a_linked_file_is_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write(tmp_path / "real" / "target", b"old")
    os.symlink("real/target", tmp_path / "link")
    atomicio.write_bytes(tmp_path / "link", b"new", backup=".bak")
    assert sorted(os.listdir(tmp_path / "real")) == ["target", "target.bak"]
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


@posix_only
def test_a_planted_link_under_the_backups_name_is_not_followed(target: Path) -> None:
    elsewhere = target.with_name("elsewhere")
    write(elsewhere, b"precious")
    os.symlink("elsewhere", target.with_name("target.bak"))
    atomicio.write_bytes(target, b"new", backup=".bak")
    assert read(elsewhere) == b"precious"
    assert not target.with_name("target.bak").is_symlink()
    assert read(target.with_name("target.bak")) == b"old"


def test_a_directory_under_the_backups_name_refuses_the_write(target: Path) -> None:
    """The backup was asked for; without it nothing is replaced."""
    target.with_name("target.bak").mkdir()
    with pytest.raises(OSError) as caught:
        atomicio.write_bytes(target, b"new", backup=".bak")
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert read(target) == b"old"
    assert sorted(os.listdir(target.parent)) == ["target", "target.bak"]


@posix_only
def test_the_target_is_never_missing_while_a_backup_is_made(target: Path) -> None:
    missing: list[BaseException] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                if read(target) not in (b"old", b"new" * 10):
                    missing.append(AssertionError("torn"))
            except BaseException as error:
                missing.append(error)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(300):
            atomicio.write_bytes(target, b"new" * 10, backup=".bak", durability="none")
            atomicio.write_bytes(target, b"old", backup=".bak", durability="none")
    finally:
        stop.set()
        reader.join()
    assert not missing


@posix_only
def test_a_backups_name_that_would_be_too_long_is_refused(tmp_path: Path) -> None:
    target = tmp_path / ("n" * 253)
    write(target, b"old")
    with pytest.raises(OSError) as caught:
        atomicio.write_bytes(target, b"new", backup=".bak")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert read(target) == b"old"
    assert only(target)


# ---------------------------------------------------------------------------------------------------------------------
# make_parents
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["bytes", "text", "path", "block"])
@pytest.mark.parametrize("level", ["none", "durable"])
def test_missing_parents_are_made(tmp_path: Path, way: str, level: str) -> None:
    rewrite(tmp_path / "a" / "b" / "c" / "target", way, b"new", make_parents=True, durability=level)
    assert read(tmp_path / "a" / "b" / "c" / "target") == b"new"
    rewrite(tmp_path / "a" / "b" / "c" / "target", way, b"newer", make_parents=True, durability=level)
    assert read(tmp_path / "a" / "b" / "c" / "target") == b"newer"


@posix_only
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_made_parents_have_the_mode_that_mkdir_gives(tmp_path: Path, mask: int) -> None:
    with umask(mask):
        os.makedirs(tmp_path / "plain" / "sub")
        atomicio.write_bytes(tmp_path / "atomic" / "sub" / "target", b"new", make_parents=True, permissions=0o600)
    for part in ("", "sub"):
        assert oct(mode_of(tmp_path / "atomic" / part)) == oct(mode_of(tmp_path / "plain" / part))


def test_parents_are_not_made_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        atomicio.write_bytes(tmp_path / "a" / "target", b"new")
    assert os.listdir(tmp_path) == []


def test_parents_that_many_make_at_once(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            path = tmp_path / "a" / "b" / "c" / "d" / str(number)
            atomicio.write_bytes(path, b"new", make_parents=True, durability="none")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(os.listdir(tmp_path / "a" / "b" / "c" / "d")) == 16


def test_a_file_in_the_way_of_a_parent(tmp_path: Path) -> None:
    write(tmp_path / "a", b"old")
    with pytest.raises((NotADirectoryError, FileExistsError)) as caught:
        atomicio.write_bytes(tmp_path / "a" / "b" / "target", b"new", make_parents=True)
    assert caught.value.committed is False  # type: ignore[union-attr]
    assert os.fspath(caught.value.filename) == os.fspath(tmp_path / "a" / "b" / "target")
    assert read(tmp_path / "a") == b"old"


@posix_only
def test_a_dangling_link_to_a_missing_directory_is_made_whole(tmp_path: Path) -> None:
    os.symlink("missing/target", tmp_path / "link")
    atomicio.write_bytes(tmp_path / "link", b"new", make_parents=True)
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "missing" / "target") == b"new"


# ---------------------------------------------------------------------------------------------------------------------
# Paths and names
# ---------------------------------------------------------------------------------------------------------------------


class Own:
    def __init__(self, path: str | bytes) -> None:
        self.path = path

    def __fspath__(self) -> str | bytes:
        return self.path


@pytest.mark.parametrize("kind", ["str", "bytes", "Path", "own", "own-bytes"])
@pytest.mark.parametrize("mode", ["w", "x", "a"])
def test_every_kind_of_path(tmp_path: Path, kind: str, mode: str) -> None:
    name = f"{tmp_path}/t\u00e4rget"
    path: Any = {
        "str": name,
        "bytes": os.fsencode(name),
        "Path": Path(name),
        "own": Own(name),
        "own-bytes": Own(os.fsencode(name)),
    }[kind]
    writer = atomicio.atomic_write(path, mode)
    assert writer.target == os.fspath(path)
    with writer as file:
        file.write("new")
    assert read(name) == b"new"
    os.unlink(name)
    atomicio.write_bytes(path, b"new")
    atomicio.write_text(path, "n\u00e4w")
    assert read(name) == "n\u00e4w".encode()
    with atomicio.atomic_path(path) as staging:
        write(staging, b"newer")
    assert read(name) == b"newer"
    assert os.listdir(tmp_path) == ["t\u00e4rget"]


def test_a_directory_entry_is_a_path(target: Path) -> None:
    """os.scandir gives PathLike objects that cannot be made by hand."""
    with os.scandir(target.parent) as entries:
        (entry,) = entries
    atomicio.write_bytes(entry, b"new")
    with atomicio.atomic_write(entry, "a") as file:
        file.write("er")
    with atomicio.atomic_path(entry) as staging:
        assert read(target) == b"newer"
        write(staging, b"newest")
    assert read(target) == b"newest"
    assert only(target)


@posix_only
@pytest.mark.parametrize("name", [b"\xff\xfe not utf-8", b" ", b"-rf", b"a\nb", b"*", b"~", b"%s", b".atomicio-x"])
def test_every_name_that_the_kernel_takes(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    atomicio.write_bytes(path, b"new")
    with atomicio.atomic_write(os.fsdecode(path), "a") as file:
        file.write("er")
    with atomicio.atomic_path(path) as staging:
        write(staging, b"newest")
    assert os.listdir(os.fsencode(tmp_path)) == [name]
    assert read(os.fsdecode(path)) == b"newest"


@posix_only
@pytest.mark.parametrize("length", [240, 250, 254, 255])
@pytest.mark.parametrize("letter", ["n", "\u00fc"])
@pytest.mark.parametrize("mode", ["w", "x", "a", "r+"])
@pytest.mark.parametrize("level", ["none", "durable"])
def test_the_longest_names(tmp_path: Path, length: int, letter: str, mode: str, level: str) -> None:
    name = letter * (length // len(letter.encode()))
    name += "n" * (length - len(name.encode()))
    target = tmp_path / name
    if mode == "r+":
        write(target, b"")
    with atomicio.atomic_write(target, mode, durability=level) as file:
        file.write("new")
    assert read(target) == b"new"
    assert only(target)


@posix_only
@pytest.mark.parametrize("suffix", [".h5", "." + "s" * 200, "." + "s" * 252, ".tar.gz", "." + "\u00fc" * 120])
def test_atomic_path_with_the_longest_names(tmp_path: Path, suffix: str) -> None:
    stem = "n" * (255 - len(suffix.encode()))
    target = tmp_path / (stem + suffix)
    with atomicio.atomic_path(target) as staging:
        assert os.path.dirname(staging) == str(tmp_path)
        assert len(os.fsencode(os.path.basename(staging))) <= 255
        write(staging, b"new")
    assert read(target) == b"new"
    assert only(target)


# ---------------------------------------------------------------------------------------------------------------------
# atomic_path
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["out.h5", "out.tar.gz", "out", ".hidden", pytest.param("out.", marks=posix_only), "a.b.c"]
)
def test_the_staging_path_is_beside_the_target_with_its_suffix(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    with atomicio.atomic_path(str(target)) as staging:
        assert isinstance(staging, str)
        assert os.path.dirname(staging) == str(tmp_path)
        assert os.path.splitext(staging)[1] in (os.path.splitext(name)[1], ".tmp")
        if target.suffix:
            assert staging.endswith(target.suffix)
        assert re.fullmatch(r"\.atomicio-[0-9a-f]{16}\.tmp(\..*)?", os.path.basename(staging))
        write(staging, b"new")
        assert not target.exists()
    assert read(target) == b"new"
    assert only(target)


@pytest.mark.parametrize("how", ["truncated", "unlinked and made anew", "replaced"])
def test_the_consumer_may_make_the_file_in_its_own_way(target: Path, how: str) -> None:
    with atomicio.atomic_path(str(target)) as staging:
        if how == "truncated":
            write(staging, b"new")
        elif how == "replaced":
            write(staging + ".mine", b"new")
            os.replace(staging + ".mine", staging)
        else:
            if os.path.exists(staging):
                os.unlink(staging)
            with open(staging, "xb") as file:
                file.write(b"new")
    assert read(target) == b"new"
    assert only(target)


@posix_only
def test_metadata_are_kept_although_the_consumer_made_the_file_anew(target: Path) -> None:
    os.chmod(target, 0o640)
    with atomicio.atomic_path(str(target)) as staging:
        write(staging + ".mine", b"new")
        os.replace(staging + ".mine", staging)
    assert oct(mode_of(target)) == oct(0o640)


def test_an_exception_in_the_block_removes_the_staging_file(target: Path) -> None:
    with pytest.raises(KeyError), atomicio.atomic_path(target) as staging:
        write(staging, b"new")
        raise KeyError
    assert read(target) == b"old"
    assert only(target)


def test_a_staging_file_that_vanished_is_an_error_and_no_empty_target(target: Path) -> None:
    with pytest.raises(OSError) as caught, atomicio.atomic_path(target) as staging:
        if os.path.exists(staging):
            os.unlink(staging)
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert os.fspath(caught.value.filename) == os.fspath(target)
    assert read(target) == b"old"
    assert only(target)


@posix_only
def test_a_staging_path_that_became_something_else_is_refused(target: Path) -> None:
    """A link or a directory in its place must not be published."""
    write(target.with_name("elsewhere"), b"precious")
    for make in (lambda path: os.symlink("elsewhere", path), os.mkdir):
        with pytest.raises(OSError) as caught, atomicio.atomic_path(target) as staging:
            if os.path.exists(staging):
                os.unlink(staging)
            make(staging)
        assert caught.value.committed is False  # type: ignore[attr-defined]
        assert read(target) == b"old"
        for name in os.listdir(target.parent):
            if name.startswith(".atomicio"):
                path = target.with_name(name)
                path.unlink() if path.is_symlink() else path.rmdir()
    assert read(target.with_name("elsewhere")) == b"precious"


@posix_only
def test_a_subprocess_writes_by_name(target: Path) -> None:
    with atomicio.atomic_path(target) as staging:
        subprocess.run(["sh", "-c", 'printf new > "$0"', staging], check=True)
    assert read(target) == b"new"
    assert only(target)


# ---------------------------------------------------------------------------------------------------------------------
# Whole values
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"new", bytearray(b"new"), memoryview(b"new"), memoryview(b"n-e-w-")[::2], b"z" * (5 << 20)],
    ids=lambda data: type(data).__name__ + str(len(data)),
)
@pytest.mark.parametrize("level", ["none", "durable"])
def test_write_bytes_takes_what_a_binary_file_takes(target: Path, data: Any, level: str) -> None:
    if isinstance(data, memoryview) and not data.contiguous:
        with open(target.with_name("plain"), "wb") as plain:
            try:
                plain.write(data)
                expected: type[BaseException] | None = None
            except (BufferError, TypeError, ValueError) as error:
                expected = type(error)
        os.unlink(target.with_name("plain"))
        if expected:
            with pytest.raises(expected):
                atomicio.write_bytes(target, data)
            assert read(target) == b"old"
            assert only(target)
            return
    assert atomicio.write_bytes(target, data, durability=level) is None  # type: ignore[func-returns-value]
    assert read(target) == bytes(data)
    assert only(target)


def test_write_bytes_takes_arrays_of_wider_items(target: Path) -> None:
    """The bytes count, not the items: len() of such a buffer is too small."""
    import array

    data = array.array("d", range(1000))
    atomicio.write_bytes(target, data)
    assert read(target) == data.tobytes()
    atomicio.write_bytes(target, memoryview(data))
    assert read(target) == data.tobytes()


@pytest.mark.parametrize("data", ["text", None, 3, [1, 2], object()])
def test_write_bytes_refuses_the_rest_and_leaves_everything(target: Path, data: Any) -> None:
    with pytest.raises(TypeError):
        atomicio.write_bytes(target, data)
    assert read(target) == b"old"
    assert only(target)


@pytest.mark.parametrize("text", [b"bytes", None, 3])
def test_write_text_refuses_what_is_no_text_and_leaves_everything(target: Path, text: Any) -> None:
    with pytest.raises(TypeError):
        atomicio.write_text(target, text)
    assert read(target) == b"old"
    assert only(target)


@pytest.mark.parametrize("encoding", [None, "utf-8", "latin-1", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("newline", [None, "", "\n", "\r\n", "\r"])
def test_write_text_writes_what_open_writes(tmp_path: Path, encoding: str | None, newline: str | None) -> None:
    text = "gr\u00fcn\nzwei\r\ndrei\r" + "x" * 10000
    with open(tmp_path / "plain", "w", encoding=encoding or "utf-8", newline=newline) as file:
        file.write(text)
    atomicio.write_text(tmp_path / "atomic", text, encoding, None, newline)
    assert read(tmp_path / "atomic") == read(tmp_path / "plain")


def test_write_text_that_cannot_be_encoded_leaves_everything(target: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        atomicio.write_text(target, "x" * 100_000 + "\u20ac", encoding="latin-1")
    with pytest.raises(UnicodeEncodeError):
        atomicio.write_text(target, "\udc80")
    with pytest.raises(LookupError):
        atomicio.write_text(target, "x", encoding="no-such-encoding")
    with pytest.raises(ValueError):
        atomicio.write_text(target, "x", newline="x")
    assert read(target) == b"old"
    assert only(target)
    atomicio.write_text(target, "\udc80", errors="surrogateescape")
    assert read(target) == b"\x80"


def test_text_is_utf8_whatever_the_locale(target: Path) -> None:
    code = (
        f"import atomicio\nwith atomicio.atomic_write({str(target)!r}) as f: f.write('\\u20ac'); e = f.encoding\n"
        f"atomicio.write_text({str(target)!r}, '\\u20ac'); assert e.lower().replace('-', '') == 'utf8', e"
    )
    environment = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-W", "error", "-c", code], env=environment, check=True
    )
    assert read(target) == "\u20ac".encode()


# ---------------------------------------------------------------------------------------------------------------------
# What goes on around
# ---------------------------------------------------------------------------------------------------------------------


def test_nested_writers_of_one_target(target: Path) -> None:
    with atomicio.atomic_write(target) as outer:
        outer.write("outer")
        with atomicio.atomic_write(target) as inner:
            inner.write("inner")
        assert read(target) == b"inner"
    assert read(target) == b"outer"
    assert only(target)


def test_readers_who_have_the_old_file_open_keep_it(target: Path) -> None:
    with atomicio.open_shared(target, "rb") as reader:
        atomicio.write_bytes(target, b"new")
        assert reader.read() == b"old"


@posix_only
def test_other_names_of_the_old_file_keep_the_old_content(target: Path) -> None:
    """The price of a rename: hard links are parted."""
    os.link(target, target.with_name("second"))
    atomicio.write_bytes(target, b"new")
    assert read(target.with_name("second")) == b"old"
    assert target.stat().st_nlink == 1


@linux_only
@pytest.mark.parametrize("mode", ["w", "x", "a", "r+"])
def test_nothing_can_be_seen_while_the_block_runs(tmp_path: Path, mode: str) -> None:
    """An unnamed file stages it (O_TMPFILE), so that a process killed in the block leaves nothing."""
    target = tmp_path / "target"
    if mode != "x":
        write(target, b"old")
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY, 0o600))
    except OSError as error:
        pytest.skip(f"the file system of the temporary directory has no unnamed files: {error}")
    with atomicio.atomic_write(target, mode) as file:
        file.write("new")
        file.flush()
        assert os.listdir(tmp_path) == ([] if mode == "x" else ["target"])


@posix_only
def test_import_is_light() -> None:
    """Nothing that costs more than the package itself, until it is needed; and nothing at all while it writes."""
    heavy = ("tempfile", "shutil", "random", "pathlib", "typing", "ctypes", "contextlib", "dataclasses", "functools")
    code = (
        "import sys; before = set(sys.modules)\nimport atomicio\n"
        f"new = set(sys.modules) - before; print(sorted(set({heavy!r} + ('filelock', 'logging', 're')) & new))\n"
        "sys.meta_path.clear(); sys.path.clear()\nimport os, builtins\nloaded = set(sys.modules)\n"
        "target = sys.argv[1]\n"
        "for _ in range(2):\n"
        "    with atomicio.atomic_write(target) as f: f.write('x')\n"
        "    with atomicio.atomic_write(target, 'ab') as f: f.write(b'x')\n"
        "    atomicio.write_bytes(target, b'x'); atomicio.write_text(target, 'x')\n"
        "os.unlink(target)\n"
        "with atomicio.atomic_write(target, 'x') as f: f.write('x')\n"
        "os.unlink(target)\nprint(sorted(set(sys.modules) - loaded))\n"
    )
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, "-S", "-c", code, os.path.join(directory, "target")],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


@root_only
@linux_only
def test_ordinary_users_see_nothing_of_each_other() -> None:
    """A world-writable directory, two users, two files: both work, neither leaves anything."""
    with public_directory(0o1777) as directory:
        as_ordinary_user(lambda: atomicio.write_bytes(f"{directory}/a", b"a"))
        as_ordinary_user(lambda: atomicio.write_bytes(f"{directory}/b", b"b"), uid=4321)
        assert (os.stat(f"{directory}/a").st_uid, os.stat(f"{directory}/b").st_uid) == (ORDINARY_USER, 4321)
        assert sorted(os.listdir(directory)) == ["a", "b"]
