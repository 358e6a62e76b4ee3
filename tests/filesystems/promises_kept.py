"""What is promised everywhere, each as a function of a folder; it returns None, or says in words what holds in its
stead.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import atomicio

Promise = Callable[[], "str | None"]
TEMPORARY = re.compile(r"\.atomicio-[0-9a-f]{16}\.(tmp(\..*)?|backup)")
OLD, NEW = b"old content\n" * 3000, b"new content, longer\n" * 5000


def put(path: str, content: bytes = OLD) -> None:
    with open(path, "wb") as file:
        file.write(content)


def get(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def clean(*names: str) -> None:
    """Check that nothing but *names* is in the current folder."""
    assert sorted(os.listdir(".")) == sorted(names), os.listdir(".")


def replace_durable() -> None:
    put("f")
    with atomicio.atomic_write("f", "wb") as file:
        file.write(NEW)
        assert get("f") == OLD
    assert get("f") == NEW
    clean("f")


def replace_consistent() -> None:
    put("f")
    atomicio.write_bytes("f", NEW, durability="consistent")
    assert get("f") == NEW
    clean("f")


def replace_none() -> None:
    put("f")
    atomicio.write_bytes("f", NEW, durability="none")
    assert get("f") == NEW
    clean("f")


def create() -> None:
    for level in ("none", "consistent", "durable"):
        atomicio.write_bytes(level, NEW, durability=level)
        assert get(level) == NEW
    clean("none", "consistent", "durable")


def exclusive() -> None:
    """One winner of eight threads, and a file that exists is never replaced."""
    winners: list[int] = []
    others: list[BaseException] = []
    ready = threading.Barrier(8)

    def compete(number: int) -> None:
        try:
            with atomicio.atomic_write("f", "x", durability="none") as file:
                file.write(f"{number}\n" * 1000)
                ready.wait(120)
            winners.append(number)
        except FileExistsError:
            pass
        except BaseException as error:
            others.append(error)

    threads = [threading.Thread(target=compete, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if others:
        raise others[0]
    assert len(winners) == 1, winners
    assert get("f") == f"{winners[0]}\n".encode() * 1000
    try:
        atomicio.atomic_write("f", "x").open()
    except FileExistsError as error:
        assert not error.committed  # type: ignore[attr-defined]
    else:
        raise AssertionError("x replaced a file")
    clean("f")


def append() -> None:
    put("f")
    with atomicio.atomic_write("f", "ab") as file:
        file.write(NEW)
    assert get("f") == OLD + NEW
    clean("f")


def update() -> None:
    put("f")
    with atomicio.atomic_write("f", "r+b") as file:
        file.seek(100)
        file.write(b"X" * 50)
    assert get("f") == OLD[:100] + b"X" * 50 + OLD[150:]
    clean("f")


def exception() -> None:
    put("f")
    try:
        with atomicio.atomic_write("f", "wb") as file:
            file.write(NEW)
            raise KeyError("the caller's own")
    except KeyError:
        pass
    assert get("f") == OLD
    clean("f")


def readers() -> str | None:
    """A reader that never stops sees old or new, never a part; and never nothing, but where rename itself is not
    atomic.
    """
    put("f", b"0" * 50_000)
    stop = threading.Event()
    seen: list[str] = []

    def read() -> None:
        while not stop.is_set():
            try:
                content = get("f")
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE):  # sshfs may say that what it has just looked up is stale
                    raise
                seen.append("missing")
                continue
            if len(content) != 50_000 or len(set(content)) != 1:
                seen.append(f"{len(content)} bytes, {len(set(content))} kinds")

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(40):
            atomicio.write_bytes("f", b"%d" % (number % 10) * 50_000, durability="none")
    finally:
        stop.set()
        thread.join()
    if set(seen) == {"missing"}:
        return "missing for a moment"
    assert not seen, seen[:5]
    return None


def mode_kept() -> str | None:
    put("f")
    try:
        os.chmod("f", 0o640)
    except OSError as error:
        assert error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
    before = os.stat("f").st_mode
    atomicio.write_bytes("f", NEW)
    assert os.stat("f").st_mode == before
    return None if before & 0o777 == 0o640 else "no mode bits"


def permissions() -> str | None:
    atomicio.write_bytes("f", NEW, permissions=0o604)
    return None if os.stat("f").st_mode & 0o777 == 0o604 else "no mode bits"


def owner_kept() -> str | None:
    put("f")
    try:
        os.chown("f", 1234, 4321)
    except OSError as error:
        assert error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
    before = os.stat("f")
    atomicio.write_bytes("f", NEW)
    after = os.stat("f")
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    return None if before.st_uid == 1234 else "no owners"


def xattrs_kept() -> str | None:
    put("f")
    try:
        os.setxattr("f", "user.note", b"kept")
    except OSError as error:
        assert error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
        atomicio.write_bytes("f", NEW)
        assert get("f") == NEW
        return "no attributes"
    atomicio.write_bytes("f", NEW)
    assert os.getxattr("f", "user.note") == b"kept"
    return None


def backup() -> None:
    put("f")
    atomicio.write_bytes("f", NEW, backup=".bak")
    assert (get("f"), get("f.bak")) == (NEW, OLD)
    atomicio.write_bytes("f", OLD, backup=".bak")
    assert (get("f"), get("f.bak")) == (OLD, NEW)
    clean("f", "f.bak")


def skip_unchanged() -> None:
    put("f")
    before = os.stat("f")
    atomicio.write_bytes("f", OLD, skip_unchanged=True)
    assert os.stat("f").st_mtime_ns == before.st_mtime_ns
    atomicio.write_bytes("f", NEW, skip_unchanged=True)
    assert get("f") == NEW
    clean("f")


def by_path() -> None:
    put("f.bin")
    with atomicio.atomic_path("f.bin") as staging:
        assert staging.endswith(".bin")
        put(staging, NEW)
    assert get("f.bin") == NEW
    clean("f.bin")


def long_name() -> str | None:
    """ntfs-3g shows a second, shorter name after any rename to a name of 255 characters, ours or not."""
    name = "n" * 255
    put(name)
    atomicio.write_bytes(name, NEW)
    assert get(name) == NEW
    if len(os.listdir(".")) == 2 and "n" * 18 in os.listdir("."):
        return "rename leaves a second name"
    clean(name)
    return None


def make_parents() -> None:
    atomicio.write_bytes("a/b/c", NEW, make_parents=True)
    assert get("a/b/c") == NEW
    clean("a")


def symlink() -> str | None:
    put("f")
    try:
        os.symlink("f", "link")
    except OSError as error:
        assert error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
        return "no symbolic links"
    atomicio.write_bytes("link", NEW)
    assert os.readlink("link") == "f"
    assert get("f") == NEW
    clean("f", "link")
    return None


_COUNT = """
import sys, atomicio
for _ in range(15):
    with atomicio.atomic_write("f", "r+", lock=True, durability="none") as file:
        number = int(file.read()); file.seek(0); file.write(str(number + 1))
"""


def lock() -> None:
    """Four processes count together: no update is lost."""
    put("f", b"0")
    children = [subprocess.Popen([sys.executable, "-c", _COUNT]) for _ in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    assert get("f") == b"60"


_HANG = """
import atomicio, time
with atomicio.atomic_write("f", "wb") as file:
    file.write(b"x" * 100_000)
    print("there", flush=True)
    time.sleep(60)
"""


def killed() -> str | None:
    """A writer that is killed in its block leaves the old file, and at most one file that tells whose it is."""
    put("f")
    with subprocess.Popen([sys.executable, "-c", _HANG], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "there\n"
        child.send_signal(signal.SIGKILL)
    assert get("f") == OLD
    left = [name for name in os.listdir(".") if name != "f"]
    assert all(TEMPORARY.fullmatch(name) for name in left), left
    assert len(left) <= 1
    return "leaves a temporary file" if left else None


def batch() -> None:
    os.mkdir("d")
    put("f")
    with atomicio.batch() as files:
        for name in ("f", "g", "d/h"):
            files.write_bytes(name, NEW)
        assert get("f") == OLD
    assert get("f") == get("g") == get("d/h") == NEW
    clean("f", "g", "d")


def directory() -> None:
    for content in (OLD, NEW):
        with atomicio.atomic_directory("site") as staging:
            os.mkdir(os.path.join(staging, "sub"))
            put(os.path.join(staging, "sub", "page"), content)
        assert get("site/sub/page") == content
    for content, before in ((OLD, NEW), (NEW, OLD)):  # the second time, there is a backup that has to go
        with atomicio.atomic_directory("site", backup=".bak") as staging:
            os.mkdir(os.path.join(staging, "sub"))
            put(os.path.join(staging, "sub", "page"), content)
        assert (get("site/sub/page"), get("site.bak/sub/page")) == (content, before)
    clean("site", "site.bak")


def remove() -> None:
    put("f")
    atomicio.remove("f")
    clean()


def move() -> None:
    os.mkdir("d")
    put("f")
    put("g", NEW)
    atomicio.replace("g", "f")
    assert get("f") == NEW
    atomicio.replace("f", "d/f")
    assert get("d/f") == NEW
    clean("d")


def copy() -> None:
    put("f")
    put("g", NEW)
    atomicio.copy("g", "f")
    assert get("f") == get("g") == NEW
    clean("f", "g")


def makedirs() -> None:
    atomicio.makedirs("a/b/c")
    assert os.path.isdir("a/b/c")
    clean("a")


PROMISES: dict[str, Promise] = {
    function.__name__: function
    for function in (
        replace_durable,
        replace_consistent,
        replace_none,
        create,
        exclusive,
        append,
        update,
        exception,
        readers,
        killed,
        mode_kept,
        permissions,
        owner_kept,
        xattrs_kept,
        symlink,
        backup,
        skip_unchanged,
        by_path,
        long_name,
        make_parents,
        lock,
        batch,
        directory,
        remove,
        move,
        copy,
        makedirs,
    )
}


def outcome(promise: Promise) -> str:
    """Try one promise in the current folder: "holds", what holds in its stead, or with which error it was refused."""
    try:
        return promise() or "holds"
    except OSError as error:
        committed = getattr(error, "committed", None)
        code = errno.errorcode.get(error.errno or 0, "?")
        said = {None: "", False: ", untouched", True: ", committed"}[committed]
        return f"refused: {type(error).__name__} {code}{said}"
