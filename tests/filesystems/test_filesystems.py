"""The library on the file systems that people have: what it promises everywhere, and that it fails cleanly where it
must.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import places
import pytest
from promises_kept import NEW, OLD, PROMISES, TEMPORARY, get, outcome, put

import atomicio
import mounts
from patched_os import patched_os

pytestmark = pytest.mark.usefixtures("private_mounts", "elsewhere")

_made: dict[str, str] = {}


@pytest.fixture(scope="module", params=places.PLACES, ids=lambda place: place.name)
def place(request, private_mounts) -> Iterator[tuple[places.Place, str]]:
    with _enter(request.param.make, private_mounts) as where:
        yield request.param, where


@contextlib.contextmanager
def _enter(make: Callable[[str], contextlib.AbstractContextManager[str]], private_mounts) -> Iterator[str]:
    with contextlib.ExitStack() as stack:
        try:
            where = stack.enter_context(make(tempfile.mkdtemp(dir=private_mounts)))
        except places.Missing as missing:
            pytest.skip(str(missing))
        yield where


@pytest.fixture
def folder(place, request) -> str:
    """Go to a fresh folder of the place."""
    path = os.path.join(place[1], f"test{len(_made)}")
    _made[path] = request.node.name
    os.mkdir(path)
    os.chdir(path)
    return path


@pytest.mark.parametrize("promise", PROMISES)
def test_what_is_promised_everywhere(place, promise, folder, table):
    found = outcome(PROMISES[promise])
    table.setdefault(place[0].name, {})[promise] = found
    expected = place[0].differs.get(promise, "holds")
    if promise == "readers" and expected != "holds":  # such a moment need not be hit in every run
        assert found in ("holds", expected)
    else:
        assert found == expected


# --- every call fails -------------------------------------------------------------------------------------------------

_CALLS = (
    "open",
    "write",
    "fchmod",
    "fchown",
    "setxattr",
    "link",
    "fsync",
    "close",
    "rename",
    "copy_file_range",
    "ftruncate",
)
_FAULTS = (errno.EIO, errno.ENOSPC, errno.EACCES)


class _Faults:
    """Counts the calls that the library makes, and lets one of them fail, once or from then on."""

    def __init__(self, fail_at: int | None = None, code: int = 0, *, for_ever: bool = False) -> None:
        self.made: list[str] = []
        self._fail_at, self._code, self._for_ever = fail_at, code, for_ever

    def functions(self) -> dict[str, Callable[..., object]]:
        return {name: self._wrap(name) for name in _CALLS if hasattr(os, name)}

    def _wrap(self, name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*arguments: object, **named: object) -> object:
            number = len(self.made)
            self.made.append(name)
            if self._fail_at is not None and (number == self._fail_at or (self._for_ever and number > self._fail_at)):
                if name == "close":  # Linux closes the descriptor all the same: close(2)
                    real(*arguments, **named)
                raise OSError(self._code, os.strerror(self._code))
            return real(*arguments, **named)

        return call


def _write() -> None:
    atomicio.write_bytes("f", NEW)


def _append() -> None:
    with atomicio.atomic_write("f", "ab") as file:
        file.write(NEW)


def _create() -> None:
    with atomicio.atomic_write("g", "xb") as file:
        file.write(NEW)


OPERATIONS = {
    "write_bytes": (_write, "f", OLD, NEW),
    "a": (_append, "f", OLD, OLD + NEW),
    "x": (_create, "g", None, NEW),
}


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_call_fails(place, operation, folder, record_property):
    """Once and for ever: old or new, the exception says which, nothing is left, no descriptor leaks."""
    run, target, before, after = OPERATIONS[operation]
    if operation == "x" and place[0].differs.get("exclusive"):
        pytest.skip("x is refused here: see the table")

    def start() -> None:
        for name in os.listdir("."):
            os.unlink(name)
        put("f")

    start()
    counted = _Faults()
    with patched_os(counted.functions()):
        run()
    runs = 0
    for number, name in enumerate(counted.made):
        for code in _FAULTS:
            for for_ever in (False, True):
                start()
                descriptors = _descriptors()
                faults = _Faults(number, code, for_ever=for_ever)
                what = f"{name} (call {number}) {errno.errorcode[code]} {'for ever' if for_ever else 'once'}"
                try:
                    with patched_os(faults.functions()):
                        run()
                except OSError as error:
                    content = get(target) if os.path.exists(target) else None
                    if error.committed:  # type: ignore[attr-defined]
                        assert content == after, what
                    else:
                        assert content == before, what
                else:
                    assert get(target) == after, what
                assert _descriptors() == descriptors, what
                assert set(os.listdir(".")) <= {"f", target}, what
                runs += 1
    assert runs >= 6 * 5
    record_property("faults", runs)


# --- the other suites, there -------------------------------------------------------------------------------------------

_KERNEL = [
    *(places.Place(name, places.block(name, megabytes=512)) for name in ("ext4", "xfs", "btrfs")),
    *(place for place in places.PLACES if place.name.startswith(("tmpfs", "overlayfs"))),
]
#: these refuse the same as another place, with another errno: the promises above are tried on them too
_TWINS = {
    "our FUSE, no directory fsync (ENOTSUP)",
    "our FUSE, no hard links (ENOTSUP)",
    "our FUSE, no O_TMPFILE (EINVAL)",
    "our FUSE, no chmod (ENOTSUP)",
    "our FUSE, no xattrs (EPERM)",
}
_FUSE = [place for place in places.PLACES if place.name not in {kernel.name for kernel in _KERNEL} | _TWINS]
#: the suite of faults sets modes itself
_NO_MODES = "our FUSE, no chmod (EPERM)"
_TESTS = os.path.dirname(places.HERE)
#: those that a file system can make fail; the others try what is above it
_FUNCTIONAL = ("writer", "metadata", "symlinks", "verbs", "batch", "order")


def _run_there(place: places.Place, private_mounts, arguments: list[str]) -> tuple[dict[str, dict[str, str]], str]:
    """Run tests of another suite in a folder of the place, in a process of its own; return the outcomes and the output."""
    with _enter(place.make, private_mounts) as where:
        _let_others_in(where, private_mounts)
        base = tempfile.mkdtemp(dir=private_mounts)
        found = os.path.join(base, "found")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "there", f"--basetemp={base}/tests"]
        environment = {**os.environ, "PYTHONPATH": places.HERE, "ATOMICIO_THERE": where, "ATOMICIO_FOUND": found}
        die = functools.partial(mounts.die_with_parent, os.getpid())
        options = {"cwd": os.path.dirname(_TESTS), "preexec_fn": die, "env": environment}
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, errors="replace", **options)  # type: ignore[call-overload]
        assert os.path.exists(found), done.stdout[-4000:] + done.stderr[-2000:]
        with open(found) as file:
            return json.load(file), done.stdout


def _let_others_in(path: str, up_to: os.PathLike[str]) -> None:
    """Some tests become an ordinary user."""
    while path != os.path.dirname(up_to):
        with contextlib.suppress(OSError):  # the place itself may know no modes
            os.chmod(path, 0o755)
        path = os.path.dirname(path)


def _lacking(place: places.Place, failed: dict[str, str]) -> dict[str, int]:
    """Return how many tests cannot hold at the place, by what it lacks; every other failure is one, and so is a lack not seen."""
    unexpected, reasons, seen = {}, {}, set()
    for test, words in failed.items():
        for pattern, reason in place.lacks.items():
            if re.search(pattern, test):
                reasons[reason] = reasons.get(reason, 0) + 1
                seen.add(pattern)
                break
        else:
            unexpected[test] = words
    assert not unexpected, "\n".join(f"{test}\n{words[-1500:]}" for test, words in unexpected.items())
    assert {pattern for pattern in place.lacks if pattern not in places.MAY_HOLD} <= seen, "some of what is lacking is there"
    return reasons


@pytest.mark.parametrize("place", [*_KERNEL, *_FUSE], ids=lambda place: place.name)
def test_the_functional_tests(place, private_mounts, table):
    # A signal that has to come at the right moment is a matter of the interpreter, and of how busy the machine is. Ten thousand
    # files are a matter of the library's descriptors, and take a FUSE program long.
    left_out = "ctrl_c" if place in _KERNEL else "ctrl_c or ten_thousand"
    files = [os.path.join(_TESTS, f"test_{name}.py") for name in _FUNCTIONAL]
    found, _ = _run_there(place, private_mounts, [*files, "-k", f"not ({left_out})"])
    reasons = _lacking(place, found["failed"])
    assert len(found["passed"]) > 400
    lacking = ", ".join(f"{reason} {number}" for reason, number in reasons.items())
    words = f", {sum(reasons.values())} cannot hold ({lacking})" if reasons else ""
    table.setdefault(place.name, {})["functional tests"] = f"{len(found['passed'])} passed{words}"


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(
    "place", [place for place in (*_KERNEL, *_FUSE) if place.name != _NO_MODES], ids=lambda place: place.name
)
def test_every_system_call_fails(place, private_mounts, table):
    """The suite of ``tox run -e faults``, some of its operations: each error once and for ever, a kill, Ctrl-C."""
    matrix = os.path.join(_TESTS, "faults", "test_matrix.py")
    staging, exclusive = place.staging
    names = [f"write_bytes-old-durable-{staging}", f"x-durable-{exclusive}", f"r+-{staging}"]
    found, output = _run_there(place, private_mounts, [f"{matrix}::test_every_call_fails[{name}]" for name in names])
    assert not found["failed"], "\n".join(words[-3000:] for words in found["failed"].values())
    assert len(found["passed"]) == len(names)
    runs = re.search(r"(\d+) runs with a fault", output)
    assert runs
    assert int(runs[1]) > 400
    table.setdefault(place.name, {})["system calls that fail"] = f"{runs[1]} runs, nothing broken"


# --- places that take nothing -----------------------------------------------------------------------------------------


def _every_way() -> dict[str, Callable[[], object]]:
    return {
        "durable": lambda: atomicio.write_bytes("f", NEW * 40),
        "consistent": lambda: atomicio.write_bytes("f", NEW * 40, durability="consistent"),
        "none": lambda: atomicio.write_bytes("f", NEW * 40, durability="none"),
        "unbuffered": lambda: _unbuffered("f"),
        "a": lambda: _add("ab"),
        "r+": lambda: _add("r+b"),
        "x": lambda: _new("new"),
        "create": lambda: atomicio.write_bytes("new", NEW * 40),
        "backup": lambda: atomicio.write_bytes("f", NEW * 40, backup=".bak"),
        "atomic_path": _by_path,
    }


def _unbuffered(path: str) -> None:
    with atomicio.atomic_write(path, "wb", buffering=0) as file:
        file.write(NEW * 40)


def _add(mode: str) -> None:
    with atomicio.atomic_write("f", mode) as file:
        file.write(NEW * 40)


def _new(path: str) -> None:
    with atomicio.atomic_write(path, "xb") as file:
        file.write(NEW * 40)


def _by_path() -> None:
    with atomicio.atomic_path("f") as staging:
        put(staging, NEW * 40)


def _refused_everywhere(codes: set[int], ways: dict[str, Callable[[], object]]) -> None:
    """Every way of writing ends with one of *codes*; the old file is there, and nothing else."""
    before = {name: get(name) for name in os.listdir(".") if os.path.isfile(name)}
    for way, run in ways.items():
        descriptors = _descriptors()
        with pytest.raises(OSError) as caught:
            run()
        assert caught.value.errno in codes, way
        if hasattr(caught.value, "committed"):
            assert caught.value.committed is False, way
        else:
            assert way == "atomic_path", "only the caller's own write to the lent path may fail by itself"
        assert {name: get(name) for name in os.listdir(".") if os.path.isfile(name)} == before, way
        assert _descriptors() == descriptors, way


def test_a_full_disk(private_mounts, table):
    with _enter(lambda folder: places.tmpfs(folder, "size=1m"), private_mounts) as where:
        os.chdir(where)
        put("f")
        _refused_everywhere({errno.ENOSPC}, _every_way())
        table["a full disk"] = {"every way of writing": "refused: ENOSPC, untouched"}
        os.chdir("/")


@pytest.mark.parametrize("name", ["ext4", "xfs", "btrfs"])
def test_a_full_disk_that_allocates_late(name, private_mounts, table):
    """ext4, xfs and btrfs find out at write or at fsync that the disk is full."""
    with _enter(places.block(name), private_mounts) as where:
        os.chdir(where)
        put("f")
        os.sync()
        with open("ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(bytes(1 << 20)):
                pass
        os.sync()
        with open("ballast", "ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(bytes(4096)):
                pass
        before = get("f")
        ways = _every_way()
        del ways["backup"]  # its link fits; what then fails is the same write as the others'
        for way, run in ways.items():
            with pytest.raises(OSError) as caught:
                run()
            assert caught.value.errno == errno.ENOSPC, way
            assert get("f") == before, way
            assert set(os.listdir(".")) <= {"f", "ballast", "lost+found"}, way
        table[f"a full {name}"] = {"every way of writing": "refused: ENOSPC, untouched"}
        os.chdir("/")


def test_a_quota(private_mounts, table):
    with _enter(places.btrfs_quota, private_mounts) as where:
        os.chdir(where)
        put("f")
        os.sync()
        _refused_everywhere({errno.EDQUOT}, {name: way for name, way in _every_way().items() if name != "backup"})
        table["a quota (btrfs)"] = {"every way of writing": "refused: EDQUOT, untouched"}
        os.chdir("/")


def test_a_full_inode_table(private_mounts, table):
    with _enter(places.few_inodes, private_mounts) as where:
        os.chdir(where)
        put("f")
        number = 0
        with contextlib.suppress(OSError):
            while True:
                put(f"ballast{number}", b"")
                number += 1
        _refused_everywhere({errno.ENOSPC}, _every_way())
        table["a full inode table (ext4)"] = {"every way of writing": "refused: ENOSPC, untouched"}
        os.chdir("/")


def test_a_read_only_mount(private_mounts, table):
    with _enter(places.tmpfs, private_mounts) as where:
        os.chdir(where)
        put("f")
        os.chdir("/")
        mounts.mount("none", where, None, "remount,ro")
        os.chdir(where)
        _refused_everywhere({errno.EROFS}, _every_way())
        with pytest.raises(OSError) as caught:
            atomicio.write_bytes("f", NEW, fallback="in-place")
        assert caught.value.errno == errno.EROFS
        assert get("f") == OLD
        table["a read-only mount"] = {"every way of writing": "refused: EROFS, untouched"}
        os.chdir("/")


# --- targets and directories that refuse one thing --------------------------------------------------------------------


def _in_place_works() -> None:
    atomicio.write_bytes("f", NEW, fallback="in-place")
    assert get("f") == NEW
    assert [name for name in os.listdir(".") if TEMPORARY.fullmatch(name)] == []


def test_a_file_bind_mounted_over_the_target(private_mounts, table):
    with _enter(places.tmpfs, private_mounts) as where:
        os.chdir(where)
        put("f")
        put("outside")
        with mounts.mounted("outside", "f", None, "bind"):
            for way in ("durable", "consistent", "none", "a", "r+", "backup", "atomic_path"):
                with pytest.raises(atomicio.UnreplaceableTargetError, match="in-place") as caught:
                    _every_way()[way]()
                assert (caught.value.errno, caught.value.committed) == (errno.EBUSY, False), way
                assert get("f") == OLD, way
                assert set(os.listdir(".")) <= {"f", "outside", "f.bak"}, way
            _in_place_works()
            assert get("outside") == NEW
        table["a file bind-mounted over the target"] = {
            "replacing": "refused: UnreplaceableTargetError EBUSY, untouched",
            "fallback='in-place'": "holds",
        }
        os.chdir("/")


@pytest.mark.parametrize(
    "refusal", ["rename-over=EBUSY", "rename-over=EPERM", "rename=EPERM", "rename=EACCES", "rename=EXDEV"]
)
def test_no_rename(refusal, private_mounts, table):
    with _enter(places.refusing(refusal), private_mounts) as where:
        os.chdir(where)
        put("f")
        for way in ("durable", "consistent", "none", "a", "r+", "atomic_path"):
            with pytest.raises(atomicio.UnreplaceableTargetError) as caught:
                _every_way()[way]()
            assert caught.value.errno == getattr(errno, refusal.partition("=")[2]), way
            assert caught.value.committed is False
            assert get("f") == OLD, way
            assert os.listdir(".") == ["f"], way
        _in_place_works()
        feature, code = refusal.replace("-", " ").split("=")
        table[f"our FUSE, no {feature} ({code})"] = {
            "replacing": f"refused: UnreplaceableTargetError {code}, untouched",
            "fallback='in-place'": "holds",
        }
        os.chdir("/")


@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "EDQUOT"])
def test_a_directory_that_cannot_be_synced_for_real(code, private_mounts, table):
    """Unlike EINVAL and its kin, which say that there is nothing to sync, these errors are reported: the rename has
    happened.
    """
    with _enter(places.refusing(f"directory-fsync={code}"), private_mounts) as where:
        os.chdir(where)
        for content in (OLD, NEW):  # creating, then replacing
            with pytest.raises(atomicio.NotDurableError) as caught:
                atomicio.write_bytes("f", content)
            assert (caught.value.errno, caught.value.committed) == (getattr(errno, code), True)
            assert get("f") == content
            assert os.listdir(".") == ["f"]
        atomicio.write_bytes("f", OLD, durability="consistent")
        assert get("f") == OLD
        table[f"our FUSE, directory fsync fails ({code})"] = {
            "durable": f"NotDurableError {code}, committed",
            "consistent, none": "holds",
        }
        os.chdir("/")


@pytest.mark.parametrize("code", ["EIO", "ENOSPC", "EDQUOT", "EINVAL"])
def test_a_file_that_cannot_be_synced(code, private_mounts, table):
    """EINVAL as well: a level that cannot be kept is not silently lowered."""
    with _enter(places.refusing(f"fsync={code}"), private_mounts) as where:
        os.chdir(where)
        put("f")
        for level in ("durable", "consistent"):
            with pytest.raises(OSError) as caught:
                atomicio.write_bytes("f", NEW, durability=level)
            assert (caught.value.errno, caught.value.committed) == (getattr(errno, code), False)
            assert get("f") == OLD
            assert os.listdir(".") == ["f"]
        atomicio.write_bytes("f", NEW, durability="none")
        assert get("f") == NEW
        table[f"our FUSE, fsync fails ({code})"] = {
            "durable, consistent": f"refused: {code}, untouched",
            "none": "holds",
        }
        os.chdir("/")


@pytest.mark.parametrize("layer", ["below/f", "f"])
def test_files_of_the_lower_layer(layer, private_mounts, table):
    """Overlays, as in containers: the first write to a file of the image copies it up."""
    with _enter(places.tmpfs, private_mounts) as ram:
        lower, upper, work, merged = (os.path.join(ram, name) for name in ("lower", "upper", "work", "merged"))
        for path in (lower, upper, work, merged, os.path.join(lower, "below")):
            os.mkdir(path)
        put(os.path.join(lower, layer))
        os.chmod(os.path.join(lower, layer), 0o640)
        with mounts.mounted("none", merged, "overlay", f"lowerdir={lower},upperdir={upper},workdir={work}"):
            os.chdir(os.path.dirname(os.path.join(merged, layer)))
            for mode, expected in (("ab", OLD + NEW), ("wb", NEW), ("r+b", NEW)):
                with atomicio.atomic_write("f", mode, backup=".bak") as file:
                    file.write(NEW)
                assert get("f") == expected
                assert os.stat("f").st_mode & 0o777 == 0o640
            assert {"f", "f.bak"} <= set(os.listdir(".")) <= {"f", "f.bak", "below"}
            assert get(os.path.join(lower, layer)) == OLD
            os.chdir("/")
        assert get(os.path.join(upper, layer)) == NEW
    table.setdefault("overlayfs, files of the lower layer", {})[
        layer.replace("below/f", "in its directory").replace("f", "merged")
    ] = "holds"


def test_directories_of_the_lower_layer(private_mounts, table):
    """Neither exchange nor rename moves a directory of the lower layer (EXDEV, without redirect_dir): it is copied and removed."""
    with _enter(places.tmpfs, private_mounts) as ram:
        lower, upper, work, merged = (os.path.join(ram, name) for name in ("lower", "upper", "work", "merged"))
        for path in (lower, upper, work, merged, os.path.join(lower, "site")):
            os.mkdir(path)
        put(os.path.join(lower, "site", "page"))
        with mounts.mounted("none", merged, "overlay", f"lowerdir={lower},upperdir={upper},workdir={work}"):
            os.chdir(merged)
            found = outcome(_replace_site)
            assert get("site/page") == NEW
            assert get("site.bak/page") == OLD
            assert sorted(os.listdir(".")) == ["site", "site.bak"]
            os.chdir("/")
    table.setdefault("overlayfs, files of the lower layer", {})["a whole directory"] = found
    assert found == "copied first, with a gap"


def _replace_site() -> str:
    with pytest.raises(atomicio.UnreplaceableTargetError), atomicio.atomic_directory("site", fallback="raise"):
        pass
    with atomicio.atomic_directory("site", backup=".bak") as staging:
        put(os.path.join(staging, "page"), NEW)
    return "copied first, with a gap"
