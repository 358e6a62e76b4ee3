"""KeyboardInterrupt at every bytecode of a batch, of the durable verbs, in place, and of what is built on them."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

import pytest

import atomicio
import test_interrupts
from atomicio import _filesystem
from atomicio.star_imports import StarImportCache
from test_interrupts import NEW, OLD, THREAD_LOCK, BodyError, Case, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = test_interrupts.pytestmark


def batch(target: str, durability: str = "none", mode: str = "wb") -> None:
    directory = os.path.dirname(target)
    with atomicio.batch(durability=durability) as batch:  # type: ignore[arg-type]
        batch.write_bytes(os.path.join(directory, "made", "target"), NEW, make_parents=True)
        with batch.atomic_write(target, mode) as file:
            file.write(NEW)


def durable_batch(target: str) -> None:
    batch(target, "durable")


def exclusive_batch(target: str) -> None:
    batch(target, mode="xb")


def batch_with_lock_and_backup(target: str) -> None:
    with atomicio.batch(durability="none") as batch:
        batch.write_bytes(target, NEW, lock=THREAD_LOCK, backup=".bak")


def batch_whose_block_raises(target: str) -> None:
    with atomicio.batch(durability="none") as batch:
        batch.write_bytes(target, NEW)
        # CPython 3.11 leaks the frame when a tracer raises between `raise` and `__exit__`. No signal is handled there.
        del batch
        raise BodyError


def copy(target: str) -> None:
    atomicio.copy(SOURCE, target, durability="none")


def replace(target: str) -> None:
    source = os.path.join(os.path.dirname(target), "made", "target")
    os.mkdir(os.path.dirname(source))
    os.link(SOURCE, source)
    atomicio.replace(source, target)


def remove(target: str) -> None:
    atomicio.remove(target)


def makedirs(target: str) -> None:
    atomicio.makedirs(os.path.join(target, "made", "here"))


def in_place(target: str) -> None:
    atomicio.write_bytes(target, NEW, fallback="in-place")


def in_place_update(target: str) -> None:
    with atomicio.atomic_write(target, "r+b", fallback="in-place", durability="none") as file:
        file.read()
        file.seek(0)
        file.truncate()
        file.write(NEW)


def star_imports_saved(target: str) -> None:
    cache = StarImportCache(target)
    cache._news = {"string": (("ascii_letters",), {"string": "somewhere"})}
    cache.save()


def is_star_cache(content: bytes) -> bool:
    return bool(json.loads(content)["modules"])


SOURCE = ""
CASES = [
    *(Case(each, OLD) for each in (batch, durable_batch, batch_with_lock_and_backup)),
    *(Case(each, None) for each in (batch, exclusive_batch, copy)),
    *(Case(batch_whose_block_raises, each, gives_up=True) for each in (OLD, None)),
    *(Case(each, OLD, named=True) for each in (batch, copy)),
    Case(replace, OLD),
    Case(remove, OLD, removes=True),
    Case(makedirs, None, new=lambda content: not content),
    Case(star_imports_saved, None, new=is_star_cache),
    *(
        pytest.param(
            Case(each, OLD, in_place=True),
            marks=pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs Linux and root, to mount"),
        )
        for each in (in_place, in_place_update)
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_interrupt_at_every_bytecode(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    global SOURCE
    source = tmp_path / "source"
    source.write_bytes(NEW)
    SOURCE = str(source)
    # Asking for the type of the file system reads files through the standard library, which is not what is swept here.
    monkeypatch.setattr(_filesystem, "syncs_whole", lambda fd: True)
    record_property("bytecodes", check(case, tmp_path, monkeypatch))
