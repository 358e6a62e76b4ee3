"""The migration pages: before and after do the same, and the tables say what a run finds.

tox run -e peers -- tests/migration             # check
tox run -e peers -- tests/migration --redraw    # write docs/migration/*.inc
"""

from __future__ import annotations

import contextlib
import re
import sys
import textwrap
from pathlib import Path

import pytest

from peers_support.libraries import LIBRARIES, Library, import_quietly
from peers_support.probes import NOT_OFFERED, PROBES, answer, lacking

FOLDER = Path(__file__).parent.parent.parent / "docs" / "migration"
NAMES = ["open", "tempfile", "atomicwrites", "boltons", "safer", "click", "portalocker", "django", "jupyter", "sage"]
EXAMPLE = re.compile(r"^\.\. code-block:: python\n   :caption: (Before|After)\n\n((?:   .*\n|\n)+)", re.MULTILINE)


# ---------------------------------------------------------------------------------------------------------------------
# Before and after
# ---------------------------------------------------------------------------------------------------------------------


def examples(page: Path) -> list[tuple[str, str]]:
    return [(which, textwrap.dedent(code)) for which, code in EXAMPLE.findall(page.read_text(encoding="utf-8") + "\n")]


def run_in(folder: Path, code: str, where: str) -> dict[str, bytes]:
    """Run *code* in *folder*, where it finds an old file; return all that lies there afterwards."""
    folder.mkdir()
    (folder / "settings.json").write_text("{}")
    with contextlib.chdir(folder):
        exec(compile(code, where, "exec"), {"__name__": "__main__"})
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_after_does_what_before_did(name: str, tmp_path: Path) -> None:
    import_quietly(LIBRARIES[name].module)
    page = FOLDER / f"{name}.rst"
    found = examples(page)
    assert page.read_text(encoding="utf-8").count(":: python") == len(found) >= 2, "every block is of a pair"
    for number, ((first, before), (second, after)) in enumerate(zip(found[::2], found[1::2], strict=True)):
        assert (first, second) == ("Before", "After")
        assert "atomicio" in after and "atomicio" not in before
        done = run_in(tmp_path / f"{number}-before", before, f"{page.name}, before")
        assert len(done) >= 1 and done != {"settings.json": b"{}"}, "the example writes something"
        assert run_in(tmp_path / f"{number}-after", after, f"{page.name}, after") == done


def test_every_library_has_its_page_and_every_page_its_table() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.rst")) == sorted([*NAMES, "index"])
    assert sorted(path.stem for path in FOLDER.glob("*.inc")) == sorted([*NAMES, "suites"])
    index = (FOLDER / "index.rst").read_text(encoding="utf-8")
    for name in NAMES:
        assert f"\n   {name}\n" in index
        assert f"\n.. include:: {name}.inc\n" in (FOLDER / f"{name}.rst").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------------------------------------------------


def headline(library: Library) -> str:
    return f"{library.distribution} {library.version}" if library.distribution else f"``{library.name}``"


def table(library: Library, theirs: dict[str, str], ours: dict[str, str]) -> str:
    """What differs as a table, what does not as a sentence."""
    lines = [
        ".. made by: tox run -e peers -- tests/migration --redraw",
        "",
        f".. list-table:: As run on Linux: {headline(library)} and atomicio",
        "   :header-rows: 1",
        "   :widths: 32 34 34",
        "",
        "   * -",
        f"     - {headline(library)}",
        "     - atomicio",
    ]
    alike = []
    # A library that only creates has one answer to everything about a file that is there.
    only_creates = theirs["overwrite"].endswith("before the block")
    for probe in PROBES.values():
        if theirs[probe.name] == ours[probe.name]:
            alike.append(f"{probe.title} ({ours[probe.name]})")
        elif not (only_creates and "FileExistsError" in theirs[probe.name]) or probe.name in (
            "overwrite",
            "no_clobber",
        ):
            lines += [f"   * - {probe.title}", f"     - {theirs[probe.name]}", f"     - {ours[probe.name]}"]
    lines += ["", "Alike: " + "; ".join(alike) + ".", ""]
    return "\n".join(lines)


@pytest.fixture(scope="module")
def ours() -> dict[str, str]:
    """What atomicio answers; skips where something can't be asked, since a table holds all of it."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the tables are of Linux")
    if reasons := {reason for probe in PROBES.values() if (reason := lacking(probe.needs))}:
        pytest.skip("; ".join(sorted(reasons)))
    return {probe.name: answer(probe, LIBRARIES["atomicio"]) for probe in PROBES.values()}


@pytest.mark.parametrize("name", NAMES)
def test_table_says_what_a_run_finds(name: str, ours: dict[str, str], request: pytest.FixtureRequest) -> None:
    library = LIBRARIES[name]
    theirs = {probe.name: answer(probe, library) for probe in PROBES.values()}
    for question, found in (*theirs.items(), *ours.items()):
        assert "probe failed" not in found and "for ever" not in found, question
    drawn = table(library, theirs, ours)
    committed = FOLDER / f"{name}.inc"
    if request.config.getoption("--redraw"):
        committed.write_text(drawn, encoding="utf-8")
    assert committed.read_text(encoding="utf-8") == drawn, "tox run -e peers -- tests/migration --redraw"


def test_of_ours_nothing_in_the_tables_is_a_loss(ours: dict[str, str]) -> None:
    """Bold is what a user would not want. An emphasis that no library can get would say nothing: `open` has plenty."""
    assert [name for name, said in ours.items() if "**" in said or said == NOT_OFFERED] == []
    assert sum("**" in answer(probe, LIBRARIES["open"]) for probe in PROBES.values()) >= 5
