"""More questions, for the comparison page alone: what is shared with the migration pages is in `peers_support.probes`.

Bold is what plain ``open`` does not do to its user, or what no writer of files should.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib.util
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import atomicio
from oracle import OTHER_GROUP, read, write
from peers_support.libraries import Library, Opener, _call, by_hand
from peers_support.probes import (
    NEW,
    NOT_OFFERED,
    OLD,
    Probe,
    _environment,
    content,
    existing,
    left,
    said,
    trying,
)

HALF = NEW[: len(NEW) // 2]
CHUNK = 16 << 10
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


class Options(NamedTuple):
    """What only some of the libraries have."""

    unbuffered: Opener | None = None
    append: Opener | None = None
    update: Opener | None = None
    #: the strongest durability, as source text for a process of its own
    durable: str = ""


OPTIONS = {
    "atomicio": Options(
        lambda path: atomicio.atomic_write(path, "wb", 0),
        lambda path: atomicio.atomic_write(path, "ab"),
        lambda path: atomicio.atomic_write(path, "r+b"),
        "import atomicio; atomicio.write_bytes({path!r}, b'new', durability='durable')",
    ),
    "open": Options(
        lambda path: open(path, "wb", 0),
        lambda path: open(path, "ab"),
        lambda path: open(path, "r+b"),
    ),
    "atomicwrites": Options(_call("atomicwrites", "atomic_write", mode="wb", overwrite=True, buffering=0)),
    "safer": Options(
        _call("safer", "open", "wb", buffering=0),
        _call("safer", "open", "ab"),
        _call("safer", "open", "r+b"),
    ),
    "jupyter": Options(
        _call("jupyter_server.services.contents.fileio", "atomic_writing", text=False, buffering=0),
    ),
    "sage": Options(
        _call("sage.misc.temporary_file", "atomic_write", binary=True, buffering=0),
        _call("sage.misc.temporary_file", "atomic_write", append=True, binary=True),
    ),
    "atomicreplace": Options(
        _call("atomicreplace", "atomic_open", "wb", buffering=0),
        durable="import atomicreplace; atomicreplace.replace_bytes({path!r}, b'new', durability='full')",
    ),
    "atomicfile": Options(
        append=_call("atomicfile", "AtomicFile", "ab"),
        update=_call("atomicfile", "AtomicFile", "r+b"),
    ),
}
NONE = Options()

PROBES: dict[str, Probe] = {}


def probe(title: str, needs: str = "") -> Callable[[Callable[[Library, str], str]], Callable[[Library, str], str]]:
    def register(ask: Callable[[Library, str], str]) -> Callable[[Library, str], str]:
        PROBES[ask.__name__] = Probe(ask.__name__, title, ask, needs)
        return ask

    return register


def caught(action: Callable[[], object]) -> BaseException | None:
    try:
        action()
    except BaseException as error:
        return error
    return None


def in_block(opener: Opener, path: str, data: bytes, then: Callable[[], object] = lambda: None) -> None:
    with opener(path) as file:
        file.write(data)
        then()


def throw() -> None:
    raise BoomError


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong
# ---------------------------------------------------------------------------------------------------------------------


class BoomError(Exception):
    """What goes wrong in the caller's block."""


@probe("an ordinary exception in the block")
def ordinary_exception(library: Library, folder: str) -> str:
    path = existing(folder)
    error = caught(lambda: in_block(library.replace, path, HALF, throw))
    if isinstance(error, FileExistsError):
        return said(error)
    lost = "" if isinstance(error, BoomError) else ", **the error is lost**"
    del error  # what it holds on to is let go
    return content(path) + lost + left(folder, "target")


@probe("Ctrl-C at any line of the library")
def interrupted_anywhere(library: Library, folder: str) -> str:
    """KeyboardInterrupt at the first line, at the second, and so on until a write comes through."""
    path = existing(folder)
    if error := caught(lambda: library.write(path, NEW)):
        return said(error)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where C code tells what nobody caught
    # Collected after each interrupt, quickly, and never in between: finalizers have lines too.
    gc.freeze()
    gc.disable()
    seen: set[str] = set()
    for point in range(1, 100_000):
        shutil.rmtree(folder)
        os.mkdir(folder)
        existing(folder)
        before = len(os.listdir("/proc/self/fd"))
        random.seed(0)  # to draw a number takes more lines at one time than at another
        if not _interrupt_at(point, lambda: library.write(path, NEW)):
            break
        gc.collect()
        if content(path) not in ("old content", "new content"):
            seen.add("**the target is damaged**")
        if left(folder, "target"):
            seen.add("**leaves a file behind**")
        if len(os.listdir("/proc/self/fd")) > before:
            seen.add("**leaves descriptors open**")
    return ", ".join(sorted(seen, reverse=True)) or "old or new content"


def _interrupt_at(point: int, action: Callable[[], object]) -> bool:
    """Whether *action* has as many lines. The adapters' own lines count where they are all there is: by hand, Django."""
    count = 0

    def trace(frame: Any, event: str, argument: object) -> Any:
        nonlocal count
        if event == "line" and frame.f_code.co_filename != __file__:
            count += 1
            if count == point:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    def traced() -> None:
        sys.settrace(trace)
        try:
            action()
        finally:
            sys.settrace(None)

    caught(traced)
    return count >= point


@probe("a writer that is dropped, its block never left")
def dropped(library: Library, folder: str) -> str:
    path = existing(folder)

    def drop() -> None:
        manager = library.replace(path)
        file = manager.__enter__()
        file.write(HALF)

    if error := caught(drop):
        return said(error)
    gc.collect()
    return content(path) + left(folder, "target")


@contextlib.contextmanager
def small_disk(folder: str) -> Iterator[str]:
    """256 KiB with the old content on it, in a mount table of this child's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    where = os.path.join(folder, "disk")
    os.mkdir(where)
    for call in (
        lambda: libc.unshare(CLONE_NEWNS),
        lambda: libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        lambda: libc.mount(b"none", os.fsencode(where), b"tmpfs", 0, b"size=256k"),
    ):
        if call():
            raise OSError(ctypes.get_errno(), "no mounts of one's own", where)
    existing(where)
    try:
        yield where
    finally:
        libc.umount2(os.fsencode(where), 2)  # MNT_DETACH


def fill(where: str, leave: int) -> str:
    """Leave so many bytes free."""
    free = os.statvfs(where)
    filler = os.path.join(where, "filler")
    write(filler, bytes(free.f_bavail * free.f_frsize - leave))
    return filler


def full(error: BaseException | None, where: str, data: bytes, old: bytes = OLD) -> str:
    found = content(os.path.join(where, "target"), old, data)
    words = said(error) if error else "" if found == "new content" else "**no error**"
    del error
    gc.collect()
    return ", ".join(filter(None, (words, found))) + left(where, "target", "filler")


@probe("a disk that is full when the block ends", needs="root")
def full_at_the_end(library: Library, folder: str) -> str:
    data = NEW[:7000]  # less than a buffer, and more than the old content, whose room ``open`` makes free
    with small_disk(folder) as where:
        existing(where, b"old\n")
        fill(where, 0)
        return full(caught(lambda: library.write(os.path.join(where, "target"), data)), where, data, b"old\n")


@probe("a full disk, unbuffered", needs="root")
def full_unbuffered(library: Library, folder: str) -> str:
    opener = by_unbuffered_hand if library.name == "tempfile" else OPTIONS.get(library.name, NONE).unbuffered
    if not opener:
        return NOT_OFFERED
    with small_disk(folder) as where:
        return full(caught(lambda: in_block(opener, os.path.join(where, "target"), NEW)), where, NEW)


def by_unbuffered_hand(path: str) -> contextlib.AbstractContextManager[Any]:
    real = os.fdopen
    os.fdopen = lambda fd, mode: real(fd, mode, 0)  # type: ignore[assignment, misc]
    return by_hand(path)


@probe("a failed write that the caller swallows", needs="root")
def swallowed(library: Library, folder: str) -> str:
    chunks = [bytes([65 + number]) * CHUNK for number in range(10)]
    data = b"".join(chunks)
    with small_disk(folder) as where:
        filler = fill(where, 4 * CHUNK)

        def block() -> None:
            with library.replace(os.path.join(where, "target")) as file:
                for chunk in chunks:
                    with contextlib.suppress(OSError):
                        file.write(chunk)
                os.unlink(filler)

        return full(caught(block), where, data)


@probe("the name that the error about a full disk carries", needs="root")
def error_names(library: Library, folder: str) -> str:
    with small_disk(folder) as where:
        path = os.path.join(where, "target")
        error = caught(lambda: in_block(library.replace, path, NEW))
        name = getattr(error, "filename", None)
        if error is None:
            return "**no error**"
        if isinstance(error, FileExistsError):
            return said(error)
        return "the file's" if name == path else "none" if name is None else "another"


@probe("descriptors that 40 failed writes leave open, while their errors are kept")
def descriptors(library: Library, folder: str) -> str:
    """As a task, a future or a debugger keeps an error, and with it the frames and objects it has passed."""
    path, other = existing(folder), os.path.join(folder, "directory")
    os.mkdir(other)
    gc.collect()
    gc.disable()
    caught(lambda: library.write(path, NEW))
    before = len(os.listdir("/proc/self/fd"))
    errors = []
    for _ in range(20):
        errors.append(caught(lambda: in_block(library.replace, path, HALF, throw)))
        errors.append(caught(lambda: library.write(other, NEW)))
    return "**some**" if len(os.listdir("/proc/self/fd")) > before else "none"


# ---------------------------------------------------------------------------------------------------------------------
# What the file is like afterwards
# ---------------------------------------------------------------------------------------------------------------------


@probe("the group of a new file in a setgid folder", needs="root")
def setgid(library: Library, folder: str) -> str:
    os.chown(folder, 0, OTHER_GROUP)
    os.chmod(folder, 0o2775)
    path = os.path.join(folder, "target")
    library.write(path, NEW)
    return "the folder's" if os.stat(path).st_gid == OTHER_GROUP else "**the process's**"


@probe("umask of the process during a write", needs="strace")
def process_umask(library: Library, folder: str) -> str:
    path = os.path.join(folder, "target")
    code = f"from peers_support.libraries import LIBRARIES\nLIBRARIES[{library.name!r}].write({path!r}, b'new')"
    code += f"\nos.unlink({path!r})"  # one of them only creates
    calls = traced_calls(code, "umask,chdir", folder)
    return "**changed for a moment**" if any("umask(" in call for call in calls) else "untouched"


@probe("syncs when asked for all it has", needs="strace")
def durable_option(library: Library, folder: str) -> str:
    code = OPTIONS.get(library.name, NONE).durable
    if not code:
        return NOT_OFFERED
    path = os.path.join(folder, "target")
    words = []
    for call in traced_calls(code.format(path=path), "fsync,fdatasync,rename,renameat,renameat2", folder):
        if "sync(" in call:
            words.append("directory" if f"<{folder}>" in call else "file")
        elif '"target")' in call or '/target")' in call:
            words.append("rename")
    return ", ".join(words)


def traced_calls(code: str, calls: str, folder: str) -> list[str]:
    """The system calls that *code* makes the second time: what it imports, it has imported by then."""
    log = os.path.join(folder, "strace.log")
    command = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-qq",
        "-e",
        f"trace={calls},chdir",
        "-e",
        "signal=none",
        "-o",
        log,
    ]
    twice = f"import os\n{code}\nos.chdir('/')\n{code}"
    subprocess.run([*command, sys.executable, "-c", twice], env=_environment(), check=True, capture_output=True)
    lines = Path(log).read_text(encoding="utf-8").splitlines()
    begin = max(number for number, line in enumerate(lines) if re.search(r'\bchdir\("/"\)', line))
    return [line for line in lines[begin + 1 :] if " = -1 " not in line]


# ---------------------------------------------------------------------------------------------------------------------
# Modes and consumers
# ---------------------------------------------------------------------------------------------------------------------


@probe("eight threads create one file, 40 times")
def create_race(library: Library, folder: str) -> str:
    """And once another process creates it just before the rename, after any look at what is there."""
    opener = library.create
    if not opener:
        return NOT_OFFERED
    path = os.path.join(folder, "target")
    for _ in range(40):
        succeeded = together(8, lambda _: in_block(opener, path, NEW))
        if succeeded != 1:
            return f"**{succeeded or 'no'} of them succeed**" if succeeded < 2 else "**several succeed**"
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
    for name in ("rename", "replace"):
        setattr(os, name, _preceded(getattr(os, name), path))
    caught(lambda: in_block(opener, path, NEW))
    return "**several succeed**" if os.path.exists(path + ".preceded") and read(path) == NEW else "one succeeds"


def _preceded(real: Callable[..., object], path: str) -> Callable[..., object]:
    def call(source: Any, target: Any, **options: Any) -> object:
        if os.fspath(target) == path and not os.path.exists(path):
            write(path, OLD)
            write(path + ".preceded", b"")
        return real(source, target, **options)

    return call


def together(number: int, action: Callable[[int], object]) -> int:
    """How many of so many threads at once succeed."""
    barrier = threading.Barrier(number)
    succeeded: list[int] = []

    def run(mine: int) -> None:
        barrier.wait()
        if caught(lambda: action(mine)) is None:
            succeeded.append(mine)

    threads = [threading.Thread(target=run, args=(mine,)) for mine in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(succeeded)


@probe("append")
def append(library: Library, folder: str) -> str:
    return _changed(OPTIONS.get(library.name, NONE).append, folder, reads=False)


@probe("read and update (``r+``)")
def update(library: Library, folder: str) -> str:
    return _changed(OPTIONS.get(library.name, NONE).update, folder, reads=True)


def _changed(opener: Opener | None, folder: str, *, reads: bool) -> str:
    if not opener:
        return NOT_OFFERED
    path = existing(folder)

    def block() -> None:
        with opener(path) as file:
            if reads:
                assert file.read() == OLD
            file.write(NEW)

    if error := caught(block):
        return "**can't read**" if isinstance(error, AttributeError) else said(error)
    data = read(path)
    return "old, then new content" if data == OLD + NEW else "**loses the old content**"


@probe("two updates of one file, one inside the other")
def lost_update(library: Library, folder: str) -> str:
    options = OPTIONS.get(library.name, NONE)
    opener = options.append or options.update
    if not opener:
        return NOT_OFFERED
    path = existing(folder, b"")

    def block() -> None:
        with opener(path) as file:
            file.write(b"outer")
            with opener(path) as other:
                other.write(b"inner")

    error = caught(block)
    data = read(path)
    if b"outer" in data and b"inner" in data:
        return "both are there"
    return f"the later gets {said(error)}" if error else "**one is lost, no error**"


@probe("two writers of one file, one inside the other")
def two_writers(library: Library, folder: str) -> str:
    path = existing(folder)

    def block() -> None:
        with library.replace(path) as file:
            file.write(NEW)
            with library.replace(path) as other:
                other.write(HALF)

    if error := caught(block):
        return said(error)
    return "the later one wins" if content(path) == "new content" else content(path)


@probe("``zipfile`` as the consumer")
def consumer(library: Library, folder: str) -> str:
    path = existing(folder)

    def block() -> bool:
        with library.replace(path) as file:
            if not hasattr(file, "close"):
                return False
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("name", NEW)
        return True

    try:
        if not block():
            return "has no file"
    except Exception as error:
        return said(error)
    with zipfile.ZipFile(path) as archive:
        return "works" if archive.read("name") == NEW else "**wrong content**"


@probe("a ``pathlib.Path``")
def path_object(library: Library, folder: str) -> str:
    path = os.path.join(folder, "target")
    return trying(lambda: library.write(Path(path), NEW), "works")


@probe("``/dev/stdout``, a pipe")
def standard_output(library: Library, folder: str) -> str:
    end, pipe = os.pipe()
    os.set_blocking(end, False)
    error = trying(lambda: library.write(f"/proc/self/fd/{pipe}", b"new"))
    try:
        got = os.read(end, 100) == b"new"
    except BlockingIOError:
        got = False
    return ", ".join(filter(None, ("gets the data" if got else "", error))) or "**nothing arrives**"


@probe("what the error about a mounted file says", needs="root")
def mounted_explained(library: Library, folder: str) -> str:
    path, host = existing(folder), os.path.join(folder, "host")
    write(host, OLD)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "no mount namespace")
    if libc.mount(os.fsencode(host), os.fsencode(path), None, 0x1000, None):  # MS_BIND
        raise OSError(ctypes.get_errno(), "no bind mount")
    error = caught(lambda: library.write(path, NEW))
    if error is None:
        return "writes in place"
    if "mount" in str(error):
        return "that it is mounted"
    busy = getattr(error, "errno", None) == errno.EBUSY or "os error 16" in str(error)
    return os.strerror(errno.EBUSY) if busy else said(error)


@probe("memory for 64 MiB, written in pieces of 1 MiB")
def memory(library: Library, folder: str) -> str:
    path = existing(folder)
    piece = bytes(1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with library.replace(path) as file:
            for _ in range(64):
                file.write(piece)
    except OSError as error:
        return said(error)
    return "**all of it**" if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before > 48 << 10 else "a piece"


@probe("types for its users (PEP 561)")
def typed(library: Library, folder: str) -> str:
    top = library.module.split(".")[0]
    if top in sys.stdlib_module_names:
        return "typeshed's"
    spec = importlib.util.find_spec(top)
    places = spec.submodule_search_locations if spec else None
    return "yes" if any(os.path.exists(os.path.join(place, "py.typed")) for place in places or []) else "no"
