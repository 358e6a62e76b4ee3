"""Symbolic links: what is behind them is replaced, they stay; or, on request, they are replaced themselves."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

import atomicio
from oracle import (
    AS_ROOT,
    LINUX,
    ORDINARY_USER,
    OTHER_USER,
    as_ordinary_user,
    mode_of,
    outcome,
    public_directory,
    read,
    tmpfs_mounted,
    umask,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

pytestmark = pytest.mark.skipif(os.name != "posix", reason="symbolic links as POSIX has them")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "real").mkdir()
    write(tmp_path / "real" / "target", b"old")
    os.chmod(tmp_path / "real" / "target", 0o640)
    return tmp_path


@pytest.mark.parametrize("kind", ["relative", "absolute", "chain", "in-the-same-directory"])
def test_the_file_behind_a_link_is_replaced_and_the_link_stays(tree: Path, kind: str) -> None:
    link, target = tree / "link", tree / "real" / "target"
    if kind == "relative":
        os.symlink("real/target", link)
    elif kind == "absolute":
        os.symlink(target, link)
    elif kind == "chain":
        os.symlink("second", link)
        os.symlink(tree / "real" / "third", tree / "second")
        os.symlink("target", tree / "real" / "third")
    else:
        link = tree / "real" / "link"
        os.symlink("target", link)
    text, inode = os.readlink(link), os.lstat(link).st_ino
    with atomicio.atomic_write(link) as file:
        file.write("new")
        assert read(target) == b"old"
    assert (os.readlink(link), os.lstat(link).st_ino) == (text, inode)
    assert not target.is_symlink()
    assert read(target) == b"new"
    assert oct(mode_of(target)) == oct(0o640)


def test_the_staging_file_is_beside_the_file_and_not_beside_the_link(tmp_path: Path) -> None:
    """Else the rename would cross file systems."""
    other = tmp_path / "other"
    other.mkdir()
    with tmpfs_mounted(str(other)):
        write(other / "target", b"old")
        os.symlink(other / "target", tmp_path / "link")
        assert os.stat(other).st_dev != os.stat(tmp_path).st_dev
        with atomicio.atomic_write(tmp_path / "link") as file:
            file.write("new")
        with atomicio.atomic_path(tmp_path / "link") as staging:
            assert os.stat(staging).st_dev == os.stat(other).st_dev
            write(staging, b"newer")
        assert read(other / "target") == b"newer"
        assert os.listdir(other) == ["target"]
        assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("mode", ["w", "a", "w+"])
def test_a_dangling_link_creates_what_it_names(tmp_path: Path, mode: str) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real/target", tmp_path / "link")
    with umask(0o027), atomicio.atomic_write(tmp_path / "link", mode) as file:
        file.write("new")
        assert not (tmp_path / "real" / "target").exists()
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real" / "target") == b"new"
    assert oct(mode_of(tmp_path / "real" / "target")) == oct(0o640)


@pytest.mark.parametrize("target", ["target", "absent"])
@pytest.mark.parametrize("follow", [True, False])
def test_exclusive_creation_never_follows_a_link(tree: Path, target: str, follow: bool) -> None:
    os.symlink(f"real/{target}", tree / "link")
    with pytest.raises(FileExistsError) as caught:
        with atomicio.atomic_write(tree / "link", "x", follow_symlinks=follow) as file:
            file.write("new")
    assert caught.value.errno == errno.EEXIST
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert os.listdir(tree / "real") == ["target"]
    assert read(tree / "real" / "target") == b"old"


def test_exclusive_creation_loses_against_a_link_planted_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError), atomicio.atomic_write(tmp_path / "target", "x") as file:
        file.write("new")
        os.symlink("elsewhere", tmp_path / "target")
    assert os.readlink(tmp_path / "target") == "elsewhere"
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("mode", ["w", "a", "r+", "x"])
def test_a_loop_is_refused_on_entry(tmp_path: Path, mode: str) -> None:
    os.symlink("two", tmp_path / "one")
    os.symlink("one", tmp_path / "two")
    writer = atomicio.atomic_write(tmp_path / "one", mode)
    with pytest.raises(OSError) as caught:
        writer.open()
    assert caught.value.errno == (errno.EEXIST if mode == "x" else errno.ELOOP)
    assert caught.value.filename in (str(tmp_path / "one"), tmp_path / "one")
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


@pytest.mark.parametrize("to", ["real/target", "absent", "link", "real"])
@pytest.mark.parametrize("level", ["none", "durable"])
def test_not_followed_the_link_itself_is_replaced(tree: Path, to: str, level: str) -> None:
    """By a new file: what the link pointed to, even a directory or nothing, keeps its content and gives no mode."""
    os.symlink(to, tree / "link")
    with umask(0o027), atomicio.atomic_write(tree / "link", follow_symlinks=False, durability=level) as file:
        file.write("new")
        assert os.readlink(tree / "link") == to
    assert stat.S_ISREG(os.lstat(tree / "link").st_mode)
    assert oct(mode_of(tree / "link")) == oct(0o640)
    assert read(tree / "link") == b"new"
    assert read(tree / "real" / "target") == b"old"
    assert sorted(os.listdir(tree)) == ["link", "real"]


def test_not_followed_concerns_only_the_last_part_of_the_path(tree: Path) -> None:
    os.symlink("real", tree / "link")
    atomicio.write_text(tree / "link" / "target", "new", follow_symlinks=False)
    assert (tree / "link").is_symlink()
    assert read(tree / "real" / "target") == b"new"


def test_not_followed_on_an_ordinary_file_changes_nothing(tree: Path) -> None:
    atomicio.write_bytes(tree / "real" / "target", b"new", follow_symlinks=False)
    assert read(tree / "real" / "target") == b"new"
    assert oct(mode_of(tree / "real" / "target")) == oct(0o640)


@pytest.mark.parametrize("mode", ["a", "r+"])
def test_not_followed_there_is_nothing_behind_a_link_to_extend(tree: Path, mode: str) -> None:
    """A link has no bytes of its own: with O_NOFOLLOW, open says ELOOP. What it points to must stay as it is."""
    os.symlink("real/target", tree / "link")
    with pytest.raises(OSError) as caught:
        with atomicio.atomic_write(tree / "link", mode, follow_symlinks=False) as file:
            file.write("new")
    assert caught.value.errno == errno.ELOOP
    assert caught.value.committed is False  # type: ignore[attr-defined]
    assert os.readlink(tree / "link") == "real/target"
    assert read(tree / "real" / "target") == b"old"


def test_a_link_turned_elsewhere_in_the_block_does_not_change_the_target(tree: Path) -> None:
    """As a file opened by open stays what it was."""
    os.symlink("real/target", tree / "link")
    write(tree / "other", b"other")
    with atomicio.atomic_write(tree / "link") as file:
        file.write("new")
        os.unlink(tree / "link")
        os.symlink("other", tree / "link")
    assert read(tree / "real" / "target") == b"new"
    assert read(tree / "other") == b"other"


def test_a_link_to_a_directory_is_a_directory(tree: Path) -> None:
    os.symlink("real", tree / "link")
    with pytest.raises(IsADirectoryError) as caught:
        atomicio.atomic_write(tree / "link").open()
    assert caught.value.committed is False  # type: ignore[attr-defined]


def test_a_link_in_proc_to_a_pipe_is_written_through() -> None:
    """The text of /proc/self/fd/1 is "pipe:[123]", which names nothing: only the kernel can follow it."""
    if not LINUX:
        pytest.skip("links in /proc are Linux's")
    reader, writer = os.pipe()
    try:
        with atomicio.atomic_write(f"/proc/self/fd/{writer}", "wb") as file:
            file.write(b"new")
        assert os.read(reader, 10) == b"new"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_link_in_proc_to_a_deleted_file_is_no_name_for_a_new_one(tmp_path: Path) -> None:
    """Its text ends in " (deleted)": taken at its word, it would create a file of that name."""
    if not LINUX:
        pytest.skip("links in /proc are Linux's")
    descriptor = os.open(tmp_path / "gone", os.O_RDWR | os.O_CREAT)
    os.unlink(tmp_path / "gone")
    try:
        outcome(lambda: atomicio.write_bytes(f"/proc/self/fd/{descriptor}", b"new"))
        assert os.listdir(tmp_path) == []
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def kernel_setting(name: str, value: bytes) -> Iterator[None]:
    """fs.NAME of sysctl(8) has this value meanwhile."""
    import fcntl

    setting = f"/proc/sys/fs/{name}"
    with open(setting, "rb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)  # it is the whole machine's: other runs of these tests take turns
        before = read(setting)
        try:
            if before.strip() != value:
                write(setting, value)
        except OSError as error:
            pytest.skip(f"root may not switch fs.{name} here: {error.strerror}")
        try:
            yield
        finally:
            if before.strip() != value:
                write(setting, before)


@pytest.mark.skipif(not AS_ROOT or not LINUX, reason="takes Linux and two ordinary users")
def test_a_link_that_the_kernel_would_not_follow_is_not_followed() -> None:
    """fs.protected_symlinks: in a sticky directory, a link that another user planted."""
    with kernel_setting("protected_symlinks", b"1"):
        for mode in ("w", "a", "r+"):
            for owner in (OTHER_USER, ORDINARY_USER, 0):
                check_planted_link(mode, owner)


@pytest.mark.skipif(not AS_ROOT or not LINUX, reason="takes Linux and two ordinary users")
def test_a_link_to_a_directory_is_followed_whoever_made_it() -> None:
    """fs.protected_symlinks is about the last part of a path alone; here that is the file."""
    with kernel_setting("protected_symlinks", b"1"), public_directory() as directory, public_directory(0o1777) as sticky:
        os.symlink(directory, f"{sticky}/link")
        os.chown(f"{sticky}/link", OTHER_USER, OTHER_USER, follow_symlinks=False)

        def write_with(opener: Callable[..., Any], name: str) -> None:
            with opener(f"{sticky}/link/{name}", "w") as file:
                file.write(name)

        as_ordinary_user(lambda: write_with(open, "plain"))
        as_ordinary_user(lambda: write_with(atomicio.atomic_write, "atomic"))
        assert read(f"{directory}/plain") == b"plain"
        assert read(f"{directory}/atomic") == b"atomic"


@pytest.mark.skipif(not AS_ROOT or not LINUX, reason="takes Linux, root and two ordinary users")
@pytest.mark.parametrize("level", [b"0", b"1", b"2"])
def test_a_file_that_the_kernel_would_not_open_is_not_replaced(level: bytes) -> None:
    """fs.protected_regular: in a sticky directory, a file that another user planted, to be given what root writes."""
    with kernel_setting("protected_regular", level):
        refusals = 0
        for permissions in (0o755, 0o1755, 0o1775, 0o1777):
            for owner in (0, ORDINARY_USER, OTHER_USER):
                for mode in ("w", "a", "r+"):
                    with public_directory(permissions) as directory:
                        os.chown(directory, ORDINARY_USER, ORDINARY_USER)

                        def write_with(opener: Callable[..., Any]) -> object:
                            path = f"{directory}/file"
                            with contextlib.suppress(FileNotFoundError):
                                os.unlink(path)
                            write(path, b"old")
                            os.chown(path, owner, owner)

                            def action() -> None:
                                with opener(path, mode) as file:
                                    file.write("new")

                            return outcome(action, directory), read(path)

                        wanted = write_with(open)
                        assert write_with(atomicio.atomic_write) == wanted, (oct(permissions), owner, mode)
                        refusals += bool(wanted[0])
        assert refusals == {b"0": 0, b"1": 2, b"2": 4}[level]


def check_planted_link(mode: str, owner: int) -> None:
    """Links of the one who writes, and of the directory's owner, are followed."""
    with public_directory() as directory, public_directory(0o1777) as sticky:
        write(f"{directory}/target", b"old")
        os.chown(f"{directory}/target", ORDINARY_USER, ORDINARY_USER)
        os.symlink(f"{directory}/target", f"{sticky}/link")
        os.chown(f"{sticky}/link", owner, owner, follow_symlinks=False)

        def act(opener: object) -> object:
            def action() -> None:
                with opener(f"{sticky}/link", mode) as file:  # type: ignore[operator]
                    file.write("new")

            return outcome(action)

        refused = ("PermissionError", "EACCES", f"{sticky}/link") if owner == OTHER_USER else None
        assert as_ordinary_user(lambda: act(atomicio.atomic_write)) == refused
        left = read(f"{directory}/target")
        assert left == b"old" if refused else left.startswith((b"new", b"oldnew"))
        write(f"{directory}/target", b"old")
        assert as_ordinary_user(lambda: act(open)) == refused
        assert read(f"{directory}/target") == left
