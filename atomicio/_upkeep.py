"""The commands that look after a place: ``atomicio probe``, ``atomicio clean`` and ``atomicio recover``."""

from __future__ import annotations

import argparse
import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._clean import Leftover
    from ._probe import Probe
    from ._recovery import Record

__all__ = ["add_commands"]

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of the command line."""
    probe = commands.add_parser(
        "probe",
        help="tell what a directory can do, and what is promised there",
        description="Try in DIR what the library builds on (unnamed files, links, locks, syncs, ...), remove all traces, and tell what "
        "works and what is promised there at each level of durability.",
        allow_abbrev=False,
    )
    probe.add_argument("target", metavar="DIR", nargs="?", default=".", help="the directory (default: the current one)")
    probe.add_argument("--json", action="store_true", help="print a JSON object")
    probe.set_defaults(run=_probe)

    clean = commands.add_parser(
        "clean",
        help="remove what killed writers left in a directory",
        description="Remove the temporary files and staging directories in DIR whose writers are gone: their locks, which end with the "
        "process, prove it. Everything else that has a name of the library's is told about and left alone.",
        allow_abbrev=False,
    )
    clean.add_argument("target", metavar="DIR", nargs="?", default=".", help="the directory (default: the current one)")
    clean.add_argument("-n", "--dry-run", action="store_true", help="remove nothing, only tell")
    clean.add_argument("-r", "--recursive", action="store_true", help="also in the directories below, on the same file system")
    clean.add_argument(
        "--older-than",
        type=_seconds,
        default=60.0,
        metavar="AGE",
        help="leave alone what was changed less than AGE ago: seconds, or with a unit, 90s, 10m, 2h, 7d (default: 60s)",
    )
    clean.add_argument(
        "--alone",
        action="store_true",
        help="no other machine writes here: trust locks on network and FUSE file systems too",
    )
    clean.set_defaults(run=_clean)

    recover = commands.add_parser(
        "recover",
        help="put a directory right whose replacement was interrupted half way",
        description="Where two directories can't change places in one step, a directory is replaced by two renames. If a kill or a power "
        "cut comes between them, PATH is missing: give it its old content back. PATH may also be a directory in which such are.",
        allow_abbrev=False,
    )
    recover.add_argument("target", metavar="PATH", help="the directory that was being replaced, or the one it is in")
    recover.set_defaults(run=_recover)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age such as 90s, 10m, 2h or 7d")
    return float(found[1]) * _UNITS[found[2]]


# -- probe ------------------------------------------------------------------------------------------------------------------------


def _probe(arguments: argparse.Namespace) -> None:
    from ._probe import probe  # noqa: PLC0415

    found = probe(arguments.target)
    if arguments.json:
        import json  # noqa: PLC0415

        print(json.dumps(found.as_dict(), indent=2))
    else:
        print("\n".join(_describe(found)))


def _describe(found: Probe) -> list[str]:
    kind = [found.filesystem or "unknown"]
    kind += ["on another machine"] if found.network else []
    kind += ["served by a program"] if found.fuse else []
    kind += ["in memory"] if found.in_memory else []
    kind += [f"mounted with {found.unsynced}"] if found.unsynced else []
    lines = [_shown(found.path), *_row("file system", ", ".join(kind))]
    for label, name, otherwise in (
        ("unnamed files", "unnamed_files", "a killed writer leaves a temporary file"),
        ("hard links", "hard_links", "a backup is a copy"),
        ("create without replacing", "create_new", "for a moment, a file made with mode 'x' is there and empty"),
        ("directories swapped", "exchange", "while a directory is replaced, there is none for a moment"),
        ("files synced", "file_sync", "nothing survives a power cut for sure"),
        ("directories synced", "directory_sync", "the file system chooses when a new name survives a power cut"),
        ("copies share blocks", "reflink", "a copy takes as much room as the original"),
        ("locks between processes", "locks", "lock=True does not keep other processes out"),
        ("permission bits kept", "permissions", "permissions can't be chosen"),
        ("case matters in names", "case_sensitive", "a and A are one file"),
    ):
        lines += _row(label, {True: "yes", False: f"no: {otherwise}", None: "not known"}[getattr(found, name)])
    lines += ["", "What is promised here, with durability="]
    for level, promise in found.promises.items():
        lines += _row(level, promise)
    return lines


def _row(label: str, text: str) -> list[str]:
    import textwrap  # noqa: PLC0415

    return textwrap.wrap(text, 100, initial_indent=f"  {label:<26}", subsequent_indent=" " * 28, break_long_words=False)


# -- clean ------------------------------------------------------------------------------------------------------------------------


def _clean(arguments: argparse.Namespace) -> None:
    from ._clean import clean  # noqa: PLC0415

    failed = 0
    for leftover in clean(
        arguments.target,
        dry_run=arguments.dry_run,
        older_than=arguments.older_than,
        recursive=arguments.recursive,
        alone=arguments.alone,
    ):
        print(_tell(leftover, dry_run=arguments.dry_run))
        failed += leftover.failed
    if failed:
        raise OSError(f"{failed} could not be looked at or removed")


def _tell(leftover: Leftover, *, dry_run: bool) -> str:
    from .cli import size  # noqa: PLC0415

    what = "a directory" if leftover.directory else size(leftover.size)
    if leftover.removed:
        return f"{'would remove' if dry_run else 'removed'} {_shown(leftover.path)} ({what}, {_age(leftover.age)} old)"
    return f"kept {_shown(leftover.path)} ({what}): {leftover.reason}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _shown(path: str) -> str:
    """Return *path* as it is, or quoted where a terminal or a reader of lines could take it for something else."""
    return path if path.isprintable() else ascii(path)


# -- recover ----------------------------------------------------------------------------------------------------------------------


def _recover(arguments: argparse.Namespace) -> None:
    from ._recovery import recover  # noqa: PLC0415

    found = failed = 0
    for path, result in recover(arguments.target):
        found += 1
        if isinstance(result, OSError):
            failed += 1
            print(f"{_shown(path)}: {result.strerror}")
        else:
            print(f"{_shown(path)}: {_outcome(path, result)}")
    if failed:
        raise OSError(f"{failed} could not be put right")
    if not found:
        print("nothing to put right")


def _outcome(path: str, record: Record) -> str:
    if record.outcome == "restored":
        return "put back as it was"
    if record.outcome == "done":
        return "had been replaced; what it replaced is dealt with"
    if record.outcome == "kept":
        old = os.path.join(os.path.dirname(path), record.old)
        return f"was made anew meanwhile, and kept; what it was before is in {_shown(old)}"
    return "had not been touched"
