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


def __getattr__(name: str) -> object:
    """Import what is needed rarely when it is asked for."""
    if name == "atomic_directory":
        from ._directory import atomic_directory as value  # noqa: PLC0415
    elif name == "probe":
        from ._probe import probe as value  # type: ignore[assignment]  # noqa: PLC0415
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
