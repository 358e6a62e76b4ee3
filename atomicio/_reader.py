"""A reader that is in nobody's way."""

from __future__ import annotations

import io
import os
import sys

if sys.platform == "win32":
    from ._windows import open_shared_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Literal, TypeAlias, overload

    Path: TypeAlias = str | bytes | os.PathLike[str] | os.PathLike[bytes]
else:

    def overload(function: object) -> None:
        """Keep nothing: overloads are for type checkers."""


__all__ = ["open_shared"]

_MODES = frozenset({"r", "rt", "tr", "rb", "br"})


@overload
def open_shared(
    path: Path,
    mode: Literal["r", "rt", "tr"] = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    busy_timeout: float = 2.0,
) -> io.TextIOWrapper: ...
@overload
def open_shared(
    path: Path,
    mode: Literal["rb", "br"],
    buffering: Literal[-1, 1] = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    *,
    busy_timeout: float = 2.0,
) -> io.BufferedReader: ...
@overload
def open_shared(
    path: Path,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    busy_timeout: float = 2.0,
) -> IO[Any]: ...
def open_shared(
    path: Path,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    busy_timeout: float = 2.0,
) -> IO[Any]:
    """Open *path* for reading, and let others replace or remove it meanwhile.

    On Windows a file that :func:`open` has open cannot be renamed over, so a reader holds every writer up. This one opens the file
    with FILE_SHARE_DELETE: a writer replaces it at once, and the reader goes on reading the old content. It also waits out the
    moment in which a file is being replaced, and finds the old content where a writer died in it. On other systems it is
    :func:`open`, whose files are never in anybody's way.

    :param path: the file: a string, bytes or a path object
    :param mode: ``"r"`` for text or ``"rb"`` for bytes
    :param buffering: as in :func:`open`
    :param encoding: as in :func:`open`, but UTF-8 when not given
    :param errors: as in :func:`open`
    :param newline: as in :func:`open`
    :param busy_timeout: for how many seconds in all an open that is refused (PermissionError) is tried again, on Windows, since
        whoever has the file open without sharing it may let go; 0 tries once
    :returns: a file object
    :raises ValueError: on another mode
    :raises OSError: as :func:`open`

    Sources: CreateFileW, *dwShareMode*; SetFileInformationByHandle, FILE_RENAME_POSIX_SEMANTICS.
    """
    if mode not in _MODES:
        raise ValueError(f"invalid mode: {mode!r}; use 'r' or 'rb': open_shared() only reads")
    if "b" not in mode and encoding is None:
        encoding = "utf-8"
    opener = None  # on POSIX systems an open file may be renamed over and removed
    if sys.platform == "win32":

        def opener(name: str, flags: int) -> int:
            return open_shared_fd(name, flags, busy_timeout)

    return open(os.fspath(path), mode, buffering, encoding, errors, newline, opener=opener)
