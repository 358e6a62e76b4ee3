"""The wheel and the sdist, as built from this tree: what is in them, what they say, and that they install."""

from __future__ import annotations

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from email.message import Message

pytest.importorskip("build", reason="needs the package 'build'")
ROOT = Path(__file__).parent.parent
if not (ROOT / "README.rst").exists():
    pytest.skip("the tests run without the checkout: nothing to build here", allow_module_level=True)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = PROJECT["name"]
INIT = (ROOT / NAME / "__init__.py").read_text(encoding="utf-8")
(VERSION,) = re.findall(r'^__version__ = "(.+)"$', INIT, re.MULTILINE)
# What is imported or tells type checkers that the package is typed; no caches, no editor's backups, no compiled files.
MODULES = {f"{NAME}/py.typed"} | {path.relative_to(ROOT).as_posix() for path in (ROOT / NAME).rglob("*.py")}


def build(destination: Path, tree: Path = ROOT) -> tuple[Path, Path]:
    """The sdist from the tree, then the wheel from that sdist: what a user gets who has only the sdist."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", destination, tree],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
    )
    (wheel,) = destination.glob("*.whl")
    (sdist,) = destination.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(distributions: tuple[Path, Path]) -> Path:
    return distributions[0]


@pytest.fixture(scope="module")
def sdist(distributions: tuple[Path, Path]) -> Path:
    return distributions[1]


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_string(archive.read(f"{NAME}-{VERSION}.dist-info/METADATA").decode())


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel and nothing else, not even its dependency; returns its interpreter."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-index", "--no-deps", wheel], check=True)
    return python


def output(*command: str | Path, cwd: Path, **options: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, encoding="utf-8", cwd=cwd, env=environment, timeout=60, **options
    )
    return process.stdout


def test_the_wheel_holds_the_package_and_the_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = f"{NAME}-{VERSION}.dist-info"
    assert names == MODULES | {
        f"{about}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    }


def test_the_sdist_holds_what_builds_the_wheel_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}
    top = f"{NAME}-{VERSION}"
    assert names == {f"{top}/{name}" for name in (*MODULES, "LICENSE", "PKG-INFO", "README.rst", "pyproject.toml")}


def test_the_modules_are_those_of_the_tree(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in MODULES:
            assert archive.read(name) == (ROOT / name).read_bytes()


def test_building_twice_gives_the_same_bytes(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    """Also from another checkout, whose files are of another time and other permissions."""
    tree = tmp_path / "elsewhere"
    tree.mkdir()
    for name in (*sorted(MODULES), "LICENSE", "README.rst", "pyproject.toml"):
        copy = tree / name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
        copy.chmod(0o600)
        os.utime(copy, (1_600_000_000, 1_600_000_000))
    for first, second in zip(distributions, build(tmp_path / "dist", tree), strict=True):
        assert first.name == second.name
        assert first.read_bytes() == second.read_bytes()


def test_metadata(metadata: Message) -> None:
    assert metadata["Name"] == NAME
    assert metadata["Version"] == VERSION
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert metadata["Description-Content-Type"].startswith("text/x-rst")
    assert metadata.get_payload().strip() == (ROOT / "README.rst").read_text(encoding="utf-8").strip()


def test_filelock_is_the_only_dependency(metadata: Message) -> None:
    requirements = metadata.get_all("Requires-Dist", [])
    assert [re.match(r"[\w-]+", requirement)[0] for requirement in requirements] == ["filelock"]
    assert ">=" in requirements[0]


def test_an_index_would_take_the_distributions(distributions: tuple[Path, Path]) -> None:
    """The description renders without a warning and the metadata is complete."""
    twine = [sys.executable, "-m", "twine", "check", "--strict"]
    subprocess.run([*twine, *distributions], check=True, stdout=subprocess.DEVNULL)


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT
    assert PROJECT["dynamic"] == ["version"]
    holders = [
        path.relative_to(ROOT).as_posix()
        for path in [ROOT / "pyproject.toml", ROOT / "tox.ini", ROOT / "docs/conf.py", *(ROOT / NAME).rglob("*.py")]
        # not `name==version`: that is another project's
        if re.search(rf"(['\"]|(?<!=)=){re.escape(VERSION)}\b", path.read_text(encoding="utf-8"))
    ]
    assert holders == [f"{NAME}/__init__.py"]


def test_the_installed_package_imports_and_writes_without_its_dependency(installed: Path, tmp_path: Path) -> None:
    program = """
import atomicio, importlib.metadata
with atomicio.atomic_write("target.txt") as f:
    f.write("written\\n")
print(importlib.metadata.version("atomicio"))
print(atomicio.__file__)
"""
    version, file = output(installed, "-c", program, cwd=tmp_path).splitlines()
    assert version == VERSION
    assert Path(file).is_relative_to(installed.parent.parent)
    assert (tmp_path / "target.txt").read_bytes() == b"written" + os.linesep.encode()


@pytest.mark.parametrize("form", ["module", "script"])
def test_the_command_is_installed(installed: Path, tmp_path: Path, form: str) -> None:
    command = [installed, "-m", NAME] if form == "module" else [installed.with_name(NAME + installed.suffix)]
    output(*command, "write", "hello.txt", cwd=tmp_path, input="hello\n")
    assert (tmp_path / "hello.txt").read_text(encoding="utf-8") == "hello\n"


def test_every_public_name_is_importable_and_documented() -> None:
    import atomicio

    assert len(set(atomicio.__all__)) == len(atomicio.__all__)
    for name in atomicio.__all__:
        assert getattr(atomicio, name).__doc__, name
