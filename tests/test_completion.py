"""Completions for shells, made from the command's parser as docs/reference/command.rst says, and tried in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atomicio import cli

shtab = pytest.importorskip("shtab", reason="needs shtab, which makes the completions")
if os.name != "posix" or shutil.which("bash") is None:
    pytest.skip("needs bash", allow_module_level=True)

# As bash does it when Tab is pressed: the words so far, the one under the cursor, then the function of the command.
TAB = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE}
compopt() { :; }  # which works only in a real completion
_shtab_atomicio "$1" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def make(shell: str) -> str:
    command = [sys.executable, "-m", "shtab", "--shell", shell, "--error-unimportable", "atomicio.cli.parser"]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=60).stdout


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "atomicio"
    path.write_text(make("bash"), encoding="utf-8")
    return path


def complete(script: Path, folder: Path, *words: str) -> set[str]:
    command = ["bash", "--norc", "-c", TAB, "bash", script, "atomicio", *words]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_the_commands(script: Path, tmp_path: Path) -> None:
    assert complete(script, tmp_path, "") >= {"write", "copy", "probe", "clean", "recover", "star-imports"}
    assert complete(script, tmp_path, "w") == {"write"}
    assert complete(script, tmp_path, "c") == {"copy", "clean"}


def test_the_options_of_a_command(script: Path, tmp_path: Path) -> None:
    assert complete(script, tmp_path, "write", "--no") == {"--no-clobber", "--no-follow"}
    assert complete(script, tmp_path, "clean", "--r") == {"--recursive"}
    assert complete(script, tmp_path, "copy", "--durability", "") == {"none", "consistent", "durable"}


def test_names_of_files_and_directories(script: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert complete(script, tmp_path, "write", "f") == {"file", "folder"}
    assert complete(script, tmp_path, "copy", "file", "f") == {"file", "folder"}
    assert complete(script, tmp_path, "probe", "f") == {"folder"}


@pytest.mark.parametrize("shell", ["fish", "tcsh", "zsh"])
def test_there_is_a_script_for_other_shells(shell: str) -> None:
    assert "no-clobber" in make(shell)


def test_every_argument_that_is_a_name_is_completed_as_one() -> None:
    """As shtab has it for each of its shells; the command does not import it."""
    for shell in ("bash", "fish", "tcsh", "zsh"):
        assert cli._FILE[shell] == shtab.FILE[shell]
        assert cli._DIRECTORY[shell] == shtab.DIRECTORY[shell]
