"""What a replaced file hands on to the file that replaces it, on POSIX systems.

A plain :func:`open` writes into the same inode, so owner, mode, ACL and extended attributes stay. A new inode has to be
given them, on its descriptor and before it is synced and published. The order matters: chown(2) clears the set-user-ID
bits, so the mode comes after the owner; setting an ACL changes the mode, so the mode comes last.

Kept as far as the kernel lets this process: the owner (only root may give files away; the group is tried alone),
``user.*`` attributes, SELinux's label, the access ACL. Not kept, on purpose: ``security.capability``, which a write
through :func:`open` drops too; ``security.ima`` and ``security.evm``, which sign the old content; set-user-ID and
set-group-ID bits where the kernel would have dropped them at a write. Not kept, because there is no way: hard links,
inode number, creation time, and on macOS, for which Python has no calls, ACL and extended attributes.
"""

from __future__ import annotations

import errno
import os
import stat

__all__ = ["keep", "set_mode"]

_ACL = "system.posix_acl_access"
_BOUND_TO_CONTENT = frozenset({"security.capability", "security.ima", "security.evm"})
# xattr(7): not ours to set, not settable here, or gone since they were listed.
_NOT_KEPT = frozenset(
    {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENODATA, errno.ENOSYS}
    if hasattr(errno, "ENODATA")
    else ()
)
_NO_CHANGE = frozenset({errno.EPERM, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})


def keep(fd: int, new: os.stat_result, old: os.stat_result, path: str, permissions: int | None) -> None:
    """Give the new file *fd* the metadata of the *old* one at *path*; *permissions*, if any, go before the old mode."""
    mode = stat.S_IMODE(old.st_mode) if permissions is None else permissions
    settled = mode == stat.S_IMODE(new.st_mode)
    if new.st_uid != old.st_uid or new.st_gid != old.st_gid:
        settled = False
        owner_kept, group_kept = _keep_owner(fd, new, old)
        if permissions is None:
            if not owner_kept:
                mode &= ~stat.S_ISUID  # it would run as somebody else: as root, where root may not give files away
            if not group_kept:
                # The bits of the old group must not go to another: it gets what others had.
                mode &= ~stat.S_ISGID & (~0o070 | (mode & 0o007) << 3)
    if hasattr(os, "listxattr") and _keep_attributes(fd, path):
        settled = False
    if settled:
        return
    try:
        set_mode(fd, mode)
    except OSError as error:
        # FAT, some CIFS and FUSE mounts have no mode bits to set. Only an explicit wish must not fail silently.
        if permissions is not None or error.errno not in _NO_CHANGE:
            raise
    if mode & (stat.S_ISUID | stat.S_ISGID) and permissions is None and stat.S_ISREG(new.st_mode):
        # Let the kernel decide about these bits as it does when open and write change a file: see inode(7).
        os.ftruncate(fd, os.fstat(fd).st_size)


def set_mode(fd: int, mode: int) -> None:
    """fchmod(2), or chmod(2) of the name that an open file has in /dev/fd, for builds of Python that lack the first."""
    if hasattr(os, "fchmod"):
        os.fchmod(fd, mode)
        return
    try:
        os.chmod(f"/dev/fd/{fd}", mode)
    except FileNotFoundError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None


def _keep_owner(fd: int, new: os.stat_result, old: os.stat_result) -> tuple[bool, bool]:
    """Hand on owner and group, or the group alone, and tell of each whether the new file has the old one."""
    for uid in (old.st_uid, -1):
        try:
            if not hasattr(os, "fchown"):
                raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
            os.fchown(fd, uid, old.st_gid)
        except OSError as error:
            if error.errno not in _NO_CHANGE:
                raise
        else:
            return uid != -1 or new.st_uid == old.st_uid, True
    return new.st_uid == old.st_uid, new.st_gid == old.st_gid


def _keep_attributes(fd: int, path: str) -> bool:
    """Hand on the extended attributes and tell whether any was touched."""
    try:
        inherited = os.listxattr(fd)
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NOT_KEPT and error.errno != errno.ENOENT:
            raise
        return False
    if not names and not inherited:
        return False
    for name in names:
        if name not in _BOUND_TO_CONTENT:
            _keep_attribute(fd, path, name)
    if _ACL in inherited and _ACL not in names:
        os.removexattr(fd, _ACL)  # came from the default ACL of the directory, which is for new files
    return True


def _keep_attribute(fd: int, path: str, name: str) -> None:
    try:
        value = os.getxattr(path, name, follow_symlinks=False)
        os.setxattr(fd, name, value)
    except OSError as error:
        # Without its ACL a file's group bits, which are the ACL's mask, would let the whole group in.
        if error.errno not in _NOT_KEPT or name == _ACL:
            raise
