"""A user's program, read by type checkers and never run.

Each ``assert_type`` fails when the mode no longer decides what is written, and each ``ignore`` is itself an error as
soon as the mistake on its line is no longer found.
"""

import contextlib
import threading
from collections.abc import Generator
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Literal, assert_type

import atomicio
from atomicio import AtomicWriter, atomic_path, atomic_write, write_bytes, write_text
from atomicio.star_imports import StarImportCache, lazy_star_import


def modes(path: str) -> None:
    with atomic_write(path) as text:
        assert_type(text, TextIOWrapper)
        text.write("text")
        text.write(b"bytes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with atomic_write(path, "x") as text:
        assert_type(text, TextIOWrapper)
    with atomic_write(path, "a", encoding="latin-1", errors="strict", newline="\n") as text:
        assert_type(text, TextIOWrapper)
    with atomic_write(path, mode="r+") as text:
        assert_type(text.read(), str)
    with atomic_write(path, "w+t") as text:
        assert_type(text, TextIOWrapper)
    with atomic_write(path, "wb") as binary:
        assert_type(binary, IO[bytes])
        binary.write(b"bytes")
        binary.write("text")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    with atomic_write(path, "xb", buffering=0) as binary:
        assert_type(binary, IO[bytes])
    with atomic_write(path, "ab+") as binary:
        assert_type(binary, IO[bytes])
    with atomic_write(path, "r+b") as binary:
        assert_type(binary.read(), bytes)


def a_mode_known_at_run_time(path: Path, mode: str) -> None:
    with atomic_write(path, mode) as file:
        for line in file:
            print(line)


def paths(text: str, raw: bytes, path: Path) -> None:
    for target in (text, raw, path):
        with atomic_write(target) as file:
            print(file.name)
    with atomic_write(3) as file:  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
        print(file)


def options(path: Path, level: Literal["none", "consistent", "durable"]) -> None:
    with atomic_write(path, durability=level, permissions=0o600, follow_symlinks=False, make_parents=True) as file:
        file.write("text")
    with atomic_write(path, "wb", lock=True, fallback="in-place", skip_unchanged=True, backup=".bak") as binary:
        binary.write(b"bytes")
    with atomic_write(path, lock=2.5) as file:
        file.write("text")
    with atomic_write(path, lock=threading.Lock()) as file:
        file.write("text")
    write_text(path, "text", durability="sometimes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def without_with(path: Path) -> bool:
    writer = atomic_write(path, "wb")
    assert_type(writer, AtomicWriter[IO[bytes]])
    file = writer.open()
    assert_type(file, IO[bytes])
    try:
        file.write(b"bytes")
    except OSError:
        writer.abort()
        raise
    writer.commit()
    return writer.committed


def own_helper(writer: AtomicWriter[TextIOWrapper]) -> None:
    with writer as file:
        file.write("text")


@contextlib.contextmanager
def wrapped(path: Path) -> Generator[IO[str], None, None]:
    with atomic_write(path) as file:
        yield file


def whole_contents(path: Path) -> None:
    write_bytes(path, b"bytes", durability="none")
    write_bytes(path, memoryview(b"bytes"))
    write_bytes(path, "text")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    write_text(path, "text", encoding="utf-16", newline="\r\n", durability="consistent")
    write_text(path, b"bytes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_path(text: str, raw: bytes, path: Path) -> None:
    with atomic_path(text, durability="durable") as staging:
        assert_type(staging, str)
    with atomic_path(raw) as raw_staging:
        assert_type(raw_staging, bytes)
    with atomic_path(path) as path_staging:
        assert_type(path_staging, Path)


def many_files(paths: list[Path]) -> list[str | bytes]:
    with atomicio.batch(durability="consistent") as batch:
        assert_type(batch, atomicio.Batch)
        for path in paths:
            batch.write_bytes(path, b"bytes")
            batch.write_text(path, "text", make_parents=True)
            batch.write_text(path, b"bytes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            with batch.atomic_write(path) as text:
                assert_type(text, TextIOWrapper)
            with batch.atomic_write(path, "ab") as binary:
                assert_type(binary, IO[bytes])
    return batch.committed_paths + batch.uncommitted_paths


def a_directory(text: str, path: Path) -> None:
    with atomicio.atomic_directory(text, backup=".bak") as staging:
        assert_type(staging, str)
    with atomicio.atomic_directory(path, fallback="raise") as path_staging:
        assert_type(path_staging, Path)


def reading(path: Path, mode: str) -> None:
    with atomicio.open_shared(path) as text:
        assert_type(text, TextIOWrapper)
    with atomicio.open_shared(path, "rb") as binary:
        assert_type(binary.read(), bytes)
    with atomicio.open_shared(path, mode) as file:
        print(file.read())


def verbs(path: Path) -> None:
    def show(done: int, total: int | None) -> None:
        print(done, total)

    atomicio.makedirs(path, exist_ok=True)
    atomicio.copy(path, "copy", progress=show, durability="none")
    atomicio.copy(path, "copy", progress=print)
    atomicio.replace("copy", path)
    atomicio.remove(path)
    atomicio.remove(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def a_place(path: Path) -> bool | None:
    place = atomicio.probe(path)
    print(place.promises["durable"], place.filesystem)
    return place.locks


def star_imports(path: Path) -> tuple[str, ...]:
    cache = StarImportCache(str(path))
    lazy_star_import("textwrap")
    assert_type(cache.save(), bool)
    return cache.names("textwrap")


def errors(path: Path) -> None:
    try:
        write_text(path, "text")
    except atomicio.NotDurableError as error:
        assert_type(error.committed, bool)
        print(error.errno, error.filename)
    except atomicio.PartialCommitError as error:
        assert_type(error.committed_paths, list[str | bytes])
    except atomicio.TargetChangedError as error:
        assert_type(error.committed, bool)
    except atomicio.UnreplaceableTargetError as error:
        assert_type(error.committed, bool)
    except atomicio.WriterStateError as error:
        assert isinstance(error, OSError)
        assert isinstance(error, ValueError)
