"""The page says what a run says: every cell of the committed tables is asked again.

After a change that is meant: ``tox run -e comparison -- --write`` writes the tables anew.
"""

from __future__ import annotations

import os

import pytest

import compare

pytestmark = pytest.mark.skipif(bool(compare.lacking()), reason=compare.lacking() or "-")


@pytest.fixture(scope="module")
def answers() -> compare.Answers:
    os.umask(0o022)
    return compare.ask()


def test_every_question_is_on_the_page_once() -> None:
    names = " ".join(compare.GROUPS.values()).split()
    assert sorted(names) == sorted(compare.PROBES)


def test_no_probe_failed(answers: compare.Answers) -> None:
    assert not [
        (name, each, words) for name, row in answers.items() for each, words in row.items() if "probe failed" in words
    ]


def test_the_page_says_what_the_run_says(answers: compare.Answers, request: pytest.FixtureRequest) -> None:
    if request.config.option.write:
        compare.PAGE.write_text(compare.as_rst(answers), encoding="utf-8")
    page = compare.PAGE.read_text(encoding="utf-8").splitlines()
    # The first line names the machine: another Python gives the same answers.
    assert page[1:] == compare.as_rst(answers).splitlines()[1:]


def test_nothing_of_atomicio_is_in_bold(answers: compare.Answers) -> None:
    assert not {name: row["atomicio"] for name, row in answers.items() if "**" in row["atomicio"]}


def test_the_questions_can_be_failed(answers: compare.Answers) -> None:
    """A row in which nobody fails shows nothing, but for those that tell what is offered."""
    same = {
        name
        for name, row in answers.items()
        if not any("**" in words for words in row.values()) and len(set(row.values())) == 1
    }
    assert same <= {"setgid", "path_object"}
