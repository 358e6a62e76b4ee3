"""Mounts that vanish by themselves: a private mount namespace, loop devices, and the kernel's file systems on them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
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


def leave_mounts_to_others(mountpoint: str) -> None:
    """Called by a FUSE server once it is mounted: go to a mount table without that mount.

    A mount table is torn down in its last process, before the files of that process are closed.  Were that the server,
    it would wait for its own answer to the last write, for ever, and every sync(2) of the machine with it.
    """
    enter_private_mounts()
    detach = 2
    _check(_libc().umount2(os.fsencode(mountpoint), detach), mountpoint)


def outlive_servers() -> None:
    """Keep this mount table for some seconds after the end of this process, until the FUSE servers in it have ended.

    For servers that are not ours, which cannot be told to :func:`leave_mounts_to_others`.
    """
    reading, writing = os.pipe()
    os.set_inheritable(writing, False)
    if os.fork():
        os.close(reading)
        globals()["_alive"] = writing  # closed by the kernel when this process ends
        return
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):
            os.dup2(null, standard)
        os.chdir("/")
        os.closerange(3, reading)
        os.closerange(reading + 1, 1 << 16)
        os.read(reading, 1)
        time.sleep(3)
    finally:
        os._exit(0)


def die_with_parent(parent: int | None = None) -> None:
    """Have the kernel kill this process when the one that started it, *parent*, ends, or has ended meanwhile."""
    _check(_libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")
    if parent is not None and os.getppid() != parent:
        os._exit(1)


# <linux/mount.h>
_FLAGS = {"ro": 1, "remount": 32, "noatime": 1024, "bind": 4096}


def mount(source: str, where: str, kind: str | None, options: str = "") -> None:
    """mount(2): without a program of its own for each of thousands of mounts."""
    words = options.split(",") if options else []
    flags = sum(_FLAGS.get(word, 0) for word in words)
    data = ",".join(word for word in words if word not in _FLAGS)
    names = (os.fsencode(source), os.fsencode(where), kind.encode() if kind else None)
    _check(_libc().mount(*names, ctypes.c_ulong(flags), data.encode()), where)


def unmount(where: str) -> None:
    """umount2(2), given a minute: a loop device that somebody happens to look at is detached only after that."""
    for _ in range(1200):
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


# --- loop devices -----------------------------------------------------------------------------------------------------

# <linux/loop.h>: struct loop_config is a descriptor, a block size and a struct loop_info64
_LOOP_CONTROL_GET_FREE, _LOOP_CONFIGURE, _LOOP_GET_STATUS64, _LOOP_CLEAR = 0x4C82, 0x4C0A, 0x4C05, 0x4C01
_LOOP_INFO = struct.Struct("<QQQQQIIII64s64s32sQQ")
_LOOP_CONFIG = struct.Struct(f"<II{_LOOP_INFO.size}s64x")
_AUTOCLEAR, _DIRECT_IO = 4, 16
_MARK = b"atomicio-tests-"


@contextlib.contextmanager
def loop_device(image: str, *, direct: bool = False) -> Iterator[str]:
    """Put a loop device in front of *image* for the length of the block.

    It bears this process's number and detaches itself when nobody has it open or mounted any more, so also after
    SIGKILL.
    """
    flags = _AUTOCLEAR | (_DIRECT_IO if direct else 0)
    name = _MARK + str(os.getpid()).encode()
    info = _LOOP_INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, name, b"", b"", 0, 0)
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(100):
            control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
            try:
                device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CONTROL_GET_FREE)}"
            finally:
                os.close(control)
            holding = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(holding, _LOOP_CONFIGURE, _LOOP_CONFIG.pack(backing, 0, info))
                break
            except OSError as error:  # EBUSY: somebody else took the free device between the look and the grip
                os.close(holding)
                if error.errno != errno.EBUSY or attempt == 99:
                    raise
    finally:
        os.close(backing)
    try:
        if direct and not _loop_status(holding)[8] & _DIRECT_IO:
            raise OSError(errno.EINVAL, "the loop device does not do direct I/O: writes would be reordered", image)
        yield device
    finally:
        os.close(holding)


def _loop_status(device: int) -> tuple[int, ...]:
    return _LOOP_INFO.unpack(fcntl.ioctl(device, _LOOP_GET_STATUS64, bytes(_LOOP_INFO.size)))


def loop_devices() -> dict[str, int]:
    """Return the loop devices that these suites have attached, and the number of the process that did."""
    found = {}
    for path in glob.glob("/sys/block/loop*/loop/backing_file"):
        device = f"/dev/{path.split('/')[3]}"
        try:
            descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # detached since the listing
            continue
        try:
            name = bytes(_loop_status(descriptor)[9]).rstrip(b"\0")  # type: ignore[call-overload]
        except OSError:  # ENXIO: the same
            continue
        finally:
            os.close(descriptor)
        if name.startswith(_MARK):
            found[device] = int(name[len(_MARK) :])
    return found


def remove_leftovers() -> list[str]:
    """Detach loop devices that these suites attached in a process that is no more; nobody else's are touched."""
    removed = []
    for device, owner in loop_devices().items():
        if os.path.exists(f"/proc/{owner}"):
            continue
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _LOOP_CLEAR)
        except OSError as error:
            if error.errno != errno.ENXIO:  # it has detached itself meanwhile
                raise
        finally:
            os.close(descriptor)
        removed.append(device)
    return removed


def processes(word: str) -> list[int]:
    """Return the numbers of the processes with *word* in their command line."""
    found = []
    for number in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{number}/cmdline", errors="replace") as line:
                if word in line.read():
                    found.append(int(number))
    return found


def becomes_true(condition: Callable[[], bool], seconds: float = 120) -> bool:
    """Wait for the kernel, which tears mounts down on its own time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


# --- file systems on them ---------------------------------------------------------------------------------------------


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
