"""Ask every library every question, and write the answers down as the tables of docs/explanation/comparison.rst.

    python tests/comparison/compare.py

Takes Linux, root (for mounts and owners), strace, and the libraries of the dependency group `comparison`.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import atomicio  # noqa: E402
import further_probes  # noqa: E402
from peers_support import probes  # noqa: E402
from peers_support.libraries import LIBRARIES, missing  # noqa: E402

PAGE = HERE.parent.parent / "docs" / "explanation" / "comparison.inc"
PROBES = {**probes.PROBES, **further_probes.PROBES}

TITLES = {
    "open": "``open``",
    "tempfile": "``tempfile`` and ``os.replace``",
    "boltons": "boltons ``atomic_save``",
    "click": "click ``atomic=True``",
    "portalocker": "portalocker ``open_atomic``",
    "django": "Django ``file_move_safe``",
    "jupyter": "Jupyter ``atomic_writing``",
    "sage": "Sage ``atomic_write``",
}

GROUPS = {
    "When something goes wrong": (
        "ordinary_exception exception exception_new interrupted_anywhere killed dropped "
        "full_disk full_at_the_end full_unbuffered swallowed error_names descriptors"
    ),
    "For a power cut": "synced durable_option",
    "What stays of the old file, what a new one gets": (
        "kept_mode secret owner acl_of_replaced attribute symlink dangling hard_link new_mode default_acl setgid"
    ),
    "Targets that cannot be replaced, or must not be": (
        "read_only unwritable_folder unlistable_folder mounted mounted_explained directory device fifo standard_output"
    ),
    "Other processes and threads": "reader two_writers threads lost_update forked process_umask",
    "Modes, paths, consumers": (
        "overwrite no_clobber create_race append update encoding file_name closed_early consumer memory "
        "bytes_path path_object long_name chdir missing_folder typed"
    ),
}
#: Where only the comparison with plain ``open`` says what is wrong.
AS_OPEN = ("kept_mode", "new_mode")

Answers = dict[str, dict[str, str]]


def lacking() -> str:
    """Why this machine can't ask all of it; empty if it can."""
    if sys.platform != "linux":
        return "asks the kernel of Linux"
    reasons = [probes.lacking(probe.needs) for probe in PROBES.values()]
    absent = missing(*LIBRARIES)
    return next(filter(None, reasons), "") or (f"not installed: {', '.join(absent)}" if absent else "")


def ask() -> Answers:
    # The children look for garbage often; what the libraries brought with them is none.
    gc.collect()
    gc.freeze()
    answers: Answers = {}
    for name in " ".join(GROUPS.values()).split():
        probe = PROBES[name]
        answers[name] = row = {each: probes.answer(probe, library) for each, library in LIBRARIES.items()}
        if name in AS_OPEN:
            for each, words in row.items():
                if words[0].isdigit() and words != row["open"]:
                    row[each] = f"**{words}**"
    return answers


def version_of(name: str) -> str:
    if name == "atomicio":
        return atomicio.__version__
    return LIBRARIES[name].version and f"{LIBRARIES[name].distribution} {LIBRARIES[name].version}"


def machine() -> str:
    return f"{platform.python_implementation()} {platform.python_version()}, Linux {platform.release().split('-')[0]}"


def in_bold(answers: Answers) -> dict[str, int]:
    return {name: sum("**" in row[name] for row in answers.values()) for name in LIBRARIES}


def as_rst(answers: Answers) -> str:
    count = len(answers)
    lines = [
        f"Asked on {machine()}: {count} questions to {len(LIBRARIES)} ways of writing a file.",
        "",
        ".. list-table::",
        "   :header-rows: 1",
        "",
        *_row(["", "version", f"answers in bold, of {count}"]),
    ]
    for name, number in in_bold(answers).items():
        lines += _row([TITLES.get(name, name), version_of(name), str(number)])
    for title, names in GROUPS.items():
        lines += ["", title, "-" * len(title), "", ".. list-table::", "   :header-rows: 1", "   :stub-columns: 1"]
        lines += ["   :class: answers", "", *_row(["", *(TITLES.get(name, name) for name in LIBRARIES)])]
        for name in names.split():
            lines += _row([PROBES[name].title, *answers[name].values()])
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> list[str]:
    first, *others = cells
    return [f"   * - {first}".rstrip(), *(f"     - {cell}".rstrip() for cell in others)]


if __name__ == "__main__":
    if reason := lacking():
        sys.exit(f"cannot ask everything: {reason}")
    os.umask(0o022)
    PAGE.write_text(as_rst(ask()), encoding="utf-8")
