"""The questions that are asked of every library. Each is answered by a run, in words that fit into a table's cell.

A probe gets a library and an empty folder. It runs in a forked child, so that it may be killed, change its directory or its
umask, and leave objects behind. Two libraries behave alike when their answers are equal.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import gc
import importlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import NamedTuple

import atomicio
from oracle import (
    ACL_ACCESS,
    ACL_DEFAULT,
    AS_ROOT,
    DEFAULT_ACL,
    NAMED_USER_ACL,
    ORDINARY_USER,
    OTHER_GROUP,
    OTHER_USER,
    mode_of,
    read,
    supports_xattrs,
    write,
)
from peers_support.libraries import LIBRARIES, Library, import_quietly

OLD = b"what was there\n" * 1000
#: More than any buffer holds, so that a part of it is on its way while the block runs.
NEW = b"what is to come\n" * 40_000
#: How many seconds a probe may take. A library could wait for ever; a busy machine takes half a minute to sync a file.
PATIENCE = 150
NOT_OFFERED = "not offered"


class Probe(NamedTuple):
    name: str
    title: str
    ask: Callable[[Library, str], str]
    #: what the machine must have: "root", "strace" or "attributes"
    needs: str


PROBES: dict[str, Probe] = {}


def probe(title: str, needs: str = "") -> Callable[[Callable[[Library, str], str]], Callable[[Library, str], str]]:
    def register(ask: Callable[[Library, str], str]) -> Callable[[Library, str], str]:
        PROBES[ask.__name__] = Probe(ask.__name__, title, ask, needs)
        return ask

    return register


def lacking(needs: str) -> str:
    """Why this machine can't ask; empty if it can."""
    if needs == "root" and not AS_ROOT:
        return "needs root"
    if needs == "strace" and not shutil.which("strace"):
        return "needs strace"
    if needs == "attributes" and not _takes_attributes():
        return "needs a file system with extended attributes and access control lists for temporary files"
    return ""


@functools.cache
def _takes_attributes() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return supports_xattrs(folder, "user.origin", b"x") and supports_xattrs(folder, ACL_ACCESS, NAMED_USER_ACL)


def answer(probe: Probe, library: Library) -> str:
    """Ask in a child process, in a folder of its own."""
    folder = os.path.realpath(tempfile.mkdtemp(prefix="probe-"))
    os.chmod(folder, 0o755)
    reader, writer = os.pipe()
    import_quietly(library.module)
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.umask(0o022)
            # What a killed write leaves is counted, not talked about.
            sys.unraisablehook = lambda _: None
            try:
                said = probe.ask(library, folder)
            except BaseException as error:
                said = f"the probe failed: {type(error).__name__}: {error}"
            os.write(writer, said.encode())
        finally:
            os._exit(0)
    os.close(writer)
    killer = threading.Timer(PATIENCE, os.kill, (child, signal.SIGKILL))
    killer.start()
    try:
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read().decode()
        os.waitpid(child, 0)
    finally:
        killer.cancel()
        shutil.rmtree(folder, ignore_errors=True)
    return said or "waits for ever"


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------


def said(error: BaseException) -> str:
    """An error as its catcher knows it: the class, and the errno where the class does not say it."""
    name = type(error).__name__
    if isinstance(error, OSError) and type(error) in (OSError, PermissionError) and error.errno:
        return f"``{name}`` ({errno.errorcode[error.errno]})"
    return f"``{name}``"


def trying(action: Callable[[], object], done: str = "") -> str:
    try:
        action()
    except Exception as error:
        return said(error)
    return done


def content(path: str, old: bytes = OLD, new: bytes = NEW) -> str:
    try:
        data = read(path)
    except FileNotFoundError:
        return "no file"
    names = {old: "old content", new: "new content", b"": "**empty file**"}
    return names.get(data, "**part of the new content**" if new.startswith(data) else "**mixed content**")


def left(folder: str, *expected: str) -> str:
    """What lies there besides the expected names, to be appended to an answer."""
    found = [name for name in os.listdir(folder) if name not in expected]
    return ", **leaves a file behind**" if found else ""


def kept(before: object, after: object) -> str:
    return "kept" if before == after else "**lost**"


def existing(folder: str, data: bytes = OLD, mode: int = 0o644) -> str:
    path = os.path.join(folder, "target")
    write(path, data)
    os.chmod(path, mode)
    return path


def as_ordinary_user() -> None:
    # What is imported on the way may lie where only root can read.
    importlib.import_module("atomicio._in_place")
    if AS_ROOT:
        os.setgroups([])
        os.setgid(ORDINARY_USER)
        os.setuid(ORDINARY_USER)


def replaced(library: Library, path: str) -> str:
    """Write the new content and say what happened to it."""
    error = trying(lambda: library.write(path, NEW))
    return error or content(path)


def in_place(library: Library, path: str) -> str:
    """What becomes of it when writing in place is asked for, where that can be asked for."""
    if library.name != "atomicio":
        return ""
    error = trying(lambda: atomicio.write_bytes(path, NEW, fallback="in-place"))
    return ', with ``fallback="in-place"`` ' + (error or content(path))


# ---------------------------------------------------------------------------------------------------------------------
# What the file is like afterwards
# ---------------------------------------------------------------------------------------------------------------------


@probe("a file that exists, with no option given")
def overwrite(library: Library, folder: str) -> str:
    path = existing(folder)
    entered = False
    try:
        with library.default(path) as file:
            entered = True
            file.write(NEW)
    except FileExistsError:
        return "``FileExistsError``, " + ("after the block" if entered else "before the block")
    return "is replaced"


@probe("creating, while another process creates the same file")
def no_clobber(library: Library, folder: str) -> str:
    path = os.path.join(folder, "target")
    if library.create is None:
        return NOT_OFFERED
    try:
        with library.create(path) as file:
            file.write(NEW)
            write(path, b"the other's")
    except FileExistsError:
        return "``FileExistsError``" + left(folder, "target")
    return "**the other's file is lost**"


@probe("mode of a new file, umask 022, 002, 077")
def new_mode(library: Library, folder: str) -> str:
    modes = []
    for mask in (0o022, 0o002, 0o077):
        path = os.path.join(folder, str(mask))
        os.umask(mask)
        library.write(path, NEW)
        modes.append(f"{mode_of(path):03o}")
    return ", ".join(modes)


@probe("mode of a replaced file that was 755, 640, 600")
def kept_mode(library: Library, folder: str) -> str:
    modes = []
    for mode in (0o755, 0o640, 0o600):
        path = existing(folder, mode=mode)
        if error := trying(lambda: library.write(path, NEW)):
            return error
        modes.append(f"{mode_of(path):03o}")
    return ", ".join(modes)


@probe("a 600 file while it is rewritten")
def secret(library: Library, folder: str) -> str:
    path = existing(folder, mode=0o600)
    widest = 0
    try:
        with library.replace(path) as file:
            file.write(NEW)
            for name in os.listdir(folder):
                widest |= mode_of(os.path.join(folder, name))
    except OSError as error:
        return said(error)
    widest |= mode_of(path)
    return f"**readable by others ({widest:03o})**" if widest & 0o077 else "stays private"


@probe("owner and group of a replaced file", needs="root")
def owner(library: Library, folder: str) -> str:
    path = existing(folder)
    os.chown(path, OTHER_USER, OTHER_GROUP)
    if error := trying(lambda: library.write(path, NEW)):
        return error
    status = os.stat(path)
    return kept((OTHER_USER, OTHER_GROUP), (status.st_uid, status.st_gid))


@probe("access control list of a replaced file", needs="attributes")
def acl_of_replaced(library: Library, folder: str) -> str:
    return _attribute(library, folder, ACL_ACCESS, NAMED_USER_ACL)


@probe("extended attribute of a replaced file", needs="attributes")
def attribute(library: Library, folder: str) -> str:
    return _attribute(library, folder, "user.origin", b"somewhere")


def _attribute(library: Library, folder: str, name: str, value: bytes) -> str:
    path = existing(folder)
    os.setxattr(path, name, value)
    if error := trying(lambda: library.write(path, NEW)):
        return error
    return kept(value, os.getxattr(path, name) if name in os.listxattr(path) else None)


@probe("a new file in a folder with a default access control list", needs="attributes")
def default_acl(library: Library, folder: str) -> str:
    os.setxattr(folder, ACL_DEFAULT, DEFAULT_ACL)

    def seen(path: str) -> object:
        return mode_of(path), os.getxattr(path, ACL_ACCESS) if ACL_ACCESS in os.listxattr(path) else None

    path, plain = os.path.join(folder, "target"), os.path.join(folder, "plain")
    write(plain, NEW)
    library.write(path, NEW)
    return (
        "as ``open`` gives" if seen(path) == seen(plain) else f"**mode {mode_of(path):03o}, not {mode_of(plain):03o}**"
    )


@probe("a symbolic link")
def symlink(library: Library, folder: str) -> str:
    path, link = existing(folder), os.path.join(folder, "link")
    os.symlink("target", link)
    if error := trying(lambda: library.write(link, NEW)):
        return error
    return "is followed" if os.path.islink(link) and content(path) == "new content" else "**is replaced by a file**"


@probe("a symbolic link to a file that does not exist yet")
def dangling(library: Library, folder: str) -> str:
    link = os.path.join(folder, "link")
    os.symlink("target", link)
    if error := trying(lambda: library.write(link, NEW)):
        return error
    return "is followed" if os.path.islink(link) else "**is replaced by a file**"


@probe("a second hard link to the file")
def hard_link(library: Library, folder: str) -> str:
    path, second = existing(folder), os.path.join(folder, "second")
    os.link(path, second)
    if error := trying(lambda: library.write(path, NEW)):
        return error
    return "has the " + content(second)


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong
# ---------------------------------------------------------------------------------------------------------------------


@probe("a reader, while the block runs")
def reader(library: Library, folder: str) -> str:
    path = existing(folder)
    try:
        with library.replace(path) as file:
            file.write(NEW[: len(NEW) // 2])
            seen = content(path)
    except OSError as error:
        return said(error)
    return "finds " + seen


@probe("an exception in the block that replaces a file")
def exception(library: Library, folder: str) -> str:
    path = existing(folder)
    return _interrupted(library, path, folder)


@probe("an exception in the block that creates a file")
def exception_new(library: Library, folder: str) -> str:
    return _interrupted(library, os.path.join(folder, "target"), folder)


def _interrupted(library: Library, path: str, folder: str) -> str:
    # In a function of its own, whose variables are gone when it is looked what is left.
    def block() -> None:
        with library.replace(path) as file:
            file.write(NEW[: len(NEW) // 2])
            raise KeyboardInterrupt

    masked = ""
    try:
        block()
    except KeyboardInterrupt:
        pass
    except FileExistsError as error:
        return said(error)
    except Exception as error:
        masked = f", **masked by** {said(error)}"
    gc.collect()
    return content(path) + masked + left(folder, "target")


@probe("a process killed in the block")
def killed(library: Library, folder: str) -> str:
    path = existing(folder)

    def die() -> None:
        with library.replace(path) as file:
            file.write(NEW[: len(NEW) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            die()
        finally:
            os._exit(3)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return trying(die)
    found = content(path) + left(folder, "target")
    after = trying(lambda: library.write(path, NEW))
    return found + (f", **and every later write fails:** {after}" if after else "")


@probe("a child forked in the block leaves it first")
def forked(library: Library, folder: str) -> str:
    path = existing(folder)
    parent = os.getpid()

    def block() -> None:
        with library.replace(path) as file:
            file.write(NEW[:-1])
            child = os.fork()
            if child == 0:
                raise SystemExit
            os.waitpid(child, 0)
            file.write(NEW[-1:])

    error = ""
    try:
        block()
    except BaseException as caught:
        error = said(caught)
    gc.collect()
    if os.getpid() != parent:
        os._exit(0)
    found = content(path)
    if error:
        return f"{error}, {found}"
    return found if found == "new content" else f"{found}, **no error**"


@probe("a full disk", needs="root")
def full_disk(library: Library, folder: str) -> str:
    # In a private mount namespace: nothing to unmount, whatever happens.
    libc = ctypes.CDLL(None, use_errno=True)
    for call in (
        lambda: libc.unshare(0x00020000),  # CLONE_NEWNS
        lambda: libc.mount(b"none", b"/", None, 0x44000, None),  # MS_REC | MS_PRIVATE
        lambda: libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=256k"),
    ):
        if call():
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), folder)
    path = existing(folder)
    error = trying(lambda: library.write(path, NEW), "**no error**")
    gc.collect()
    return f"{error}, {content(path)}" + left(folder, "target")


@probe("a file mounted into a container", needs="root")
def mounted(library: Library, folder: str) -> str:
    path, host = existing(folder), os.path.join(folder, "host")
    write(host, OLD)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) or libc.mount(b"none", b"/", None, 0x44000, None):
        raise OSError(ctypes.get_errno(), "no mount namespace")
    if libc.mount(os.fsencode(host), os.fsencode(path), None, 0x1000, None):  # MS_BIND
        raise OSError(ctypes.get_errno(), "no bind mount")
    return replaced(library, path) + left(folder, "target", "host") + in_place(library, path)


@probe("a writable file in a folder that is not", needs="root")
def unwritable_folder(library: Library, folder: str) -> str:
    path = existing(folder, mode=0o666)
    as_ordinary_user()
    return replaced(library, path) + in_place(library, path)


@probe("a read-only file of one's own", needs="root")
def read_only(library: Library, folder: str) -> str:
    path = existing(folder, mode=0o444)
    os.chown(path, ORDINARY_USER, ORDINARY_USER)
    os.chown(folder, ORDINARY_USER, ORDINARY_USER)
    as_ordinary_user()
    found = replaced(library, path)
    return "**is replaced**" if found == "new content" else found


@probe("a folder one may write to but not list", needs="root")
def unlistable_folder(library: Library, folder: str) -> str:
    path = existing(folder, mode=0o666)
    os.chmod(folder, 0o733)
    as_ordinary_user()
    error = trying(lambda: library.write(path, NEW), "no error")
    return f"{error}, {content(path)}"


@probe("a named pipe")
def fifo(library: Library, folder: str) -> str:
    path = os.path.join(folder, "pipe")
    os.mkfifo(path)
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    error = trying(lambda: library.write(path, b"new"))
    if not stat.S_ISFIFO(os.lstat(path).st_mode):
        return "**is replaced by a file**"
    got = os.read(end, 100) == b"new"
    return ", ".join(filter(None, ("gets the data" if got else "", error)))


@probe("a device such as ``/dev/null``", needs="root")
def device(library: Library, folder: str) -> str:
    path = os.path.join(folder, "null")
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    error = trying(lambda: library.write(path, b"new"), "is written to")
    return error if stat.S_ISCHR(os.lstat(path).st_mode) else "**is replaced by a file**"


@probe("a directory under this name")
def directory(library: Library, folder: str) -> str:
    path = os.path.join(folder, "target")
    os.mkdir(path)
    return trying(lambda: library.write(path, NEW), "no error") + left(folder, "target")


@probe("a folder that does not exist")
def missing_folder(library: Library, folder: str) -> str:
    path = os.path.join(folder, "new", "target")
    return trying(lambda: library.write(path, NEW), "is made")


@probe("a name of 255 bytes, the longest there is")
def long_name(library: Library, folder: str) -> str:
    path = os.path.join(folder, "n" * 255)
    error = trying(lambda: library.write(path, NEW))
    # Where staging needs a longer name, the error is about a name that nobody gave.
    return error or "works"


@probe("a path of bytes")
def bytes_path(library: Library, folder: str) -> str:
    path = os.path.join(folder, "target")
    return trying(lambda: library.write(os.fsencode(path), NEW), "works")


@probe("a relative path, and ``os.chdir`` in the block")
def chdir(library: Library, folder: str) -> str:
    elsewhere = os.path.join(folder, "elsewhere")
    os.mkdir(elsewhere)
    os.chdir(folder)
    try:
        with library.replace("target") as file:
            file.write(NEW)
            os.chdir(elsewhere)
    except Exception as error:
        return said(error)
    if os.path.exists(os.path.join(elsewhere, "target")):
        return "**writes into the other directory**"
    return "writes where it was said" if os.path.exists(os.path.join(folder, "target")) else "**writes nowhere**"


@probe("eight threads that are in their blocks at the same time")
def threads(library: Library, folder: str) -> str:
    path = existing(folder)
    errors = _at_the_same_time(library, path)
    if errors:
        return f"**most fail:** {', '.join(errors)}"
    found = content(path)
    return "all succeed" + ("" if found == "new content" else f", {found}")


def _at_the_same_time(library: Library, path: str) -> list[str]:
    """Let eight threads be in their blocks at once, and return what kinds of errors came.

    They enter one by one and leave one by one: a race for a moment that is lost now and then (Jupyter's is) would give
    another answer in every other run.
    """
    all_in = threading.Barrier(8)
    door, exit_ = threading.Lock(), threading.Lock()
    errors: set[str] = set()

    def work() -> None:
        try:
            block = library.replace(path)
            with door:
                file = block.__enter__()
            try:
                all_in.wait(20)
            except threading.BrokenBarrierError:
                pass
            with exit_:
                file.write(NEW)
                block.__exit__(None, None, None)
        except Exception as error:
            all_in.abort()
            errors.add(said(error))

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sorted(errors)


# ---------------------------------------------------------------------------------------------------------------------
# How it is used
# ---------------------------------------------------------------------------------------------------------------------


@probe("encoding of text, when none is given")
def encoding(library: Library, folder: str) -> str:
    path = os.path.join(folder, "target")
    code = (
        "from peers_support.libraries import LIBRARIES\n"
        f"with LIBRARIES[{library.name!r}].replace_text({path!r}) as file: file.write('\\xe9')"
    )
    # A program in a locale that is not UTF-8, as Windows has them.
    environment = {**_environment(), "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if os.path.exists(path) and read(path) == "é".encode():
        return "UTF-8"
    return "the locale's" if "UnicodeEncodeError" in done.stderr else f"the probe failed: {done.stderr[-200:]}"


@probe("``file.name`` in the block")
def file_name(library: Library, folder: str) -> str:
    path = os.path.join(folder, "target")
    with library.replace(path) as file:
        name = getattr(file, "name", None)
        file.write(NEW)
    if isinstance(name, int):
        return "a file descriptor"
    if name is None:
        return "has none"
    return "the path that was given" if name == path else "a temporary file's path"


@probe("a consumer that closes the file in the block")
def closed_early(library: Library, folder: str) -> str:
    path = existing(folder)
    try:
        with library.replace(path) as file:
            if not hasattr(file, "close"):
                return "has no file"
            file.write(NEW)
            file.close()
    except Exception as error:
        return said(error) + ", " + content(path) + left(folder, "target")
    return content(path)


@probe("what is synced", needs="strace")
def synced(library: Library, folder: str) -> str:
    """What a write makes the kernel write to the device, and when, by the system calls."""
    path, log = os.path.join(folder, "target"), os.path.join(folder, "strace.log")
    code = f"from peers_support.libraries import LIBRARIES\nLIBRARIES[{library.name!r}].write({path!r}, b'new')"
    calls = "fsync,fdatasync,rename,renameat,renameat2,link,linkat"
    command = ["strace", "-f", "--seccomp-bpf", "-y", "-qq", "-e", f"trace={calls}", "-e", "signal=none", "-o", log]
    subprocess.run([*command, sys.executable, "-c", code], env=_environment(), check=True, capture_output=True)
    steps = []
    with open(log, encoding="utf-8") as lines:
        for line in lines:
            if folder not in line or " = -1 " in line:
                continue
            if sync := re.search(r"\bf(?:data)?sync\(\d+<([^>]*)>", line):
                steps.append("directory" if sync[1] == folder else "content")
            elif re.search(r'[/"]target"(?!.*target)', line):
                steps.append("publish")
    sequence = " ".join(dict.fromkeys(steps))
    return {
        "": "**nothing**",
        "publish": "**nothing**",
        "publish directory": "the directory, **but not the content**",
        "content": "the content, in place",
        "content publish": "the content",
        "content publish directory": "the content, then the directory",
        "publish content": "the content, **but only when it can be seen already**",
    }.get(sequence, sequence)


def _environment() -> dict[str, str]:
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}


def ask_all(libraries: list[str]) -> dict[str, dict[str, str]]:
    """The answers, by probe and library; without the probes that this machine can't ask."""
    possible = [probe for probe in PROBES.values() if not lacking(probe.needs)]
    return {probe.name: {name: answer(probe, LIBRARIES[name]) for name in libraries} for probe in possible}
