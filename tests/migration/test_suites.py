"""Other libraries' own tests, unmodified, with atomicio in the place of their writer."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from peers_support.libraries import LIBRARIES
from peers_support.sdists import run_tests, unpacked

PAGE = Path(__file__).parent.parent.parent / "docs" / "migration" / "suites.inc"
PLUGIN = Path(__file__).parent / "replacements.py"


OWN_CALLS = "puts a function of two arguments in the place of ``os.link``; atomicio links by descriptors"
PRESERVED = "wants the staging file kept when publishing fails; atomicio keeps nothing, and the caller has the content"
READ_ONLY = "replaces a file that the user made read-only; atomicio refuses, as ``open`` does"
OWN_NAMES = "is about the names of its own staging files"


class Suite(NamedTuple):
    library: str
    tests: list[str]
    options: list[str]
    #: tests that contradict what atomicio promises or does, by name with or without parameters, and why
    contradictions: dict[str, str]
    #: tests that skip themselves, and what they want
    skips: dict[str, str]


SUITES = [
    Suite("atomicwrites", ["tests/test_atomicwrites.py"], [], {}, {}),
    Suite("boltons", ["tests/test_fileutils.py"], ["-k", "atomic"], {}, {}),
    Suite(
        "jupyter",
        ["tests/services/contents/test_fileio.py"],
        # Its conftest starts servers. The asynchronous tests run under any plugin.
        ["--noconftest", "-o", "anyio_mode=auto"],
        {},
        {
            "test_atomic_writing_permission_cache": "an NFS mount at ``/tmp/nfs_mount``",
            "test_get_os_path_with_unc_root": "Windows",
            "test_get_os_path_with_non_current_drive_root": "Windows",
        },
    ),
    Suite(
        "click",
        ["tests/test_utils/test_open_file.py", "tests/test_arguments.py"],
        ["-k", "atomic"],
        {
            "test_open_file_atomic_permissions_existing_file[256]": READ_ONLY,
            "test_open_file_atomic_permissions_existing_file[292]": READ_ONLY,
        },
        {},
    ),
    Suite(
        "portalocker",
        ["portalocker_tests/test_open_atomic.py"],
        [],
        {
            "test_open_atomic_uses_platform_publication_primitive": OWN_CALLS,
            "test_open_atomic_falls_back_to_rename_without_hard_links": OWN_CALLS,
            "test_open_atomic_fallback_refuses_existing_destination": OWN_CALLS,
            "test_open_atomic_fallback_refuses_dangling_symlink_destination": OWN_CALLS,
            "test_open_atomic_supports_maximum_length_basenames[True]": OWN_CALLS,
            "test_open_atomic_preserves_payload_after_publication_error": PRESERVED,
            "test_open_atomic_preserves_destination_created_before_publication": PRESERVED,
            "test_open_atomic_fallback_failure_preserves_payload": PRESERVED,
            "test_open_atomic_retries_a_colliding_temporary_name": OWN_NAMES,
            "test_open_atomic_bounds_the_temporary_name_retries": OWN_NAMES,
        },
        {},
    ),
]


def named(test: str, names: dict[str, str]) -> str:
    """The entry of *names* that *test* belongs to, or nothing."""
    return next((name for name in (test, test.partition("[")[0]) if name in names), "")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, str]]]:
    """The outcome of every test, by library. That the library's writer was not used any more is looked at here."""
    found = {}
    for suite in SUITES:
        folder = tmp_path_factory.mktemp(suite.library)
        calls = folder / "calls"
        environment = {"ATOMICIO_STANDS_IN_FOR": suite.library, "ATOMICIO_CALLS": str(calls)}
        source = unpacked(LIBRARIES[suite.library].distribution, folder)
        found[suite.library] = run_tests(source, suite.tests, PLUGIN, environment, *suite.options)
        assert int(calls.read_text()) >= 1, f"the tests of {suite.library} never came to atomicio"
    return found


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.library)
def test_suite_passes_but_for_what_is_named(suite: Suite, outcomes: dict[str, list[tuple[str, str]]]) -> None:
    found = outcomes[suite.library]
    assert "passed" in dict(found).values()
    for expected, kinds in ((suite.contradictions, {"failure", "error"}), (suite.skips, {"skipped"})):
        unexpected = [test for test, outcome in found if outcome in kinds and not named(test, expected)]
        assert unexpected == []
        no_more = [test for test, outcome in found if outcome not in kinds and named(test, expected)]
        assert no_more == [], "named, but not so any more"
        assert {named(test, expected) for test, _ in found} - {""} == set(expected)


def test_page_says_how_the_suites_went(
    outcomes: dict[str, list[tuple[str, str]]], request: pytest.FixtureRequest
) -> None:
    lines = [
        ".. made by: tox run -e peers -- tests/migration --redraw",
        "",
        ".. list-table:: Other libraries' own tests, unmodified, with atomicio in the place of their writer",
        "   :header-rows: 1",
        "",
        "   * - library",
        "     - passed",
        "     - contradicting",
        "     - skipped",
    ]
    for suite in SUITES:
        kinds = [outcome for _, outcome in outcomes[suite.library]]
        library = LIBRARIES[suite.library]
        counts = [kinds.count("passed"), kinds.count("failure") + kinds.count("error"), kinds.count("skipped")]
        lines += [f"   * - {library.distribution} {library.version}", *(f"     - {count}" for count in counts)]
    lines.append("")
    for suite in SUITES:
        reasons = suite.contradictions | {test: f"skips itself without {want}" for test, want in suite.skips.items()}
        for reason in dict.fromkeys(reasons.values()):
            tests = []
            for test in (test for test in reasons if reasons[test] == reason):
                count = sum(named(found, reasons) == test for found, _ in outcomes[suite.library])
                tests.append(f"``{test}``" + (f" ({count} of them)" if count > 1 else ""))
            lines += [f"{suite.library}: {reason}", f"   {', '.join(tests)}", ""]
    drawn = "\n".join(lines)
    if request.config.getoption("--redraw"):
        PAGE.write_text(drawn, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == drawn, "tox run -e peers -- tests/migration --redraw"
