"""Directories on the file systems that people have, made for a test run and gone with it."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import mounts

HERE = os.path.dirname(os.path.abspath(__file__))
_PATIENCE = 200.0  # seconds for all tests on one FUSE file system; some programs hang
SFTP_SERVER = "/usr/lib/openssh/sftp-server"


class Missing(Exception):
    """The machine lacks something: said in one line."""


@dataclass(frozen=True)
class Place:
    """One kind of place: how to make it and what is different there.

    *make* is a context manager from an empty folder to the folder to write in; *differs* says for a promise what
    holds in its stead.
    """

    name: str
    make: Callable[[str], contextlib.AbstractContextManager[str]]
    differs: dict[str, str] = field(default_factory=dict)


def _need(program: str) -> str:
    found = shutil.which(program)
    if found is None and not os.path.exists(program):
        raise Missing(f"{os.path.basename(program)} is not installed")
    return found or program


def _need_kernel(kind: str) -> None:
    with open("/proc/filesystems") as table:
        if kind not in table.read().split():
            raise Missing(f"the kernel has no {kind}")


def _folder(parent: str, name: str) -> str:
    path = os.path.join(parent, name)
    os.mkdir(path)
    return path


# --- block devices ----------------------------------------------------------------------------------------------------


def block(name: str, megabytes: int = 0) -> Callable[[str], contextlib.AbstractContextManager[str]]:
    @contextlib.contextmanager
    def make(folder: str) -> Iterator[str]:
        system = mounts.BLOCK_FILE_SYSTEMS[name]
        system = replace(system, megabytes=max(megabytes, system.megabytes))
        if reason := system.missing():
            raise Missing(reason)
        image = os.path.join(folder, "image")
        system.format(image)
        where = _folder(folder, "mounted")
        with mounts.loop_device(image) as device, mounts.mounted(device, where, system.kind, system.options):
            yield where

    return make


@contextlib.contextmanager
def few_inodes(folder: str) -> Iterator[str]:
    """Make an ext4 whose inode table is full but for one: a name more is possible, two are not."""
    _need_kernel("ext4")
    _need("mkfs.ext4")
    image = os.path.join(folder, "image")
    with open(image, "wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-N", "32", image], check=True)
    where = _folder(folder, "mounted")
    with mounts.loop_device(image) as device, mounts.mounted(device, where, "ext4"):
        yield where


@contextlib.contextmanager
def btrfs_quota(folder: str) -> Iterator[str]:
    """Make a btrfs subvolume that may hold 2 MiB."""
    with block("btrfs")(folder) as where:
        volume = os.path.join(where, "volume")
        for command in (
            ["btrfs", "quota", "enable", where],
            ["btrfs", "subvolume", "create", volume],
            ["btrfs", "qgroup", "limit", "2M", volume],
        ):
            subprocess.run([_need("btrfs"), *command[1:]], check=True, capture_output=True)
        yield volume


@contextlib.contextmanager
def tmpfs(folder: str, options: str = "size=1g") -> Iterator[str]:
    where = _folder(folder, "mounted")
    with mounts.mounted("none", where, "tmpfs", options):
        yield where


# --- overlayfs, as in containers --------------------------------------------------------------------------------------


@contextlib.contextmanager
def overlay(folder: str) -> Iterator[str]:
    """Make an overlay; what the tests set up can be put into its lower layer by :func:`lower_layer`."""
    _need_kernel("overlay")
    with tmpfs(folder) as ram:
        lower, upper, work, where = (_folder(ram, name) for name in ("lower", "upper", "work", "merged"))
        # a folder that exists below, with a file that exists below: the first write copies both up
        _folder(lower, "below")
        with mounts.mounted("none", where, "overlay", f"lowerdir={lower},upperdir={upper},workdir={work}"):
            yield where


# --- FUSE -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _daemon(command: list[str], where: str, **options: object) -> Iterator[str]:
    """Run a FUSE program in the foreground until its file system is there; it dies with us, and the mount with it."""
    before = os.stat(where).st_dev
    process = subprocess.Popen(  # type: ignore[call-overload]
        command,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options},
        preexec_fn=functools.partial(mounts.die_with_parent, os.getpid()),
    )
    watchdog = threading.Timer(_PATIENCE, process.kill)  # then whoever waits for it gets ENOTCONN
    watchdog.start()
    try:
        for _ in range(400):
            if process.poll() is not None:
                raise Missing(f"{command[0]} ended with {process.returncode}")
            if os.stat(where).st_dev != before:
                break
            select.select([], [], [], 0.05)
        else:
            raise Missing(f"{command[0]} did not mount within 20 s")
        try:
            yield where
        finally:
            mounts.unmount(where)
    finally:
        watchdog.cancel()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()


def fuse(
    program: str, make: list[str], megabytes: int, command: Callable[[str, str, str], list[str]]
) -> Callable[[str], contextlib.AbstractContextManager[str]]:
    """Make a file system of a FUSE program on an image of its own."""

    @contextlib.contextmanager
    def enter(folder: str) -> Iterator[str]:
        image, where = os.path.join(folder, "image"), _folder(folder, "mounted")
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        subprocess.run([_need(make[0]), *make[1:], image], check=True, capture_output=True)
        with mounts.loop_device(image) as device, _daemon(command(_need(program), device, where), where):
            yield where

    return enter


def refusing(*refusals: str) -> Callable[[str], contextlib.AbstractContextManager[str]]:
    """Make the file system of ``refusing_fuse.py``."""

    @contextlib.contextmanager
    def make(folder: str) -> Iterator[str]:
        where = _folder(folder, "mounted")
        with _daemon([sys.executable, os.path.join(HERE, "refusing_fuse.py"), where, *refusals], where):
            yield where

    return make


@contextlib.contextmanager
def sshfs(folder: str) -> Iterator[str]:
    """Make an sshfs whose server is a child of ours: the protocol is real, only the encrypted transport is left out."""
    _need("sshfs")
    _need(SFTP_SERVER)
    where, exported = _folder(folder, "mounted"), _folder(folder, "exported")
    ours, theirs = socket.socketpair()
    server = subprocess.Popen([SFTP_SERVER], stdin=theirs, stdout=theirs, preexec_fn=functools.partial(mounts.die_with_parent, os.getpid()))
    theirs.close()
    try:
        with _daemon(["sshfs", "-f", "-o", "passive", f"loopback:{exported}", where], where, stdin=ours, stdout=ours):
            ours.close()
            yield where
    finally:
        ours.close()
        server.kill()
        server.wait()


_TEMPORARY = "leaves a temporary file"
_MISSING = "missing for a moment"
_NO_MODE, _NO_OWNER, _NO_ATTRIBUTES = "no mode bits", "no owners", "no attributes"

PLACES = [
    Place("ext4", block("ext4")),
    Place("xfs", block("xfs")),
    Place("btrfs", block("btrfs")),
    Place("tmpfs", tmpfs),
    Place("overlayfs on tmpfs", overlay),
    Place(
        "NTFS (ntfs-3g)",
        fuse(
            "ntfs-3g",
            ["mkfs.ntfs", "-q", "-F", "-f"],
            32,
            lambda program, device, where: [
                program,
                "-o",
                "no_detach,permissions,streams_interface=xattr",
                device,
                where,
            ],
        ),
        {
            "killed": _TEMPORARY,
            "readers": _MISSING,
            "long_name": "rename leaves a second name",
        },
    ),
    Place(
        "exFAT (exfat-fuse)",
        fuse("mount.exfat-fuse", ["mkfs.exfat"], 32, lambda program, device, where: [program, "-d", device, where]),
        {
            "killed": _TEMPORARY,
            "readers": _MISSING,
            "mode_kept": _NO_MODE,
            "permissions": _NO_MODE,
            "owner_kept": _NO_OWNER,
            "xattrs_kept": _NO_ATTRIBUTES,
            "symlink": "no symbolic links",
        },
    ),
    Place("sshfs", sshfs, {"killed": _TEMPORARY, "readers": _MISSING, "xattrs_kept": _NO_ATTRIBUTES}),
    Place("our FUSE, complete", refusing()),
    Place("our FUSE, no directory fsync (EINVAL)", refusing("directory-fsync=EINVAL")),
    Place("our FUSE, no directory fsync (ENOTSUP)", refusing("directory-fsync=ENOTSUP")),
    Place("our FUSE, no hard links (EPERM)", refusing("hard-links=EPERM")),
    Place("our FUSE, no hard links (ENOTSUP)", refusing("hard-links=ENOTSUP")),
    Place("our FUSE, no O_TMPFILE (ENOTSUP)", refusing("O_TMPFILE=ENOTSUP"), {"killed": _TEMPORARY}),
    Place("our FUSE, no O_TMPFILE (EINVAL)", refusing("O_TMPFILE=EINVAL"), {"killed": _TEMPORARY}),
    Place(
        "our FUSE, no O_TMPFILE, no hard links",
        refusing("O_TMPFILE=ENOTSUP", "hard-links=EPERM"),
        {"killed": _TEMPORARY},
    ),
    Place(
        "our FUSE, no chmod (EPERM)",
        refusing("chmod=EPERM"),
        {"mode_kept": _NO_MODE, "permissions": "refused: PermissionError EPERM, untouched"},
    ),
    Place(
        "our FUSE, no chmod (ENOTSUP)",
        refusing("chmod=ENOTSUP"),
        {"mode_kept": _NO_MODE, "permissions": "refused: OSError ENOTSUP, untouched"},
    ),
    Place("our FUSE, no chown (EPERM)", refusing("chown=EPERM"), {"owner_kept": _NO_OWNER}),
    Place("our FUSE, no xattrs (ENOTSUP)", refusing("xattrs=ENOTSUP"), {"xattrs_kept": _NO_ATTRIBUTES}),
    Place("our FUSE, no xattrs (EPERM)", refusing("xattrs=EPERM"), {"xattrs_kept": _NO_ATTRIBUTES}),
]
