"""Writing from asyncio as docs/how-to/asyncio.rst shows it: the functions are taken from that page.

Cancellation may come at any moment: before the thread has begun, in the middle of any system call, after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

if sys.platform == "emscripten":
    pytest.skip("needs threads, which Emscripten does not have", allow_module_level=True)

import atomicio
from test_docs import PAGES, blocks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

OLD, NEW = b"old\n" * 5000, b"new content\n" * 5000
PAGE = next(page for page in PAGES if page.name == "asyncio.rst")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page defines."""
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path_factory.mktemp("page")):
        for _, kind, block in blocks(PAGE):
            if kind == "python":
                exec(block, names)
    return names


@pytest.fixture
def target(no_litter: Path, no_leaked_descriptors: None) -> Path:
    path = no_litter / "target"
    path.write_bytes(OLD)
    return path


class Gate:
    """A system call that waits in the middle of a write until it is told to go on."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.real = real
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.reached.set()
        assert self.open.wait(120)
        return self.real(*args, **kwargs)


# What a replacement is made of on every system; between them it is in the middle.
@pytest.fixture(params=["fsync", "rename" if os.name == "posix" else "replace"])
def gate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(getattr(os, request.param))
    # As a capability, too: the library asks os.supports_dir_fd.
    monkeypatch.setattr(os, request.param, gate)
    if gate.real in os.supports_dir_fd:
        os.supports_dir_fd.add(gate)  # type: ignore[arg-type]
    yield gate
    gate.open.set()
    os.supports_dir_fd.discard(gate)  # type: ignore[arg-type]


async def cancelled_in_the_middle(operation: Any, gate: Gate) -> asyncio.Task[None]:
    """Start *operation*, cancel it when its thread is at the gate, and let the thread go on a little later."""
    task = asyncio.ensure_future(operation)
    assert await asyncio.to_thread(gate.reached.wait, 120)
    task.cancel()
    await asyncio.sleep(0.05)
    task.cancel("again")
    asyncio.get_running_loop().call_later(0.05, gate.open.set)
    with pytest.raises(asyncio.CancelledError):
        await task
    return task


def test_a_cancelled_write_is_settled_when_the_cancellation_is(page: dict[str, Any], target: Path, gate: Gate) -> None:
    async def main() -> None:
        await cancelled_in_the_middle(page["in_thread"](atomicio.write_bytes, target, NEW), gate)
        assert target.read_bytes() == NEW
        assert os.listdir(target.parent) == ["target"]

    asyncio.run(main())


def test_a_download_cancelled_while_it_commits_is_settled_and_new(
    page: dict[str, Any], target: Path, gate: Gate
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield NEW

    async def main() -> None:
        await cancelled_in_the_middle(page["download"](target, chunks()), gate)
        assert target.read_bytes() == NEW
        assert os.listdir(target.parent) == ["target"]

    asyncio.run(main())


def test_to_thread_alone_goes_on_behind_the_back_of_the_cancelled_task(target: Path, gate: Gate) -> None:
    """What the page warns of: the file changes after the task has ended. It is whole, before and after."""

    async def main() -> None:
        task = asyncio.ensure_future(asyncio.to_thread(atomicio.write_bytes, target, NEW))
        assert await asyncio.to_thread(gate.reached.wait, 120)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert target.read_bytes() == OLD
        gate.open.set()

    asyncio.run(main())  # which waits for the threads of the executor
    assert target.read_bytes() == NEW
    assert os.listdir(target.parent) == ["target"]


@pytest.mark.parametrize("when", range(4))
def test_a_download_cancelled_while_it_waits_for_more_leaves_the_old_content(
    page: dict[str, Any], target: Path, when: int
) -> None:
    async def main() -> None:
        waiting = asyncio.Event()

        async def chunks() -> AsyncIterator[bytes]:
            for number in range(5):
                if number == when:
                    waiting.set()
                    await asyncio.Event().wait()
                yield NEW

        task = asyncio.ensure_future(page["download"](target, chunks()))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert target.read_bytes() == OLD
        assert os.listdir(target.parent) == ["target"]

    asyncio.run(main())


def test_a_source_that_fails_leaves_the_old_content(page: dict[str, Any], target: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield NEW
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(page["download"](target, chunks()))
    assert target.read_bytes() == OLD


def test_a_with_block_in_a_coroutine_is_as_safe(target: Path) -> None:
    async def save() -> None:
        with atomicio.atomic_write(target, "wb") as file:
            file.write(NEW)
            await asyncio.sleep(60)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await save()
        assert target.read_bytes() == OLD

    asyncio.run(main())


def test_the_error_of_the_thread_arrives(page: dict[str, Any], no_litter: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        asyncio.run(page["in_thread"](atomicio.write_bytes, no_litter / "missing" / "target", NEW))
    assert caught.value.filename == str(no_litter / "missing" / "target")


@pytest.mark.parametrize("form", ["whole", "download", "to_thread"])
def test_cancelled_at_any_time_it_is_old_or_new_and_nothing_is_left(
    page: dict[str, Any], target: Path, form: str
) -> None:
    """100 writes, each cancelled after a random time between nothing and a little more than a write takes."""
    rng = random.Random(form)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(NEW), 10_000):
            await asyncio.sleep(0)
            yield NEW[start : start + 10_000]

    def operation() -> Any:
        if form == "whole":
            return page["in_thread"](atomicio.write_bytes, target, NEW)
        if form == "download":
            return page["download"](target, chunks())
        return asyncio.to_thread(atomicio.write_bytes, target, NEW)

    async def main() -> set[bytes]:
        found = set()
        longest = 0.002
        for _ in range(100):
            if form != "to_thread":
                target.write_bytes(OLD)
            task = asyncio.ensure_future(operation())
            await asyncio.sleep(rng.uniform(0, longest))
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            found.add(target.read_bytes())
            # However fast the disk: both outcomes are to be met.
            if len(found) == 1:
                longest = longest * 0.9 if NEW in found else min(longest * 1.1, 0.5)
        return found

    found = asyncio.run(main())
    assert found <= {OLD, NEW}
    assert NEW in found
    assert os.listdir(target.parent) == ["target"]
