"""Which file system a descriptor is on, as Linux tells it by name: st_dev does not (btrfs gives each subvolume its own)."""

from __future__ import annotations

import os
import re

__all__ = ["Mount", "mount_id", "mount_of", "syncs_whole"]

# Served by another machine, or by the host of a virtual machine: proc_filesystems(5) and their own manual pages.
_NETWORK = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "lustre", "gfs2", "ocfs2", "orangefs", "beegfs", "coda"),
        *("virtiofs", "vboxsf", "vmhgfs", "fuse.vmhgfs-fuse", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone"),
    }
)
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"})
# syncfs(2) has reported lost writes since Linux 5.8, and these file systems keep the record in the very superblock it asks. overlay
# does not (the errors are recorded below it), and FUSE does not pass the call on.
_HONEST_SYNCFS = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})


class Mount:
    """One line of /proc/self/mountinfo: see proc_pid_mountinfo(5)."""

    def __init__(self, line: str) -> None:
        fields = line.split()
        separator = fields.index("-")
        #: The type of the file system: ``ext4``, ``nfs4``, ``fuse.sshfs``.
        self.type = fields[separator + 1]
        #: The options of the mount and of the file system.
        self.options = frozenset(fields[5].split(",") + fields[separator + 3].split(","))

    @property
    def network(self) -> bool:
        """Whether another machine has the files: its locks and its power cuts are not this one's."""
        return self.type in _NETWORK

    @property
    def fuse(self) -> bool:
        """Whether a program serves the files: what it does about a sync is its own business."""
        return self.type.partition(".")[0] in ("fuse", "fuseblk")

    @property
    def in_memory(self) -> bool:
        """Whether there is no device below."""
        return self.type in _IN_MEMORY

    @property
    def syncs_nothing(self) -> str | None:
        """The option that makes the file system, or the device's cache, ignore a sync."""
        return min(self.options & {"volatile", "nobarrier", "barrier=0"}, default=None)


def mount_id(fd: int) -> str | None:
    """Return what tells the mount that *fd* is on from others, bind mounts of one file system among them; None without /proc."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
            found = re.search(r"^mnt_id:\s*(\d+)$", file.read(), re.MULTILINE)
    except OSError:
        return None  # not Linux, or no /proc
    return found[1] if found else None


def mount_of(fd: int) -> Mount | None:
    """Return the mount that *fd* is on; None where the system does not say."""
    number = mount_id(fd)
    if number is not None:
        # surrogateescape: mount points have any names
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if line.startswith(number + " "):
                    return Mount(line)
    return None


def syncs_whole(fd: int) -> bool:
    """Whether one syncfs(2) of *fd* is worth an fsync(2) of each file: it waits for all, and reports what was lost."""
    mount = mount_of(fd)
    if mount is None or mount.type not in _HONEST_SYNCFS:
        return False
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (5, 8)  # type: ignore[attr-defined,unused-ignore]
