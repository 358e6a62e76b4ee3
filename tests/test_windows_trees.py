"""More than one file on Windows: directories, batches, the durable verbs, cleaning up, and what `probe` finds there.

The same promises as elsewhere, reached by other means: directories change places in two renames, whoever has a file open is in the
way of a rename or a removal, and what a process has open cannot be removed, which is how leftovers are told from work.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

import atomicio
from atomicio import _clean

if sys.platform != "win32":
    pytest.skip("Windows only: run under Wine by `tox run -e wine`", allow_module_level=True)

OPEN_PLAINLY = "file = open(path, 'rb')"
OPEN_SHARED = "import atomicio; file = atomicio.open_shared(path, 'rb')"


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "import sys, os; path = sys.argv[1]\n" + program, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, **pipes)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=150)
    return output


@contextmanager
def held(path: Path, how: str) -> Iterator[None]:
    """Another process has *path* open."""
    process = run(f"{how}\nprint('held', flush=True)\nsys.stdin.read()", path)
    try:
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        finish(process)


@contextmanager
def held_for_a_moment(path: Path) -> Iterator[None]:
    process = run(f"{OPEN_PLAINLY}\nprint('held', flush=True)\nimport time; time.sleep(0.5)", path)
    assert process.stdout.readline() == "held\n"
    # Half a second can be many on a busy machine.
    with mock.patch.object(atomicio.AtomicWriter, "busy_timeout", 60.0):
        yield
    finish(process)


def tree(directory: Path) -> dict[str, str | None]:
    found = sorted(directory.rglob("*"))
    return {
        path.relative_to(directory).as_posix(): None if path.is_dir() else path.read_text(encoding="utf-8")
        for path in found
    }


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomicio.AtomicWriter, "busy_timeout", 0.2)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    (site / "sub").mkdir(parents=True)
    (site / "old").write_text("old")
    (site / "sub" / "deep").write_text("old")
    return site


OLD = {"old": "old", "sub": None, "sub/deep": "old"}
NEW = {"new": "new", "other": None, "other/deep": "new"}


def fill(staging: str | Path) -> None:
    Path(staging, "other").mkdir()
    Path(staging, "new").write_text("new")
    Path(staging, "other", "deep").write_text("new")


class TestDirectory:
    @pytest.mark.parametrize("durability", ["none", "consistent", "durable"])
    def test_created(self, tmp_path: Path, durability) -> None:
        with atomicio.atomic_directory(tmp_path / "site", durability=durability) as staging:
            fill(staging)
            assert not (tmp_path / "site").exists()
        assert tree(tmp_path / "site") == NEW
        assert names(tmp_path) == ["site"]

    @pytest.mark.parametrize("durability", ["none", "consistent", "durable"])
    def test_replaced(self, site: Path, durability) -> None:
        with atomicio.atomic_directory(site, durability=durability) as staging:
            fill(staging)
            assert tree(site) == OLD
        assert tree(site) == NEW
        assert names(site.parent) == ["site"]

    @pytest.mark.parametrize("end", ["\\", "/", "\\\\", "\\.", "."])
    def test_named_in_other_ways(self, site: Path, end: str) -> None:
        with atomicio.atomic_directory(f"{site}{end}") as staging:
            fill(staging)
        assert tree(site) == NEW
        assert names(site.parent) == ["site"]

    def test_upper_and_lower_case_stay_as_they_are(self, site: Path) -> None:
        with atomicio.atomic_directory(site.with_name("SITE")) as staging:
            fill(staging)
        assert names(site.parent) == ["site"]
        assert tree(site) == NEW

    def test_left_alone_by_an_exception(self, site: Path) -> None:
        with pytest.raises(ZeroDivisionError), atomicio.atomic_directory(site) as staging:
            fill(staging)
            1 / 0  # noqa: B018
        assert tree(site) == OLD
        assert names(site.parent) == ["site"]

    def test_kept_as_a_backup(self, site: Path) -> None:
        for _ in range(2):
            with atomicio.atomic_directory(site, backup=".bak") as staging:
                fill(staging)
        assert tree(site) == NEW
        assert tree(site.with_name("site.bak")) == NEW
        assert names(site.parent) == ["site", "site.bak"]

    def test_with_read_only_files_in_the_old_and_in_the_new_tree(self, site: Path) -> None:
        (site / "old").chmod(stat.S_IREAD)
        with atomicio.atomic_directory(site) as staging:
            fill(staging)
            Path(staging, "new").chmod(stat.S_IREAD)
        assert tree(site) == NEW
        assert not (site / "new").stat().st_mode & stat.S_IWRITE
        assert names(site.parent) == ["site"]
        os.chmod(site / "new", stat.S_IREAD | stat.S_IWRITE)  # Path.chmod opens the file, which Wine refuses

    def test_below_a_long_path(self, tmp_path: Path) -> None:
        parent = str(tmp_path) + ("\\" + "d" * 60) * 4
        for _ in range(2):
            with atomicio.atomic_directory(parent + "\\site", make_parents=True) as staging:
                assert os.listdir(staging) == []
                Path(staging, "new").write_text("new")
        assert os.listdir("\\\\?\\" + parent) == ["site"]
        assert os.listdir("\\\\?\\" + parent + "\\site") == ["new"]

    def test_missing_parent_and_file_in_the_way(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            atomicio.atomic_directory(tmp_path / "missing" / "site").open()
        (tmp_path / "file").write_text("old")
        with pytest.raises(NotADirectoryError):
            atomicio.atomic_directory(tmp_path / "file").open()
        assert names(tmp_path) == ["file"]

    def test_two_renames_are_refused_where_they_are_not_wanted(self, site: Path) -> None:
        with pytest.raises(atomicio.UnreplaceableTargetError) as caught:
            with atomicio.atomic_directory(site, fallback="raise") as staging:
                fill(staging)
        assert caught.value.committed is False
        assert tree(site) == OLD
        assert names(site.parent) == ["site"]

    @pytest.mark.parametrize("how", [OPEN_PLAINLY, OPEN_SHARED])
    def test_with_a_file_open_elsewhere_is_replaced_or_refused_whole(self, site: Path, impatient, how: str) -> None:
        """Windows refuses to rename a directory in which anything is open; Wine does not. Either way it is old or new, whole."""
        with held(site / "old", how):
            try:
                with pytest.warns() as warned, atomicio.atomic_directory(site) as staging:
                    fill(staging)
            except OSError as error:
                assert error.committed is False
                assert tree(site) == OLD
                assert names(site.parent) == ["site"]
                return
            except pytest.fail.Exception:
                pass  # nothing was left that one would be warned about
            else:
                assert "could not be removed" in str(warned[0].message)
            assert tree(site) == NEW

    def test_with_a_file_open_for_a_moment_is_replaced(self, site: Path) -> None:
        with held_for_a_moment(site / "old"), atomicio.atomic_directory(site) as staging:
            fill(staging)
        assert tree(site) == NEW
        assert names(site.parent) == ["site"]

    def test_writers_take_turns(self, tmp_path: Path) -> None:
        program = """
import atomicio
for _ in range(3):
    with atomicio.atomic_directory(path, lock=True, durability='none') as staging:
        for name in 'abc':
            with open(os.path.join(staging, name), 'w') as file: file.write(sys.argv[2])
"""
        writers = [run(program, tmp_path / "site", who) for who in "123"]
        assert [finish(writer) for writer in writers] == [""] * 3
        content = tree(tmp_path / "site")
        assert set(content) == {"a", "b", "c"}
        assert len(set(content.values())) == 1
        assert [name for name in names(tmp_path) if name != "site.lock"] == ["site"]


# A process that ends, or is stopped to be killed, at a rename of its choice.
KILLED = """
import atomicio
rename, count = os.rename, 0
def die(source, target, **options):
    global count
    count += 1
    if count == {number}:
        {stop}
    rename(source, target, **options)
os.rename = die
with atomicio.atomic_directory(path, backup={backup!r}) as staging:
    with open(os.path.join(staging, 'new'), 'w') as file: file.write('new')
print('end', flush=True)
"""


class TestDirectoryAfterADeath:
    """Whichever rename is the last: old or new is found, whole, by `recover` and by the next writer."""

    @pytest.mark.parametrize("backup", [None, ".bak"])
    @pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6])
    @pytest.mark.parametrize("how", ["recover", "write"])
    def test_before_a_rename(self, site: Path, number: int, how: str, backup: str | None) -> None:
        process = run(KILLED.format(number=number, stop="os._exit(9)", backup=backup), site)
        output = finish(process)
        assert output in ("", "end\n")
        assert bool(output) is (process.returncode == 0)
        if how == "write":
            with atomicio.atomic_directory(site) as staging:
                fill(staging)
            assert tree(site) == NEW
        else:
            command = [sys.executable, "-m", "atomicio", "recover", str(site)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert tree(site) in (OLD, {"new": "new"})
            if tree(site) != OLD and backup is not None:
                copies = [name for name in names(site.parent) if name.endswith((".bak", ".backup"))]
                assert [tree(site.parent / name) for name in copies] == [OLD]
        assert not [name for name in names(site.parent) if name.endswith(".recover")]

    def test_killed_from_outside_in_the_gap(self, site: Path) -> None:
        process = run(KILLED.format(number=3, stop="print('gap', flush=True); sys.stdin.read()", backup=None), site)
        assert process.stdout.readline() == "gap\n"
        assert not site.exists()
        process.kill()
        finish(process)
        with atomicio.atomic_directory(site) as staging:
            assert tree(site) == OLD
            fill(staging)
        assert tree(site) == NEW


class TestBatch:
    def test_files_are_replaced_and_created_together(self, tmp_path: Path) -> None:
        (tmp_path / "one").write_text("old")
        with atomicio.batch() as batch:
            batch.write_text(tmp_path / "one", "new")
            batch.write_text(tmp_path / "two", "new")
            with batch.atomic_write(tmp_path / "three", "x") as file:
                file.write("new")
            assert (tmp_path / "one").read_text() == "old"
        assert tree(tmp_path) == {"one": "new", "two": "new", "three": "new"}

    def test_a_file_that_is_open_elsewhere_stops_it_and_is_told(self, tmp_path: Path, impatient) -> None:
        for name in ("one", "two", "three"):
            (tmp_path / name).write_text("old")
        with held(tmp_path / "two", OPEN_PLAINLY):
            with pytest.raises(OSError) as caught, atomicio.batch() as batch:
                for name in ("one", "two", "three"):
                    batch.write_text(tmp_path / name, "new")
        committed = {os.path.basename(path) for path in batch.committed_paths}
        assert "two" not in committed
        assert caught.value.committed is bool(committed)
        assert tree(tmp_path) == {name: "new" if name in committed else "old" for name in ("one", "two", "three")}

    def test_a_shared_reader_is_in_nobodys_way(self, tmp_path: Path) -> None:
        (tmp_path / "one").write_text("old")
        with atomicio.open_shared(tmp_path / "one") as reader:
            with atomicio.batch() as batch:
                batch.write_text(tmp_path / "one", "new")
            assert reader.read() == "old"
        assert tree(tmp_path) == {"one": "new"}


class TestVerbs:
    def test_replace_over_a_file_that_is_open_for_a_moment(self, tmp_path: Path) -> None:
        (tmp_path / "target").write_text("old")
        (tmp_path / "source").write_text("new")
        with held_for_a_moment(tmp_path / "target"):
            atomicio.replace(tmp_path / "source", tmp_path / "target")
        assert tree(tmp_path) == {"target": "new"}

    def test_replace_over_a_file_that_is_open_is_refused_after_the_timeout(self, tmp_path: Path, impatient) -> None:
        (tmp_path / "target").write_text("old")
        (tmp_path / "source").write_text("new")
        with held(tmp_path / "target", OPEN_PLAINLY):
            start = time.monotonic()
            with pytest.raises(PermissionError) as caught:
                atomicio.replace(tmp_path / "source", tmp_path / "target")
            assert time.monotonic() - start >= 0.19  # floats are rounded
        assert caught.value.committed is False
        assert tree(tmp_path) == {"source": "new", "target": "old"}

    def test_remove_what_is_open_for_a_moment(self, tmp_path: Path) -> None:
        (tmp_path / "target").write_text("old")
        with held_for_a_moment(tmp_path / "target"):
            atomicio.remove(tmp_path / "target")
        assert names(tmp_path) == []

    def test_remove_what_is_open_is_refused_after_the_timeout(self, tmp_path: Path, impatient) -> None:
        (tmp_path / "target").write_text("old")
        with held(tmp_path / "target", OPEN_PLAINLY):
            with pytest.raises(PermissionError) as caught:
                atomicio.remove(tmp_path / "target")
            assert caught.value.committed is False
        assert tree(tmp_path) == {"target": "old"}

    def test_directories_are_renamed_and_named_with_a_separator_at_the_end(self, site: Path) -> None:
        for end in ("\\", "/"):
            atomicio.replace(f"{site}{end}", f"{site}2{end}")
            atomicio.replace(f"{site}2", site)
        assert tree(site) == OLD
        atomicio.makedirs(f"{site}\\a\\b\\", exist_ok=False)
        atomicio.makedirs(f"{site}/a/b/", exist_ok=True)
        assert (site / "a" / "b").is_dir()
        with pytest.raises(IsADirectoryError):
            atomicio.remove(site)

    def test_copy(self, tmp_path: Path) -> None:
        (tmp_path / "source").write_bytes(b"new\r\n" * 300_000)
        seen: list[int] = []
        atomicio.copy(tmp_path / "source", tmp_path / "target", progress=lambda done, total: seen.append(done))
        assert (tmp_path / "target").read_bytes() == b"new\r\n" * 300_000
        assert seen[-1] == 1_500_000
        (tmp_path / "source").chmod(stat.S_IREAD)
        atomicio.copy(tmp_path / "source", tmp_path / "target")
        assert (tmp_path / "target").stat().st_mode & stat.S_IWRITE
        os.chmod(tmp_path / "source", stat.S_IREAD | stat.S_IWRITE)

    def test_long_paths(self, tmp_path: Path) -> None:
        parent = str(tmp_path) + ("\\" + "d" * 60) * 4
        atomicio.makedirs(parent)
        atomicio.write_text(parent + "\\source", "new")
        atomicio.copy(parent + "\\source", parent + "\\copy")
        atomicio.replace(parent + "\\source", parent + "\\target")
        atomicio.remove(parent + "\\copy")
        assert os.listdir("\\\\?\\" + parent) == ["target"]


class TestClean:
    def clean(self, directory: Path, **options: object) -> dict[str, bool]:
        found = _clean.clean(str(directory), older_than=-60, **options)  # type: ignore[arg-type]
        return {os.path.basename(leftover.path): leftover.removed for leftover in found}

    def test_removes_what_a_killed_writer_left_and_nothing_else(self, tmp_path: Path) -> None:
        program = """
import atomicio
writer = atomicio.atomic_write(path)
writer.open().write('half')
print('open', flush=True)
sys.stdin.read()
"""
        process = run(program, tmp_path / "target")
        assert process.stdout.readline() == "open\n"
        (name,) = names(tmp_path)
        assert self.clean(tmp_path, dry_run=True) == {name: False}
        assert self.clean(tmp_path) == {name: False}
        assert names(tmp_path) == [name]
        process.kill()
        finish(process)
        (tmp_path / "mine.tmp").write_text("mine")
        assert self.clean(tmp_path, dry_run=True) == {name: True}
        assert self.clean(tmp_path) == {name: True}
        assert names(tmp_path) == ["mine.tmp"]

    def test_only_reports_directories(self, tmp_path: Path) -> None:
        staging = tmp_path / ".atomicio-0123456789abcdef.dir"
        staging.mkdir()
        assert self.clean(tmp_path) == {staging.name: False}
        assert staging.is_dir()

    def test_looks_below(self, tmp_path: Path) -> None:
        litter = tmp_path / "a" / "b" / ".atomicio-0123456789abcdef.tmp"
        litter.parent.mkdir(parents=True)
        litter.touch()
        assert self.clean(tmp_path) == {}
        assert self.clean(tmp_path, recursive=True) == {litter.name: True}
        assert not litter.exists()


def test_probe_says_what_was_tried(tmp_path: Path) -> None:
    found = atomicio.probe(tmp_path)
    assert found.create_new is True
    assert found.exchange is False
    assert found.unnamed_files is False
    assert found.file_sync is True
    assert found.directory_sync is True
    assert found.case_sensitive is False
    assert found.locks is True
    assert names(tmp_path) == []
