"""Enumerate what a disk may hold when the power goes, from the log of what it was told.

The rule is that of every drive with a volatile cache: what it had reported as written before it was told to flush is
there after the flush; of everything else any part may be there, in any order, each 4 KiB of it whole or not at all.  So
a write that was under way when a flush was issued is uncertain before that flush and after it.

A cut that finds a given disk content may have come at any moment until the next flush.  The latest moment asks most
of the library, so each state is judged by the marks that stand before the next flush.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recorder import Event


BLOCK = 4096
Pieces = tuple[tuple[int, bytes], ...]
#: the number of an interval, a description, and what is on the disk besides what is sure there
_Choice = tuple[int, str, list[tuple[int, bytes]]]


@dataclass(frozen=True)
class CrashState:
    """One disk content: the blocks that differ from the base image, and how far the workload had come at the latest."""

    description: str
    blocks: dict[int, bytes]
    identity: int
    returned: int
    begun: int


@dataclass
class _Interval:
    """What lies between two flushes: the writes that are uncertain, of which the flush makes the first *covered* sure."""

    writes: list[Pieces]
    covered: int
    returned: int
    begun: int
    at: str


def _pieces(event: Event) -> Pieces:
    """Cut a write at the 4 KiB boundaries of the disk."""
    found = []
    start, end = event.offset, event.offset + len(event.data)
    while start < end:
        stop = min(end, (start // BLOCK + 1) * BLOCK)
        found.append((start, event.data[start - event.offset : stop - event.offset]))
        start = stop
    return tuple(found)


class _Disk:
    """Blocks that differ from the base image, with a fingerprint of them all that is cheap to keep up to date."""

    def __init__(self, base: dict[int, bytes]) -> None:
        self.base = base
        self.blocks: dict[int, bytes] = {}
        self.identity = 0

    def copy(self) -> _Disk:
        other = _Disk(self.base)
        other.blocks, other.identity = dict(self.blocks), self.identity
        return other

    def apply(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        for offset, data in pieces:
            number, start = divmod(offset, BLOCK)
            original = self.base.get(number, bytes(BLOCK))
            before = self.blocks.get(number, original)
            after = before[:start] + data + before[start + len(data) :]
            if before != original:
                self.identity ^= _fingerprint(number, before)
            if after != original:
                self.identity ^= _fingerprint(number, after)
            self.blocks[number] = after


def _fingerprint(number: int, block: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(block, digest_size=16, salt=number.to_bytes(8, "little")).digest(), "little")


def _intervals(events: Sequence[Event]) -> tuple[list[Pieces], list[_Interval]]:
    """Split the log: what is sure at the last flush ahead of ``begin 1``, then one interval for each flush."""
    before: list[Pieces] = []
    intervals: list[_Interval] = []
    current: list[Pieces] = []
    sure = returned = begun = 0
    started, at = False, "before the first step"
    for event in events:
        if event.kind == "W":
            current.append(_pieces(event))
        elif event.kind == "M":
            at = event.data.partition(b"\n")[0].decode()
            word, number, *_ = [*at.split(), "", ""]
            if word == "begin":
                started, begun = True, int(number)
            elif word == "return":
                returned = int(number)
        elif event.kind == "F":
            covered = max(event.offset - sure, 0)
            if started:
                intervals.append(_Interval(current, covered, returned, begun, at))
            else:
                before.extend(current[:covered])
            current = current[covered:]
            sure += covered
    intervals.append(_Interval(current, 0, returned, begun, at))
    return before, intervals


def _choices(
    writes: Sequence[Pieces], number: int, randomness: random.Random
) -> Iterator[tuple[int, str, list[tuple[int, bytes]]]]:
    """Yield (rank, description, pieces that survive) for one interval, the rank being the kind of state."""

    def flat(chosen: Sequence[Pieces]) -> list[tuple[int, bytes]]:
        return [piece for pieces in chosen for piece in pieces]

    count = len(writes)
    yield 0, f"flush {number}, nothing since", []
    for length in range(1, count + 1):
        yield 1, f"flush {number}, first {length} of {count} writes", flat(writes[:length])
    for index in range(count):
        if 0 < index < count - 1:
            yield (
                2,
                f"flush {number}, all but write {index + 1} of {count}",
                flat([*writes[:index], *writes[index + 1 :]]),
            )
        if index:
            yield 2, f"flush {number}, only write {index + 1} of {count}", flat(writes[index : index + 1])
    for index, pieces in enumerate(writes):
        for cut in {1, len(pieces) // 2, len(pieces) - 1} - {0, len(pieces)}:
            if 0 < cut < len(pieces):
                torn = [*flat(writes[:index]), *pieces[:cut]]
                yield 3, f"flush {number}, write {index + 1} of {count} torn after {cut} blocks", torn
    everything = flat(writes)
    if len(everything) > 2:
        for _ in range(min(4 * len(everything), 64)):
            share = randomness.choice((0.15, 0.5, 0.85))
            chosen = [piece for piece in everything if randomness.random() < share]
            yield 4, f"flush {number}, {len(chosen)} of {len(everything)} blocks at random", chosen


def _in_turn(lists: Sequence[Sequence[_Choice]]) -> Iterator[_Choice]:
    """Take from each of the lists in turn, until all are empty."""
    for row in itertools.zip_longest(*lists):
        yield from (choice for choice in row if choice is not None)


def crash_states(base: dict[int, bytes], events: Sequence[Event], limit: int, seed: int) -> list[CrashState]:
    """Return at most *limit* distinct states of a recording, in the order of the flushes.

    The limit is shared evenly between the five kinds of state (nothing since the flush, a prefix, all-but-one and only-one,
    torn, random), and for each kind between the intervals: one in which much is written gets no more than any other.
    """
    randomness = random.Random(seed)
    before, intervals = _intervals(events)
    ranked: dict[int, list[list[_Choice]]] = {rank: [] for rank in range(5)}
    for number, interval in enumerate(intervals):
        found: dict[int, list[_Choice]] = {}
        for rank, description, pieces in _choices(interval.writes, number, randomness):
            found.setdefault(rank, []).append((number, f"{description} ({interval.at})", pieces))
        for rank, choices in found.items():
            randomness.shuffle(choices)
            ranked[rank].append(choices)
    for per_interval in ranked.values():
        randomness.shuffle(per_interval)
    order = _in_turn([list(_in_turn(per_interval)) for per_interval in ranked.values()])

    durable = [_Disk(base)]
    for pieces in before:
        durable[0].apply(pieces)
    for interval in intervals:
        disk = durable[-1].copy()
        for pieces in interval.writes[: interval.covered]:
            disk.apply(pieces)
        durable.append(disk)

    states: dict[tuple[int, int, int], tuple[int, CrashState]] = {}
    for number, description, chosen in order:
        if len(states) >= limit:
            break
        interval = intervals[number]
        disk = durable[number].copy()
        disk.apply(chosen)
        key = (disk.identity, interval.returned, interval.begun)
        if key not in states:
            states[key] = (
                number,
                CrashState(description, disk.blocks, disk.identity, interval.returned, interval.begun),
            )
    return [state for _, state in sorted(states.values(), key=lambda pair: pair[0])]
