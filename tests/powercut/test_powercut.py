"""Cut the power in thousands of ways under the library, under what people write by hand, and under a crippled one."""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from dataclasses import dataclass, replace

import pytest

import campaign
import mounts
import operations
import sync_sites
import worst_file_system
from results import Mutation

VARIANTS = ("plain", "stepped")
SYSTEMS = tuple(mounts.BLOCK_FILE_SYSTEMS)
#: where a missing sync shows soonest comes first
HUNTING_ORDER = (
    ("xfs", "stepped"),
    ("ext4-noauto_da_alloc", "plain"),
    ("btrfs", "plain"),
    ("xfs", "plain"),
    ("ext4-noauto_da_alloc", "stepped"),
    ("btrfs", "stepped"),
    ("ext4-writeback", "stepped"),
    ("ext4", "plain"),
)


@dataclass(frozen=True)
class Recordings:
    """Judge one operation at one level on one file system, in several variants."""

    system: str
    operation: str
    level: str
    variants: tuple[str, ...] = VARIANTS

    def missing(self) -> str | None:
        return mounts.BLOCK_FILE_SYSTEMS[self.system].missing()

    def run(self, states: int, seed: int) -> list[campaign.Outcome]:
        cells = [campaign.Cell(self.system, self.operation, self.level, variant, states, seed) for variant in self.variants]
        return [campaign.run(cell) for cell in cells]

    def __str__(self) -> str:
        return f"{self.system}-{self.operation}-{self.level}"


@dataclass(frozen=True)
class Losses(Recordings):
    """The same where something must be lost. In one state of 72 it may be: where none was drawn, many more are."""

    def run(self, states: int, seed: int) -> list[campaign.Outcome]:
        outcomes = super().run(states, seed)
        if not any(outcome.violations for outcome in outcomes):
            outcomes += [campaign.run(replace(outcome.cell, states=2000, stop_at_first=True)) for outcome in outcomes]
        return outcomes


@dataclass(frozen=True)
class Mutations:
    """Leave out each line that syncs in one operation in turn, and look for a file system that shows it."""

    operation: str
    level: str

    def missing(self) -> str | None:
        return next(filter(None, (mounts.BLOCK_FILE_SYSTEMS[name].missing() for name, _ in HUNTING_ORDER)), None)

    def run(self, states: int, seed: int) -> list[campaign.Outcome]:
        """Return for each line the outcome that showed its absence, or the last one that did not."""
        whole = campaign.run(campaign.Cell("ext4", self.operation, self.level, "plain", 0, seed))
        found = []
        for site in dict.fromkeys(map(sync_sites.step, whole.sites)):
            for system, variant in HUNTING_ORDER:
                outcome = campaign.run(
                    campaign.Cell(
                        system, self.operation, self.level, variant, states, seed, without=site, stop_at_first=True
                    )
                )
                if outcome.violations:
                    break
            found.append(outcome)
        return found

    def __str__(self) -> str:
        return f"{self.operation}-{self.level}"


def model_notices(operation: str, level: str, site: sync_sites.Site) -> bool:
    """Whether the worst legal file system shows the absence of this line."""
    options: dict[str, str] = {}
    if operation == "in_place_backup":  # the model needs no mount to have a target that cannot be renamed over
        scenario, options["mount_point"] = operations.in_place(level, mount=False, backup=True), "target"
    else:
        scenario = operations.scenario(operation, level)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        recording = worst_file_system.Recording(os.getcwd(), without=site, **options)  # type: ignore[arg-type]
        recording.run(scenario)
    return bool(worst_file_system.violations(scenario, recording, 100, random.Random(0), first=True)[1])


@pytest.mark.parametrize(
    "job",
    [
        Recordings(system, name, level)
        for name in operations.LIBRARY
        for level in operations.levels(name)
        for system in SYSTEMS
    ],
    ids=str,
)
def test_the_library_keeps_its_promise(job, outcomes, results):
    for outcome in outcomes:
        results.add(outcome)
        assert outcome.states, "nothing was judged"
        assert not outcome.violations, f"{outcome.cell}: {outcome.violations[:5]}"


#: Each naive way loses data on every file system: none promises anything of a file that was not synced, or of a name
#: whose directory was not (ext4's auto_da_alloc helps where a file is replaced, and each way creates one as well).
NAIVE = [
    ("open_w", "consistent"),
    ("tmp_rename_nothing_synced", "consistent"),
    ("tmp_rename_directory_synced", "consistent"),
    ("tmp_rename_file_synced", "durable"),
]


@pytest.mark.parametrize(
    "job", [Losses(system, name, level) for name, level in NAIVE for system in SYSTEMS], ids=str
)
def test_the_naive_ways_lose_data(job, outcomes, results):
    broken = sum(len(outcome.violations) for outcome in outcomes)
    results.naive.append((job.operation, job.level, job.system, sum(outcome.states for outcome in outcomes), broken))
    assert broken


@pytest.mark.parametrize(
    "job", [Recordings(system, "tmp_rename_both_synced", "durable") for system in SYSTEMS], ids=str
)
def test_the_careful_way_does_not(job, outcomes, results):
    broken = [violation for outcome in outcomes for violation in outcome.violations]
    results.naive.append(
        (job.operation, job.level, job.system, sum(outcome.states for outcome in outcomes), len(broken))
    )
    assert not broken, broken[:5]


# Everywhere: a file system may write the parts of one file back at different times, and does so here after each call.
@pytest.mark.parametrize(
    "job", [Losses(name, "in_place", "durable", (*VARIANTS, "flushed")) for name in SYSTEMS], ids=str
)
def test_writing_in_place_loses_the_target_as_documented(job, outcomes, results):
    broken = sum(len(outcome.violations) for outcome in outcomes)
    results.naive.append(
        ("fallback='in-place'", job.level, job.system, sum(outcome.states for outcome in outcomes), broken)
    )
    assert broken


@pytest.mark.parametrize("job", [Recordings(system, "in_place_backup", "durable") for system in SYSTEMS], ids=str)
def test_writing_in_place_keeps_the_backup(job, outcomes, results):
    for outcome in outcomes:
        results.add(outcome)
        assert not outcome.violations, f"{outcome.cell}: {outcome.violations[:5]}"


@pytest.mark.parametrize(
    "job",
    [
        Mutations(name, level)
        for name in [*operations.LIBRARY, "in_place_backup"]
        for level in operations.levels(name)
        if level != "none"
    ],
    ids=str,
)
def test_a_library_without_one_of_its_syncs_is_caught(job, outcomes, results):
    unnoticed = []
    for outcome in outcomes:
        site = outcome.cell.without
        needless = operations.needless(job.operation, [site])
        model = model_notices(job.operation, job.level, site)
        results.mutations.append(Mutation(job.operation, job.level, site, outcome, model=model, needless=needless))
        if not (outcome.violations or model or needless):
            unnoticed.append(site)
    assert outcomes or job.operation in operations.NO_SYNC[job.level]
    assert not unnoticed


def test_enough_states_were_judged(request, results):
    """The promise of this suite's documentation, for a run that left nothing out."""
    selected = [item for item in request.session.items if item.originalname == "test_the_library_keeps_its_promise"]
    if (
        len(selected) < len(SYSTEMS) * sum(len(operations.levels(name)) for name in operations.LIBRARY)
        or not results.states
    ):
        pytest.skip("only a part of the suite was run")
    assert sum(results.states.values()) >= 10_000
