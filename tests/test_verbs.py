"""Renames, removals, new directories and copies: what they do, what they sync and when, what is left when they fail."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import atomicio
from oracle import device

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_litter", "no_leaked_descriptors") if sys.platform == "linux" else []

LEVELS = ("none", "consistent", "durable")
linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is synced and changed, in order, while the real calls are made."""
    made: list[str] = []

    def record(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            if name == "fsync":
                path = os.readlink(f"/proc/self/fd/{arguments[0]}")
                made.append(f"fsync {os.path.relpath(path, tmp_path)}")
            else:
                made.append(name)
            return real(*arguments, **keywords)

        return call

    for name in ("fsync", "rename", "unlink", "mkdir"):
        monkeypatch.setattr(os, name, record(name))
    return made


def fail_fsync_of(path: Path, monkeypatch: pytest.MonkeyPatch, code: int = errno.EIO) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}") == str(path):
            raise OSError(code, os.strerror(code))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)


def outcome(error: BaseException) -> tuple[Any, Any, Any]:
    return getattr(error, "errno", None), getattr(error, "filename", None), getattr(error, "committed", "absent")


# -- replace -----------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize(
    ("durability", "expected"),
    [
        ("none", ["rename"]),
        ("consistent", ["fsync a/src", "rename"]),
        ("durable", ["fsync a/src", "rename", "fsync b", "fsync a"]),
    ],
)
def test_replace_across_directories(durability: Any, expected: list[str], tmp_path: Path, calls: list[str]) -> None:
    """The new name lasts before the old one is gone: a power cut in between leaves both, never none."""
    for name in "ab":
        os.makedirs(tmp_path / name)
    calls.clear()
    (tmp_path / "a" / "src").write_text("new")
    (tmp_path / "b" / "dst").write_text("old")
    atomicio.replace(tmp_path / "a" / "src", tmp_path / "b" / "dst", durability=durability)
    assert calls == expected
    assert (tmp_path / "b" / "dst").read_text() == "new"
    assert not (tmp_path / "a" / "src").exists()


@linux
def test_replace_in_one_directory_syncs_it_once(tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "src").write_text("new")
    atomicio.replace(str(tmp_path / "src"), str(tmp_path / "." / "dst"))
    assert calls == ["fsync src", "rename", "fsync ."]
    assert (tmp_path / "dst").read_text() == "new"


@pytest.mark.skipif(os.name == "nt", reason="making symbolic links needs a privilege on Windows")
def test_replace_renames_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("real")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    atomicio.replace(tmp_path / "link", tmp_path / "link2")
    atomicio.replace(tmp_path / "dangling", tmp_path / "dangling2")
    assert os.readlink(tmp_path / "link2") == "real"
    assert os.readlink(tmp_path / "dangling2") == "nowhere"
    assert (tmp_path / "real").read_text() == "real"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
@pytest.mark.parametrize("mode", [0o200, 0o400])
def test_replace_of_a_file_that_may_only_be_read_or_written(mode: int, tmp_path: Path) -> None:
    (tmp_path / "src").write_text("new")
    (tmp_path / "src").chmod(mode)
    atomicio.replace(tmp_path / "src", tmp_path / "dst")
    assert stat.S_IMODE((tmp_path / "dst").stat().st_mode) == mode


@pytest.mark.parametrize("slash", ["", "/"])
def test_replace_of_directories(slash: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_text("new")
    atomicio.replace(f"{tmp_path}/src{slash}", f"{tmp_path}/dst{slash}")
    assert (tmp_path / "dst" / "f").read_text() == "new"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "g").write_text("there")
    with pytest.raises(OSError) as caught:
        atomicio.replace(tmp_path / "dst", tmp_path / "full")
    assert outcome(caught.value)[1:] == (str(tmp_path / "full"), False)
    assert (tmp_path / "dst" / "f").exists()


@linux
def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    slashed = f"{tmp_path}/f/"
    for call in (lambda: atomicio.replace(slashed, f"{tmp_path}/g"), lambda: atomicio.remove(slashed)):
        with pytest.raises(NotADirectoryError) as caught:
            call()
        assert outcome(caught.value) == (errno.ENOTDIR, f"{tmp_path}/f/", False)
    assert (tmp_path / "f").read_text() == "old"


def test_replace_failures_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    (tmp_path / "d").mkdir()
    cases = [
        (tmp_path / "missing", tmp_path / "f", errno.ENOENT, tmp_path / "missing"),
        (tmp_path / "f", tmp_path / "nowhere" / "g", errno.ENOENT, tmp_path / "nowhere" / "g"),
        (tmp_path / "f", tmp_path / "d", errno.EISDIR if os.name != "nt" else errno.EACCES, tmp_path / "d"),
    ]
    for src, dst, code, name in cases:
        with pytest.raises(OSError) as caught:
            atomicio.replace(src, dst)
        assert outcome(caught.value) == (code, str(name), False)
    assert (tmp_path / "f").read_text() == "old"


@linux
@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second file system")
def test_replace_between_file_systems(tmp_path: Path) -> None:
    if os.stat("/dev/shm").st_dev == os.stat(tmp_path).st_dev:
        pytest.skip("needs a second file system")
    (tmp_path / "f").write_text("old")
    name = f"/dev/shm/atomicio-test-{os.getpid()}"
    with pytest.raises(OSError, match="copy") as caught:
        atomicio.replace(tmp_path / "f", name)
    assert outcome(caught.value) == (errno.EXDEV, name, False)
    assert not os.path.exists(name)


@linux
@pytest.mark.parametrize(("failing", "committed"), [("a/src", False), ("b", True), ("a", True)])
def test_replace_whose_sync_fails(
    failing: str, committed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "src").write_text("new")
    (tmp_path / "b" / "dst").write_text("old")
    fail_fsync_of(tmp_path / failing, monkeypatch)
    with pytest.raises(OSError) as caught:
        atomicio.replace(tmp_path / "a" / "src", tmp_path / "b" / "dst")
    assert outcome(caught.value) == (errno.EIO, str(tmp_path / "b" / "dst"), committed)
    assert isinstance(caught.value, atomicio.NotDurableError) is committed
    assert (tmp_path / "b" / "dst").read_text() == ("new" if committed else "old")
    assert (tmp_path / "a" / "src").exists() is not committed


# -- remove ------------------------------------------------------------------------------------------------------------


@linux
@pytest.mark.parametrize("durability", LEVELS)
def test_remove(durability: Any, tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "f").write_text("old")
    atomicio.remove(tmp_path / "f", durability=durability)
    assert calls == (["unlink", "fsync ."] if durability == "durable" else ["unlink"])
    assert not (tmp_path / "f").exists()


@pytest.mark.skipif(os.name == "nt", reason="making symbolic links needs a privilege on Windows")
def test_remove_removes_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("real")
    (tmp_path / "link").symlink_to("real")
    atomicio.remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["real"]


def test_remove_failures(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name, code in (("missing", errno.ENOENT), ("d", errno.EISDIR), ("no/where", errno.ENOENT)):
        with pytest.raises(OSError) as caught:
            atomicio.remove(tmp_path / name)
        assert outcome(caught.value) == (code, str(tmp_path / name), False)
    assert (tmp_path / "d").is_dir()


@linux
def test_remove_whose_sync_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_text("old")
    fail_fsync_of(tmp_path, monkeypatch)
    with pytest.raises(atomicio.NotDurableError) as caught:
        atomicio.remove(tmp_path / "f")
    assert outcome(caught.value) == (errno.EIO, str(tmp_path / "f"), True)
    assert not (tmp_path / "f").exists()


# -- makedirs ----------------------------------------------------------------------------------------------------------


@linux
def test_makedirs_syncs_the_parent_of_each_directory_it_makes(tmp_path: Path, calls: list[str]) -> None:
    atomicio.makedirs(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert [call for call in calls if call != "mkdir"] == ["fsync .", "fsync a", "fsync a/b"]
    calls.clear()
    atomicio.makedirs(tmp_path / "a" / "x" / "y", durability="consistent")
    assert not [call for call in calls if call != "mkdir"]
    atomicio.makedirs(tmp_path / "a" / "b" / "d" / "")
    assert calls[-2:] == ["mkdir", "fsync a/b"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_makedirs_mode_is_for_the_last(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        atomicio.makedirs(tmp_path / "a" / "b", 0o700)
    finally:
        os.umask(old)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "a/b")] == [0o755, 0o700]


def test_makedirs_of_what_exists(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    for path in (tmp_path, tmp_path / "f", Path("/")):
        with pytest.raises(FileExistsError) as caught:
            atomicio.makedirs(path)
        assert outcome(caught.value) == (errno.EEXIST, str(path), False)
    with pytest.raises(FileExistsError):
        atomicio.makedirs(tmp_path / "f", exist_ok=True)
    atomicio.makedirs(tmp_path, exist_ok=True)
    atomicio.makedirs("/", exist_ok=True)
    with pytest.raises(OSError):
        atomicio.makedirs(tmp_path / "f" / "below", exist_ok=True)
    assert (tmp_path / "f").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="making symbolic links needs a privilege on Windows")
def test_makedirs_accepts_a_link_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    atomicio.makedirs(tmp_path / "link", exist_ok=True)
    atomicio.makedirs(tmp_path / "link" / "below")
    assert (tmp_path / "real" / "below").is_dir()


@linux
def test_makedirs_whose_sync_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_fsync_of(tmp_path, monkeypatch)
    with pytest.raises(atomicio.NotDurableError) as caught:
        atomicio.makedirs(tmp_path / "d")
    assert outcome(caught.value) == (errno.EIO, str(tmp_path / "d"), True)
    with pytest.raises(OSError) as second:
        atomicio.makedirs(tmp_path / "e" / "f")
    assert outcome(second.value) == (errno.EIO, str(tmp_path / "e" / "f"), False)
    assert not (tmp_path / "e" / "f").exists()


def test_many_threads_make_the_same_directories(tmp_path: Path) -> None:
    path = tmp_path.joinpath(*map(str, range(20)))
    failed: list[BaseException] = []

    def make() -> None:
        try:
            atomicio.makedirs(path, exist_ok=True, durability="none")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert path.is_dir()


# -- copy --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 4096, (9 << 20) + 17])
@pytest.mark.parametrize("durability", LEVELS)
def test_copy(size: int, durability: Any, tmp_path: Path) -> None:
    data = os.urandom(size)
    (tmp_path / "src").write_bytes(data)
    (tmp_path / "dst").write_text("old")
    seen: list[tuple[int, int | None]] = []
    atomicio.copy(
        tmp_path / "src",
        tmp_path / "dst",
        durability=durability,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (tmp_path / "dst").read_bytes() == data
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


@pytest.mark.parametrize("refused", [errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSYS, errno.EINVAL, "zero", "absent"])
def test_copy_reads_and_writes_where_the_kernel_does_not_copy(
    refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_file_range(*_: object) -> int:
        if refused == "zero":
            return 0
        raise OSError(refused, os.strerror(refused))

    if refused == "absent":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", copy_file_range, raising=False)
    without_reflinks(monkeypatch)
    data = os.urandom((3 << 20) + 5)
    (tmp_path / "src").write_bytes(data)
    atomicio.copy(tmp_path / "src", tmp_path / "dst")
    assert (tmp_path / "dst").read_bytes() == data


def without_reflinks(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        import fcntl
    except ImportError:
        return

    def ioctl(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "ioctl", ioctl)


@linux
@pytest.mark.parametrize("parts", [[None, 1, None, 1], [1, None], [None], [1, 1, None, 1]])
def test_copy_keeps_holes(parts: list[int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_reflinks(monkeypatch)
    part = 4 << 20
    with open(tmp_path / "src", "wb") as file:
        for number, data in enumerate(parts):
            if data is not None:
                file.seek(number * part)
                file.write(os.urandom(part))
        file.truncate(len(parts) * part)
    if (tmp_path / "src").stat().st_blocks * 512 >= len(parts) * part:
        pytest.skip("the file system here has no holes")
    atomicio.copy(tmp_path / "src", tmp_path / "dst")
    assert (tmp_path / "dst").read_bytes() == (tmp_path / "src").read_bytes()
    assert (tmp_path / "dst").stat().st_blocks <= (tmp_path / "src").stat().st_blocks + 16


@linux
def test_copy_of_what_has_no_size(tmp_path: Path) -> None:
    atomicio.copy("/proc/version", tmp_path / "dst")
    assert (tmp_path / "dst").read_bytes() == Path("/proc/version").read_bytes() != b""
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(b"through" * 50_000))
    writer.start()
    seen: list[tuple[int, int | None]] = []
    atomicio.copy(tmp_path / "fifo", tmp_path / "dst", progress=lambda *now: seen.append(now))
    writer.join()
    assert (tmp_path / "dst").read_bytes() == b"through" * 50_000
    assert seen[-1] == (350_000, None)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permission bits")
def test_copy_and_permissions(tmp_path: Path) -> None:
    (tmp_path / "src").write_text("new")
    (tmp_path / "src").chmod(0o751)
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(0o604)
    old = os.umask(0o027)
    try:
        atomicio.copy(tmp_path / "src", tmp_path / "new")
        atomicio.copy(tmp_path / "src", tmp_path / "asked", permissions=0o666)
    finally:
        os.umask(old)
    atomicio.copy(tmp_path / "src", tmp_path / "old")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"src": 0o751, "new": 0o750, "asked": 0o666, "old": 0o604}


@pytest.mark.skipif(os.name == "nt", reason="making symbolic links needs a privilege on Windows")
def test_copy_follows_links_at_both_ends(tmp_path: Path) -> None:
    (tmp_path / "src").write_text("new")
    (tmp_path / "dst").write_text("old")
    (tmp_path / "from").symlink_to("src")
    (tmp_path / "to").symlink_to("dst")
    atomicio.copy(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "dst").read_text() == "new"
    assert (tmp_path / "to").is_symlink()


def test_copy_takes_the_options_of_a_write(tmp_path: Path) -> None:
    (tmp_path / "src").write_text("new")
    (tmp_path / "dst").write_text("old")
    atomicio.copy(tmp_path / "src", tmp_path / "dst", backup=".bak")
    assert (tmp_path / "dst.bak").read_text() == "old"
    inode = (tmp_path / "dst").stat().st_ino
    atomicio.copy(tmp_path / "src", tmp_path / "dst", skip_unchanged=True)
    assert (tmp_path / "dst").stat().st_ino == inode
    atomicio.copy(tmp_path / "src", tmp_path / "made" / "here" / "dst", make_parents=True)
    assert (tmp_path / "made" / "here" / "dst").read_text() == "new"
    atomicio.copy(tmp_path / "src", tmp_path / "src")
    assert (tmp_path / "src").read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "mknod"), reason="no device nodes here")
def test_copy_writes_through_to_devices(tmp_path: Path) -> None:
    (tmp_path / "src").write_text("new")
    null = device(tmp_path / "null")
    before = os.lstat(null)
    atomicio.copy(tmp_path / "src", null)
    assert (os.lstat(null).st_ino, os.lstat(null).st_rdev) == (before.st_ino, before.st_rdev)


def test_copy_failures_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "src").write_text("new")
    (tmp_path / "dst").write_text("old")
    (tmp_path / "d").mkdir()
    cases = [("missing", "dst", errno.ENOENT, "missing"), ("src", "d", errno.EISDIR, "d")]
    cases += [("src", "no/where", errno.ENOENT, "no/where")]
    if os.name != "nt":
        cases += [("d", "dst", errno.EISDIR, "d")]
    for src, dst, code, name in cases:
        with pytest.raises(OSError) as caught:
            atomicio.copy(tmp_path / src, tmp_path / dst)
        assert outcome(caught.value) == (code, str(tmp_path / name), False)
    assert (tmp_path / "dst").read_text() == "old"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_the_callback_raises_ends_the_copy(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(bytes(range(256)) * 4096)
    (tmp_path / "dst").write_text("old")

    def progress(done: int, total: int | None) -> None:
        raise error

    with pytest.raises(error):
        atomicio.copy(tmp_path / "src", tmp_path / "dst", progress=progress)
    assert (tmp_path / "dst").read_text() == "old"


@linux
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_full_disk_is_not_tried_twice(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").write_text("new")
    (tmp_path / "dst").write_text("old")

    def copy_file_range(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    without_reflinks(monkeypatch)
    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    with pytest.raises(OSError) as caught:
        atomicio.copy(tmp_path / "src", tmp_path / "dst")
    assert outcome(caught.value) == (code, str(tmp_path / "dst"), False)
    assert (tmp_path / "dst").read_text() == "old"


# -- misuse ------------------------------------------------------------------------------------------------------------


def test_wrong_arguments(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")
    verbs: list[Callable[..., None]] = [
        lambda **option: atomicio.replace(tmp_path / "f", tmp_path / "g", **option),
        lambda **option: atomicio.remove(tmp_path / "f", **option),
        lambda **option: atomicio.makedirs(tmp_path / "d", **option),
        lambda **option: atomicio.copy(tmp_path / "f", tmp_path / "g", **option),
    ]
    for verb in verbs:
        with pytest.raises(ValueError, match="durability"):
            verb(durability="maybe")
    for verb, arguments in ((atomicio.remove, (3,)), (atomicio.copy, (0, "g")), (atomicio.replace, (0, "g"))):
        with pytest.raises(TypeError):
            verb(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_bytes_paths(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("new")
    atomicio.copy(os.fsencode(tmp_path / "f"), os.fsencode(tmp_path / "g"))
    atomicio.replace(os.fsencode(tmp_path / "g"), os.fsencode(tmp_path / "h"))
    atomicio.remove(os.fsencode(tmp_path / "f"))
    atomicio.makedirs(os.fsencode(tmp_path / "d"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "h"]
