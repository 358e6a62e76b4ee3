"""Tools that keep caches, patched as docs/how-to/adopt.rst says: their own tests pass, and what the patch cures is cured."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from conftest import litter
from peers_support.sdists import run_tests, unpacked

PAGE = Path(__file__).parent.parent.parent / "docs" / "how-to" / "adopt.rst"
PLUGIN = Path(__file__).parent / "counting.py"


class Tool(NamedTuple):
    distribution: str
    #: the file that is patched
    module: str
    #: where Python finds the package, below the source
    path: str
    tests: list[str]
    options: list[str]
    #: how often the tests come to atomicio, at least
    calls: int
    #: a program in which something goes wrong, and what it prints without the patch and with it
    mishap: str
    original: str
    patched: str


TOOLS = [
    Tool(
        "cachelib",
        "src/cachelib/file.py",
        "src",
        ["tests/test_file_system_cache.py"],
        [],
        500,
        """\
        import os, resource
        from cachelib import FileSystemCache
        cache = FileSystemCache("cache")
        # The disk is full after 4 KiB: the error comes in the middle of the write, as ENOSPC would.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        cache.set("key", bytes(100_000))
        cache.clear()
        print(sum(name.endswith(".__wz_cache") or name.startswith(".atomicio") for name in os.listdir("cache")))
        """,
        "1",
        "0",
    ),
    Tool(
        "joblib",
        "joblib/_store_backends.py",
        ".",
        ["joblib/test/test_store_backends.py", "joblib/test/test_memory.py"],
        [],
        100,
        """\
        import os
        from joblib import Memory
        class Interrupts:
            def __reduce__(self):
                raise KeyboardInterrupt
        @Memory("cache", verbose=0).cache
        def compute():
            return bytes(100_000), Interrupts()
        try:
            compute()
        except KeyboardInterrupt:
            pass
        print(sum("output.pkl" in name or "atomicio" in name for _, _, names in os.walk("cache") for name in names))
        """,
        "1",
        "0",
    ),
    Tool(
        "requests-cache",
        "requests_cache/backends/filesystem.py",
        ".",
        ["tests/integration/test_filesystem.py"],
        ["-k", "FileDict"],
        100,
        """\
        import resource
        from requests_cache.backends import FileDict
        cache = FileDict("cache", serializer=None)
        cache["disk"] = cache["value"] = "old"
        try:
            cache["value"] = ["this serializer does not take a list"]
        except TypeError:
            pass
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        try:
            cache["disk"] = "new" * 10_000
        except KeyError:
            pass
        print(cache["disk"][:6], repr(cache["value"]))
        """,
        "newnew ''",
        "old 'old'",
    ),
]
each_tool = pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.distribution)


def patches() -> dict[str, str]:
    """The patches of the page, by the file that they are for."""
    blocks = re.findall(r"^\.\. code-block:: diff\n\n((?:   .*\n|\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    # An empty line of context is a single space, which a page's blocks need not keep.
    texts = [re.sub(r"^$", " ", textwrap.dedent(block).strip("\n"), flags=re.MULTILINE) + "\n" for block in blocks]
    return {re.search(r"^\+\+\+ b/(.*)$", text, re.MULTILINE)[1]: text for text in texts}  # type: ignore[index]


def patched(tool: Tool, folder: Path) -> Path:
    source = unpacked(tool.distribution, folder)
    # Outside of any repository, git applies a patch to what lies in the current folder.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(source.parent)}
    command = ["git", "apply", "--whitespace=nowarn", "--unidiff-zero", "-"]
    subprocess.run(command, cwd=source, env=environment, input=patches()[tool.module], text=True, check=True)
    assert "from atomicio import" in (source / tool.module).read_text(encoding="utf-8")
    return source


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {tool.distribution: patched(tool, folder) for tool in TOOLS}


def test_page_has_a_patch_for_each_tool() -> None:
    assert sorted(patches()) == sorted(tool.module for tool in TOOLS)


@each_tool
def test_own_tests_pass(tool: Tool, sources: dict[str, Path], tmp_path: Path) -> None:
    source = sources[tool.distribution]
    calls = tmp_path / "calls"
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    python_path = os.pathsep.join([str(PLUGIN.parent), str(source / tool.path)])
    environment = {"PYTHONPATH": python_path, "ATOMICIO_CALLS": str(calls), "TMPDIR": str(temporary)}
    outcomes = run_tests(source, tool.tests, PLUGIN, environment, *tool.options)
    print(tool.distribution, len(outcomes), "tests,", calls.read_text(), "calls")
    assert {outcome for _, outcome in outcomes} == {"passed"}
    assert int(calls.read_text()) >= tool.calls
    assert litter(tmp_path) == litter(source) == []


@each_tool
def test_the_patch_cures(tool: Tool, sources: dict[str, Path], tmp_path: Path) -> None:
    def run(python_path: str, where: str) -> str:
        folder = tmp_path / where
        folder.mkdir()
        code = textwrap.dedent(tool.mishap)
        environment = {**os.environ, "PYTHONPATH": python_path}
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("", "original") == tool.original
    assert run(str(sources[tool.distribution] / tool.path), "patched") == tool.patched
