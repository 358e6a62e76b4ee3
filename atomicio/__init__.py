"""Write files so that nobody, ever, sees half of one."""

from ._errors import NotDurableError, TargetChangedError, UnreplaceableTargetError, WriterStateError
from ._reader import open_shared
from ._writer import AtomicWriter, atomic_path, atomic_write, write_bytes, write_text

__all__ = [
    "AtomicWriter",
    "NotDurableError",
    "TargetChangedError",
    "UnreplaceableTargetError",
    "WriterStateError",
    "atomic_path",
    "atomic_write",
    "open_shared",
    "write_bytes",
    "write_text",
]

__version__ = "0.1.0"
