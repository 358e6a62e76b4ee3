"""The command line: ``atomicio write TARGET`` and its like.

Exit status as Unix tools have it: 0 when done, 1 when something failed (one line on standard error says what, and
whether the file changed), 2 for wrong usage, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

from . import __version__, atomic_write, copy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import BinaryIO

__all__ = ["Progress", "main", "parser"]

_CHUNK = 1 << 18
_BAR = 30  # characters

# How each shell completes names, in the words of shtab, which makes the completions and is not imported here.
_FILE = {
    "bash": "_shtab_compgen_files",
    "fish": "(__fish_complete_path (commandline -ct))",
    "powershell": "_shtab_powershell_compgen_files",
    "tcsh": "f",
    "zsh": "_files",
}
_DIRECTORY = {
    "bash": "_shtab_compgen_dirs",
    "fish": "(__fish_complete_directories)",
    "powershell": "_shtab_powershell_compgen_dirs",
    "tcsh": "d",
    "zsh": "_files -/",
}
_COMPLETED = {"SOURCE": _FILE, "TARGET": _FILE, "FILE": _FILE, "PATH": _FILE, "DIR": _DIRECTORY}
# What the library's messages advise, as this command has it.
_OPTIONS = {
    "make_parents=True": "--parents",
    "fallback='in-place'": "--in-place",
    "lock=True": "--lock",
    "mode 'x'": "--no-clobber",
}


class Progress:
    """Bytes done so far, on standard error: only on a terminal, and only when the work takes longer than a second."""

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._done = 0
        self._next = time.monotonic() + 1
        self._shown = False
        self._terminal = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, count: int) -> None:
        """Count *count* more bytes."""
        self.update(self._done + count, self._total)

    def update(self, done: int, total: int | None) -> None:
        """Take note that *done* bytes of *total* are done."""
        self._done, self._total = done, total
        if self._terminal and time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            self._shown = True
            print(f"\r\x1b[K{self._line()}", end="", file=sys.stderr, flush=True)

    def _line(self) -> str:
        if not self._total:
            return size(self._done)
        share = min(self._done / self._total, 1)
        bar = "#" * int(share * _BAR)
        return f"[{bar:.<{_BAR}}] {share:4.0%}  {size(self._done)} of {size(self._total)}"

    def clear(self) -> None:
        """Leave the line as it was before."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def size(count: float) -> str:
    """Return *count* bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _read(source: BinaryIO) -> bytes:
    try:
        return source.read1(_CHUNK)  # type: ignore[attr-defined, no-any-return]
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard input") from None  # it is not the target that failed


def _write(arguments: argparse.Namespace) -> None:
    """Read standard input to its end, then put it in the target's place."""
    if sys.stdin is None:
        raise OSError("standard input is closed")
    mode = "ab" if arguments.append else "xb" if arguments.no_clobber else "wb"
    source: BinaryIO = sys.stdin.buffer
    progress = Progress()
    try:
        with atomic_write(
            arguments.target,
            mode,
            durability=arguments.durability,
            permissions=arguments.mode,
            backup=arguments.backup,
            follow_symlinks=not arguments.no_follow,
            fallback="in-place" if arguments.in_place else "raise",
            skip_unchanged=arguments.skip_unchanged,
            make_parents=arguments.parents,
            lock=arguments.lock,
        ) as file:
            while chunk := _read(source):
                file.write(chunk)
                progress(len(chunk))
    finally:
        progress.clear()


def _copy(arguments: argparse.Namespace) -> None:
    """Copy a file to the target's place."""
    progress = Progress()
    try:
        copy(
            arguments.source,
            arguments.target,
            progress=progress.update,
            durability=arguments.durability,
            permissions=arguments.mode,
            backup=arguments.backup,
            follow_symlinks=not arguments.no_follow,
            fallback="in-place" if arguments.in_place else "raise",
            skip_unchanged=arguments.skip_unchanged,
            make_parents=arguments.parents,
            lock=arguments.lock,
        )
    finally:
        progress.clear()


def _octal(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise argparse.ArgumentTypeError(f"{text!r} is not an octal mode such as 644")
    return mode


def _durability(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--durability",
        choices=("none", "consistent", "durable"),
        default="durable",
        help="what a power cut may do: anything (none); leave the old or the new content (consistent); nothing once "
        "the command has returned (durable, the default)",
    )


def _placing(parser: argparse.ArgumentParser) -> None:
    """Add the options for how TARGET is replaced."""
    _durability(parser)
    parser.add_argument(
        "--mode", type=_octal, metavar="OCTAL", help="permissions, such as 600 (default: TARGET's, or what is usual)"
    )
    parser.add_argument(
        "--backup", metavar="SUFFIX", help="keep the old content as TARGET with this suffix, such as .bak"
    )
    parser.add_argument(
        "--no-follow", action="store_true", help="replace a symbolic link instead of the file it leads to"
    )
    parser.add_argument(
        "--skip-unchanged", action="store_true", help="leave TARGET and its times alone if the content is the same"
    )
    parser.add_argument("--parents", action="store_true", help="create missing directories")
    parser.add_argument("--lock", action="store_true", help="wait for other writers that use a lock (TARGET.lock)")
    parser.add_argument(
        "--in-place", action="store_true", help="if TARGET can't be replaced (a mount point), write into it: not atomic"
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, from which completions for shells are made (by shtab)."""
    whole = argparse.ArgumentParser(
        prog="atomicio", description="Write files so that nobody, ever, sees half of one.", allow_abbrev=False
    )
    whole.add_argument("--version", action="version", version=f"atomicio {__version__}")
    commands = whole.add_subparsers(title="commands", metavar="COMMAND", required=True)
    write = commands.add_parser(
        "write",
        help="replace a file with standard input",
        description="Read standard input to its end, then replace TARGET with it, all at once. TARGET may be what the "
        "input is made from: sort f | atomicio write f. If the input can't be read or written whole, TARGET stays as "
        "it is.",
        allow_abbrev=False,
    )
    write.add_argument("target", metavar="TARGET", help="the file to replace or create")
    how = write.add_mutually_exclusive_group()
    how.add_argument("-a", "--append", action="store_true", help="keep the content and add to it")
    how.add_argument("-n", "--no-clobber", action="store_true", help="fail if TARGET exists")
    _placing(write)
    write.set_defaults(run=_write)
    copy = commands.add_parser(
        "copy",
        help="replace a file with a copy of another",
        description="Copy the content of SOURCE, then replace TARGET with it, all at once: until then, and if it fails "
        "or is interrupted, TARGET stays as it is. TARGET keeps its permissions; a new one gets those of SOURCE, as "
        "with cp. Shows a bar on a terminal if it takes longer than a second.",
        allow_abbrev=False,
    )
    copy.add_argument("source", metavar="SOURCE", help="the file to read")
    copy.add_argument("target", metavar="TARGET", help="the file to replace or create; not a directory")
    _placing(copy)
    copy.set_defaults(run=_copy)
    from ._upkeep import add_commands  # noqa: PLC0415

    add_commands(commands)
    from ._star_imports_cli import add_command  # noqa: PLC0415

    add_command(commands)
    for command in commands.choices.values():
        for action in command._actions:
            if action.metavar in _COMPLETED:
                action.complete = _COMPLETED[action.metavar]  # type: ignore[attr-defined]
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.strerror:
            name = error.filename if error.filename is not None else getattr(arguments, "target", "")
            message = error.strerror
            for word, option in _OPTIONS.items():
                message = message.replace(word, option)
            message = f"{os.fsdecode(name)}: {message}" if name else message
        else:
            message = str(error)
        # One line: a name may hold a newline, or what a terminal would obey. Bytes that are no text stay as they are.
        line = "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else ascii(c)[1:-1] for c in message)
        print(f"atomicio: {line}", file=sys.stderr)
        return 1
    return 0
