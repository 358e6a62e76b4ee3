"""Everybody's way to write a file, in one form, so that one probe serves all of them.

Every function takes a path and returns a context manager for the file object that the library lends; where it lends none,
for a small object with ``write``. A library is imported when its function is called: :func:`missing` says which are not
installed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import atomicio

Opener = Callable[[Any], AbstractContextManager[Any]]


class Library(NamedTuple):
    name: str
    #: the distribution whose version is named; empty for what Python itself brings
    distribution: str
    module: str
    #: replace or create with bytes. Only overwriting is switched on, where it is off by default.
    replace: Opener
    #: the same with text, nothing said about its encoding
    replace_text: Opener
    #: create and never clobber; None where the library has no such thing
    create: Opener | None
    #: nothing said at all: does it overwrite?
    default: Opener

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.distribution) if self.distribution else ""

    def write(self, path: Any, data: bytes) -> None:
        with self.replace(path) as file:
            file.write(data)


@contextlib.contextmanager
def by_hand(path: str, mode: str = "wb", publish: Callable[[str, str], object] = os.replace) -> Iterator[Any]:
    """What careful people write who know ``tempfile`` and ``os.replace``."""
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    try:
        with os.fdopen(fd, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextlib.contextmanager
def by_django(path: str, mode: str = "wb", **options: Any) -> Iterator[Any]:
    """As django.core.cache.backends.filebased does: a temporary file beside the target, then a move."""
    move = import_quietly("django.core.files.move").file_move_safe
    fd, temporary = tempfile.mkstemp(dir=os.path.dirname(path))
    moved = False
    try:
        with os.fdopen(fd, mode) as file:
            yield file
        move(temporary, path, **options)
        moved = True
    finally:
        if not moved:
            os.unlink(temporary)


@contextlib.contextmanager
def by_atomic_write_path(path: Any, mode: str = "wb", **options: Any) -> Iterator[Any]:
    """It lends a path."""
    with import_quietly("atomic_write_path").atomic_write_path(path, **options) as temporary:
        with open(temporary, mode) as file:
            yield file


class _Whole:
    """A file object for libraries that take values, not a file."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, data: bytes | str) -> int:
        write = self._writer.write_text if isinstance(data, str) else self._writer.write_bytes
        write(data)
        return len(data)


@contextlib.contextmanager
def by_atomicwriter(path: Any, **options: Any) -> Iterator[Any]:
    with import_quietly("atomicwriter").AtomicWriter(path, **options) as writer:
        yield _Whole(writer)


@functools.cache
def import_quietly(module: str) -> Any:
    """The module; old ones warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def _call(module: str, function: str, *arguments: Any, **options: Any) -> Opener:
    return lambda path: getattr(import_quietly(module), function)(path, *arguments, **options)


_JUPYTER = "jupyter_server.services.contents.fileio"
_SAGE = "sage.misc.temporary_file"

LIBRARIES = {
    library.name: library
    for library in (
        Library(
            "atomicio",
            "",
            "atomicio",
            lambda path: atomicio.atomic_write(path, "wb"),
            atomicio.atomic_write,
            lambda path: atomicio.atomic_write(path, "xb"),
            lambda path: atomicio.atomic_write(path, "wb"),
        ),
        Library(
            "open",
            "",
            "io",
            lambda path: open(path, "wb"),
            lambda path: open(path, "w"),  # whose encoding this is shall be seen
            lambda path: open(path, "xb"),
            lambda path: open(path, "wb"),
        ),
        Library(
            "tempfile",
            "",
            "tempfile",
            by_hand,
            lambda path: by_hand(path, "w"),
            None,
            by_hand,
        ),
        Library(
            "atomicwrites",
            "atomicwrites",
            "atomicwrites",
            _call("atomicwrites", "atomic_write", mode="wb", overwrite=True),
            _call("atomicwrites", "atomic_write", overwrite=True),
            _call("atomicwrites", "atomic_write", mode="wb"),
            _call("atomicwrites", "atomic_write", mode="wb"),
        ),
        Library(
            "boltons",
            "boltons",
            "boltons.fileutils",
            _call("boltons.fileutils", "atomic_save"),
            _call("boltons.fileutils", "atomic_save", text_mode=True),
            _call("boltons.fileutils", "atomic_save", overwrite=False),
            _call("boltons.fileutils", "atomic_save"),
        ),
        Library(
            "safer",
            "safer",
            "safer",
            _call("safer", "open", "wb"),
            _call("safer", "open", "w"),
            _call("safer", "open", "xb"),
            _call("safer", "open", "wb"),
        ),
        Library(
            "click",
            "click",
            "click",
            _call("click", "open_file", "wb", atomic=True),
            _call("click", "open_file", "w", atomic=True),
            None,
            _call("click", "open_file", "wb", atomic=True),
        ),
        Library(
            "portalocker",
            "portalocker",
            "portalocker",
            _call("portalocker", "open_atomic"),
            _call("portalocker", "open_atomic", binary=False),
            _call("portalocker", "open_atomic"),
            _call("portalocker", "open_atomic"),
        ),
        Library(
            "django",
            "Django",
            "django.core.files.move",
            lambda path: by_django(path, allow_overwrite=True),
            lambda path: by_django(path, "w", allow_overwrite=True),
            by_django,
            by_django,
        ),
        Library(
            "jupyter",
            "jupyter_server",
            _JUPYTER,
            _call(_JUPYTER, "atomic_writing", text=False),
            _call(_JUPYTER, "atomic_writing"),
            None,
            _call(_JUPYTER, "atomic_writing", text=False),
        ),
        Library(
            "sage",
            "passagemath-environment",
            _SAGE,
            _call(_SAGE, "atomic_write", binary=True),
            _call(_SAGE, "atomic_write", binary=False),
            None,
            _call(_SAGE, "atomic_write", binary=True),
        ),
        Library(
            "atomicwriter",
            "atomicwriter",
            "atomicwriter",
            lambda path: by_atomicwriter(path, overwrite=True),
            lambda path: by_atomicwriter(path, overwrite=True),
            by_atomicwriter,
            by_atomicwriter,
        ),
        Library(
            "atomicreplace",
            "atomicreplace",
            "atomicreplace",
            _call("atomicreplace", "atomic_open", "wb"),
            _call("atomicreplace", "atomic_open", "w"),
            None,
            _call("atomicreplace", "atomic_open", "wb"),
        ),
        Library(
            "atomic-write-path",
            "atomic-write-path",
            "atomic_write_path",
            lambda path: by_atomic_write_path(path, overwrite=True),
            lambda path: by_atomic_write_path(path, "w", overwrite=True),
            by_atomic_write_path,
            by_atomic_write_path,
        ),
        Library(
            "atomicfile",
            "atomicfile",
            "atomicfile",
            _call("atomicfile", "AtomicFile", "wb"),
            _call("atomicfile", "AtomicFile", "w"),
            None,
            _call("atomicfile", "AtomicFile", "wb"),
        ),
    )
}


def missing(*names: str) -> list[str]:
    """Which of the libraries of these names are not installed here."""
    absent = []
    for name in names:
        try:
            import_quietly(LIBRARIES[name].module)
        except ImportError:
            absent.append(name)
    return absent
