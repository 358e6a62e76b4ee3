"""Every operation on the worst file system that is still a legal one (docs/explanation/worst-file-system.rst)."""

import contextlib
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import atomicio
import operations
import sync_sites
import worst_file_system
from atomicio import _syscalls
from operations import in_place
from promises import BLOCK, Scenario, Step, Tree, Unit, text
from sync_sites import Site
from worst_file_system import Recording, newest, oldest, violations

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the rules are those of POSIX systems")

CUTS = 30
#: more where a violation must be found: the search ends with the first
HUNTING_CUTS = 100


def record(folder: Path, scenario: Scenario, monkeypatch: pytest.MonkeyPatch, **options: object) -> Recording:
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    recording = Recording(os.getcwd(), **options)  # type: ignore[arg-type]
    recording.run(scenario)
    return recording


# --- the model itself: each rule makes something possible that the others do not --------------------------------------


def outcomes(folder: Path, steps: list[Callable[[], object]], monkeypatch: pytest.MonkeyPatch) -> list[Tree]:
    """Return what may be found after *steps*, starting from a synced file ``old``."""
    scenario = Scenario(
        "rules",
        "durable",
        lambda: operations.put("old", text(0, 100)),
        {},
        tuple(Step(str(number), step, {}) for number, step in enumerate(steps)),
    )
    last = record(folder, scenario, monkeypatch).points[-1]
    randomness = random.Random(0)
    return [last.disk.after_a_cut(choose) for choose in (oldest, newest, *[randomness.randrange] * 500)]


def sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def put(path: str, content: bytes) -> None:
    operations.put(path, content)


def test_unsynced_content_may_be_old_new_zero_or_mixed(tmp_path, monkeypatch):
    new = text(1, 3 * BLOCK)
    found = outcomes(tmp_path / "d", [lambda: put("old", new)], monkeypatch)
    contents = {tree["old"][1] for tree in found}
    assert {new, text(0, 100)} <= contents
    assert {len(content) for content in contents} == {100, BLOCK, 2 * BLOCK, 3 * BLOCK}
    assert any(content[:BLOCK] == bytes(BLOCK) and content[BLOCK:] == new[BLOCK:] for content in contents)
    assert any(content[:BLOCK] == new[:BLOCK] and content[BLOCK:] == bytes(2 * BLOCK) for content in contents)


def test_synced_content_stays(tmp_path, monkeypatch):
    new = text(1, 3 * BLOCK)
    found = outcomes(tmp_path / "d", [lambda: put("old", new), lambda: sync("old")], monkeypatch)
    assert all(tree == {"old": (0o640, new)} for tree in found)


def test_permission_bits_are_content(tmp_path, monkeypatch):
    found = outcomes(tmp_path / "d", [lambda: os.chmod("old", 0o600)], monkeypatch)
    assert {tree["old"][0] for tree in found} == {0o640, 0o600}


def test_a_name_needs_its_directory_synced(tmp_path, monkeypatch):
    found = outcomes(tmp_path / "d", [lambda: put("new", b"x"), lambda: sync("new")], monkeypatch)
    assert {"new" in tree for tree in found} == {True, False}
    found = outcomes(tmp_path / "e", [lambda: put("new", b"x"), lambda: sync("new"), lambda: sync(".")], monkeypatch)
    assert all(tree["new"] == (0o640, b"x") for tree in found)


def test_syncing_the_directory_alone_leaves_an_empty_file(tmp_path, monkeypatch):
    found = outcomes(tmp_path / "d", [lambda: put("new", b"x"), lambda: sync(".")], monkeypatch)
    assert {tree["new"][1] for tree in found} == {b"", b"x", b"\0"}


def test_names_are_lost_independently(tmp_path, monkeypatch):
    found = outcomes(tmp_path / "d", [lambda: put("a", b""), lambda: put("b", b"")], monkeypatch)
    assert {tuple(name for name in "ab" if name in tree) for tree in found} == {(), ("a",), ("b",), ("a", "b")}


def test_a_removed_name_may_come_back(tmp_path, monkeypatch):
    found = outcomes(tmp_path / "d", [lambda: os.unlink("old")], monkeypatch)
    assert {"old" in tree for tree in found} == {True, False}


def test_a_rename_never_loses_the_file_but_may_leave_both_names(tmp_path, monkeypatch):
    found = outcomes(tmp_path / "d", [lambda: os.mkdir("sub"), lambda: os.rename("old", "moved")], monkeypatch)
    assert {("old" in tree, "moved" in tree) for tree in found} == {(True, False), (True, True), (False, True)}


def test_a_replaced_name_always_has_a_file(tmp_path, monkeypatch):
    found = outcomes(tmp_path / "d", [lambda: put("new", b"x"), lambda: os.rename("new", "old")], monkeypatch)
    assert all("old" in tree for tree in found)


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="no O_TMPFILE on this system")
def test_syncing_a_file_that_has_no_name_does_nothing(tmp_path, monkeypatch):
    def publish(*, sync_first: bool) -> None:
        descriptor = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
        os.write(descriptor, b"x")
        if sync_first:
            os.fsync(descriptor)
        os.link(f"/proc/self/fd/{descriptor}", "new", src_dir_fd=descriptor)
        if not sync_first:
            os.fsync(descriptor)
        os.close(descriptor)
        sync(".")

    probe = tmp_path / "probe"
    probe.mkdir()
    try:
        os.close(os.open(probe, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        pytest.skip("no O_TMPFILE on this file system")
    before = outcomes(tmp_path / "d", [lambda: publish(sync_first=True)], monkeypatch)
    assert (0o640, b"") in [tree["new"] for tree in before]
    after = outcomes(tmp_path / "e", [lambda: publish(sync_first=False)], monkeypatch)
    assert all(tree["new"] == (0o640, b"x") for tree in after)


def test_syncfs_needs_an_fsync_behind_it(tmp_path, monkeypatch):
    def publish() -> None:
        put("new", b"x")
        descriptor = os.open(".", os.O_RDONLY)
        _syscalls.syncfs(descriptor)
        os.close(descriptor)

    found = outcomes(tmp_path / "d", [publish], monkeypatch)
    assert {"new" in tree for tree in found} == {True, False}
    found = outcomes(tmp_path / "e", [publish, lambda: put("other", b"y"), lambda: sync("old")], monkeypatch)
    assert all(tree["new"] == (0o640, b"x") for tree in found)
    assert {"other" in tree for tree in found} == {True, False}, "what came after syncfs is not covered"


# --- the library on it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "level"), [(name, level) for name in operations.LIBRARY for level in operations.levels(name)]
)
def test_the_library_keeps_its_promise(name, level, tmp_path, monkeypatch):
    scenario = operations.scenario(name, level)
    recording = record(tmp_path / "d", scenario, monkeypatch)
    judged, broken = violations(scenario, recording, CUTS, random.Random(0))
    assert judged >= 2 * len(recording.points) > 4
    assert not broken, broken[:5]


MUTATED = [(name, level) for name in operations.LIBRARY for level in operations.levels(name) if level != "none"]
IN_PLACE = [("in_place_backup", level) for level in operations.levels("in_place_backup")]

#: lines that sync and that no operation above can reach, and why
UNREACHED = {
    "_batch.py: _Staging.sync_fully calls sync_file": "macOS: the barrier of a batch",
    "_batch.py: _wait_for_content calls sync_fully": "macOS: the barrier of a batch",
    "_posix.py: sync_file calls fsync": "macOS: the second of two functions of this name",
    "_probe.py: _Trial.file_sync calls sync_file": "a trial: nothing is kept",
    "_probe.py: _Trial.directory_sync calls sync_file": "a trial: nothing is kept",
    "_trees.py: _sync_by_path calls sync_file": "Windows: no calls relative to a directory",
}


def _recording(name: str, level: str, **options: object) -> tuple[Scenario, Recording]:
    if name == "in_place_backup":
        scenario, options["mount_point"] = in_place(level, mount=False, backup=True), "target"
    else:
        scenario = operations.scenario(name, level)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        recording = Recording(os.getcwd(), **options)  # type: ignore[arg-type]
        recording.run(scenario)
    return scenario, recording


def _noticed(name: str, level: str, seed: int, **without: object) -> bool:
    scenario, recording = _recording(name, level, **without)
    return bool(violations(scenario, recording, HUNTING_CUTS, random.Random(seed), first=True)[1])


@pytest.mark.parametrize(("name", "level"), MUTATED)
def test_every_single_sync_is_needed(name, level):
    _, whole = _recording(name, level)
    assert whole.syncs or name in operations.NO_SYNC[level]
    unnoticed = [
        (number, what, sites[0])
        for number, (what, sites) in enumerate(zip(whole.syncs, whole.sites, strict=True))
        if not operations.needless(name, sites) and not _noticed(name, level, number, without_sync=number)
    ]
    assert not unnoticed


_noticed_sites: set[Site] = set()
_tried: set[tuple[str, str]] = set()


@pytest.mark.parametrize(("name", "level"), [*IN_PLACE, *MUTATED])
def test_lines_that_sync_are_left_out(name, level):
    """All the calls that come from one line at once, of the lines that no operation before has shown to be needed."""
    _, whole = _recording(name, level)
    for site in {site for sites in whole.sites for site in sites} - _noticed_sites:
        if _noticed(name, level, 0, without=site):
            _noticed_sites.add(site)
    _tried.add((name, level))


def test_every_line_that_syncs_is_needed():
    """Whichever of the library's calls of a sync somebody deletes, some operation shows it."""
    if _tried != {*IN_PLACE, *MUTATED}:
        pytest.skip("only a part of the operations was tried")
    unnoticed = Counter(str(site) for site in sync_sites.sites() if site not in _noticed_sites)
    assert unnoticed == Counter(UNREACHED.keys())


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("open_w", "consistent"),
        ("tmp_rename_nothing_synced", "consistent"),
        ("tmp_rename_directory_synced", "consistent"),
        ("tmp_rename_file_synced", "durable"),
    ],
)
def test_the_naive_ways_lose_data(name, level, tmp_path, monkeypatch):
    scenario = operations.scenario(name, level)
    _, broken = violations(scenario, record(tmp_path / "d", scenario, monkeypatch), CUTS, random.Random(0))
    assert broken


@pytest.mark.parametrize(
    ("name", "level"), [("tmp_rename_file_synced", "consistent"), ("tmp_rename_both_synced", "durable")]
)
def test_the_careful_way_does_not(name, level, tmp_path, monkeypatch):
    scenario = operations.scenario(name, level)
    _, broken = violations(scenario, record(tmp_path / "d", scenario, monkeypatch), CUTS, random.Random(0))
    assert not broken


@pytest.mark.parametrize("level", ["durable", "consistent"])
def test_writing_in_place_can_lose_the_target_but_not_its_backup(level, tmp_path, monkeypatch):
    recording = record(tmp_path / "d", in_place(level, mount=False), monkeypatch, mount_point="target")
    _, broken = violations(in_place(level, mount=False), recording, CUTS, random.Random(0))
    assert broken, "in place is documented as not atomic: then a cut must be able to show it"
    _, broken = violations(in_place(level, mount=False, backup=True), recording, CUTS, random.Random(0))
    assert not broken, broken[:3]


# --- any sequence of operations ---------------------------------------------------------------------------------------


@dataclass
class World:
    """Files as they are expected to be, and the steps that are to make them so."""

    level: str
    now: dict[str, object]
    steps: list[Step] = field(default_factory=list)

    def add(self, name: str, run: Callable[[], object], **after: object) -> None:
        changed: dict[Unit, object] = {path.replace("__", "/"): value for path, value in after.items()}
        self.now.update(changed)  # type: ignore[arg-type]
        self.steps.append(Step(name, run, changed))


PATHS = ("one", "two", "sub/one")
MODE = 0o640


@st.composite
def worlds(draw: st.DrawFn) -> tuple[str, dict[str, object], list[Step]]:
    level = draw(st.sampled_from(operations.LEVELS))
    before: dict[str, object] = {}
    for version, path in enumerate(PATHS):
        exists = draw(st.booleans())
        before[path] = (MODE, text(100 + version, draw(st.sampled_from((0, 10, 5_000))))) if exists else None
    world = World(level, dict(before))
    for version in range(1, draw(st.integers(1, 5)) + 1):
        path = draw(st.sampled_from(PATHS))
        key = path.replace("/", "__")
        content = text(version, draw(st.sampled_from((0, 1, 4_096, 9_000))))
        old = world.now[path]
        choices = ["write", "bytes"] + (["append", "update", "remove", "copy", "backup"] if old else ["exclusive"])
        match draw(st.sampled_from(choices)):
            case "write":
                world.add("w", lambda p=path, c=content: _write(p, "wb", c, level), **{key: (MODE, content)})
            case "exclusive":
                world.add("x", lambda p=path, c=content: _write(p, "xb", c, level), **{key: (MODE, content)})
            case "append":
                world.add("a", lambda p=path, c=content: _write(p, "ab", c, level), **{key: (MODE, old[1] + content)})
            case "update":
                whole = content + old[1][len(content) :]
                world.add("r+", lambda p=path, c=content: _write(p, "r+b", c, level), **{key: (MODE, whole)})
            case "bytes":
                world.add(
                    "write_bytes",
                    lambda p=path, c=content: atomicio.write_bytes(p, c, durability=level, permissions=MODE),
                    **{key: (MODE, content)},
                )
            case "backup":
                world.add(
                    "backup",
                    lambda p=path, c=content: atomicio.write_bytes(
                        p, c, durability=level, permissions=MODE, backup=".bak"
                    ),
                    **{key: (MODE, content), key + ".bak": old},
                )
            case "remove":
                world.add("remove", lambda p=path: atomicio.remove(p, durability=level), **{key: None})
            case "copy":
                target = draw(st.sampled_from([other for other in PATHS if other != path]))
                world.add(
                    "copy",
                    lambda p=path, t=target: atomicio.copy(p, t, durability=level),
                    **{target.replace("/", "__"): old},
                )
    return level, before, world.steps


def _write(path: str, mode: str, content: bytes, level: str) -> None:
    with atomicio.atomic_write(path, mode, durability=level, permissions=MODE) as file:
        file.write(content)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(world=worlds(), seed=st.integers(0, 2**32))
def test_any_sequence_survives_a_cut_anywhere(world, seed, tmp_path_factory):
    level, before, steps = world

    def setup() -> None:
        os.mkdir("sub")
        for path, value in before.items():
            if value is not None:
                put(path, value[1])

    units = dict(before) | {path + ".bak": None for path in before}
    scenario = Scenario("sequence", level, setup, units, tuple(steps))
    with pytest.MonkeyPatch.context() as patch:
        recording = record(tmp_path_factory.mktemp("sequence"), scenario, patch)
        _, broken = violations(scenario, recording, 10, random.Random(seed))
    assert not broken, broken[:5]
    assert worst_file_system.violations(scenario, recording, 0, random.Random(seed))[0] >= 2 * len(steps)
