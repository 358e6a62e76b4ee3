"""What the program under test calls for a batch, a durable verb, and what is built on the library.

A library whose one function does one of them.

Run in the program under test, so it imports nothing but the library.
"""

import os

import atomicio
from atomicio import _batch, _clean, _filesystem
from atomicio.star_imports import StarImportCache

_batch._THREADS = 1  # strace follows one thread
_filesystem._HONEST_SYNCFS |= {"tmpfs"}  # it has nothing to sync, but is asked in the same way

SOURCE = os.path.join(os.path.dirname(__file__), "harness.py")


class BodyError(Exception):
    pass


def write_bytes(target, data, *, what, **keywords):
    OPERATIONS[what](target, data, **keywords)


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


def stars(target, data, **keywords):
    cache = StarImportCache(target)
    cache._news = {"string": (("digits",), {"string": "somewhere"})}
    if not cache.save():
        raise cache.last_error


def clean(target, data, **keywords):
    failed = [each for each in _clean.clean(os.path.dirname(target), older_than=0, recursive=True) if each.failed]
    if failed:
        raise OSError(f"{failed[0].path}: {failed[0].reason}")


OPERATIONS = {function.__name__: function for function in (batch, copy, replace, remove, makedirs, stars, clean)}
