"""What a run came to, and the tables of it for the docs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import campaign
    from sync_sites import Site


@dataclass(frozen=True)
class Mutation:
    """The library without one of the lines that sync something, and who noticed."""

    operation: str
    level: str
    site: Site
    outcome: campaign.Outcome
    model: bool
    needless: bool

    @property
    def system(self) -> str | None:
        """The file system on which power cuts showed it."""
        return self.outcome.cell.system if self.outcome.violations else None


@dataclass
class Results:
    """What all the cells of the run came to."""

    states: dict[tuple[str, str, str], int] = field(default_factory=dict)
    violations: dict[tuple[str, str, str], int] = field(default_factory=dict)
    recordings: int = 0
    flushes: int = 0
    mutations: list[Mutation] = field(default_factory=list)
    naive: list[tuple[str, str, str, int, int]] = field(default_factory=list)

    def add(self, outcome: campaign.Outcome) -> None:
        """Count an outcome of the library."""
        key = outcome.cell.operation, outcome.cell.level, outcome.cell.system
        self.states[key] = self.states.get(key, 0) + outcome.states
        self.violations[key] = self.violations.get(key, 0) + len(outcome.violations)
        self.recordings += 1
        self.flushes += outcome.flushes

    def as_rst(self) -> str:
        """Write the tables in reStructuredText."""
        parts = [self._sentence(), self._of_the_library()]
        if self.naive:
            parts.append(self._of_the_naive())
        if self.mutations:
            parts.extend(self._of_the_mutations())
        return "\n\n".join(parts)

    def _sentence(self) -> str:
        total, broken = sum(self.states.values()), sum(self.violations.values())
        kernel = platform.release().split("-")[0]
        return (
            f"On Linux {kernel}, the library was recorded {self.recordings} times, {self.flushes} flushes in all, and "
            f"{total} crash states were judged, no two of one recording alike; {broken} broke a promise."
        )

    def _of_the_library(self) -> str:
        systems = list(dict.fromkeys(system for _, _, system in self.states))
        rows = []
        for operation, level in dict.fromkeys((operation, level) for operation, level, _ in self.states):
            row = [operation, level]
            for system in systems:
                key = operation, level, system
                row.append(f"{self.states[key]}, {self.violations[key]}" if key in self.states else "")
            rows.append(row)
        title = "Operation, durability level and file system: crash states tried, promises broken"
        return table(title, ["operation", "level", *systems], rows)

    def _of_the_naive(self) -> str:
        rows = [
            [name, level, system, str(states), str(broken)]
            for name, level, system, states, broken in sorted(self.naive)
        ]
        headings = ["what", "judged as", "file system", "states tried", "promises broken"]
        return table("The same suite on what loses data", headings, rows)

    def _of_the_mutations(self) -> list[str]:
        counted = [mutation for mutation in self.mutations if not mutation.needless]
        cuts = sum(mutation.system is not None for mutation in counted)
        model = sum(mutation.model for mutation in counted)
        neither = sum(mutation.system is None and not mutation.model for mutation in counted)
        sentence = (
            f"One line that syncs was left out of one operation at one level, {len(counted)} times: the power cuts noticed "
            f"{cuts}, the worst-case model {model}, nobody {neither}."
        )
        rows = []
        for site in sorted(dict.fromkeys(mutation.site for mutation in counted)):
            own = [mutation for mutation in counted if mutation.site == site]
            shown = list(dict.fromkeys(mutation.system for mutation in own if mutation.system))
            rows.append(
                [
                    f"{site.module}: {site.function}, {site.call}",
                    ", ".join(dict.fromkeys(mutation.operation for mutation in own)),
                    f"{sum(mutation.system is not None for mutation in own)} of {len(own)}"
                    + (f" ({', '.join(shown)})" if shown else ""),
                    f"{sum(mutation.model for mutation in own)} of {len(own)}",
                ]
            )
        headings = ["the line left out", "in", "power cuts notice (first on)", "the model notices"]
        return [sentence, table("The library with one sync left out: who notices", headings, rows)]


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write one table."""
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in [headings, *rows]:
        lines.extend(f"   {'* -' if not index else '  -'} {cell}".rstrip() for index, cell in enumerate(row))
    return "\n".join(lines)
