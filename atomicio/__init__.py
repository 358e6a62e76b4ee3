"""Write files so that nobody, ever, sees half of one."""

from ._errors import NotDurableError, PartialCommitError, TargetChangedError, UnreplaceableTargetError, WriterStateError
from ._reader import open_shared
from ._writer import AtomicWriter, atomic_path, atomic_write, write_bytes, write_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._batch import Batch, batch
    from ._directory import atomic_directory
    from ._probe import probe
    from ._verbs import copy, makedirs, remove, replace

__all__ = [
    "AtomicWriter",
    "Batch",
    "NotDurableError",
    "PartialCommitError",
    "TargetChangedError",
    "UnreplaceableTargetError",
    "WriterStateError",
    "atomic_directory",
    "atomic_path",
    "atomic_write",
    "batch",
    "copy",
    "makedirs",
    "open_shared",
    "probe",
    "remove",
    "replace",
    "write_bytes",
    "write_text",
]

__version__ = "0.1.0"

_LAZY = {
    "Batch": "_batch",
    "atomic_directory": "_directory",
    "batch": "_batch",
    "copy": "_verbs",
    "makedirs": "_verbs",
    "probe": "_probe",
    "remove": "_verbs",
    "replace": "_verbs",
}


def __getattr__(name: str) -> object:
    """Import what is not needed to write a file when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415

    value = globals()[name] = getattr(import_module(f".{_LAZY[name]}", __name__), name)
    return value
