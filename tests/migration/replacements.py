"""A pytest plugin for other libraries' own tests: puts atomicio where the library's writer was, and counts its calls.

    python -m pytest -p replacements ...

The replacements are all that somebody needs who wants to keep the calls of a library and lose its writer.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

import atomicio

if TYPE_CHECKING:
    import pytest

LIBRARY = os.environ["ATOMICIO_STANDS_IN_FOR"]
REPORT = os.environ["ATOMICIO_CALLS"]
calls = 0


def atomic_write(path: Any, mode: str = "w", **options: Any) -> atomicio.AtomicWriter[Any]:
    global calls
    calls += 1
    return atomicio.atomic_write(path, mode, **options)


def for_atomicwrites() -> None:
    import atomicwrites

    def replacement(path: Any, mode: str = "w", overwrite: bool = False, **options: Any) -> Any:
        return atomic_write(path, mode if overwrite else mode.replace("w", "x"), **options)

    atomicwrites.atomic_write = replacement


def for_boltons() -> None:
    from boltons import fileutils

    def replacement(path: Any, overwrite: bool = True, text_mode: bool = False, file_perms: int | None = None) -> Any:
        mode = ("w+" if overwrite else "x+") + ("" if text_mode else "b")
        return atomic_write(path, mode, permissions=file_perms)

    fileutils.AtomicSaver = fileutils.atomic_save = replacement


def for_jupyter() -> None:
    from jupyter_server.services.contents import fileio

    def replacement(path: Any, text: bool = True, encoding: str = "utf-8", log: object = None, **options: Any) -> Any:
        if text:
            options = {"encoding": encoding, "newline": "\n", **options}
        return atomic_write(path, "w" if text else "wb", fallback="in-place", **options)

    fileio.atomic_writing = replacement


def for_portalocker() -> None:
    import portalocker

    def replacement(filename: Any, binary: bool = True) -> Any:
        return atomic_write(filename, "xb" if binary else "x", make_parents=True)

    portalocker.open_atomic = replacement


def for_click() -> None:
    from click import _compat, types, utils

    class Published:
        """A file that is published when it is closed, and forgotten when a block that has it raises."""

        def __init__(self, writer: atomicio.AtomicWriter[Any]) -> None:
            self._writer = writer
            self._file = writer.open()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def close(self) -> None:
            self._writer.commit()

        def __enter__(self) -> Published:
            return self

        def __exit__(self, *exception: object) -> None:
            self._writer.__exit__(*exception)

    original = _compat.open_stream

    def replacement(
        filename: Any, mode: str = "r", encoding: Any = None, errors: Any = "strict", atomic: bool = False
    ) -> Any:
        if not atomic or os.fsdecode(filename) == "-":
            return original(filename, mode, encoding, errors, atomic)
        options = {} if "b" in mode else {"encoding": encoding, "errors": errors}
        return Published(atomic_write(filename, mode, **options)), True

    for module in (_compat, types, utils):
        module.open_stream = replacement


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    {
        function.__name__: function
        for function in (for_atomicwrites, for_boltons, for_jupyter, for_portalocker, for_click)
    }[f"for_{LIBRARY}"]()
assert sys.modules["atomicio"] is atomicio


def pytest_sessionfinish(session: pytest.Session) -> None:
    with open(REPORT, "w", encoding="utf-8") as file:
        file.write(str(calls))
