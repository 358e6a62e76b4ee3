"""Put other functions into :mod:`os` for a while, such that nobody who asks what they can do notices."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_CAPABILITIES = (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks, os.supports_effective_ids)


@contextlib.contextmanager
def patched_os(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace the named functions, also in the sets such as :data:`os.supports_dir_fd`."""
    real = {name: getattr(os, name) for name in functions}
    members = [(known, name) for known in _CAPABILITIES for name in functions if real[name] in known]
    for name, function in functions.items():
        setattr(os, name, function)
    for known, name in members:
        known.add(functions[name])
    try:
        yield
    finally:
        for known, name in members:
            known.discard(functions[name])
        for name, function in real.items():
            setattr(os, name, function)
