"""SageMath's lazy star imports on atomicio.star_imports: what replaces the pickle in `sage.misc.lazy_import`."""

import os

import sage.misc.lazy_import as lazy
import sage.misc.lazy_import_cache as location

from atomicio.star_imports import StarImportCache

CACHES = {}


def cache():
    """One cache for each file: Sage's doctests change where it lies."""
    path = os.path.splitext(location.get_cache_file())[0] + ".json"
    return CACHES.setdefault(path, StarImportCache(path))


def get_star_imports(module_name):
    """Lookup the names of ``from module_name import *``, importing it only if the cache does not know them."""
    return list(cache().names(module_name))


def save_cache_file():
    """Save what was learned, if anything was; an unwritable folder is no reason for Sage not to start."""
    cache().save()


lazy.get_star_imports = get_star_imports
lazy.save_cache_file = save_cache_file
