"""The race that this library was born from: one process reads the cache while another still moves it into place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conftest import litter
from star_helpers import PRELUDE, environment, finish, make, recorded, settle, start

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = float(os.environ.get("ATOMICIO_RACE_SECONDS", "12"))  # 60 for a release
PROCESSES = 8

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="fork starts processes fast enough to race")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modules")
    for number in range(64):
        make(folder, {f"r{number:02}.py": "".join(f"name_{number}_{i} = {i}\n" for i in range(200))})
    settle()
    return folder


@pytest.fixture
def other_file_system(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than tmp_path's."""
    place = tmp_path / "tmpfs"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a tmpfs, for a second file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_the_old_way_fails_readers(tmp_path: Path, other_file_system: Path) -> None:
    """A temporary file in the default folder, on a file system of its own, moved over the pickle: not atomic."""
    cache = tmp_path / "names.pickle"
    writer = f"""
import pickle, shutil, tempfile, time
while True:
    with tempfile.NamedTemporaryFile(dir={str(other_file_system)!r}, delete=False) as f:
        pickle.dump({{f"module{{i}}": ["name"] * 200 for i in range(3000)}}, f)
    shutil.move(f.name, {str(cache)!r})
"""
    reader = f"""
import pickle, time
end, reads, failures = time.time() + 90, 0, {{}}
while time.time() < end and sum(failures.values()) < 3:
    try:
        with open({str(cache)!r}, "rb") as f:
            pickle.load(f)
        reads += 1
    except FileNotFoundError:
        time.sleep(0.01)
    except Exception as error:
        failures[type(error).__name__] = failures.get(type(error).__name__, 0) + 1
answer([reads, failures])
"""
    process = start(writer)
    try:
        reads, failures = finish(start(reader))
    finally:
        process.kill()
        process.communicate()
    print(f"the old way: {reads} good reads, failures {failures}")
    assert sum(failures.values()) >= 1


WORKER = """
import random, signal, time, ast, filelock, atomicio
folder, caches, seconds, seed = json.loads(sys.argv[1])
sys.path.insert(0, folder)
random.seed(seed)
end = time.monotonic() + seconds
count = {"programs": 0, "killed": 0, "warnings": 0, "wrong": 0, "failed": 0, "hits": 0}
saved = {cache: [] for cache in caches}
while time.monotonic() < end:
    cache, wanted = random.choice(caches), random.sample(range(64), 2)
    delay = random.choice([None, None, random.expovariate(300)])
    read, write = os.pipe()
    pid = os.fork()  # a program starts
    if not pid:
        result = {"warnings": 0, "wrong": 0, "hits": 0, "saved": False}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            c = StarImportCache(cache)
            for number in wanted:
                names = c.names(f"r{number:02}")
                result["wrong"] += names != tuple(f"name_{number}_{i}" for i in range(200))
                result["hits"] += f"r{number:02}" not in sys.modules
            result["saved"] = save_patiently(c)
            result["error"] = repr(c.last_error)
        result["warnings"] = len(caught)
        os.write(write, json.dumps(result).encode())
        os._exit(0)
    os.close(write)
    if delay is not None:
        time.sleep(delay)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    with open(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    count["programs"] += 1
    if not data:
        count["killed"] += 1
        continue
    result = json.loads(data)
    for key in ("warnings", "wrong", "hits"):
        count[key] += result[key]
    if result["saved"]:
        saved[cache] += wanted
    else:
        count["failed"] += 1
        count["error"] = result["error"]
answer([count, saved])
"""


def test_starting_reading_saving_and_dying_on_two_file_systems(
    modules: Path, tmp_path: Path, other_file_system: Path
) -> None:
    (tmp_path / "disk").mkdir()
    caches = [str(tmp_path / "disk" / "names.json"), str(other_file_system / "names.json")]
    processes = []
    for seed in range(PROCESSES):
        work = [sys.executable, "-P", "-c", PRELUDE + WORKER, json.dumps([str(modules), caches, SECONDS, seed])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(work, env=environment(), **pipes))
    total: dict[str, int] = {}
    saved: dict[str, set[int]] = {cache: set() for cache in caches}
    for process in processes:
        out, err = process.communicate(timeout=SECONDS + 120)
        assert process.returncode == 0, err
        count, mine = json.loads(out.splitlines()[-1])
        for key, value in count.items():
            total[key] = total.get(key, 0) + value if isinstance(value, int) else value
        for cache, numbers in mine.items():
            saved[cache] |= set(numbers)
    left = len(litter(tmp_path))
    print(f"{SECONDS:.0f} s, {PROCESSES} processes: {total}, staging names left by SIGKILL: {left}")
    assert (total["warnings"], total["wrong"], total["failed"]) == (0, 0, 0)
    assert total["killed"] > SECONDS / 3
    for cache in caches:
        entries = recorded(Path(cache))
        # Whatever a save has reported as saved is still there, whoever saved at the same time or died while doing so.
        assert {f"r{number:02}" for number in saved[cache]} <= set(entries)
        assert all(names == [f"name_{int(module[1:])}_{i}" for i in range(200)] for module, names in entries.items())
    assert left <= total["killed"]


def test_64_processes_with_a_module_each_leave_64_entries(modules: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "names.json"
    go = tmp_path / "go"
    code = f"""
import time
c = StarImportCache({str(cache)!r})
c.names("r%02d")
while not os.path.exists({str(go)!r}): time.sleep(0.01)
answer([save_patiently(c), repr(c.last_error)])
"""
    processes = [start(code % number, modules) for number in range(64)]
    time.sleep(3)
    go.touch()
    assert [finish(process) for process in processes] == [[True, "None"]] * 64
    assert len(recorded(cache)) == 64
    assert sorted(os.listdir(cache.parent)) == ["names.json", "names.json.lock"]
    print("64 processes, 64 entries")


def test_frozen_holder_of_the_lock_only_costs_the_save(modules: Path, tmp_path: Path) -> None:
    cache = tmp_path / "names.json"
    hold = "import filelock, time\nwith filelock.FileLock({!r}):\n    print('held', flush=True)\n    time.sleep(99)"
    holder = start(hold.format(str(cache) + ".lock"))
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        code = f"c = StarImportCache({str(cache)!r}); answer([len(c.names('r01')), c.save(), repr(c.last_error)])"
        names, saved, error = finish(start(code, modules))
        assert (names, saved) == (200, False)
        assert "Timeout" in error
    finally:
        holder.kill()
        holder.communicate()
