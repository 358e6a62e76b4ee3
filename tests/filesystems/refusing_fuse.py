"""A file system in memory, through FUSE, that refuses what it is told to refuse, with the errno it is told to use.

Real file systems each lack something: FAT has no hard links and no mode bits, some network file systems cannot fsync
a directory, old FUSE programs know neither ``O_TMPFILE`` nor extended attributes.  This one can lack any of it alone.

Run as a program: ``refusing_fuse.py MOUNTPOINT [FEATURE=ERRNO ...]``; it prints ``ready`` once it is mounted.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))

import mounts
import raw_fuse
from raw_fuse import Node, Request

FEATURES = ("directory-fsync", "fsync", "hard-links", "chmod", "chown", "xattrs", "O_TMPFILE", "rename", "rename-over")

_SET_MODE, _SET_UID, _SET_GID, _SET_SIZE, _SET_ATIME, _SET_MTIME = 1, 2, 4, 8, 16, 32
_SET_ATIME_NOW, _SET_MTIME_NOW = 128, 256
_NOREPLACE, _EXCHANGE = 1, 2
_XATTR_CREATE, _XATTR_REPLACE = 1, 2


class RefusingFileSystem(raw_fuse.Server):
    """Everything that open, rename and their kin need, kept in dictionaries."""

    def __init__(self, refusals: dict[str, int]) -> None:
        super().__init__()
        unknown = set(refusals) - set(FEATURES)
        if unknown:
            raise ValueError(f"no such features: {unknown}")
        self._refusals = refusals
        self._last = 1
        self._touch(self.nodes[1], "atime", "mtime", "ctime")
        self.handlers = {
            raw_fuse.LOOKUP: lambda request: self._child(request.node, request.names()[0]).entry_reply(),
            raw_fuse.GETATTR: lambda request: self.nodes[request.node].attributes_reply(),
            raw_fuse.SETATTR: self._setattr,
            raw_fuse.READLINK: lambda request: bytes(self.nodes[request.node].data),
            raw_fuse.SYMLINK: self._symlink,
            raw_fuse.MKNOD: self._mknod,
            raw_fuse.MKDIR: self._mkdir,
            raw_fuse.UNLINK: self._unlink,
            raw_fuse.RMDIR: self._rmdir,
            raw_fuse.RENAME: lambda request: self._rename(request, 8),
            raw_fuse.RENAME2: lambda request: self._rename(request, 16),
            raw_fuse.LINK: self._link,
            raw_fuse.OPEN: self._open,
            raw_fuse.CREATE: self._create,
            raw_fuse.TMPFILE: self._tmpfile,
            raw_fuse.READ: self._read,
            raw_fuse.WRITE: self._write,
            raw_fuse.FSYNC: lambda request: self._refuse("fsync"),
            raw_fuse.FSYNCDIR: lambda request: self._refuse("directory-fsync"),
            raw_fuse.FLUSH: lambda request: b"",
            raw_fuse.RELEASE: lambda request: b"",
            raw_fuse.OPENDIR: lambda request: struct.pack("<QII", 0, 0, 0),
            raw_fuse.READDIR: self._readdir,
            raw_fuse.RELEASEDIR: lambda request: b"",
            raw_fuse.STATFS: lambda request: struct.pack(
                "<QQQQQIIII24x", 1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 19, 4096, 255, 4096, 0
            ),
            raw_fuse.SETXATTR: self._setxattr,
            raw_fuse.GETXATTR: self._getxattr,
            raw_fuse.LISTXATTR: self._listxattr,
            raw_fuse.REMOVEXATTR: self._removexattr,
        }

    # -- helpers -----------------------------------------------------------------------------------------------------

    def _refuse(self, feature: str) -> bytes:
        if code := self._refusals.get(feature):
            raise OSError(code, feature)
        return b""

    @staticmethod
    def _touch(node: Node, *which: str) -> None:
        for name in which:
            setattr(node, name, time.time_ns())

    def _child(self, parent: int, name: bytes) -> Node:
        number = self.nodes[parent].entries.get(name)
        if len(name) > 255:  # NAME_MAX: the kernel leaves it to the file system
            raise OSError(errno.ENAMETOOLONG, "the name is too long")
        if number is None:
            raise OSError(errno.ENOENT, "no such name")
        return self.nodes[number]

    def _make(self, request: Request, mode: int, links: int = 1) -> Node:
        self._last += 1
        node = Node(self._last, mode, request.uid, request.gid, links)
        self._touch(node, "atime", "mtime", "ctime")
        self.nodes[node.number] = node
        return node

    def _enter(self, parent: int, name: bytes, node: Node) -> None:
        folder = self.nodes[parent]
        if name in folder.entries:
            raise OSError(errno.EEXIST, "the name is taken")
        folder.entries[name] = node.number
        if stat.S_ISDIR(node.mode):
            folder.links += 1
        self._touch(folder, "mtime", "ctime")

    def _leave(self, parent: int, name: bytes) -> Node:
        node = self._child(parent, name)
        folder = self.nodes[parent]
        del folder.entries[name]
        if stat.S_ISDIR(node.mode):
            folder.links -= 1
        self._touch(folder, "mtime", "ctime")
        self._touch(node, "ctime")
        return node

    # -- names -------------------------------------------------------------------------------------------------------

    def _symlink(self, request: Request) -> bytes:
        name, text = request.names()
        node = self._make(request, stat.S_IFLNK | 0o777)
        node.data[:] = text
        self._enter(request.node, name, node)
        return node.entry_reply()

    def _mknod(self, request: Request) -> bytes:
        mode, *_ = request.unpack("<IIII")
        node = self._make(request, mode)
        self._enter(request.node, request.names(16)[0], node)
        return node.entry_reply()

    def _mkdir(self, request: Request) -> bytes:
        mode, _ = request.unpack("<II")
        node = self._make(request, stat.S_IFDIR | mode, links=2)
        self._enter(request.node, request.names(8)[0], node)
        return node.entry_reply()

    def _unlink(self, request: Request) -> bytes:
        self._leave(request.node, request.names()[0]).links -= 1
        return b""

    def _rmdir(self, request: Request) -> bytes:
        name = request.names()[0]
        if self._child(request.node, name).entries:
            raise OSError(errno.ENOTEMPTY, "not empty")
        self._leave(request.node, name).links = 0
        return b""

    def _link(self, request: Request) -> bytes:
        self._refuse("hard-links")
        (number,) = request.unpack("<Q")
        node = self.nodes[number]
        self._enter(request.node, request.names(8)[0], node)
        node.links += 1
        self._touch(node, "ctime")
        return node.entry_reply()

    def _rename(self, request: Request, start: int) -> bytes:
        self._refuse("rename")
        new_parent, flags = request.unpack("<QI") if start == 16 else (*request.unpack("<Q"), 0)
        old_name, new_name = request.names(start)
        node = self._child(request.node, old_name)
        number = self.nodes[new_parent].entries.get(new_name)
        if flags & _EXCHANGE:
            if number is None:
                raise OSError(errno.ENOENT, "nothing to exchange with")
            self.nodes[request.node].entries[old_name] = number
            self.nodes[new_parent].entries[new_name] = node.number
            return b""
        if number is not None:
            if flags & _NOREPLACE:
                raise OSError(errno.EEXIST, "the name is taken")
            self._refuse("rename-over")
            target = self.nodes[number]
            if target is node:
                return b""
            if stat.S_ISDIR(target.mode) and target.entries:
                raise OSError(errno.ENOTEMPTY, "not empty")
            self._leave(new_parent, new_name).links -= 2 if stat.S_ISDIR(target.mode) else 1
        self._leave(request.node, old_name)
        self._enter(new_parent, new_name, node)
        return b""

    def _readdir(self, request: Request) -> bytes:
        _, offset, size = request.unpack("<QQI")
        reply = b""
        names = list(self.nodes[request.node].entries.items())
        for position, (name, number) in enumerate(names[offset:], offset + 1):
            entry = struct.pack("<QQII", number, position, len(name), stat.S_IFMT(self.nodes[number].mode) >> 12) + name
            entry += bytes(-len(entry) % 8)
            if len(reply) + len(entry) > size:
                break
            reply += entry
        return reply

    # -- files -------------------------------------------------------------------------------------------------------

    def _opened(self) -> bytes:
        return struct.pack("<QII", 0, self.open_flags, 0)

    def _open(self, request: Request) -> bytes:
        flags, _ = request.unpack("<II")
        if flags & os.O_TRUNC:
            node = self.nodes[request.node]
            node.data.clear()
            self._touch(node, "mtime", "ctime")
        return self._opened()

    def _create(self, request: Request) -> bytes:
        _, mode, _, _ = request.unpack("<IIII")
        node = self._make(request, stat.S_IFREG | stat.S_IMODE(mode))
        self._enter(request.node, request.names(16)[0], node)
        return node.entry_reply() + self._opened()

    def _tmpfile(self, request: Request) -> bytes:
        self._refuse("O_TMPFILE")
        _, mode, _, _ = request.unpack("<IIII")
        return self._make(request, stat.S_IFREG | stat.S_IMODE(mode), links=0).entry_reply() + self._opened()

    def _read(self, request: Request) -> bytes:
        _, offset, size = request.unpack("<QQI")
        return bytes(self.nodes[request.node].data[offset : offset + size])

    def _write(self, request: Request) -> bytes:
        _, offset, size = request.unpack("<QQI")
        node = self.nodes[request.node]
        if len(node.data) < offset:
            node.data.extend(bytes(offset - len(node.data)))
        node.data[offset : offset + size] = request.body[40 : 40 + size]
        self._touch(node, "mtime", "ctime")
        return struct.pack("<II", size, 0)

    def _setattr(self, request: Request) -> bytes:
        valid, _, _, size, _, atime, mtime, _, atimensec, mtimensec, _, mode, _, uid, gid, _ = request.unpack(
            "<IIQQQQQQIIIIIIII"
        )
        node = self.nodes[request.node]
        if valid & _SET_MODE:
            self._refuse("chmod")
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        if valid & (_SET_UID | _SET_GID):
            self._refuse("chown")
            node.uid = uid if valid & _SET_UID else node.uid
            node.gid = gid if valid & _SET_GID else node.gid
        if valid & _SET_SIZE:
            del node.data[size:]
            node.data.extend(bytes(size - len(node.data)))
            self._touch(node, "mtime")
        if valid & (_SET_ATIME | _SET_ATIME_NOW):
            node.atime = time.time_ns() if valid & _SET_ATIME_NOW else atime * 10**9 + atimensec
        if valid & (_SET_MTIME | _SET_MTIME_NOW):
            node.mtime = time.time_ns() if valid & _SET_MTIME_NOW else mtime * 10**9 + mtimensec
        self._touch(node, "ctime")
        return node.attributes_reply()

    # -- extended attributes -----------------------------------------------------------------------------------------

    def _setxattr(self, request: Request) -> bytes:
        self._refuse("xattrs")
        size, flags = request.unpack("<II")
        name, _, rest = request.body[8:].partition(b"\0")
        node = self.nodes[request.node]
        if flags & _XATTR_CREATE and name in node.xattrs:
            raise OSError(errno.EEXIST, "set already")
        if flags & _XATTR_REPLACE and name not in node.xattrs:
            raise OSError(errno.ENODATA, "not set")
        node.xattrs[name] = rest[:size]
        self._touch(node, "ctime")
        return b""

    def _getxattr(self, request: Request) -> bytes:
        self._refuse("xattrs")
        (size, _), name = request.unpack("<II"), request.names(8)[0]
        value = self.nodes[request.node].xattrs.get(name)
        if value is None:
            raise OSError(errno.ENODATA, "not set")
        return self._sized(value, size)

    def _listxattr(self, request: Request) -> bytes:
        self._refuse("xattrs")
        size, _ = request.unpack("<II")
        return self._sized(b"".join(name + b"\0" for name in self.nodes[request.node].xattrs), size)

    @staticmethod
    def _sized(value: bytes, size: int) -> bytes:
        if not size:
            return struct.pack("<II", len(value), 0)
        if len(value) > size:
            raise OSError(errno.ERANGE, "too small")
        return value

    def _removexattr(self, request: Request) -> bytes:
        self._refuse("xattrs")
        if self.nodes[request.node].xattrs.pop(request.names()[0], None) is None:
            raise OSError(errno.ENODATA, "not set")
        return b""


def main(mountpoint: str, *refusals: str) -> None:
    """Mount, say so, and serve."""
    pairs = (refusal.split("=") for refusal in refusals)
    system = RefusingFileSystem({feature: getattr(errno, code) for feature, code in pairs})
    system.mount(mountpoint, "refusing")
    mounts.leave_mounts_to_others(mountpoint)
    print("ready", flush=True)
    system.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
