"""Other projects' own tests, fetched as their authors publish them: in source distributions, by the name of the package."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from pathlib import Path


def unpacked(distribution: str, folder: Path) -> Path:
    """The source of the version of *distribution* that is installed here, unpacked below *folder*."""
    version = importlib.metadata.version(distribution)
    into = folder / distribution
    # Without isolation, pip asks the build backends that are installed here for the metadata it wants to see.
    command = [
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--no-binary",
        distribution,
        "-d",
        str(into),
    ]
    done = subprocess.run(
        [sys.executable, "-m", *command, f"{distribution}=={version}"],
        # Some backends are programs.
        env={**os.environ, "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    (archive,) = into.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    (source,) = (path for path in into.iterdir() if path.is_dir())
    # Without the version: some take a dot in the path for a package's.
    return source.rename(into / "source")


def run_tests(
    source: Path, tests: list[str], plugin: Path, environment: dict[str, str], *options: str
) -> list[tuple[str, str]]:
    """Run *tests* of *source* under *plugin*; return the name and the outcome of each."""
    report = source / "report.xml"
    configuration = source / "no-configuration.ini"
    configuration.write_text("[pytest]\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-c",
        str(configuration),
        "--rootdir",
        str(source),
        "-p",
        plugin.stem,
    ]
    done = subprocess.run(
        [*command, f"--junitxml={report}", "-p", "no:cacheprovider", *options, *tests],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(plugin.parent), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        preexec_fn=_as_owner_only,
    )
    assert done.returncode in (0, 1), done.stdout
    outcomes = []
    for case in ET.parse(report).iter("testcase"):
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        outcomes.append((case.attrib["name"], kinds.pop() if kinds else "passed"))
    print(done.stdout)
    return outcomes


def _as_owner_only() -> None:
    """Give up root's right to write everywhere, or a test about a read-only directory passes whatever is done."""
    if sys.platform.startswith("linux"):
        import ctypes

        libc = ctypes.CDLL(None)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
            libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
