"""`import atomicio` is light, and a write with default arguments imports nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import atomicio

if sys.platform == "emscripten":
    pytest.skip("a fresh interpreter is a process, which Emscripten has not", allow_module_level=True)

PACKAGE_PARENT = Path(atomicio.__file__).parent.parent

HEAVY = {
    "asyncio", "concurrent", "contextlib", "ctypes", "dataclasses", "datetime", "enum", "filelock", "functools", "glob",
    "importlib.metadata", "inspect", "logging", "multiprocessing", "pathlib", "random", "re", "secrets", "shutil",
    "socket", "subprocess", "tempfile", "threading", "typing", "uuid",
}  # fmt: skip


def run(program: str, *arguments: str) -> list[str]:
    """The lines that `program` prints, run in an interpreter without site and so without `.pth` files that import."""
    preamble = f"import sys\nsys.path.insert(0, {str(PACKAGE_PARENT)!r})\n"
    process = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "utf8", "-c", preamble + program, *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    return process.stdout.splitlines()


def test_import_loads_none_of_the_heavy_modules() -> None:
    loaded = run("before = set(sys.modules)\nimport atomicio\nprint(*sorted(set(sys.modules) - before), sep='\\n')")
    assert "atomicio" in loaded
    assert HEAVY.intersection(loaded) == set()


def test_import_loads_nothing_outside_the_standard_library() -> None:
    loaded = run("before = set(sys.modules)\nimport atomicio\nprint(*sorted(set(sys.modules) - before), sep='\\n')")
    foreign = {name for name in loaded if name.partition(".")[0] not in {*sys.stdlib_module_names, "atomicio"}}
    assert foreign == set()


WRITES = {
    "w, new": "with atomicio.atomic_write(path) as f: f.write('new\\n')",
    "w, replacing": "with atomicio.atomic_write(path) as f: f.write('new\\n')",
    "wb": "with atomicio.atomic_write(path, 'wb') as f: f.write(b'new\\n')",
    "x": "with atomicio.atomic_write(path, 'x') as f: f.write('new\\n')",
    "a": "with atomicio.atomic_write(path, 'a') as f: f.write('new\\n')",
    "r+": "with atomicio.atomic_write(path, 'r+') as f: f.read(); f.seek(0); f.truncate(); f.write('new\\n')",
    "write_bytes": "atomicio.write_bytes(path, b'new\\n')",
    "write_text": "atomicio.write_text(path, 'new\\n')",
    "commit": "writer = atomicio.atomic_write(path); writer.open().write('new\\n'); writer.commit()",
    "abort": "writer = atomicio.atomic_write(path); writer.open().write('new\\n'); writer.abort()",
    "atomic_path": "with atomicio.atomic_path(path) as staging: open(staging, 'w', encoding='utf-8').write('new\\n')",
}


@pytest.mark.parametrize("case", WRITES)
def test_a_write_imports_nothing(case: str, no_litter: Path) -> None:
    """pytest writes its caches with an emptied ``sys.meta_path``: an import in the middle would fail there."""
    target = no_litter / "target"
    existed = case not in {"w, new", "x"}
    if existed:
        target.write_text("old\n", encoding="utf-8")
    imported = run(
        f"""
import atomicio
path = sys.argv[1]
sys.meta_path.clear()
before = set(sys.modules)
{WRITES[case]}
print(*sorted(set(sys.modules) - before), sep='\\n', end='')
""",
        str(target),
    )
    assert imported == []
    old = "old\n" if existed else ""
    expected = {"a": old + "new\n", "abort": old}.get(case, "new\n")
    assert target.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("case", ["exception", "no directory"])
def test_a_failing_write_imports_nothing(case: str, no_litter: Path) -> None:
    target = no_litter / "target"
    target.write_text("old\n", encoding="utf-8")
    path, body, error = {
        "exception": (target, "f.write('new\\n'); raise KeyError('mine')", "KeyError"),
        "no directory": (no_litter / "absent" / "target", "f.write('new\\n')", "FileNotFoundError"),
    }[case]
    lines = run(
        f"""
import atomicio
sys.meta_path.clear()
before = set(sys.modules)
try:
    with atomicio.atomic_write(sys.argv[1]) as f: {body}
except Exception as raised:
    print(type(raised).__name__)
print(*sorted(set(sys.modules) - before), sep='\\n', end='')
""",
        str(path),
    )
    assert lines == [error]
    assert target.read_text(encoding="utf-8") == "old\n"


def test_the_fallback_needs_nothing_more_once_it_is_asked_for(no_litter: Path) -> None:
    """A program may have given up the right to read its own packages by the time that a file turns out to be mounted."""
    target = no_litter / "target"
    target.write_text("old\n", encoding="utf-8")
    imported = run(
        """
import errno, os, tempfile
import atomicio
def busy(*arguments, **keywords):
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
writer = atomicio.atomic_write(sys.argv[1], fallback="in-place")
before = set(sys.modules)
sys.meta_path.clear()
os.rename = busy
with writer as f: f.write('new\\n')
print(*sorted(set(sys.modules) - before), sep='\\n', end='')
""",
        str(target),
    )
    assert imported == []
    assert target.read_text(encoding="utf-8") == "new\n"
