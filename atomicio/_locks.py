"""Locks for writers that take turns. filelock is imported only when a lock is asked for and not given ready-made."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any, TypeAlias

    Lock: TypeAlias = bool | float | AbstractContextManager[Any]

__all__ = ["lock_beside"]

_NAME_MAX = 255
_SUFFIX = ".lock"


def lock_beside(directory: str, name: str, timeout: float) -> AbstractContextManager[Any]:
    """Return the lock that all writers of the file *name* in *directory* share: the file ``name.lock`` beside it.

    :param timeout: seconds to wait, negative for ever
    """
    from filelock import FileLock  # noqa: PLC0415

    lock_name = name + _SUFFIX
    if len(os.fsencode(lock_name)) > _NAME_MAX:
        from hashlib import sha256  # noqa: PLC0415

        lock_name = f".atomicio-{sha256(os.fsencode(name)).hexdigest()}{_SUFFIX}"
    # The lock is the writer's, which may be opened in one thread of an executor and committed in another.
    return FileLock(os.path.join(directory, lock_name), timeout=timeout, thread_local=False)
