"""What the program under test calls for a batch or a durable verb: a library whose one function does one of them.

Run in the program under test, so it imports nothing but the library.
"""

import os

import atomicio
from atomicio import _batch, _filesystem

_batch._THREADS = 1  # strace follows one thread

SOURCE = os.path.join(os.path.dirname(__file__), "harness.py")


class BodyError(Exception):
    pass


def write_bytes(target, data, *, what, **keywords):
    {"batch": batch, "copy": copy, "replace": replace, "remove": remove, "makedirs": makedirs}[what](
        target, data, **keywords
    )


def batch(target, data, *, durability="durable", barrier="syncfs", mode="wb", fail=False, **keywords):
    """Replace the file that *target* leads to, and make one beside it and one beside *target*."""
    if barrier != "syncfs":
        _filesystem.syncs_whole = lambda fd: False
    directory = os.path.dirname(target)
    try:
        with atomicio.batch(durability=durability) as batch:
            batch.write_bytes(target, data, **keywords)
            batch.write_bytes(os.path.join(directory, "real", "second.txt"), data)
            with batch.atomic_write(os.path.join(directory, "third.txt"), mode) as file:
                file.write(data)
            if fail:
                raise BodyError
    except atomicio.PartialCommitError as error:
        new, old = ([os.path.basename(path) for path in each] for each in (error.committed_paths, error.uncommitted_paths))
        error.strerror = f"{new} {old}"
        raise


def copy(target, data, **keywords):
    atomicio.copy(SOURCE, target, **keywords)


def replace(target, data, **keywords):
    atomicio.replace(target, os.path.join(os.path.dirname(target), "renamed.txt"), **keywords)


def remove(target, data, **keywords):
    atomicio.remove(target, **keywords)


def makedirs(target, data, **keywords):
    atomicio.makedirs(target, **keywords)
