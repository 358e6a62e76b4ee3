"""A fork inside the block: the child's way out, whatever it is, neither publishes nor discards what is the parent's."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import atomicio

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

OLD = "the old content\n"
HEADER = """
import os, signal, sys, time
sys.path[:0] = {path!r}
if {staging!r} == "named":
    del os.O_TMPFILE
import atomicio

class BodyError(Exception):
    pass

def content():
    with open(target) as file:
        return file.read()

def reap(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

target = sys.argv[1]
"""


def run(source: str, target: Path, staging: str = "unnamed") -> str:
    """Run *source* in a process of its own: a child that returns from the block must not go on with our tests."""
    import filelock

    path = [str(Path(module.__file__ or "").parent.parent) for module in (atomicio, filelock)]
    program = HEADER.format(path=path, staging=staging) + textwrap.dedent(source)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(target)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def check(target: Path, content: str | None) -> None:
    assert [each.name for each in target.parent.iterdir() if each.suffix != ".lock"] == (
        [target.name] if content is not None else []
    )
    if content is not None:
        assert target.read_text() == content


# How the child leaves the block. Each begins with what the parent has written before the fork still in the buffer.
WAYS_OUT = {
    "returns": "pass",
    "writes": "file.write('child')",
    "writes and flushes": """
        try:
            file.write('child'); file.flush()
        except OSError as error:
            assert isinstance(error, atomicio.WriterStateError) and error.committed is False
            os._exit(7)
        """,
    "raises": "raise BodyError",
    "exits": "sys.exit(7)",
    "is gone": "os._exit(7)",
    "is killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "closes": "file.close()",
}


@pytest.mark.parametrize("order", ["child first", "parent first"])
@pytest.mark.parametrize("staging", ["unnamed", "named"])
@pytest.mark.parametrize("way", WAYS_OUT)
def test_child_leaves_the_block(way: str, staging: str, order: str, tmp_path: Path) -> None:
    """The parent's content is published once, by the parent, whoever is the first to leave."""
    target = tmp_path / "target"
    target.write_text(OLD)
    run(
        f"""
ready, go = os.pipe()
child = None
try:
    with atomicio.atomic_write(target) as file:
        file.write("one ")
        child = os.fork()
        if child == 0:
            if {order!r} == "parent first":
                os.close(go)
                os.read(ready, 1)  # until the parent has left the block
{textwrap.indent(textwrap.dedent(WAYS_OUT[way]).strip(), " " * 12)}
        else:
            if {order!r} == "child first":
                reap(child)
                assert content() == {OLD!r}
            file.write("two")
except (BodyError, atomicio.WriterStateError):
    assert child == 0
if child == 0:
    os._exit(0)  # without what a file object that is still open would flush at exit
os.close(go)
if {order!r} == "parent first":
    reap(child)
""",
        target,
        staging,
    )
    check(target, "one two")


@pytest.mark.parametrize("staging", ["unnamed", "named"])
def test_child_exits_in_the_ordinary_way(staging: str, tmp_path: Path) -> None:
    """What the child has in its copy of the buffer is not written by its end either: no content twice."""
    target = tmp_path / "target"
    run(
        """
with atomicio.atomic_write(target) as file:
    file.write("one ")
    child = os.fork()
    if child == 0:
        sys.exit(0)
    reap(child)
    file.write("two")
""",
        target,
        staging,
    )
    check(target, "one two")


@pytest.mark.parametrize("staging", ["unnamed", "named"])
@pytest.mark.parametrize("mode", ["w", "x", "a", "r+"])
def test_parent_aborts(mode: str, staging: str, tmp_path: Path) -> None:
    """The child leaves the block as if all were well; the parent's block raises: nothing is published."""
    target = tmp_path / "target"
    if mode != "x":
        target.write_text(OLD)
    run(
        f"""
try:
    with atomicio.atomic_write(target, {mode!r}) as file:
        file.write("new")
        child = os.fork()
        if child != 0:
            reap(child)
            raise BodyError
except BodyError:
    assert child
except atomicio.WriterStateError as error:
    assert child == 0 and error.committed is False
if child == 0:
    os._exit(0)
""",
        target,
        staging,
    )
    check(target, None if mode == "x" else OLD)


def test_child_cannot_commit(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text(OLD)
    output = run(
        """
writer = atomicio.atomic_write(target)
file = writer.open()
file.write("new")
child = os.fork()
if child == 0:
    try:
        writer.commit()
    except atomicio.WriterStateError as error:
        print(error.committed, error.filename == target, writer.committed, flush=True)
    writer.abort()
    os._exit(0)
reap(child)
assert content() != "new"
writer.commit()
assert writer.committed
""",
        target,
    )
    assert output == "False True False\n"
    check(target, "new")


@pytest.mark.parametrize("staging", ["unnamed", "named"])
def test_child_drops_the_writer(staging: str, tmp_path: Path) -> None:
    """Garbage collection in the child discards nothing of the parent's, and warns of nothing."""
    target = tmp_path / "target"
    run(
        """
writer = atomicio.atomic_write(target)
file = writer.open()
file.write("new")
child = os.fork()
if child == 0:
    import gc
    del writer, file
    gc.collect()
    os._exit(0)
assert reap(child) == 0
writer.commit()
""",
        target,
        staging,
    )
    check(target, "new")


def test_child_writes_files_of_its_own(tmp_path: Path) -> None:
    """Parent and child both go on to write, inside and after the block that was forked in."""
    target = tmp_path / "target"
    run(
        """
with atomicio.atomic_write(target) as file:
    file.write("parent")
    child = os.fork()
    if child == 0:
        atomicio.write_text(target + ".child", "child")
        with atomicio.atomic_write(target + ".child", "a") as other:
            other.write(" again")
        os._exit(0)
    assert reap(child) == 0
""",
        target,
    )
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {
        "target": "parent",
        "target.child": "child again",
    }


def test_child_leaves_the_lock_alone(tmp_path: Path) -> None:
    """The lock stays with the parent: a child's way out must not let others in."""
    target = tmp_path / "target"
    target.write_text(OLD)
    run(
        """
import filelock
try:
    with atomicio.atomic_write(target, "r+", lock=True) as file:
        file.read()
        file.write("new")
        child = os.fork()
        if child != 0:
            reap(child)
            other = os.fork()
            if other == 0:
                try:
                    with atomicio.atomic_write(target, "r+", lock=0.1):
                        pass
                except OSError:
                    os._exit(3)
                os._exit(4)
            assert reap(other) == 3, "somebody else got the lock"
except atomicio.WriterStateError:
    assert child == 0
if child == 0:
    os._exit(0)
""",
        target,
    )
    check(target, OLD + "new")


def test_child_leaves_a_lock_of_the_callers_alone(tmp_path: Path) -> None:
    """A lock that knows nothing of forks, such as one in a database, is released by the parent and by nobody else."""
    target = tmp_path / "target"
    output = run(
        """
class Lock:
    def __enter__(self):
        self.owner = os.getpid()
    def __exit__(self, *error):
        print("released by", "the parent" if os.getpid() == self.owner else "the child", flush=True)

try:
    with atomicio.atomic_write(target, lock=Lock()) as file:
        file.write("new")
        child = os.fork()
        if child != 0:
            reap(child)
except atomicio.WriterStateError:
    assert child == 0
if child == 0:
    os._exit(0)
""",
        target,
    )
    assert output == "released by the parent\n"
    check(target, "new")


def test_path_in_a_child(tmp_path: Path) -> None:
    """atomic_path: a child, such as a pool's worker, may write the staging file; only the parent publishes it."""
    target = tmp_path / "target.txt"
    run(
        """
try:
    with atomicio.atomic_path(target) as staging:
        child = os.fork()
        if child == 0:
            with open(staging, "w") as file:
                file.write("new")
        else:
            reap(child)
            assert os.path.exists(staging)
except atomicio.WriterStateError:
    assert child == 0
if child == 0:
    os._exit(0)
""",
        target,
    )
    check(target, "new")


@pytest.mark.parametrize("write", [io.TextIOWrapper.write, io.TextIOWrapper.writelines], ids=["write", "writelines"])
def test_many_children(write: Callable[..., object], tmp_path: Path) -> None:
    """A pool of workers is forked inside the block, as multiprocessing does."""
    target = tmp_path / "target"
    run(
        f"""
children = []
with atomicio.atomic_write(target) as file:
    for number in range(10):
        file.{write.__name__}(f"{{number}} ")
        children.append(os.fork())
        if children[-1] == 0:
            sys.exit(0)
    for child in children:
        assert reap(child) == 0
""",
        target,
    )
    check(target, "".join(f"{number} " for number in range(10)))
