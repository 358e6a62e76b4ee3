"""Every code block of the README and of the documentation does what the page says.

``python`` blocks of a page run one after the other in one namespace, ``pycon`` blocks are doctests in the same
namespace, ``console`` blocks are typed into a shell and print what is shown; all in one empty folder for each page.
``sh`` blocks are the README's two commands, which ``.ci/run`` takes from there and runs.
"""

from __future__ import annotations

import configparser
import contextlib
import doctest
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if not (ROOT / "README.rst").exists():
    pytest.skip("the tests run without the checkout: no pages here", allow_module_level=True)
if sys.platform == "emscripten":
    pytest.skip("the pages start processes, which Emscripten has not", allow_module_level=True)
PAGES = sorted([ROOT / "README.rst", *(ROOT / "docs").rglob("*.rst")])
# The blocks of docs/migration take other libraries: tests/migration runs them, where these are installed.
PAGES = [page for page in PAGES if page.parent.name != "migration"]
BLOCK = re.compile(r"^( *)\.\. code-block:: (\w+)\n(?:\1   :.*\n)*\n((?:\1   .*\n|\n)+)", re.MULTILINE)
EXECUTED = {"python", "pycon", "console"}
# `sh`: see above; the others are shown, not run.
SHOWN = {"sh", "text", "c", "toml", "diff"}


def blocks(page: Path) -> list[tuple[int, str, str]]:
    text = page.read_text(encoding="utf-8") + "\n"
    found = list(BLOCK.finditer(text))
    # Nothing to be read as code is anywhere else: no `::` at the end of a paragraph, no doctest that stands free, and
    # nothing from a file but from the tests, which run it.
    elsewhere = r"^(?! *\.\. ).*::$|^ *\.\. (?:code|sourcecode)::|^ *\.\. literalinclude:: (?!(?:\.\./)+tests/)|^>>> "
    others = re.findall(elsewhere, text, re.MULTILINE)
    assert others == [], f"{page.name}: a block that this test does not see"
    assert text.count(".. code-block::") == len(found), f"{page.name}: a block that this test does not see"
    return [(text.count("\n", 0, match.start(3)), match[2], textwrap.dedent(match[3])) for match in found]


def run_console(block: str, where: str) -> None:
    path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    environment = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}
    for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, _, expected = step.partition("\n")
        result = subprocess.run(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env=environment,
            timeout=60,
        )
        assert result.stdout.strip() == expected.strip(), f"{where}: $ {command}"


def run_pycon(block: str, namespace: dict[str, object], where: str, line: int) -> None:
    examples = doctest.DocTestParser().get_doctest(block, {}, where, where, line)
    # get_doctest copies the names it is given; the page's blocks are to share them.
    examples.globs = namespace
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    runner.run(examples, out=report.append, clear_globs=False)
    assert not report, "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_blocks_of(page: Path, no_litter: Path) -> None:
    namespace: dict[str, object] = {"__name__": "__main__"}
    with contextlib.chdir(no_litter):
        for line, kind, block in blocks(page):
            where = f"{page.relative_to(ROOT)}:{line}"
            assert kind in EXECUTED | SHOWN, where
            if kind == "python":
                # Line numbers as on the page, so that a traceback points into it.
                exec(compile("\n" * line + block, str(page), "exec"), namespace)
            elif kind == "pycon":
                run_pycon(block, namespace, where, line)
            elif kind == "console" and os.name == "posix":
                run_console(block, where)


def test_pages_are_found_and_hold_code() -> None:
    kinds = [kind for page in PAGES for _, kind, _ in blocks(page)]
    assert kinds.count("sh") == 2, "the README's two commands, and nowhere else"
    assert kinds.count("python") >= 10
    assert kinds.count("console") >= 3


def test_contributors_are_told_of_every_environment() -> None:
    defined = re.findall(r"^\[testenv:(\w+)\]", (ROOT / "tox.ini").read_text(encoding="utf-8"), re.MULTILINE)
    told = re.findall(r"^``-e (\w+)``", (ROOT / "docs/contributing.rst").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(defined) <= set(told)


def test_every_environment_says_what_it_runs() -> None:
    """One that does not runs the default tests: a section that lists it among others is hidden by its own."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini", encoding="utf-8")
    environments = [name for name in config.sections() if name.startswith("testenv:")]
    assert [name for name in environments if "commands" not in config[name] or "{" in name] == []


def test_the_picture_of_the_readme_is_there() -> None:
    (picture,) = re.findall(r"^\.\. image:: (\S+)$", (ROOT / "README.rst").read_text(encoding="utf-8"), re.MULTILINE)
    assert (ROOT / picture).read_text(encoding="utf-8").startswith("<svg ")
