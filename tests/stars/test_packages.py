"""Equality with real packages: an eager, a cold and a warm process bring the same names and the same objects."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from star_helpers import equality, run, settle

if TYPE_CHECKING:
    from pathlib import Path

# fmt: off
STANDARD = """
argparse array ast asyncio base64 bisect bz2 calendar cmath cmd code codecs colorsys compileall concurrent.futures
configparser contextlib copy csv ctypes ctypes.util curses curses.ascii dataclasses datetime dbm decimal difflib dis
doctest email email.message email.mime.text filecmp fileinput fnmatch fractions ftplib functools gettext glob graphlib
gzip heapq hmac html html.parser http http.client http.cookies http.server imaplib inspect ipaddress itertools json
keyword linecache locale logging logging.config lzma mailbox mimetypes multiprocessing netrc numbers operator optparse
pathlib pdb pickle pickletools platform plistlib poplib pprint profile pstats py_compile pyclbr queue quopri random
sched secrets selectors shelve shlex shutil signal smtplib socket socketserver sqlite3 ssl statistics string stringprep
struct subprocess sysconfig tarfile tempfile textwrap threading timeit token tokenize tomllib traceback tracemalloc
turtle typing unittest unittest.mock urllib.error urllib.parse urllib.request uuid venv warnings wave weakref
webbrowser wsgiref.util xml.dom.minidom xml.etree.ElementTree xml.sax xmlrpc.client zipapp zipfile zoneinfo
""".split()  # noqa: SIM905
PACKAGES = """
sympy sympy.core sympy.functions sympy.physics.units sympy.matrices numpy numpy.linalg numpy.fft numpy.random numpy.ma
numpy.polynomial matplotlib.pyplot matplotlib.pylab networkx pandas scipy scipy.linalg scipy.special scipy.stats mpmath
""".split()  # noqa: SIM905
# fmt: on
TKINTER = ["tkinter", "tkinter.constants", "tkinter.ttk"]


def test_standard_library(tmp_path: Path) -> None:
    equal, live, absent = equality(STANDARD, tmp_path / "cache" / "names.json")
    print(f"{len(equal)} modules by a warm hit, {len(live)} loaded anyway {live}, absent {absent}")
    assert len(equal) >= 50
    # What only some systems or builds have; whatever else is missing would be a hole in the test.
    assert set(absent) <= {"bz2", "ctypes", "ctypes.util", "curses", "curses.ascii", "lzma", "sqlite3", "ssl", "turtle"}


@pytest.mark.skipif(not importlib.util.find_spec("_tkinter"), reason="this interpreter was built without tkinter")
def test_tkinter(tmp_path: Path) -> None:
    assert equality(TKINTER, tmp_path / "cache" / "names.json") == (TKINTER, [], {})


@pytest.mark.parametrize("package", sorted({module.partition(".")[0] for module in PACKAGES}))
def test_package(package: str, tmp_path: Path) -> None:
    modules = [module for module in PACKAGES if module.partition(".")[0] == package]
    if not importlib.util.find_spec(package):
        pytest.skip(f"needs {package}")
    settle()
    assert equality(modules, tmp_path / "cache" / "names.json") == (modules, [], {})


PYTHON315 = os.environ.get("ATOMICIO_PYTHON315") or shutil.which("python3.15")


@pytest.mark.skipif(not importlib.util.find_spec("sympy"), reason="needs sympy")
@pytest.mark.skipif(not PYTHON315, reason="needs a python3.15 (on the path or in ATOMICIO_PYTHON315)")
def test_native_lazy_imports_of_python_3_15(tmp_path: Path) -> None:
    """The default tests of the cache, and sympy, where `lazy from` is the interpreter's."""
    assert PYTHON315
    cache = str(tmp_path / "names.json")
    import filelock
    import sympy

    packages = [os.path.dirname(os.path.dirname(module.__file__)) for module in (sympy, filelock)]
    code = f"""
c = StarImportCache({cache!r})
space = {{}}
c.lazy_star_import("sympy", space)
lazy = "sympy" not in sys.modules
types_ = sorted({{type(value).__name__ for value in space.values()}}) if lazy else []
eager = {{}}
if lazy:
    exec("".join(f"_ = {{name}}\\n" for name in space), space)
    exec("from sympy import *", {{}}, eager)
answer([lazy, types_, len(eager), all(space[name] is eager[name] for name in eager), c.save()])
"""
    settle()
    assert run(code, *packages, python=[PYTHON315]) == [False, [], 0, True, True]
    lazy, types_, count, same, saved = run(code, *packages, python=[PYTHON315])
    print(f"3.15: {count} names of sympy, all identical: {same}")
    assert (lazy, types_, same, saved) == (True, ["lazy_import"], True, True)
    assert count > 900
