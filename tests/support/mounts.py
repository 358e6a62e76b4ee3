"""Mounts that vanish by themselves: a private mount namespace, loop devices, and the kernel's file systems on them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

CLONE_NEWNS = 0x00020000
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
_BTRFS_START_SYNC, _BTRFS_WAIT_SYNC = 0x80089418, 0x40089416
PR_SET_PDEATHSIG = 1


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)


def enter_private_mounts() -> None:
    """Give this process its own mount table.  Whatever it mounts goes away with its last process, however that ends."""
    libc = _libc()
    _check(libc.unshare(CLONE_NEWNS), "unshare")
    _check(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "/")


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends."""
    _check(_libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")


def mount(source: str, where: str, kind: str | None, options: str = "", flags: int = 0) -> None:
    """mount(2), by the program of that name, which knows every option's spelling."""
    command = ["mount", *(["-t", kind] if kind else []), *(["-o", options] if options else []), source, where]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.returncode, done.stderr.strip() or f"mount exited with {done.returncode}", where)


def unmount(where: str) -> None:
    """umount2(2), given a few seconds: a loop device that somebody happens to look at is detached only after that."""
    for _ in range(200):
        try:
            _check(_libc().umount2(os.fsencode(where), 0), where)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        time.sleep(0.05)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), where)


@contextlib.contextmanager
def mounted(source: str, where: str, kind: str | None, options: str = "") -> Iterator[str]:
    """Mount for the length of the block."""
    mount(source, where, kind, options)
    try:
        yield where
    finally:
        unmount(where)


@contextlib.contextmanager
def loop_device(image: str, *, direct: bool = False) -> Iterator[str]:
    """Put a loop device in front of *image* for the length of the block."""
    command = ["losetup", "-f", "--show", *(["--direct-io=on"] if direct else []), image]
    for attempt in range(20):  # another process may take the free device between the look and the grip: EBUSY
        done = subprocess.run(command, capture_output=True, text=True)
        if not done.returncode:
            break
        if attempt == 19:
            raise OSError(done.returncode, done.stderr.strip(), image)
    device = done.stdout.strip()
    holding = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # of a device in use this only says: detach when nobody has it open any more, should we be killed as well
        subprocess.run(["losetup", "-d", device], check=True)
        yield device
    finally:
        os.close(holding)


@dataclass(frozen=True)
class BlockFileSystem:
    """A file system of the kernel that lives on a block device."""

    name: str
    kind: str
    megabytes: int
    make: tuple[str, ...]
    options: str

    def missing(self) -> str | None:
        """Say in one line what this machine lacks for it, or None."""
        if not shutil.which(self.make[0]):
            return f"{self.make[0]} is not installed"
        with open("/proc/filesystems") as table:
            if self.kind not in table.read().split():
                return f"the kernel has no {self.kind}"
        return None

    def format(self, image: str) -> None:
        """Make *image* a sparse file that holds an empty file system."""
        with open(image, "wb") as file:
            file.truncate(self.megabytes << 20)
        subprocess.run([*self.make, image], check=True, capture_output=True)
        subprocess.run(["fallocate", "--dig-holes", image], check=True)  # mkfs.xfs writes its log's zeros

    def commit_metadata(self, anywhere: int) -> None:
        """Have the file system commit what it knows about names, as it does by itself every few seconds.

        *anywhere* is a descriptor of some other file on it.  On ext4 and xfs the fsync of an unrelated file pushes the
        whole journal out; on btrfs it would not, so the transaction is committed by ioctl.  Neither writes other files'
        data.
        """
        if self.kind == "btrfs":
            transaction = bytearray(8)
            fcntl.ioctl(anywhere, _BTRFS_START_SYNC, transaction)
            fcntl.ioctl(anywhere, _BTRFS_WAIT_SYNC, bytes(transaction))
        else:
            os.pwrite(anywhere, os.urandom(8), 0)
            _fsync(anywhere)


_fsync = os.fsync  # the workload patches os.fsync

_EXT4 = ("mkfs.ext4", "-q", "-b", "4096", "-J", "size=4", "-E", "nodiscard,lazy_itable_init=0")
BLOCK_FILE_SYSTEMS = {
    system.name: system
    for system in (
        BlockFileSystem("ext4", "ext4", 32, _EXT4, "noatime"),
        BlockFileSystem("ext4-noauto_da_alloc", "ext4", 32, _EXT4, "noatime,noauto_da_alloc"),
        BlockFileSystem("ext4-writeback", "ext4", 32, _EXT4, "noatime,data=writeback"),
        BlockFileSystem("xfs", "xfs", 300, ("mkfs.xfs", "-q", "-K"), "noatime"),
        BlockFileSystem("btrfs", "btrfs", 128, ("mkfs.btrfs", "-q", "-K"), "noatime"),
    )
}
