"""Systems that lack one thing or another: the best way that is left is taken, nothing is lost or left behind, and `probe` tells.

What a build of Python lacks is taken away from this one, before the library is imported by a fresh interpreter: Android's has no
hard links, Emscripten's no directory descriptors, musl's and macOS's no extended attributes, others no fcntl or ctypes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

if os.name != "posix" or sys.platform == "emscripten":
    pytest.skip("takes away what POSIX systems have, from an interpreter of its own", allow_module_level=True)

NOT_FOR_DIRECTORIES = """
import stat
real_fsync = os.fsync
def fsync(fd):
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        raise OSError(22, os.strerror(22))
    real_fsync(fd)
os.fsync = fsync
"""
REMOVE = {
    "nothing": "",
    "link": "del os.link",
    "O_TMPFILE": "os.__dict__.pop('O_TMPFILE', None)",
    "openat, renameat and so on": "os.supports_dir_fd.clear(); os.supports_fd.clear()",
    "fsync of directories": NOT_FOR_DIRECTORIES,
    "extended attributes": "for name in ('listxattr', 'getxattr', 'setxattr', 'removexattr'): os.__dict__.pop(name, None)",
    "fchmod": "del os.fchmod",
    "fchown": "del os.fchown",
    "copy_file_range and holes": "for name in ('copy_file_range', 'SEEK_DATA', 'SEEK_HOLE'): os.__dict__.pop(name, None)",
    "flags": "for name in ('O_CLOEXEC', 'O_NOFOLLOW', 'O_DIRECTORY', 'O_PATH', 'O_NOCTTY'): os.__dict__.pop(name, None)",
    "fcntl": "sys.modules['fcntl'] = None",
    "ctypes": "sys.modules['ctypes'] = sys.modules['_ctypes'] = None",
}
REMOVE["all of it"] = "\n".join(REMOVE.values())

PROGRAM = """
import json, os, stat, sys
{remove}
import atomicio

def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)

def content(path):
    with open(path) as file:
        return file.read()

def refused(function):
    try:
        function()
    except FileExistsError as error:
        return error.committed
    return "not refused"

os.umask(0o027)
facts = {{}}
for durability in {levels}:
    os.mkdir(durability)
    os.chdir(durability)
    options = {{"durability": durability}}
    with open("plain", "w") as file:
        file.write("plain")
    for text in ("one", "two"):
        atomicio.write_text("written", text, **options)
        assert content("written") == text
    assert mode("written") == mode("plain")
    os.chmod("plain", 0o604)
    with atomicio.atomic_write("plain", **options) as file:
        file.write("new")
    facts["keeps the mode"] = mode("plain") == 0o604
    try:
        atomicio.write_text("private", "private", permissions=0o600, **options)
        facts["permissions"] = oct(mode("private"))
    except (OSError, NotImplementedError) as error:
        facts["permissions"] = type(error).__name__
        assert not os.path.exists("private")
    with atomicio.atomic_write("created", "x", **options) as file:
        file.write("mine")
    assert refused(lambda: atomicio.atomic_write("created", "x", **options).open()) is False
    writer = atomicio.atomic_write("contested", "x", **options)
    writer.open().write("mine")
    with open("contested", "w") as file:
        file.write("theirs")
    assert refused(writer.commit) is False
    assert content("contested") == "theirs"
    with atomicio.atomic_write("created", "a", **options) as file:
        file.write("+")
    with atomicio.atomic_write("created", "r+", **options) as file:
        assert file.read() == "mine+"
        file.write("+")
    assert content("created") == "mine++"
    os.symlink("created", "link")
    atomicio.write_text("link", "through", **options)
    assert os.path.islink("link") and content("created") == "through"
    atomicio.write_text("created", "newer", backup=".bak", **options)
    assert (content("created"), content("created.bak")) == ("newer", "through")
    before = os.stat("created").st_ino
    atomicio.write_text("created", "newer", skip_unchanged=True, **options)
    assert os.stat("created").st_ino == before
    with atomicio.atomic_path("lent.txt", **options) as path:
        with open(path, "w") as file:
            file.write("lent")
    assert content("lent.txt") == "lent"
    try:
        with atomicio.atomic_write("written", **options) as file:
            file.write("lost")
            raise KeyError
    except KeyError:
        pass
    assert content("written") == "two"
    with atomicio.batch(durability=durability) as batch:
        batch.write_text("written", "batch")
        batch.write_text("fresh", "batch")
    assert content("written") == content("fresh") == "batch"
    for number in range(2):
        with atomicio.atomic_directory("site", backup=".old", **options) as staging:
            with open(os.path.join(staging, "page"), "w") as file:
                file.write(str(number))
    assert (content("site/page"), content("site.old/page")) == ("1", "0")
    with atomicio.atomic_directory("site", **options) as staging:
        pass
    assert os.listdir("site") == []
    atomicio.copy("created", "copied", **options)
    atomicio.replace("copied", "moved", **options)
    assert content("moved") == "newer"
    atomicio.remove("moved", **options)
    atomicio.makedirs("a/b", **options)
    names = sorted(os.listdir())
    assert not [name for name in names if name.startswith(".atomicio-")], names
    os.chdir("..")
found = atomicio.probe(".")
facts |= {{name: getattr(found, name) for name in ("hard_links", "unnamed_files", "create_new", "exchange", "directory_sync")}}
facts["promise"] = found.promises["durable"]
print(json.dumps(facts))
"""


# filelock says when it is imported that without fcntl it has soft locks only.
WARNINGS = ["-W", "error", "-W", "ignore:only soft file lock:UserWarning"]


@pytest.mark.parametrize("missing", REMOVE)
def test_everything_works_without(missing: str, no_litter: Path) -> None:
    levels = ["none", "consistent", "durable"] if missing in {"nothing", "fsync of directories", "all of it"} else ["none"]
    program = PROGRAM.format(remove=REMOVE[missing], levels=levels)
    done = subprocess.run(
        [sys.executable, *WARNINGS, "-c", program], cwd=no_litter, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    everything = missing == "all of it"
    # A mode that was asked for is set, or that is an error: never another one in silence.
    assert facts["permissions"] == "0o600" or facts["permissions"].endswith("Error")
    if sys.platform == "linux":
        assert facts["permissions"] == "0o600"
        assert facts["keeps the mode"]
    assert facts["hard_links"] is not (missing == "link" or everything)
    if missing == "O_TMPFILE" or everything:
        assert facts["unnamed_files"] is False
    if missing == "ctypes" or everything:
        assert facts["exchange"] is False
    if missing == "fsync of directories":
        assert facts["directory_sync"] is False
        assert "directories can't be synced here" in facts["promise"]
    if missing.startswith("openat"):
        assert facts["directory_sync"] is None
