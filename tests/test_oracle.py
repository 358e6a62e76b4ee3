"""``atomic_write`` leaves what plain ``open`` leaves.

Every case is done twice, in two directories made alike: by ``open`` in one, by ``atomic_write`` in the other. Then
everything that can be seen from outside (names, bytes, mode, owner, ACL, extended attributes, links, what was raised)
has to be equal. What a rename cannot keep, the inode and the times, is not compared, nor are hard links: they part.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import atomicio
from oracle import (
    ACL_ACCESS,
    ACL_DEFAULT,
    AS_ROOT,
    DEFAULT_ACL,
    LINUX,
    NAMED_USER_ACL,
    NET_RAW_CAPABILITY,
    ORDINARY_USER,
    OTHER_GROUP,
    OTHER_USER,
    as_ordinary_user,
    left_behind,
    outcome,
    public_directory,
    read,
    supports_xattrs,
    tmpfs_mounted,
    umask,
    write,
)

posix_only = pytest.mark.skipif(os.name != "posix", reason="permission bits, owners and links as POSIX has them")

Opener = Callable[..., Any]

MODES = ("w", "x", "a", "r+", "w+", "x+", "a+")


# ---------------------------------------------------------------------------------------------------------------------
# What is left in the file system
# ---------------------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """What the target is before the write."""

    name: str
    mode: int = 0o644
    uid: int = -1
    gid: int = -1
    attributes: tuple[tuple[str, bytes], ...] = ()
    content: bytes | None = b"the old content\n"

    @property
    def drops_rights_when_written(self) -> bool:
        """Whether the kernel takes something away when the file is written: set-user-ID bits, capabilities."""
        return bool(self.mode & 0o6000) or any(name == "security.capability" for name, _ in self.attributes)


ABSENT = State("absent", content=None)
MODE_STATES = tuple(State(f"{mode:04o}", mode) for mode in (0o644, 0o600, 0o640, 0o755, 0o666, 0o4755, 0o2755, 0o6711))
STATES = (
    ABSENT,
    *MODE_STATES,
    State("0444", 0o444),
    State("0000", 0o000),
    State("empty", 0o640, content=b""),
    State("foreign", 0o640, OTHER_USER, OTHER_GROUP),
    State("foreign-setuid", 0o6755, OTHER_USER, OTHER_GROUP),
    State("acl", 0o660, attributes=((ACL_ACCESS, NAMED_USER_ACL),)),
    State("xattrs", 0o600, attributes=(("user.origin", b"tests"), ("trusted.origin", b"root"))),
    State("capability", 0o755, attributes=(("security.capability", NET_RAW_CAPABILITY),)),
    State(
        "everything",
        0o2770,
        OTHER_USER,
        OTHER_GROUP,
        (
            (ACL_ACCESS, NAMED_USER_ACL),
            ("user.origin", b"tests"),
            ("trusted.origin", b"root"),
            ("security.capability", NET_RAW_CAPABILITY),
        ),
    ),
)
#: What an ordinary user owns, and so may chown (to an own group) and chmod.
ORDINARY_STATES = (
    ABSENT,
    *(state._replace(uid=ORDINARY_USER, gid=ORDINARY_USER) for state in MODE_STATES),
    State("0444", 0o444, ORDINARY_USER, ORDINARY_USER),
    State("0200", 0o200, ORDINARY_USER, ORDINARY_USER),
    State("empty", 0o640, ORDINARY_USER, ORDINARY_USER, content=b""),
    State("acl", 0o660, ORDINARY_USER, ORDINARY_USER, ((ACL_ACCESS, NAMED_USER_ACL),)),
    State("xattrs", 0o600, ORDINARY_USER, ORDINARY_USER, (("user.origin", b"tests"),)),
)

#: Where the target lives. Only root can give a directory away, so that is left out for others.
DIRECTORIES = ("plain", "default-acl", "setgid", "setgid+default-acl")
#: How the target is reached.
LINKS = ("direct", "relative", "absolute", "chain", "through-directory")
UMASKS = (0o022, 0o002, 0o077, 0o000)
BODIES = ("write", "nothing")


class Case(NamedTuple):
    mode: str
    directory: str
    state: State
    link: str
    umask: int
    body: str
    keywords: tuple[tuple[str, object], ...]

    def __str__(self) -> str:
        return (
            f"{self.mode} {self.directory} {self.state.name} {self.link} umask={self.umask:03o} {self.body} "
            f"{dict(self.keywords)}"
        )

    def prepare(self, directory: str) -> str:
        """Lay out the case below *directory*; return the path to write."""
        real = os.path.join(directory, "real")
        with umask(0):
            os.mkdir(real, 0o777)
            os.chmod(directory, 0o777)
            if "default-acl" in self.directory:
                os.setxattr(real, ACL_DEFAULT, DEFAULT_ACL)
            if "setgid" in self.directory:
                os.chown(real, -1, OTHER_GROUP)
                os.chmod(real, 0o2777)
        target = os.path.join(real, "target")
        if self.state.content is not None:
            write(target, self.state.content)
            if ACL_ACCESS in xattr_names(target):
                os.removexattr(target, ACL_ACCESS)
            if AS_ROOT:
                os.chown(target, max(self.state.uid, 0), max(self.state.gid, 0))
            os.chmod(target, self.state.mode)
            for name, value in self.state.attributes:
                os.setxattr(target, name, value)
        if self.link == "direct":
            return target
        path = os.path.join(directory, "link")
        if self.link == "relative":
            os.symlink("real/target", path)
        elif self.link == "absolute":
            os.symlink(target, path)
        elif self.link == "through-directory":
            os.symlink("real", path)
            path = os.path.join(path, "target")
        elif self.link == "chain":
            os.symlink("second", path)
            os.symlink(os.path.join(directory, "real", "..", "third"), os.path.join(directory, "second"))
            os.symlink("../real/last", os.path.join(directory, "third"))
            os.unlink(os.path.join(directory, "third"))
            os.symlink("real/last", os.path.join(directory, "third"))
            os.symlink("target", os.path.join(real, "last"))
        return path

    def act(self, opener: Opener, path: str, **keywords: object) -> object:
        def action() -> None:
            with umask(self.umask), opener(path, self.mode, **keywords) as file:
                if self.body == "write":
                    file.write("new")

        return outcome(action, os.path.dirname(path.replace("/real/", "/")) if self.link != "through-directory" else "")


def xattr_names(path: str) -> list[str]:
    return os.listxattr(path) if hasattr(os, "listxattr") else []


def compare(
    cases: Iterable[Case], root: str, run: Callable[[Callable[[], Any]], Any] = lambda function: function()
) -> tuple[int, list[str]]:
    """Do every case by both means, the writes within *run*; return how many there were and what differed."""
    todo = []
    for number, case in enumerate(cases):
        plain, atomic = f"{root}/{number}p", f"{root}/{number}a"
        os.mkdir(plain)
        os.mkdir(atomic)
        todo.append((case, plain, case.prepare(plain), atomic, case.prepare(atomic)))

    def act() -> list[tuple[object, object]]:
        outcomes = []
        for case, plain, plain_path, atomic, atomic_path in todo:
            expected = case.act(open, plain_path)
            got = case.act(atomicio.atomic_write, atomic_path, **dict(case.keywords))
            outcomes.append((relative(expected, plain), relative(got, atomic)))
        return outcomes

    differences = []
    for (case, plain, _, atomic, _), (expected, got) in zip(todo, run(act), strict=True):
        if expected != got:
            differences.append(f"{case}: open gives {expected}, atomic_write {got}")
        wanted, left = left_behind(plain), left_behind(atomic)
        if wanted != left:
            for name in sorted(wanted.keys() | left.keys()):
                if wanted.get(name) != left.get(name):
                    differences.append(f"{case}: {name}: open leaves {wanted.get(name)}, atomic_write {left.get(name)}")
        shutil.rmtree(plain)
        shutil.rmtree(atomic)
    return len(todo), differences


def relative(result: object, directory: str) -> object:
    if isinstance(result, tuple):
        return tuple(part.replace(directory, "DIRECTORY") if isinstance(part, str) else part for part in result)
    return result


def cases_of(mode: str, directory: str, states: Iterable[State], every: int = 1) -> Iterable[Case]:
    """The full product, or *every* so manyth of it; the three levels of durability take turns."""
    product = itertools.product(states, LINKS, UMASKS, BODIES)
    for number, (state, link, mask, body) in enumerate(itertools.islice(product, None, None, every)):
        level = ("none", "durable", "consistent", "none", "none")[number % 5]
        if state.content is not None and mask not in (0o022, 0o077):
            continue  # the umask has a say only in what is created; two values show that it has none here
        if body == "nothing" and mode[0] in "ar" and state.drops_rights_when_written:
            continue  # open drops them at the first byte; a file that is replaced counts as written
        yield Case(mode, directory, state, link, mask, body, (("durability", level),))


def usable(states: Iterable[State], root: str) -> list[State]:
    """The states that this process and this file system can produce."""
    return [
        state
        for state in states
        if all(supports_xattrs(root, name, value) for name, value in state.attributes)
        and (AS_ROOT or (state.uid in (-1, os.getuid()) and state.gid in (-1, os.getgid())))
    ]


@contextlib.contextmanager
def file_system(kind: str, root: str) -> Iterator[int]:
    """Make *root* a tmpfs for the full product, which is about ten times as fast there, or leave it what it is, for a
    thirteenth of the product; 13 has no factor in common with the sizes of what is multiplied, so all values occur.
    """
    if kind == "tmpfs":
        with tmpfs_mounted(root, "256m", 0o777):
            yield 1
    else:
        yield 13


@posix_only
@pytest.mark.parametrize("kind", ["tmpfs", "as-it-is"])
@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize("mode", MODES)
def test_what_is_left_equals_what_open_leaves(
    tmp_path: Path, mode: str, directory: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with file_system(kind, str(tmp_path)) as every:
        check_what_is_left(str(tmp_path), mode, directory, every, capsys)


def check_what_is_left(root: str, mode: str, directory: str, every: int, capsys: pytest.CaptureFixture[str]) -> None:
    if "default-acl" in directory and not (LINUX and default_acls_work(root)):
        pytest.skip("the file system of the temporary directory has no default ACLs")
    if "setgid" in directory and not AS_ROOT:
        pytest.skip("only root can give a directory to another group")
    number, differences = compare(cases_of(mode, directory, usable(STATES, root), every), root)
    with capsys.disabled():
        print(f"[{number} combinations]", end=" ")
    assert number >= 20
    assert not differences, report(differences)


@posix_only
@pytest.mark.skipif(not AS_ROOT, reason="only root can become somebody else")
@pytest.mark.parametrize("kind", ["tmpfs", "as-it-is"])
@pytest.mark.parametrize("directory", DIRECTORIES)
def test_what_is_left_equals_what_open_leaves_for_an_ordinary_user(
    directory: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with public_directory() as root, file_system(kind, root) as every:
        if "default-acl" in directory and not (LINUX and default_acls_work(root)):
            pytest.skip("the file system of the temporary directory has no default ACLs")
        cases = [
            case
            for mode in MODES
            for case in cases_of(mode, directory, usable(ORDINARY_STATES, root), every)
            # What may be written but not read cannot be copied, so it cannot be extended: see test_errors.
            if not (case.state.mode == 0o200 and mode.startswith("a"))
        ]
        number, differences = compare(cases, root, as_ordinary_user)
    with capsys.disabled():
        print(f"[{number} combinations]", end=" ")
    assert not differences, report(differences)


def default_acls_work(root: str) -> bool:
    probe = os.path.join(root, "acl-probe")
    os.mkdir(probe)
    try:
        os.setxattr(probe, ACL_DEFAULT, DEFAULT_ACL)
    except OSError:
        return False
    finally:
        os.rmdir(probe)
    return True


def report(differences: list[str]) -> str:
    return f"{len(differences)} differences, the first of them:\n" + "\n".join(differences[:12])


# ---------------------------------------------------------------------------------------------------------------------
# Paths that open refuses, or takes although they look odd
# ---------------------------------------------------------------------------------------------------------------------

ODD_PATHS: dict[str, Callable[[str], Any]] = {
    "missing directory": lambda d: f"{d}/missing/target",
    "missing directories": lambda d: f"{d}/missing/deeper/target",
    "file as directory": lambda d: f"{d}/file/target",
    "directory": lambda d: f"{d}/sub",
    "directory and slash": lambda d: f"{d}/sub/",
    "directory and dot": lambda d: f"{d}/sub/.",
    "directory and dots": lambda d: f"{d}/sub/..",
    "link to directory": lambda d: f"{d}/to-directory",
    "file and slash": lambda d: f"{d}/file/",
    "file and dot": lambda d: f"{d}/file/.",
    "absent and slash": lambda d: f"{d}/absent/",
    "double slash": lambda d: f"{d}//file",
    "dot in the middle": lambda d: f"{d}/./sub/../file",
    "dots through a link": lambda d: f"{d}/to-elsewhere/../file",
    "missing and dots": lambda d: f"{d}/missing/../file",
    "empty": lambda d: "",
    "empty bytes": lambda d: b"",
    "dot": lambda d: ".",
    "root": lambda d: "/",
    "loop": lambda d: f"{d}/loop",
    "loop of one": lambda d: f"{d}/self",
    "through a loop": lambda d: f"{d}/loop/target",
    "dangling": lambda d: f"{d}/dangling",
    "dangling into a missing directory": lambda d: f"{d}/dangling-far",
    "link with a slash at its end": lambda d: f"{d}/to-file-slash",
    "dangling with a slash at its end": lambda d: f"{d}/dangling-slash",
    "long chain": lambda d: f"{d}/chain-39",
    "chain too long": lambda d: f"{d}/chain-45",
    "255 bytes": lambda d: f"{d}/{'n' * 255}",
    "256 bytes": lambda d: f"{d}/{'n' * 256}",
    "255 bytes in UTF-8": lambda d: f"{d}/{'ü' * 127}n",
    "256 bytes in UTF-8": lambda d: f"{d}/{'ü' * 128}",
    "path too long": lambda d: d + "/sub/.." * 1000 + "/file",
    "not UTF-8": lambda d: os.fsencode(d) + b"/\xff\xfe",
    "surrogate": lambda d: f"{d}/\udcff",
    "lone surrogate that is no byte": lambda d: f"{d}/\ud800",
    "bytes": lambda d: os.fsencode(f"{d}/file"),
    "PathLike": lambda d: Path(d, "file"),
    "spaces and newline": lambda d: f"{d}/a b\nc",
    "leading dash": lambda d: f"{d}/-rf",
    "NUL": lambda d: f"{d}/fi\0le",
    "NUL in bytes": lambda d: os.fsencode(d) + b"/fi\0le",
    "None": lambda d: None,
    "float": lambda d: 1.5,
    "list": lambda d: [f"{d}/file"],
    "bytearray": lambda d: bytearray(os.fsencode(f"{d}/file")),
}


def odd_directory(directory: str) -> None:
    os.makedirs(f"{directory}/sub")
    os.makedirs(f"{directory}/elsewhere/inner")
    write(f"{directory}/file", b"old")
    write(f"{directory}/elsewhere/file", b"old elsewhere")
    for text, name in (
        ("sub", "to-directory"),
        ("elsewhere/inner", "to-elsewhere"),
        ("loop-back", "loop"),
        ("loop", "loop-back"),
        ("self", "self"),
        ("absent-target", "dangling"),
        ("nowhere/target", "dangling-far"),
        ("file/", "to-file-slash"),
        ("absent-target/", "dangling-slash"),
        ("file", "chain-0"),
    ):
        os.symlink(text, f"{directory}/{name}")
    for number in range(1, 50):
        os.symlink(f"chain-{number - 1}", f"{directory}/chain-{number}")


@posix_only
@pytest.mark.parametrize("mode", [*MODES, "wb", "xb", "ab", "r+b"])
@pytest.mark.parametrize("name", ODD_PATHS)
def test_an_odd_path_gives_what_open_gives(tmp_path: Path, name: str, mode: str) -> None:
    results = []
    for kind, opener in (("plain", open), ("atomic", atomicio.atomic_write)):
        directory = str(tmp_path / kind)
        odd_directory(directory)

        def action(opener: Opener = opener, directory: str = directory) -> None:
            with opener(ODD_PATHS[name](directory), mode) as file:
                file.write(b"new" if "b" in mode else "new")

        results.append((outcome(action, directory), left_behind(directory)))
    (expected, wanted), (got, left) = results
    assert got == expected
    assert left == wanted


@posix_only
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["relative", "bare", "dot", "dots"])
def test_a_relative_path_means_the_directory_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, mode: str
) -> None:
    lefts = []
    for kind, opener in (("plain", open), ("atomic", atomicio.atomic_write)):
        directory = tmp_path / kind
        (directory / "sub").mkdir(parents=True)
        (directory / "elsewhere").mkdir()
        if not mode.startswith("x"):
            (directory / "sub" / "target").write_bytes(b"old")
        monkeypatch.chdir(directory / "sub")
        path = {"relative": "../sub/target", "bare": "target", "dot": "./target", "dots": "../sub/./target"}[how]
        with opener(path, mode) as file:
            monkeypatch.chdir(directory / "elsewhere")
            file.write("new")
        lefts.append(left_behind(str(directory)))
    assert lefts[0] == lefts[1]


@pytest.mark.skipif(not LINUX or not AS_ROOT, reason="takes an ordinary user and a closed parent")
@pytest.mark.parametrize("mode", ["w", "a", "r+"])
def test_a_relative_path_works_below_a_directory_that_may_not_be_entered(tmp_path: Path, mode: str) -> None:
    """As after ``su`` in one's own directory: ``open("target")`` needs no right above the working directory."""
    closed = tmp_path / "closed"
    inner = closed / "inner"
    inner.mkdir(parents=True)
    inner.chmod(0o777)
    closed.chmod(0o700)
    for name in ("plain", "atomic"):
        write(inner / name, b"old\n")
        os.chown(inner / name, ORDINARY_USER, ORDINARY_USER)

    def act() -> list[object]:
        os.chdir(inner_descriptor)
        results = []
        for opener, name in ((open, "plain"), (atomicio.atomic_write, "atomic")):

            def action(opener: Opener = opener, name: str = name) -> None:
                with opener(name, mode) as file:
                    file.write("new")

            results.append(outcome(action))
        return results

    inner_descriptor = os.open(inner, os.O_RDONLY)
    try:
        assert as_ordinary_user(act) == [None, None]
    finally:
        os.close(inner_descriptor)
    assert read(inner / "atomic") == read(inner / "plain")


# ---------------------------------------------------------------------------------------------------------------------
# Text, newlines, buffering: what the file object is and does
# ---------------------------------------------------------------------------------------------------------------------

ENCODINGS: tuple[tuple[str | None, str | None], ...] = (
    (None, None),
    ("utf-8", "strict"),
    ("utf-8", "surrogateescape"),
    ("utf-8-sig", None),
    ("utf-16", None),
    ("utf-32-le", None),
    ("latin-1", "replace"),
    ("ascii", "xmlcharrefreplace"),
    ("ascii", "ignore"),
    ("ascii", None),
    ("shift_jis", "backslashreplace"),
    ("no-such-encoding", None),
    ("utf-8", "no-such-handler"),
)
NEWLINES = (None, "", "\n", "\r", "\r\n", "\n\r")
BUFFERINGS = (-1, 0, 1, 2, 17, 8192, -7)
TEXT = ("one\n", "zw\u00f6lf\r\n", "\u20ac\r", "", "\udc80?" * 1, "end" * 40)
ALL_MODES = tuple(f"{mode}{kind}" for mode in MODES for kind in ("", "b", "t"))


def conversation(file: IO[Any], binary: bool) -> list[object]:
    """Use the file object in the ways that show its layers, and note what it says."""
    said: list[object] = [
        isinstance(file, io.TextIOBase),
        isinstance(file, (io.BufferedWriter, io.BufferedRandom)),
        isinstance(file, io.RawIOBase),
        getattr(file, "mode", None) if not isinstance(file, io.RawIOBase) else None,
        getattr(file, "encoding", None),
        getattr(file, "errors", None),
        getattr(file, "line_buffering", None),
        getattr(file, "write_through", None),
        file.readable(),
        file.writable(),
        file.seekable(),
        file.isatty(),
        isinstance(file.fileno(), int),
        file.closed,
    ]

    def note(action: Callable[[], object]) -> None:
        said.append(outcome(action))

    note(file.tell)
    for part in TEXT:
        data: Any = part.encode("utf-8", "surrogatepass") if binary else part
        note(lambda data=data: file.write(data))
    note(lambda: file.writelines([b"x\n", b"y\r\n"] if binary else ["x\n", "y\r\n"]))
    note(file.flush)
    note(file.tell)
    note(lambda: file.seek(0))
    note(file.read)
    note(lambda: file.write("wrong" if binary else b"wrong"))  # type: ignore[arg-type]
    note(lambda: file.seek(0, os.SEEK_END))
    note(file.tell)
    note(lambda: file.truncate(30))
    note(lambda: getattr(file, "newlines", None))
    return said


@pytest.mark.filterwarnings("ignore:line buffering")
@pytest.mark.parametrize("mode", ALL_MODES)
def test_text_newlines_and_buffering_are_those_of_open(
    tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    number = 0
    differences = []
    binary = "b" in mode
    combinations = itertools.product(ENCODINGS, NEWLINES, BUFFERINGS)
    # "wt" is "w" and needs no more than a look, with a step that has no factor in common with the sizes of the product.
    for (encoding, errors), newline, buffering in itertools.islice(combinations, None, None, 11 if "t" in mode else 1):
        number += 1
        results: list[tuple[object, object]] = []
        old = None if "x" in mode else b"\xff\xfeo\0l\0d\0" if encoding == "utf-16" else b"old\r\nolder\n" * 20
        for opener in (open, atomicio.atomic_write):
            path = str(tmp_path / "target")
            if old is not None:
                write(path, old)
            elif os.path.exists(path):
                os.unlink(path)
            # The one promised difference: text is UTF-8 unless asked otherwise.
            asked = "utf-8" if opener is open and encoding is None and not binary else encoding
            keywords: dict[str, Any] = {} if opener is open else {"durability": "none"}

            arguments = (path, mode, buffering, asked, errors, newline)

            def action(opener: Opener = opener, arguments: Any = arguments, keywords: Any = keywords) -> list[object]:
                with opener(*arguments, **keywords) as file:
                    return conversation(file, binary)

            said = outcome(action)
            content = read(path) if os.path.exists(path) else None
            if isinstance(said, tuple):
                # Refused: open may have truncated or created the file by then; here nothing may have happened.
                content = "untouched" if opener is open or content == old else content
            results.append((said, content))
            assert os.listdir(tmp_path) in ([], ["target"])
        if results[0] != results[1]:
            differences.append(
                f"{mode} {encoding} {errors} newline={newline!r} buffering={buffering}:\n"
                f"  open         {results[0]}\n  atomic_write {results[1]}"
            )
    with capsys.disabled():
        print(f"[{number} combinations]", end=" ")
    assert not differences, report(differences)


@pytest.mark.parametrize("mode", [*ALL_MODES, "rb+", "wb+"])
def test_as_much_is_held_back_as_by_open(tmp_path: Path, mode: str) -> None:
    """The size of the buffer can be seen: in how much of what was written has reached the file."""
    text: Any = b"a" if "b" in mode else "a"
    reached: list[list[int]] = []
    for opener, name in ((open, "plain"), (atomicio.atomic_write, "atomic")):
        if "r" in mode:
            write(tmp_path / name, b"")
        with opener(tmp_path / name, mode) as file:
            sizes = []
            for length in (1000, 3000, 200, 4000, 5000, 8000, 100, 9000, 20_000, 1, 200_000, 100):
                file.write(text * length)
                sizes.append(os.fstat(file.fileno()).st_size)
        reached.append(sizes)
    assert reached[1] == reached[0]


@pytest.mark.parametrize("size", [4000, 5000, 8193])
@pytest.mark.parametrize("mode", ["w+", "a+", "r+", "x+"])
def test_what_is_written_behind_a_truncation_and_read_back(tmp_path: Path, mode: str, size: int) -> None:
    """Before Python 3.13 it depended on the size of the buffer where this ends up."""
    results = []
    for opener, name in ((open, "plain"), (atomicio.atomic_write, "atomic")):
        if "r" in mode:
            write(tmp_path / name, b"")
        with opener(tmp_path / name, mode, encoding="utf-8") as file:
            results.append((file.truncate(1), file.write("z" * size), file.readline(), file.tell()))
    assert results[1] == results[0]
    assert read(tmp_path / "atomic") == read(tmp_path / "plain")


@pytest.mark.parametrize("mode", ["", "q", "rw", "wa", "wx", "w++", "wbt", "bt", "+", "b", "U", "wU", "ww", "w ", "W"])
def test_a_nonsense_mode_is_refused_as_by_open_and_on_the_call(tmp_path: Path, mode: str) -> None:
    with pytest.raises(ValueError):
        open(tmp_path / "plain", mode)
    with pytest.raises(ValueError):
        atomicio.atomic_write(tmp_path / "atomic", mode)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", ["w", "wb", "a", "r+b", "w+"])
def test_the_name_of_the_file_is_the_path_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.chdir(tmp_path)
    write("target", b"old")
    os.symlink("target", "link")
    for path in ("target", "link", str(tmp_path / "target"), tmp_path / "link", b"target"):
        with open(path, mode) as plain:
            expected = plain.name
        with atomicio.atomic_write(path, mode) as file:
            # open says a Path's own object; a consumer needs only what the path is.
            assert os.fspath(file.name) == os.fspath(expected)


# ---------------------------------------------------------------------------------------------------------------------
# Any sequence of operations
# ---------------------------------------------------------------------------------------------------------------------

ALPHABET = st.text("ab\n\r\u00e4\u20ac\U0001f600", max_size=40)
SIZES = st.sampled_from([0, 1, 2, 3, 7, 30, 100, 5000])
SMALL_SETTINGS = settings(
    max_examples=120, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)


class SameAsOpen(RuleBasedStateMachine):
    """One file by ``open`` and one by ``atomic_write``: whatever is done, both answer alike and end alike."""

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.directory = tempfile.mkdtemp(prefix="atomicio-test-")
        self.plain_path = os.path.join(self.directory, "plain")
        self.atomic_path = os.path.join(self.directory, "atomic")
        self.plain: Any = None
        self.old: bytes | None = None

    @initialize(
        mode=st.sampled_from(MODES),
        binary=st.booleans(),
        buffering=st.sampled_from([-1, 0, 1, 5, 64, 4096]),
        encoding=st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8-sig"]),
        newline=st.sampled_from([None, "", "\n", "\r", "\r\n"]),
        old=st.sampled_from([None, b"", b"old", b"line\r\n\xc3\xa4\nend" * 30]),
    )
    def start(
        self, mode: str, binary: bool, buffering: int, encoding: str, newline: str | None, old: bytes | None
    ) -> None:
        if mode.startswith("x"):
            old = None
        elif mode.startswith("r") and old is None:
            old = b""
        self.old = old
        self.binary = binary
        arguments: tuple[Any, ...]
        if binary:
            arguments = (mode + "b", 3 if buffering == 1 else buffering)
        else:
            arguments = (mode, buffering or -1, encoding, "surrogateescape", newline)
        if old is not None:
            write(self.plain_path, old)
            write(self.atomic_path, old)
        self.plain = open(self.plain_path, *arguments)
        self.writer = atomicio.atomic_write(self.atomic_path, *arguments, durability="none")
        self.atomic = self.writer.open()

    def both(self, action: Callable[[Any], object]) -> None:
        def said(file: Any) -> object:
            try:
                return action(file)
            except (OSError, ValueError, TypeError) as error:
                return type(error).__name__, getattr(error, "errno", None)

        expected, got = said(self.plain), said(self.atomic)
        assert got == expected

    @rule(text=ALPHABET)
    def write(self, text: str) -> None:
        self.both(lambda file: file.write(text.encode("utf-8") if self.binary else text))

    @rule(size=SIZES)
    def write_much(self, size: int) -> None:
        self.both(lambda file: file.write(b"z" * size if self.binary else "z" * size))

    @rule(texts=st.lists(ALPHABET, max_size=3))
    def writelines(self, texts: list[str]) -> None:
        self.both(lambda file: file.writelines([t.encode("utf-8") for t in texts] if self.binary else texts))

    @rule()
    def write_the_wrong_type(self) -> None:
        self.both(lambda file: file.write("text" if self.binary else b"bytes"))

    @rule(offset=st.integers(-3, 200), whence=st.sampled_from([0, 0, 0, 1, 2, 9]))
    def seek(self, offset: int, whence: int) -> None:
        if not self.binary and whence in (0, 1) and offset:
            offset = 0  # a text offset that tell did not give may stop inside a character
        self.both(lambda file: file.seek(offset, whence))

    @rule()
    def tell(self) -> None:
        self.both(lambda file: file.tell())

    @rule()
    def remember_and_return(self) -> None:
        def action(file: Any) -> object:
            position = file.tell()
            file.seek(0, os.SEEK_END)
            return position, file.seek(position)

        self.both(action)

    @rule(size=st.integers(-1, 50))
    def read(self, size: int) -> None:
        self.both(lambda file: file.read(size))

    @rule()
    def readline(self) -> None:
        self.both(lambda file: file.readline())

    @rule(size=st.one_of(st.none(), st.integers(-1, 300)))
    def truncate(self, size: int | None) -> None:
        self.both(lambda file: file.truncate(size))

    @rule()
    def flush(self) -> None:
        self.both(lambda file: file.flush())

    @precondition(lambda self: not self.binary)
    @rule(newline=st.sampled_from([None, "\n", "\r\n"]))
    def reconfigure(self, newline: str | None) -> None:
        self.both(lambda file: file.reconfigure(newline=newline, line_buffering=True))

    @rule(really=st.integers(0, 9))
    def close(self, really: int) -> None:
        if really == 0:
            self.both(lambda file: file.close())

    @invariant()
    def until_the_commit_the_old_content_stays(self) -> None:
        if self.plain is not None:
            assert (read(self.atomic_path) if os.path.exists(self.atomic_path) else None) == self.old

    @invariant()
    def both_are_open_or_closed(self) -> None:
        if self.plain is not None:
            assert self.atomic.closed == self.plain.closed

    def teardown(self) -> None:
        try:
            if self.plain is None:
                return
            expected, got = outcome(self.plain.close), outcome(self.writer.commit)
            assert got == expected
            assert read(self.atomic_path) == read(self.plain_path)
            assert sorted(os.listdir(self.directory)) == ["atomic", "plain"]
        finally:
            shutil.rmtree(self.directory)


TestAnySequenceOfOperations = SameAsOpen.TestCase
TestAnySequenceOfOperations.settings = SMALL_SETTINGS


def test_the_oracle_sees_a_difference(tmp_path: Path) -> None:
    """The comparison is worth something only if it finds the faults of the usual temporary file and rename."""
    import tempfile

    class Naive:
        def __init__(self, path: str, mode: str, durability: str) -> None:
            self.path = path
            handle, self.temporary = tempfile.mkstemp(dir=os.path.dirname(path))
            self.file = os.fdopen(handle, "w")

        def __enter__(self) -> IO[str]:
            return self.file

        def __exit__(self, *_: object) -> None:
            self.file.close()
            os.replace(self.temporary, self.path)

    if os.name != "posix":
        pytest.skip("permission bits as POSIX has them")
    atomic_write = atomicio.atomic_write
    try:
        atomicio.atomic_write = Naive  # type: ignore[assignment,misc]
        cases = cases_of("w", "plain", usable(STATES, str(tmp_path)), 13)
        number, differences = compare(cases, str(tmp_path))
    finally:
        atomicio.atomic_write = atomic_write
    assert len({line.split(":")[0] for line in differences}) > number // 2
