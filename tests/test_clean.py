"""`clean` removes what provably belongs to nobody alive, and touches nothing else."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import atomicio

if sys.platform == "win32":
    pytest.skip("tests of POSIX calls", allow_module_level=True)

import fcntl

from atomicio import _clean
from atomicio._clean import clean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = os.geteuid() == 0
NOBODY = 65534
HEX = "0123456789abcdef"
FILE, TREE, COPY, RECORD = (f".atomicio-{HEX}{suffix}" for suffix in (".tmp", ".dir", ".backup", ".recover"))
LENT = f".atomicio-{HEX}.tmp.tar.gz"

needs_root = pytest.mark.skipif(not ROOT, reason="needs root, to mount and to give files away")
linux = pytest.mark.skipif(sys.platform != "linux", reason="lent files can be told from dead ones on Linux only")


def names(directory: Path) -> set[str]:
    return set(os.listdir(directory))


def run(directory: Path, **keywords: Any) -> dict[str, str]:
    """Clean `directory` and return what became of each name: "removed", or why not."""
    keywords.setdefault("older_than", 0)
    return {os.path.basename(each.path): each.reason or "removed" for each in clean(str(directory), **keywords)}


def command(*arguments: str | os.PathLike[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "atomicio", "clean", *arguments], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


# -- what killed writers leave ----------------------------------------------------------------------------------------------------

WRITERS = {
    "named": "del os.O_TMPFILE\nwriter = atomicio.atomic_write('target')\nwriter.open().write('x' * 100000)",
    "lent": "writer = atomicio.atomic_path('target.tar.gz')\nopen(writer.open(), 'w').write('x')",
    "lent without a suffix": "writer = atomicio.atomic_path('target')\nopen(writer.open(), 'w').write('x')",
    "directory": "writer = atomicio.atomic_directory('target')\nstaging = writer.open()\nos.makedirs(staging + '/a/b')\n"
    "os.symlink('/etc', staging + '/a/link')\nopen(staging + '/a/file', 'w').close()",
}
# Closed, because NFS and quotas report lost writes at the close, and so without a lock for the time of one system call.
CLOSED = (
    "original = os.rename\ndef rename(*a, **k):\n    ready(); original(*a, **k)\nos.rename = rename\n"
    "atomicio.write_bytes('target', b'x')"
)
PREAMBLE = """
import os, sys, time
sys.path.insert(0, {package!r})
import atomicio
def ready():
    print("ready", flush=True)
    time.sleep(600)
"""


class Writer:
    """A process in the middle of a write."""

    def __init__(self, program: str, directory: Path) -> None:
        package = str(Path(atomicio.__file__).parent.parent)
        code = PREAMBLE.format(package=package) + program + "\nready()\n"
        self.process = subprocess.Popen([sys.executable, "-c", code], cwd=directory, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=120)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[[str], Writer]]:
    started: list[Writer] = []

    def start(program: str) -> Writer:
        started.append(Writer(program, tmp_path))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@linux
@pytest.mark.parametrize("kind", WRITERS)
def test_the_living_are_left_alone_and_the_dead_are_removed(tmp_path: Path, writer: Callable[[str], Writer], kind: str) -> None:
    process = writer(WRITERS[kind])
    (name,) = names(tmp_path)
    assert run(tmp_path) == {name: "its writer is alive"}
    process.process.send_signal(signal.SIGSTOP)
    assert run(tmp_path) == {name: "its writer is alive"}, "stopped is not dead"
    process.kill()
    assert run(tmp_path, dry_run=True) == {name: "removed"}
    assert names(tmp_path) == {name}
    assert "second" in run(tmp_path, older_than=60)[name]
    assert names(tmp_path) == {name}
    assert run(tmp_path) == {name: "removed"}
    assert names(tmp_path) == set()
    assert Path("/etc/passwd").exists()


BATCH = """
with atomicio.batch(durability={durability!r}) as batch:
    for number in range({folders}):
        batch.write_bytes(f"{{number}}/file", b"x", make_parents=True)
    if {syncing}:
        from atomicio import _batch
        _batch._wait_for_content = lambda *_: ready()
    else:
        ready()
"""


@linux
@pytest.mark.parametrize("durability", ["none", "durable"])
@pytest.mark.parametrize("syncing", [False, True])
def test_the_files_of_a_batch_have_no_lock_each_and_are_left_alone(
    tmp_path: Path, writer: Callable[[str], Writer], durability: str, syncing: bool
) -> None:
    """Also in directories that the batch no longer has open, beyond 64, and for as long as the wait for the disk takes."""
    if durability == "none" and syncing:
        return
    folders = 70
    process = writer(BATCH.format(durability=durability, folders=folders, syncing=syncing))
    process.process.send_signal(signal.SIGSTOP)
    # Somebody else's leftover: whose it is can't be told, so it stays as long as the batch.
    (tmp_path / "0" / FILE).touch()
    told = [each for each in clean(str(tmp_path), older_than=0, recursive=True) if not each.path.endswith(".batch")]
    assert len(told) == folders + 1
    assert {each.reason for each in told} == {"it may belong to a batch, and one in this directory is alive"}
    assert not any(each.removed for each in clean(str(tmp_path), older_than=0, recursive=True))
    process.kill()
    assert {each.reason for each in clean(str(tmp_path), older_than=0, recursive=True)} == {""}
    assert [name for _, _, files in os.walk(tmp_path) for name in files] == []


@linux
def test_between_close_and_rename_the_age_decides(tmp_path: Path, writer: Callable[[str], Writer]) -> None:
    process = writer(CLOSED)
    (name,) = names(tmp_path)
    assert "second" in run(tmp_path, older_than=60)[name]
    assert names(tmp_path) == {name}
    process.kill()
    assert run(tmp_path) == {name: "removed"}


@linux
def test_a_child_that_lives_on_is_a_writer(tmp_path: Path, writer: Callable[[str], Writer]) -> None:
    """A forked child holds the lock too: it may be what writes to the staging path."""
    program = WRITERS["lent"] + "\nimport signal\nchild = os.fork()\nif not child: signal.pause()\nprint('child', child, flush=True)"
    process = Writer.__new__(Writer)
    package = str(Path(atomicio.__file__).parent.parent)
    code = PREAMBLE.format(package=package) + program + "\nready()\n"
    process.process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.process.stdout is not None
    child = int(process.process.stdout.readline().split()[1])
    try:
        process.process.send_signal(signal.SIGKILL)
        process.process.wait(120)
        (name,) = names(tmp_path)
        assert run(tmp_path) == {name: "its writer is alive"}
    finally:
        os.kill(child, signal.SIGKILL)
    process.process.communicate(timeout=120)
    deadline = time.monotonic() + 120
    while run(tmp_path).get(name) != "removed" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert names(tmp_path) == set()


@linux
@pytest.mark.parametrize("lock", ["flock", "one byte"])
def test_either_lock_is_enough(tmp_path: Path, lock: str) -> None:
    with open(tmp_path / FILE, "w") as file:
        if lock == "flock":
            fcntl.flock(file, fcntl.LOCK_SH)
        else:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 1 << 62, 1, 0))
        assert run(tmp_path) == {FILE: "its writer is alive"}
    assert run(tmp_path) == {FILE: "removed"}


@linux
def test_other_locks_of_a_consumer_say_nothing(tmp_path: Path) -> None:
    """The consumer of a lent path is not the writer: a process that reads litter does not own it."""
    with open(tmp_path / LENT, "w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 1, 1 << 30)
        assert run(tmp_path) == {LENT: "removed"}


# -- what stays -------------------------------------------------------------------------------------------------------------------


def test_copies_and_records_are_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / COPY).write_text("the only copy")
    (tmp_path / RECORD).write_text("{}")
    (tmp_path / COPY.replace("0", "1")).mkdir()
    said = run(tmp_path)
    assert said[COPY].startswith("a recovery copy")
    assert said[COPY.replace("0", "1")].startswith("a recovery copy")
    assert "recover" in said[RECORD]
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("name", [FILE, TREE, LENT])
@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "socket", "wrong"])
def test_what_is_of_another_kind_than_its_name_says(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("here")
    if kind == "link":
        path.symlink_to("precious/file" if name != TREE else "precious")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            here = os.getcwd()
            os.chdir(tmp_path)
            try:
                server.bind(name)
            finally:
                os.chdir(here)
    elif name == TREE:
        path.write_text("a file")
    else:
        path.mkdir()
    assert "not the library's" in run(tmp_path)[name]
    assert names(tmp_path) == {name, "precious"}
    assert (tmp_path / "precious/file").read_text() == "here"


@linux
def test_trees_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("here")
    litter = tmp_path / TREE
    (litter / "a/b").mkdir(parents=True)
    for where in (litter, litter / "a", litter / "a/b"):
        (where / "up").symlink_to(tmp_path / "precious")
        (where / "file").symlink_to(tmp_path / "precious/file")
        os.link(tmp_path / "precious/file", where / "hard")
        (where / "self").symlink_to(".")
    assert run(tmp_path) == {TREE: "removed"}
    assert names(tmp_path) == {"precious"}
    assert (tmp_path / "precious/file").read_text() == "here"


@linux
def test_a_link_to_the_directory_is_followed_and_links_in_it_are_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "real" / FILE).touch()
    (tmp_path / "other" / FILE).touch()
    (tmp_path / "real/link").symlink_to("../other")
    (tmp_path / "link").symlink_to("real")
    assert run(tmp_path / "link", recursive=True) == {FILE: "removed"}
    assert names(tmp_path / "other") == {FILE}


@linux
def test_recursive(tmp_path: Path) -> None:
    for where in (tmp_path, tmp_path / "a", tmp_path / "a/b", tmp_path / TREE / "inner"):
        where.mkdir(parents=True, exist_ok=True)
        (where / FILE).touch()
    (tmp_path / "a/keep").write_text("here")
    assert set(run(tmp_path)) == {FILE, TREE}
    assert (tmp_path / "a" / FILE).exists()
    told = [each.path for each in clean(str(tmp_path), older_than=0, recursive=True)]
    assert told == [str(tmp_path / "a" / FILE), str(tmp_path / "a/b" / FILE)]
    assert sorted(os.path.relpath(path, tmp_path) for path in tmp_path.rglob("*")) == ["a", "a/b", "a/keep"]


def test_age_by_the_last_change_of_any_kind(tmp_path: Path) -> None:
    """mtime is the writer's business (tar, rsync -t); ctime is the kernel's."""
    (tmp_path / FILE).touch()
    os.utime(tmp_path / FILE, (0, 0))
    assert "second" in run(tmp_path, older_than=60)[FILE]


def test_removed_by_somebody_else_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).touch()
    original = _clean._lock

    def late(fd: int, *, lent: bool) -> str:
        (tmp_path / FILE).unlink()
        return original(fd, lent=lent)

    monkeypatch.setattr(_clean, "_lock", late)
    assert run(tmp_path) == {}


@linux
@pytest.mark.parametrize("name", [FILE, TREE])
def test_replaced_by_somebody_else_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """What the locks were taken on is what is removed, or nothing."""
    path = tmp_path / name
    path.mkdir() if name == TREE else path.touch()
    original = _clean._lock

    def late(fd: int, *, lent: bool) -> str:
        said = original(fd, lent=lent)
        path.rename(tmp_path / "elsewhere")
        path.mkdir() if name == TREE else path.touch()
        return said

    monkeypatch.setattr(_clean, "_lock", late)
    assert run(tmp_path) == {name: "it is changing just now"}
    assert names(tmp_path) == {name, "elsewhere"}


@linux
def test_where_locks_do_not_exist_nothing_is_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / FILE).touch()
    (tmp_path / TREE).mkdir()

    def none(fd: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    said = run(tmp_path)
    assert set(said) == {FILE, TREE}
    assert all("can't be locked" in reason for reason in said.values())
    assert names(tmp_path) == {FILE, TREE}


@linux
def test_where_other_machines_may_write_nothing_is_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from atomicio._filesystem import Mount

    (tmp_path / FILE).touch()
    line = "36 35 98:0 / {} rw,noatime shared:1 - {} server:/export rw,local_lock=none"
    for kind in ("nfs4", "cifs", "fuse.sshfs", "fuse", "virtiofs", "9p"):
        monkeypatch.setattr(_clean, "mount_of", lambda _, kind=kind: Mount(line.format(tmp_path, kind)))
        assert run(tmp_path)[FILE].startswith(f"this is {kind}: a writer on another machine")
        assert names(tmp_path) == {FILE}
    assert run(tmp_path, alone=True) == {FILE: "removed"}


# -- other users ------------------------------------------------------------------------------------------------------------------


def as_nobody(function: Callable[[], str]) -> str:
    """Call `function` as an ordinary user, in a child process, and return what it returns."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
            said = function()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


@needs_root
@linux
def test_what_one_may_not_remove_stays(tmp_path: Path) -> None:
    """Somebody else's litter in a directory that one may not write in; one's own in a sticky one."""
    fd = os.open(tmp_path, os.O_RDONLY)
    for name, owner in ((FILE, 0), (LENT, NOBODY)):
        (tmp_path / name).touch()
        os.chown(tmp_path / name, owner, owner)
    (tmp_path / FILE).chmod(0o644)

    def look() -> str:
        os.fchdir(fd)
        return "; ".join(f"{each.path[-4:]} {each.reason or 'removed'}" for each in clean(".", older_than=0))

    tmp_path.chmod(0o755)
    said = as_nobody(look)
    assert said == ".tmp Permission denied; r.gz Permission denied"
    tmp_path.chmod(0o1777)
    said = as_nobody(look)
    assert said in (".tmp Operation not permitted; r.gz removed", ".tmp Permission denied; r.gz removed")
    assert names(tmp_path) == {FILE}
    (tmp_path / FILE).chmod(0o600)
    assert as_nobody(look) == ".tmp Permission denied", "what can't be opened is not known to be dead"
    tmp_path.chmod(0o700)
    os.close(fd)


@needs_root
@linux
@pytest.mark.parametrize(
    ("parent_owner", "parent_mode", "owner", "removed"),
    [
        (0, 0o755, 0, True),
        (0, 0o755, NOBODY, True),
        (0, 0o1777, NOBODY, True),
        (0, 0o1777, 0, True),
        (0, 0o777, 0, False),
        (0, 0o777, NOBODY, False),
        (0, 0o775, 0, False),
        (NOBODY, 0o755, NOBODY, True),
        (NOBODY, 0o755, 0, False),
        (NOBODY, 0o755, 1234, False),
        (NOBODY, 0o777, NOBODY, False),
    ],
)
def test_a_tree_that_somebody_else_may_have_named(
    tmp_path: Path, parent_owner: int, parent_mode: int, owner: int, removed: bool
) -> None:
    """Who may rename in a directory can give our form of name to a tree that they could never empty themselves."""
    place = tmp_path / "place"
    (place / TREE).mkdir(parents=True)
    (place / TREE / "file").write_text("precious?")
    os.chown(place / TREE, owner, owner)
    os.chown(place, parent_owner, parent_owner)
    place.chmod(parent_mode)
    said = run(place)[TREE]
    assert said == "removed" if removed else said.startswith("others may rename")
    assert (place / TREE / "file").exists() != removed


@needs_root
@linux
def test_what_is_mounted_stays(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/precious").write_text("here")
    mounts = [tmp_path / TREE, tmp_path / TREE.replace("0", "1") / "inner"]
    for mount in mounts:
        mount.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount], check=True)
        (mount / "precious").write_text("here")
    try:
        said = run(tmp_path)
        assert said == {TREE: "another file system is mounted here", mounts[1].parent.name: os.strerror(errno.EBUSY)}
        assert [(mount / "precious").read_text() for mount in mounts if mount.exists()][:1] == ["here"]
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        held = [line.split()[4] for line in lines if line.split()[4].startswith(str(tmp_path))]
        assert [Path(where, "precious").read_text() for where in held] == ["here", "here"]
    finally:
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if (where := line.split()[4]).startswith(str(tmp_path)):
                subprocess.run(["umount", where], check=True)


# -- any name ---------------------------------------------------------------------------------------------------------------------

OURS = re.compile(rb"\.atomicio-[0-9a-f]{16}(\.tmp(\..*)?|\.dir)", re.DOTALL)
ANY = st.binary(min_size=1, max_size=40).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
NEARLY = st.builds(
    b"%b%b%b".__mod__,
    st.tuples(
        st.sampled_from([b".atomicio-", b"atomicio-", b".Atomicio-", b".atomicio_", b"x.atomicio-", b".atomicio-."]),
        st.one_of(
            st.text("0123456789abcdefABCDEFg", min_size=14, max_size=18).map(str.encode),
            st.just(HEX.encode()),
            st.just("٠١٢٣٤٥٦٧".encode()),  # digits, for a careless \d
        ),
        st.one_of(
            st.sampled_from([b".tmp", b".dir", b".tmpx", b".TMP", b"", b".tmp.", b".tmp.h5", b".dirs", b".tmp/..", b".tmp\n", b"\n.tmp"]),
            st.sampled_from([b".backup", b".recover", b".lock", b".tmp.tar.gz", b".tmp.\n", b".tmp.\xff", b".dir\n"]),
            ANY,
        ),
    ),
).map(lambda name: name.replace(b"/", b"_"))
NAMES = st.one_of(ANY, NEARLY, NEARLY).filter(lambda name: name not in (b".", b".."))
KINDS = st.sampled_from(["file", "file", "held file", "directory", "directory", "held directory", "link", "fifo", "full directory"])


def make(path: bytes, kind: str, outside: bytes) -> int | None:
    """Make something at `path`; the lock of a writer, if there is one, is held through what is returned."""
    fd = None
    if "file" in kind:
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    elif "directory" in kind:
        os.mkdir(path)
        fd = os.open(path, os.O_RDONLY)
        if "full" in kind:
            os.mkdir(path + b"/sub")
            os.symlink(outside, path + b"/sub/link")
            os.close(os.open(path + b"/sub/" + FILE.encode(), os.O_CREAT))
    elif kind == "link":
        os.symlink(outside, path)
    else:
        os.mkfifo(path)
    if fd is not None and "held" in kind:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return fd
    if fd is not None:
        os.close(fd)
    return None


@linux
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(entries=st.dictionaries(NAMES, KINDS, max_size=8), recursive=st.booleans(), dry_run=st.booleans())
def test_exactly_what_is_ours_and_dead_goes(tmp_path: Path, entries: dict[bytes, str], recursive: bool, dry_run: bool) -> None:
    outside, place = os.fsencode(tmp_path / "outside"), os.fsencode(tmp_path / "place")
    os.mkdir(outside)
    os.mkdir(place)
    held: list[int] = []
    try:
        with open(outside + b"/" + FILE.encode(), "w") as file:
            file.write("not in the directory that is cleaned")
        made: dict[bytes, str] = {}
        for name, kind in entries.items():
            try:
                fd = make(place + b"/" + name, kind, outside)
            except OSError as error:
                assert error.errno in (errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG)
                continue
            made[name] = kind
            if fd is not None:
                held.append(fd)
        dead = {
            name
            for name, kind in made.items()
            if (OURS.fullmatch(name) and kind == "file" and not name.endswith(b".dir"))
            or (OURS.fullmatch(name) and name.endswith(b".dir") and len(name) == 30 and kind in ("directory", "full directory"))
            or (OURS.fullmatch(name) and kind == "file" and len(name) > 30)
        }
        told = list(clean(os.fsdecode(place), older_than=0, recursive=recursive, dry_run=dry_run))
        gone = [each for each in told if each.removed and Path(each.path).parent == Path(os.fsdecode(place))]
        here = {os.fsencode(os.path.basename(each.path)) for each in gone}
        assert here == dead
        assert set(os.listdir(place)) == (set(made) if dry_run else set(made) - dead)
        for name, kind in made.items():
            if kind == "full directory" and name not in dead:
                inner = os.listdir(place + b"/" + name + b"/sub")
                assert b"link" in inner
                if not recursive or dry_run or name.startswith(b".atomicio-"):
                    assert FILE.encode() in inner
        assert os.listdir(outside) == [FILE.encode()]
    finally:
        for fd in held:
            os.close(fd)
        shutil.rmtree(place)
        shutil.rmtree(outside)


@linux
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_any_tree_is_removed_whole_and_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    """Trees of any shape, with links in them to everywhere, and directories one may not write in."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("here")
    top = tmp_path / TREE
    top.mkdir()
    directories = [os.fsencode(top)]
    try:
        kinds = st.sampled_from(["file", "directory", "directory", "link", "hard", "fifo"])
        for name, kind in data.draw(st.lists(st.tuples(NAMES, kinds), max_size=25)):
            path = data.draw(st.sampled_from(directories)) + b"/" + name
            try:
                if kind == "file":
                    os.close(os.open(path, os.O_CREAT | os.O_EXCL, data.draw(st.sampled_from([0o600, 0o000, 0o4755]))))
                elif kind == "directory":
                    os.mkdir(path)
                    directories.append(path)
                elif kind == "link":
                    os.symlink(data.draw(st.sampled_from([os.fsencode(outside), b"..", b"/", b"nowhere", b"."])), path)
                elif kind == "hard":
                    os.link(outside / "precious", path)
                else:
                    os.mkfifo(path)
            except OSError as error:
                assert error.errno in (errno.EEXIST, errno.EILSEQ, errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR)
        for directory in directories[1:]:
            os.chmod(directory, data.draw(st.sampled_from([0o755, 0o555, 0o700, 0o500])))
        assert run(tmp_path) == {TREE: "removed"}
        assert names(tmp_path) == {"outside"}
        assert (outside / "precious").read_text() == "here"
        assert (outside / "precious").stat().st_nlink == 1
    finally:
        if top.exists():
            subprocess.run(["chmod", "-R", "u+rwx", top], check=False)
            shutil.rmtree(top)
        shutil.rmtree(outside)


@needs_root
@linux
def test_directories_one_may_not_write_in_go_with_their_owner(tmp_path: Path) -> None:
    """What root never meets: the owner of a read-only directory may give itself the permission, and has to."""
    place = tmp_path / "place"
    (place / TREE / "a/b/c").mkdir(parents=True)
    (place / TREE / "a/b/file").touch()
    for path in (place, *place.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for path in (place / TREE / "a/b/c", place / TREE / "a/b", place / TREE / "a"):
        path.chmod(0o555)
    fd = os.open(place, os.O_RDONLY)

    def look() -> str:
        os.fchdir(fd)
        return "; ".join(each.reason or "removed" for each in clean(".", older_than=0))

    assert as_nobody(look) == "removed"
    os.close(fd)
    assert names(place) == set()


# -- the command ------------------------------------------------------------------------------------------------------------------


@linux
def test_the_command_tells_what_it_does(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"x" * 2048)
    (tmp_path / COPY).write_text("copy")
    (tmp_path / "mine").write_text("mine")
    result = command(tmp_path, "--dry-run", "--older-than", "0")
    assert result.returncode == 0
    kept, would = result.stdout.splitlines()
    assert kept == f"kept {tmp_path}/{COPY} (4 B): a recovery copy: it may be the only one, so it is never removed"
    assert re.fullmatch(re.escape(f"would remove {tmp_path}/{FILE} (2.0 KiB, ") + r"\d+ s old\)", would)
    assert names(tmp_path) == {FILE, COPY, "mine"}
    result = command(tmp_path)
    assert "seconds ago" in result.stdout
    assert names(tmp_path) == {FILE, COPY, "mine"}
    result = command(tmp_path, "--older-than", "0s")
    assert f"removed {tmp_path}/{FILE}" in result.stdout
    assert names(tmp_path) == {COPY, "mine"}
    assert command(tmp_path / "mine").returncode == 1
    assert command(tmp_path / "nowhere").stderr == f"atomicio: {tmp_path}/nowhere: No such file or directory\n"
    for wrong in ("x", "-1", "1w", ""):
        assert command(tmp_path, f"--older-than={wrong}").returncode == 2


@linux
def test_a_name_does_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    (tmp_path / f"{FILE}.\x1b[2J\nremoved all").touch()
    result = command(tmp_path, "--older-than", "0")
    assert result.returncode == 0
    assert "\x1b" not in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert names(tmp_path) == set()


@needs_root
@linux
def test_the_command_fails_where_something_could_not_be_removed(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    if subprocess.run(["chattr", "+i", tmp_path / FILE], capture_output=True).returncode:
        pytest.skip("no immutable files on this file system")
    try:
        result = command(tmp_path, "--older-than", "0")
    finally:
        subprocess.run(["chattr", "-i", tmp_path / FILE], check=True)
    assert result.returncode == 1
    assert "kept" in result.stdout
    assert names(tmp_path) == {FILE}


@linux
def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its path, where the system names a descriptor. The other directories are looked into all the same."""
    for name in ("bad", "good"):
        (tmp_path / name).mkdir()
        (tmp_path / name / FILE).touch()
    scandir = os.scandir

    def fail(fd: int) -> Any:
        if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), fd)
        return scandir(fd)

    monkeypatch.setattr(os, "scandir", fail)
    monkeypatch.setattr(os, "supports_fd", {*os.supports_fd, fail})
    bad = {"bad"}
    found = {each.path: each.reason for each in clean(str(tmp_path), older_than=0, recursive=True)}
    assert found == {str(tmp_path / "bad"): os.strerror(errno.EIO), str(tmp_path / "good" / FILE): ""}
    bad = {tmp_path.name}
    with pytest.raises(OSError) as caught:
        run(tmp_path)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(tmp_path))


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in (FILE, COPY, f"a/{LENT}"):
        (tmp_path / name).touch()
    before = sorted(os.listdir("/dev/fd"))
    run(tmp_path, recursive=True, dry_run=True)
    iterator = clean(str(tmp_path), older_than=0, recursive=True, dry_run=True)
    next(iter(iterator))
    iterator.close()  # type: ignore[attr-defined]
    assert sorted(os.listdir("/dev/fd")) == before
    assert stat.S_ISREG(os.stat(tmp_path / FILE).st_mode)
