"""Run one operation under strace with one fault, and judge what it left.

``Cell`` says what to do, ``rehearse`` lists its system calls, ``plan`` makes the faults, ``run`` runs it with one of
them, ``judge`` names every broken promise.
"""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import os
import queue
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BACKUP = re.compile(r"\.atomicio-[0-9a-f]{16}\.backup")  # of a file that is written in place
FILELOCK = re.compile(r"\.filelock-.*")  # what filelock tries a directory out with; its own removal can fail too
TEMPORARY = re.compile(r"\.atomicio-[0-9a-f]{16}\.tmp(\.[^./]*)?")
SECONDS = 60  # a run takes 30 ms; one that takes this long hangs

OLD = "the old content\n" * 1000  # 16 kB: twice the size of the io module's buffer
NEW = "what is to be there, all of it\n" * 700
SHORT = "fits into every buffer\n"

# -- what to do -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One operation on one kind of target."""

    name: str
    call: str = "atomic_write"
    mode: str = "wb"
    keywords: dict[str, Any] = field(default_factory=dict)
    exists: bool = True
    arrangement: str = ""
    text: str = NEW
    pieces: int = 1
    body: str = "plain"
    privileged: bool = True
    staging: str = "unnamed"
    library: str = "atomicio"
    raises: str | None = None

    @property
    def label(self) -> str:
        return f"{self.name}-{self.staging}"

    @property
    def in_place(self) -> bool:
        return self.keywords.get("fallback") == "in-place"


@dataclass
class Place:
    """The directory of one run."""

    root: Path
    target: Path
    mounted: list[Path] = field(default_factory=list)

    def remove(self) -> None:
        for mount in self.mounted:
            subprocess.run(["umount", "--lazy", mount], check=True)
        (self.root / "d").chmod(0o755)
        for _ in range(100):
            try:
                shutil.rmtree(self.root)
                return
            except OSError as error:
                # FUSE hides a file that is removed while a process that is ending has it open: .fuse_hidden*
                if error.errno != errno.ENOTEMPTY:
                    raise
            time.sleep(0.02)
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), self.root)


def arrange(cell: Cell, root: Path) -> Place:
    """Make the directory that *cell* works in, with the old content in it."""
    directory = root / "d"
    directory.mkdir(parents=True)
    (root / "tmp").mkdir()
    place = Place(root, directory / "target.txt")
    if cell.arrangement == "missing parents":
        place.target = directory / "made" / "here" / "target.txt"
        return place
    pointee = place.target
    if cell.arrangement == "symlink":
        (directory / "real").mkdir()
        pointee = directory / "real" / "file.txt"
        place.target.symlink_to("real/file.txt")
    if cell.exists:
        pointee.write_text(cell.text if cell.arrangement == "same content" else OLD)
        pointee.chmod(0o640)
    if cell.arrangement == "cache":
        pointee.write_text(cell.text)
        pointee.chmod(0o600)
    if cell.arrangement == "leftovers":
        for number in range(2):
            (directory / f".atomicio-{number:016x}.tmp").write_text(OLD)
        (directory / f".atomicio-{2:016x}.dir").mkdir()
    if cell.arrangement == "old backup":
        (directory / "target.txt.bak").write_text("older still\n")
    if cell.arrangement == "metadata":
        os.chown(pointee, 12345, 23456)
        pointee.chmod(0o4751)
        try:
            os.setxattr(pointee, "user.origin", b"here")
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM):
                raise
    if cell.arrangement == "somebody else's":
        pointee.chmod(0o666)
        os.chown(pointee, 12345, 23456)
        directory.chmod(0o777)
    if cell.arrangement == "mount point":
        subprocess.run(["mount", "--bind", pointee, pointee], check=True)
        place.mounted.append(pointee)
    if cell.arrangement == "unwritable directory":
        directory.chmod(0o555)
    return place


def _attributes(path: str) -> tuple[tuple[str, bytes], ...]:
    """Return the extended attributes; none where the file system has none."""
    try:
        names = sorted(os.listxattr(path))
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        names = []
    return tuple((each, os.getxattr(path, each)) for each in names)


def snapshot(directory: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below *directory* that a user could notice."""
    found: dict[str, tuple[Any, ...]] = {}
    for where, directories, files in os.walk(directory):
        for name in directories + files:
            path = os.path.join(where, name)
            status = os.lstat(path)
            content: Any = None
            attributes: tuple[tuple[str, bytes], ...] = ()
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
                attributes = _attributes(path)
            found[os.path.relpath(path, directory)] = (
                content,
                oct(status.st_mode),
                status.st_uid,
                status.st_gid,
                attributes,
            )
    return found


# -- what can go wrong ------------------------------------------------------------------------------------------------

# What the manual pages, POSIX and the file systems' sources let these calls answer.
_CREATE = [
    "EACCES",
    "EDQUOT",
    "EEXIST",
    "EINTR",
    "EIO",
    "EMFILE",
    "ENOENT",
    "ENOSPC",
    "EOPNOTSUPP",
    "EPERM",
    "EROFS",
    "EISDIR",
]
_LINK = ["EACCES", "EDQUOT", "EEXIST", "EIO", "EMLINK", "ENOENT", "ENOSPC", "EOPNOTSUPP", "EPERM", "EROFS", "EXDEV"]
_RENAME = ["EACCES", "EBUSY", "EDQUOT", "EINTR", "EIO", "ENOENT", "ENOSPC", "EPERM", "EROFS", "EXDEV"]
_UNLINK = ["EACCES", "EBUSY", "EINTR", "EIO", "ENOENT", "EPERM", "EROFS"]
_STATUS = ["EACCES", "EIO", "ESTALE"]  # not ENOENT: for these calls it is an answer
_WRITE = ["EDQUOT", "EFBIG", "EINTR", "EIO", "ENOSPC"]
_SYNC = ["EDQUOT", "EINTR", "EINVAL", "EIO", "ENOSPC", "EOPNOTSUPP"]
_CHANGE = ["EDQUOT", "EIO", "ENOSPC", "EOPNOTSUPP", "EPERM", "EROFS"]
_READ = ["EINTR", "EIO"]
_COPY = ["EINTR", "EINVAL", "EIO", "ENOSPC", "ENOSYS", "EOPNOTSUPP", "EPERM", "EXDEV", "retval=0"]
_ATTRIBUTE = ["EACCES", "EIO", "ENODATA", "EOPNOTSUPP", "ERANGE"]


def each_of(calls: list[str], errors: list[str]) -> dict[str, list[str]]:
    return dict.fromkeys(calls, errors)


ERRORS: dict[str, list[str]] = {
    **each_of(["open", "openat", "creat"], _CREATE),
    **each_of(["link", "linkat", "symlink", "symlinkat"], _LINK),
    **each_of(["rename", "renameat"], _RENAME),
    "renameat2": [*_RENAME, "EEXIST", "EINVAL", "ENOSYS"],
    **each_of(["unlink", "unlinkat", "rmdir"], _UNLINK),
    **each_of(["mkdir", "mkdirat"], ["EACCES", "EDQUOT", "EIO", "EMLINK", "ENOENT", "ENOSPC", "EROFS"]),
    **each_of(["stat", "lstat", "fstat", "newfstatat", "statx", "statfs", "fstatfs"], _STATUS),
    **each_of(["access", "faccessat", "faccessat2", "readlink", "readlinkat"], ["EACCES", "EIO"]),
    "getcwd": ["EACCES", "ENOENT"],
    **each_of(["write", "pwrite64", "writev", "pwritev"], _WRITE),
    **each_of(["ftruncate", "fallocate"], ["EFBIG", "EINTR", "EIO", "ENOSPC", "EPERM"]),
    **each_of(["fsync", "fdatasync", "syncfs", "sync_file_range"], _SYNC),
    "close": ["EDQUOT", "EINTR", "EIO", "ENOSPC"],
    **each_of(["read", "pread64", "getdents64"], _READ),
    "lseek": ["EIO"],
    **each_of(["copy_file_range", "sendfile"], _COPY),
    "ioctl": ["EINVAL", "EIO", "ENOSPC", "ENOTTY", "EOPNOTSUPP", "EXDEV"],
    **each_of(["fcntl", "dup", "dup3"], ["EINVAL", "EMFILE"]),
    "flock": ["EAGAIN", "EINTR", "EIO", "ENOLCK", "EOPNOTSUPP"],
    **each_of(["fchmod", "chmod", "fchmodat", "fchmodat2"], _CHANGE),
    **each_of(["fchown", "chown", "lchown", "fchownat"], _CHANGE),
    **each_of(
        ["fsetxattr", "setxattr", "lsetxattr", "fremovexattr", "removexattr", "lremovexattr"], [*_CHANGE, "E2BIG"]
    ),
    **each_of(["fgetxattr", "getxattr", "lgetxattr", "flistxattr", "listxattr", "llistxattr"], _ATTRIBUTE),
    "utimensat": ["EACCES", "EIO", "EPERM", "EROFS"],
    "getrandom": ["EINTR", "ENOSYS"],
}
# They cannot fail, or say nothing about files.
HARMLESS = {"getpid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getppid", "umask", "clock_nanosleep"}
# Not traced: an allocation that fails is a MemoryError at a place that differs from run to run, and touches no file.
UNTRACED = (
    "mmap,munmap,mremap,mprotect,madvise,brk,futex,rt_sigaction,rt_sigprocmask,rt_sigreturn,sendto,recvfrom,exit_group"
)
# A caller is right to try these again for as long as they come.
TRANSIENT = {"EINTR", "EAGAIN"}
# Broken, full, forbidden, not known here: what does not go away. (All errors do so with --thorough.)
LASTING = {"EACCES", "EBUSY", "EDQUOT", "EIO", "ENOSPC", "EOPNOTSUPP", "EXDEV"}
LOST_WRITES = {"EIO", "ENOSPC", "EDQUOT"}


@dataclass(frozen=True)
class Call:
    """One system call of the rehearsal: the *number*-th of its *name* since the program began."""

    name: str
    number: int
    line: str


@dataclass(frozen=True)
class Fault:
    call: Call
    kind: str  # "error", "kill" or "interrupt"
    error: str = ""
    forever: bool = False
    first: Fault | None = None
    """The fault that this one comes on top of: it then hits the cleaning up."""

    @property
    def injections(self) -> list[str]:
        return [*(self.first.injections if self.first else []), self._injection]

    @property
    def _injection(self) -> str:
        when = f"when={self.call.number}{'+' if self.forever else ''}"
        if self.kind == "error":
            what = self.error if self.error.startswith("retval=") else f"error={self.error}"
        else:
            what = "signal=KILL" if self.kind == "kill" else "signal=INT"
        return f"inject={self.call.name}:{what}:{when}"

    def __str__(self) -> str:
        return f"{' '.join(self.injections)}   {self.call.line}"


def plan(calls: list[Call]) -> list[Fault]:
    """Each error at each call, once, and those that last for ever; each call as the last one; Ctrl-C during each."""
    faults = []
    for call in calls:
        if call.name not in HARMLESS:
            for error in ERRORS[call.name]:  # a KeyError here is a call that nobody has thought about yet
                faults.append(Fault(call, "error", error))
                if error in (LASTING if not thorough else set(ERRORS[call.name]) - TRANSIENT):
                    faults.append(Fault(call, "error", error, forever=True))
        faults.append(Fault(call, "kill"))
        faults.append(Fault(call, "interrupt"))
    return faults


def untraceable() -> str | None:
    """Say why nothing can be traced here, or None."""
    if sys.platform != "linux":
        return "strace is for Linux"
    if not shutil.which("strace"):
        return "strace is not installed"
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True)
    return f"strace may not trace here: {done.stderr.strip()[:80]}" if done.returncode else None


# -- running ----------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    ended: str  # "returned", "raised", "killed" or "hung"
    answer: dict[str, Any]
    state: dict[str, tuple[Any, ...]]
    leaked: dict[str, str]
    log: list[str]
    errors: str
    elsewhere: dict[str, tuple[Any, ...]]
    """What is left in the directory for temporary files."""


runs: Counter[str] = Counter()
thorough = False
_numbers = itertools.count()


class Program:
    """The program under test, ready to do the operation of *cell* as often as it is asked to."""

    def __init__(self, cell: Cell, tmp: Path) -> None:
        self.cell = cell
        self.tmp = tmp
        self.place = arrange(cell, tmp / f"rehearsal-{next(_numbers)}")
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(SECONDS)
        self.errors = self.place.root / "errors"
        modules = [importlib.util.find_spec(name) for name in ("atomicio", "filelock")]
        spec = {
            "socket": theirs.fileno(),
            "sys_path": [str(Path(module.origin).parent.parent) for module in modules if module and module.origin]
            + [str(HERE)],
            "staging": cell.staging,
            "library": cell.library,
            "call": cell.call,
            "mode": cell.mode,
            "keywords": cell.keywords,
            "text": cell.text,
            "pieces": cell.pieces,
            "body": cell.body,
            "raises": cell.raises,
            "rehearsal": str(self.place.target),
        }
        command = [sys.executable, "-I", "-S", str(HERE / "target.py"), json.dumps(spec)]
        if not cell.privileged:
            # Still user 0, so that it can reach its directory, but with no more rights than an ordinary user.
            command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", *command]
        with theirs, self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=errors
            )
        if self.socket.recv(16) != b"ready":
            raise RuntimeError(self.errors.read_text())

    def close(self) -> None:
        self.socket.close()
        self.process.wait(SECONDS)
        self.place.remove()

    def run(
        self, fault: Fault | None = None, *, transcribe: bool = False, file_size_limit: int | None = None
    ) -> Outcome:
        """Do the operation in a new directory, with one fault."""
        root = self.tmp / f"run-{next(_numbers)}"
        place = arrange(self.cell, root)
        try:
            return self._run(place, fault, transcribe, file_size_limit)
        finally:
            place.remove()

    def _run(self, place: Place, fault: Fault | None, transcribe: bool, file_size_limit: int | None) -> Outcome:
        log, errors = place.root / "strace", place.root / "errors"
        request = {
            "target": str(place.target),
            "errors": str(errors),
            "temporary": str(place.root / "tmp"),
            "file_size_limit": file_size_limit,
        }
        self.socket.send(json.dumps(request).encode())
        child = json.loads(self.socket.recv(1 << 16))
        strace = ["strace", "-p", str(child["pid"]), "-y", "-s", "64", "-o", str(log)]
        if fault is None or transcribe or fault.first:
            strace += ["-e", f"trace=!{UNTRACED}"]
        else:
            strace += ["-e", f"trace={fault.call.name},getppid"]
        for injection in fault.injections if fault else []:
            strace += ["-e", injection]
        ended, answer, leaked = "killed", {}, {}
        with subprocess.Popen(strace, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as tracer:
            said = tracer.stderr.readline()  # type: ignore[union-attr]
            if "attached" not in said:
                os.kill(child["pid"], signal.SIGKILL)
                raise RuntimeError(f"strace cannot begin: {said}")
            self.socket.send(b"x")
            try:
                answer = json.loads(self.socket.recv(1 << 16))
                if "ended" in answer:
                    ended = answer["ended"]
                    leaked = descriptors(child["pid"], set(child["before"]))
                    self.socket.send(b"x")
                    answer |= json.loads(self.socket.recv(1 << 16))
            except TimeoutError:
                ended = "hung"
                os.kill(child["pid"], signal.SIGKILL)
                self.socket.recv(1 << 16)
        lines = log.read_text(errors="replace").splitlines()
        wrote = errors.read_text(errors="replace")
        return Outcome(ended, answer, snapshot(place.root / "d"), leaked, lines, wrote, snapshot(place.root / "tmp"))


def descriptors(pid: int, before: set[str]) -> dict[str, str]:
    """The descriptors of *pid* that are not in *before*, and what they are."""
    directory = f"/proc/{pid}/fd"
    opened = {fd: os.readlink(f"{directory}/{fd}") for fd in os.listdir(directory) if fd not in before}
    # Where getrandom fails, the interpreter opens this once and for all.
    return {fd: what for fd, what in opened.items() if what != "/dev/urandom"}


_LINE = re.compile(r"(\w+)\(")


def transcript(log: list[str]) -> list[Call]:
    """The calls between the two marks."""
    numbers: Counter[str] = Counter()
    calls = []
    marks = 0
    for line in log:
        if found := _LINE.match(line):
            name = found[1]
            numbers[name] += 1
            if name == "getppid":
                marks += 1
            elif marks == 1:
                calls.append(Call(name, numbers[name], line))
    assert marks, "the program did not come to its mark"
    return calls


@dataclass
class Rehearsal:
    """What the operation does and leaves when nothing fails."""

    cell: Cell
    calls: list[Call]
    old: dict[str, tuple[Any, ...]]
    new: dict[str, tuple[Any, ...]]
    outcome: Outcome
    reported: int | None = None
    """The errno of the error that the first of two faults led to: the second must not hide it."""


def rehearse(program: Program) -> Rehearsal:
    """Do the operation without a fault."""
    place = arrange(program.cell, program.tmp / "before")
    old = snapshot(place.root / "d")
    place.remove()
    outcome = program.run()
    assert outcome.ended in ("returned", "raised"), outcome.errors
    return Rehearsal(program.cell, transcript(outcome.log), old, outcome.state, outcome)


# -- judging ----------------------------------------------------------------------------------------------------------


# Python cannot raise from a finalizer: a Ctrl-C that hits one is printed and forgotten.
_LOST_INTERRUPT = re.compile(
    r"Exception ignored in: <function \S*__del__ [^\n]*\nTraceback [^\n]*\n( .*\n)+KeyboardInterrupt: \n"
)


def judge_rehearsal(rehearsal: Rehearsal) -> list[str]:
    """Judge what is left when nothing fails, before it is taken for what is to be there."""
    cell, old, new = rehearsal.cell, rehearsal.old, rehearsal.new
    broken = judge(rehearsal, None, rehearsal.outcome)
    if cell.library.startswith("operations"):
        return broken  # they are judged by their own tests
    lock = {"target.txt.lock"} if cell.keywords.get("lock") else set()
    if cell.body == "raise" or cell.raises:
        if {name: what for name, what in new.items() if name not in lock} != old:
            broken.append("it gave up, and yet there was a change")
        return broken
    name = {"symlink": "real/file.txt", "missing parents": "made/here/target.txt"}.get(cell.arrangement, "target.txt")
    if not cell.keywords.get("follow_symlinks", True):
        name = "target.txt"
    before, after = old.get(name), new.get(name)
    content = cell.text.encode()
    if before and cell.mode.startswith("a") and "+" not in cell.mode:  # where one may read, the block truncates
        content = before[0] + content
    if after is None or after[0] != content:
        broken.append(f"{name} is not what was written: {show(after)}")
    elif before and before[1].startswith("0o10") and cell.arrangement != "somebody else's":
        kept = ("0o100604", *before[2:]) if "permissions" in cell.keywords else before[1:]
        if after[1:] != kept:
            broken.append(f"{name} has the new content but {show(after)} instead of {kept}")
    backups = {"target.txt.bak"} if cell.keywords.get("backup") and before else set()
    if any(name not in new or new[name][0] != OLD.encode() for name in backups):
        broken.append("the backup is not what was there before")
    if strange := new.keys() - old.keys() - {name, *lock, *backups, "made", "made/here"}:
        broken.append(f"files nobody knows are left: {sorted(strange)}")
    return broken


def judge(rehearsal: Rehearsal, fault: Fault | None, outcome: Outcome, *, cut_short: bool = False) -> list[str]:
    """Name every promise that *outcome* breaks, of a run with *fault*, with writes *cut_short*, or with neither."""
    cell, answer = rehearsal.cell, outcome.answer
    broken: list[str] = []
    if outcome.ended == "hung":
        return ["it hangs"]
    if fault and not any("INJECTED" in line or "killed by SIGKILL" in line or "SIGINT" in line for line in outcome.log):
        return ["the fault did not happen"]
    if fault and fault.kind == "kill" and outcome.ended != "killed":
        return ["it was not killed"]
    if (fault is None or fault.kind != "kill") and outcome.ended == "killed":
        return [f"it died: {outcome.errors}"]
    if outcome.errors and not (fault and fault.kind == "interrupt" and _LOST_INTERRUPT.fullmatch(outcome.errors)):
        broken.append(f"it wrote to standard error: {outcome.errors}")

    changed, faults = compare(rehearsal, fault, outcome)
    broken += faults
    if changed is None:
        return broken  # neither old nor new; nothing more can be said

    same = rehearsal.old == rehearsal.new
    if outcome.ended == "returned":
        if not changed and not same:
            broken.append("it returned, but the old content is there")
        if fault and changed and swallowed(rehearsal, fault):
            broken.append("it returned although what it wrote may be lost")
        if fault and fault.kind == "interrupt" and not outcome.errors:
            broken.append("the interrupt was swallowed")
    elif outcome.ended == "raised":
        expected = {errno.EFBIG} if cut_short else set()
        if rehearsal.reported:
            expected = {rehearsal.reported}
        elif fault:
            expected = {getattr(errno, fault.error, errno.EIO)}
        gave_up = (
            cell.in_place and "could not be put back" in answer["message"]
        )  # then there is no telling what is there
        interrupted = bool(fault and fault.kind == "interrupt")
        broken += judge_exception(rehearsal, outcome, expected, gave_up or (changed and not same), interrupted)

    refused = {line[6:].split("<")[0] for line in outcome.log if line.startswith("close(") and "INJECTED" in line}
    leaked = {fd: what for fd, what in outcome.leaked.items() if fd not in refused}
    if any(line.startswith("flock(") and "INJECTED" in line for line in outcome.log) or (
        fault and fault.kind == "interrupt"
    ):
        # filelock keeps open what it cannot unlock, and does not know of it when interrupted before it took note.
        leaked = {fd: what for fd, what in leaked.items() if not what.endswith(".lock")}
    if leaked:
        broken.append(f"descriptors are left open: {leaked}")
    return broken


def compare(rehearsal: Rehearsal, fault: Fault | None, outcome: Outcome) -> tuple[bool | None, list[str]]:
    """Tell whether the target is the old (False), the new (True) or neither (None), and what else is wrong."""
    cell, old, new, state = rehearsal.cell, rehearsal.old, rehearsal.new, outcome.state
    broken = []
    leftovers = [name for name in state if TEMPORARY.fullmatch(os.path.basename(name))]
    leftovers += list(outcome.elsewhere)
    backups = [name for name in [*state, *outcome.elsewhere] if BACKUP.fullmatch(os.path.basename(name))]
    gave_up = cell.in_place and "could not be put back: it is in" in outcome.answer.get("message", "")
    unlink_refused = any("INJECTED" in line and line.startswith(("unlink", "rmdir")) for line in outcome.log)
    if cell.in_place and (gave_up or unlink_refused or outcome.ended == "killed"):
        leftovers = [name for name in leftovers if name not in backups]
        saved = backups
    else:
        saved = []
    others = {name for name in state if name not in leftovers and name not in saved}
    allowed = allowed_leftovers(fault, rehearsal, outcome)
    if len(leftovers) > allowed:
        broken.append(f"temporary files are left: {leftovers}")
    strange = others - old.keys() - new.keys()
    if fault is not None:
        strange = {name for name in strange if not FILELOCK.fullmatch(os.path.basename(name))}
    if strange:
        broken.append(f"files nobody knows are left: {sorted(strange)}")
    if lost := (old.keys() & new.keys()) - others:
        broken.append(f"files are gone: {sorted(lost)}")
        return None, broken
    changed = None
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name):
            if state.get(name) != old.get(name):
                broken.append(f"{name} was changed: {show(state.get(name))}")
        elif name.endswith(".txt"):
            what = state.get(name)
            if what == new.get(name):
                changed = True
            elif what == old.get(name):
                changed = False
            elif what is not None and name in new and what[0] == new[name][0]:
                changed = True
                if refused_metadata(fault) and no_wider(what, new[name]):
                    continue
                broken.append(f"{name} has the new content but {show(what)} instead of {show(new[name])}")
            elif what is not None and name in old and what[0] == old[name][0]:
                changed = False
                broken.append(f"{name} has the old content but {show(what)} instead of {show(old[name])}")
            elif any({**state, **outcome.elsewhere}[each][0] == old[name][0] for each in saved):
                return None, broken  # not atomic, as documented: the old content is in the backup
            elif cell.staging == "claimed" and what and not what[0] and (unlink_refused or outcome.ended == "killed"):
                return None, broken  # created, as only one can, and neither replaced any more nor removed: as documented
            else:
                broken.append(f"{name} is neither old nor new: {show(what)}")
                return None, broken
        elif name.endswith(".bak"):
            if state.get(name) not in (old.get(name), new.get(name)):
                broken.append(f"the backup is neither old nor new: {show(state.get(name))}")
        elif name in state and state[name] != new.get(name):
            broken.append(f"{name} is {show(state[name])}")
    return bool(changed), broken


METADATA = re.compile("f?ch(mod|own)(at2?)?|[fl]?(get|set|list|remove)xattr")


def refused_metadata(fault: Fault | None) -> bool:
    """Tell whether the kernel said that this is not allowed or not known here: then what cannot be kept is not kept."""
    return bool(
        fault and METADATA.fullmatch(fault.call.name) and fault.error in ("EACCES", "ENODATA", "EOPNOTSUPP", "EPERM")
    )


def no_wider(entry: tuple[Any, ...], full: tuple[Any, ...]) -> bool:
    """Tell whether *entry* gives nobody a right that *full* does not give, set-id bits of another owner among them."""
    mode, owner, group = int(entry[1], 8), entry[2], entry[3]
    if (mode & stat.S_ISUID and owner != full[2]) or (mode & stat.S_ISGID and group != full[3]):
        return False
    return not mode & ~int(full[1], 8)


def show(entry: tuple[Any, ...] | None) -> str:
    if entry is None:
        return "missing"
    content = entry[0]
    text = f"{len(content)} bytes {content[:20]!r}" if isinstance(content, (bytes, str)) else "no content"
    return f"({text}, {', '.join(map(str, entry[1:]))})"


def allowed_leftovers(fault: Fault | None, rehearsal: Rehearsal, outcome: Outcome) -> int:
    """How many temporary files may be left: those that could not be removed, or had a name when the kill came."""
    if fault is None:
        return 0
    removals = [line for line in outcome.log if "INJECTED" in line and line.startswith(("unlink", "rmdir"))]
    if refused := {found[0] for line in removals if (found := TEMPORARY.search(line))}:
        return len(refused)
    if fault.kind != "kill":
        return 0
    names: set[str] = set()
    for call in rehearsal.calls:
        if (call.name, call.number) == (fault.call.name, fault.call.number):
            return len(names)  # the kill comes on entry: this call does not happen any more
        if call.line.rpartition("= ")[2].startswith("-1"):
            continue
        quoted = [Path(each).name for each in re.findall(r'"([^"]*)"', call.line)]
        if "O_CREAT" in call.line or call.name in ("link", "linkat", "rename", "renameat", "renameat2"):
            names |= {each for each in quoted[-1:] if TEMPORARY.fullmatch(each)}
        if call.name.startswith(("rename", "unlink")):
            names -= set(quoted[:1])
    raise AssertionError(f"{fault} is not a call of the rehearsal")


_UNNAMED = re.compile(r"/#\d+>\(deleted\)")  # how /proc names what O_TMPFILE made


def swallowed(rehearsal: Rehearsal, fault: Fault) -> bool:
    """Tell whether a call failed that says what was written is lost, and nobody said so."""
    if fault.kind != "error" or fault.error not in LOST_WRITES:
        return False
    if fault.call.name in ("fsync", "fdatasync", "syncfs"):
        return True
    if rehearsal.cell.in_place:
        return False  # the staging file is a copy of what was written and checked
    if ".tmp.batch" in fault.call.line:
        return False  # shows that a batch is alive, and has no content
    # NFS and quotas report lost writes at the last close of the file that was written.
    return fault.call.name == "close" and bool(TEMPORARY.search(fault.call.line) or _UNNAMED.search(fault.call.line))


def judge_exception(
    rehearsal: Rehearsal, outcome: Outcome, expected: set[int | None], changed: bool, interrupted: bool
) -> list[str]:
    """Judge the exception, for a fault that should be reported with an errno of *expected*."""
    cell, answer = rehearsal.cell, outcome.answer
    broken = []
    said = f"{answer['class']}({answer['message']}) with errno {answer['errno']}"
    if cell.body == "raise" and answer["class"] == "BodyError":
        return ["the block's exception came with the new content"] if changed else []
    if interrupted and answer["class"] == "KeyboardInterrupt":
        return []
    if answer["class"] in (cell.raises, "TargetChangedError") or (
        cell.call == "atomic_path" and answer["phase"] == "body"
    ):
        expected = expected | {answer["errno"]}
    if answer["errno"] not in expected:
        broken.append(f"it raised {said}")
    if "OSError" not in answer["classes"]:
        return broken
    if cell.body == "raise" and answer["phase"] == "exit":
        broken.append(f"the block's exception was replaced by {said}")
    if answer["phase"] == "body":  # the caller's own call of a method of the file: what plain open would have raised
        return [*broken, f"a write in the block raised {said} with the new content"] if changed else broken
    if answer["committed"] is not changed:
        broken.append(f"committed is {answer['committed']}, but the content is {'new' if changed else 'old'}: {said}")
    if not str(answer["filename"]).endswith("/target.txt"):
        broken.append(f"the error names {answer['filename']}: {said}")
    return broken


def every_fault(
    cell: Cell, tmp: Path, *, kinds: tuple[str, ...] = ("error", "kill", "interrupt"), twice: bool = False
) -> list[str]:
    """Run *cell* with every fault of these *kinds*, *twice* with a second one on top; return what was broken."""
    workers = os.cpu_count() or 1
    programs = [Program(cell, tmp) for _ in range(workers)]
    idle: queue.SimpleQueue[Program] = queue.SimpleQueue()
    for each in programs:
        idle.put(each)

    def check(each: tuple[Rehearsal, Fault]) -> list[str]:
        expected, fault = each
        program = idle.get()
        try:
            outcome = program.run(fault)
        finally:
            idle.put(program)
        return [f"{cell.label}: {broken}\n    {fault}" for broken in judge(expected, fault, outcome)]

    try:
        rehearsal = rehearse(programs[0])
        if broken := judge_rehearsal(rehearsal):
            return broken
        assert rehearsal.calls, "nothing to fail"
        faults = [(rehearsal, fault) for fault in plan(rehearsal.calls) if fault.kind in kinds]
        if twice:
            faults = [second for first in faults for second in cleaning(programs[0], *first)]
        with ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(check, faults))
    finally:
        for each in programs:
            each.close()
    runs[cell.label] += len(faults)
    return [broken for each in found for broken in each]


def cleaning(program: Program, rehearsal: Rehearsal, first: Fault) -> list[tuple[Rehearsal, Fault]]:
    """List the faults that can come on top of one that fails a call: in what is done because of it."""
    if (
        first.kind != "error"
        or first.forever
        or first.error != next((each for each in ERRORS[first.call.name] if each in LOST_WRITES), "EIO")
    ):
        return []
    outcome = program.run(first, transcribe=True)
    calls = transcript(outcome.log)
    reported = outcome.answer["errno"] if outcome.ended == "raised" else None
    at = next(i for i, call in enumerate(calls) if (call.name, call.number) == (first.call.name, first.call.number))
    seconds = []
    for call in calls[at + 1 :]:
        if call.name != first.call.name and call.name not in HARMLESS:  # strace takes one fault for each name
            seconds += [Fault(call, "error", "EIO", first=first), Fault(call, "kill", first=first)]
            seconds += [Fault(call, "error", "EIO", forever=True, first=first)]
    return [(replace(rehearsal, calls=calls, reported=reported), second) for second in seconds]
