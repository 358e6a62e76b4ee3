"""``atomicio star-imports``: look at, empty or fill a star-import cache."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from .star_imports import StarImportCache

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

_NOT_RECORDED = 3
_WAIT = 2.5  # seconds, after which what the first try wrote (byte code) no longer looks like an edit

# One fresh process per module: what an earlier import had loaded would only make the next entry depend on more files.
_WARM = """
import sys
path, permissions, module, *sys.path = sys.argv[1:]
from atomicio.star_imports import StarImportCache
cache = StarImportCache(path or None, permissions=int(permissions))
recorded = module in sys.modules  # what the cache itself is made of needs no entry
cache.invalidate(module)
cache.names(module)
recorded = recorded or cache._news[module] is not None
cache.save(strict=True)
sys.exit(0 if recorded else 3)
"""


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser of the command line; ``arguments.run(arguments)`` runs it."""
    parser = subparsers.add_parser(
        "star-imports",
        help="show, clear or fill the cache of lazy star imports",
        description="Without an option, list the modules in the cache and whether their entries are valid now.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--show", metavar="MODULE", help="print the names that a star import of MODULE brings")
    what.add_argument("--clear", action="store_true", help="forget everything")
    what.add_argument("--warm", nargs="+", metavar="MODULE", help="import each in a fresh process and remember it")
    parser.add_argument("--cache", metavar="FILE", help="the cache file (default: this interpreter's own)")
    parser.add_argument("--shared", action="store_true", help="let other users read the file: mode 644 instead of 600")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Do what the command line says; OSError says what could not be done."""
    cache = StarImportCache(arguments.cache, permissions=0o644 if arguments.shared else 0o600)
    if arguments.show:
        try:
            names = cache.names(arguments.show)
        except Exception as error:  # whatever an import can raise
            raise OSError(f"cannot import {arguments.show}: {type(error).__name__}: {error}") from error
        print(*names, sep="\n")  # noqa: T201
    elif arguments.clear:
        cache.invalidate()
        cache.save(strict=True)
    elif arguments.warm:
        failed = [module for module in arguments.warm if not _warm(cache.path, arguments.shared, module)]
        if failed:
            raise OSError(f"not remembered: {', '.join(failed)}")
    else:
        print(cache.path)  # noqa: T201
        for module, entry in sorted(cache._read(strict=True).items()):
            # What this command itself has loaded cannot be stale.
            valid = entry if module in sys.modules else cache._valid(module)
            if entry:
                print(f"{module}: {f'{len(valid[0])} names' if valid else 'stale'}")  # noqa: T201


def _warm(path: str, shared: bool, module: str) -> bool:
    command = [sys.executable, *["-O"] * sys.flags.optimize, "-c", _WARM, path, str(0o644 if shared else 0o600), module]
    for attempt in range(2):
        # Absolute, because -c would read an empty entry as its own folder, and so would no other process.
        status = subprocess.run([*command, *map(os.path.abspath, sys.path)], check=False).returncode  # noqa: S603
        if status != _NOT_RECORDED:
            return status == 0
        if not attempt:
            time.sleep(_WAIT)
    return False
