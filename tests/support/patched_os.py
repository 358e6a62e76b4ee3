"""Put other functions into :mod:`os` for a while, such that nobody who asks what they can do notices.

The system calls that :mod:`os` lacks are made by ``atomicio._syscalls``: functions under those names are put there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from atomicio import _syscalls

#: the functions of ``atomicio._syscalls``
BEYOND_OS = ("exchange", "rename_new", "syncfs")
_CAPABILITIES = (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks, os.supports_effective_ids)


def real_function(name: str) -> Callable[..., Any] | None:
    """Return the function of that name, or None where the system has none."""
    return getattr(_syscalls if name in BEYOND_OS else os, name, None)


@contextlib.contextmanager
def patched_os(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace the named functions, also in the sets such as :data:`os.supports_dir_fd`."""
    real = {name: real_function(name) for name in functions}
    members = [(known, name) for known in _CAPABILITIES for name in functions if real[name] in known]
    for name, function in functions.items():
        setattr(_syscalls if name in BEYOND_OS else os, name, function)
    for known, name in members:
        known.add(functions[name])
    try:
        yield
    finally:
        for known, name in members:
            known.discard(functions[name])
        for name, function in real.items():
            setattr(_syscalls if name in BEYOND_OS else os, name, function)
