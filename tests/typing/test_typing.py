"""A user's program is checked by mypy --strict and pyright against the package as installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("program.py")
CHECKERS = {
    "mypy": [sys.executable, "-m", "mypy", "--strict", "--config-file=", "program.py"],
    "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--project", "pyrightconfig.json"],
}


def check(checker: str, program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Check `program` in a folder of its own, as a user's: the package is found where it is installed or not at all."""
    (folder / "program.py").write_text(program, encoding="utf-8")
    (folder / "pyrightconfig.json").write_text(
        '{"typeCheckingMode": "strict", "reportUnnecessaryTypeIgnoreComment": "error",'
        ' "enableTypeIgnoreComments": false, "include": ["program.py"]}',
        encoding="utf-8",
    )
    return subprocess.run(CHECKERS[checker], capture_output=True, text=True, encoding="utf-8", cwd=folder, timeout=300)


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_users_program_checks(checker: str, tmp_path: Path) -> None:
    result = check(checker, PROGRAM.read_text(encoding="utf-8"), tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_checker_would_notice(checker: str, tmp_path: Path) -> None:
    """The check above can fail: text written to a binary file is found, so the package is not taken for untyped."""
    program = "import atomicio\nwith atomicio.atomic_write('x', 'wb') as f:\n    f.write('text')\n"
    result = check(checker, program, tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    errors = [line for line in result.stdout.splitlines() if " error: " in line]
    assert errors
    assert all("program.py:3:" in line for line in errors), errors
    assert any('"write"' in line for line in errors), errors
