"""Errors that say what happened to the file.

Everything the library raises for a failed write is an :class:`OSError` of the class that :func:`open` would have
raised, with the ``errno`` of the system call and the *target's* path as ``filename``. One thing only the library can
know is added to each: the attribute ``committed``, which is False where the target is what it was, and True where it
was replaced.
"""

from __future__ import annotations

import errno
import os

__all__ = [
    "NotDurableError",
    "PartialCommitError",
    "TargetChangedError",
    "UnreplaceableTargetError",
    "WriterStateError",
    "failure",
]


class NotDurableError(OSError):
    """The target was replaced, but the system could not promise that the replacement survives a power cut.

    Raised when a step *after* the rename failed: the directory could not be synced (``EIO``, ``ENOSPC``, ``EDQUOT``),
    or the file system reported a late error on close. Every reader sees the new content. ``committed`` is always True.
    """

    committed = True


class PartialCommitError(OSError):
    """Some targets of a batch were replaced when replacing another failed.

    Each target is old or new, whole; ``filename`` and ``errno`` are those of the one that failed. ``committed`` is
    True, since something did change. What was not committed is discarded.
    """

    committed = True

    committed_paths: list[str | bytes]
    """The targets that have their new content, as they were given, in the order of their replacement."""

    uncommitted_paths: list[str | bytes]
    """The targets that are as they were, the one that failed first."""


class TargetChangedError(OSError):
    """Somebody else replaced, changed, created or removed the target while ``"a"`` or ``"r+"`` worked on a copy.

    Committing would have dropped their update silently. The target is what they left; ``committed`` is always False. A
    ``lock=`` makes writers take turns instead.
    """

    committed = False


class UnreplaceableTargetError(OSError):
    """The target cannot be renamed over, although a plain :func:`open` could write into it.

    ``EBUSY``: it is a mount point, as a file bind-mounted into a container is. ``EACCES``, ``EPERM``, ``EROFS``: the
    *directory* does not let this process create or replace files. The target is untouched; ``committed`` is always
    False. ``fallback="in-place"`` writes into the existing file instead, giving up atomicity.
    """

    committed = False


class WriterStateError(OSError, ValueError):
    """The writer was asked for something its state does not allow; the target is untouched by the refused call.

    To commit what was never opened or was aborted, to open twice, to write or commit in a forked child.
    """

    committed = False


def failure(
    error: OSError,
    target: str | bytes,
    advice: str = "the file was not changed",
    *,
    committed: bool = False,
    kind: type[OSError] = OSError,
) -> OSError:
    """Return the error to raise for the failed system call *error*: errno, the target's name, outcome, what to do."""
    code = error.errno
    if code is None:
        code = errno.EIO
    message = f"{os.strerror(code)}; {advice}"
    winerror = getattr(error, "winerror", None)
    # OSError picks the subclass (PermissionError, FileNotFoundError, ...) by errno, on Windows by winerror.
    new = kind(code, message, target) if winerror is None else kind(code, message, target, winerror)
    new.committed = committed  # type: ignore[attr-defined]
    return new
