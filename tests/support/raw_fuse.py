"""Speak the raw protocol of ``/dev/fuse``: enough of it to serve a file system from one Python process.

No libfuse and nothing to compile: the kernel sends requests through the descriptor, each with a forty-byte header, and
reads replies from it.  The layouts are those of the kernel's ``include/uapi/linux/fuse.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE, STATFS, RELEASE = 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18
FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH, INIT = 20, 21, 22, 23, 24, 25, 26
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, ACCESS, CREATE, INTERRUPT = 27, 28, 29, 30, 34, 35, 36
DESTROY, BATCH_FORGET, FALLOCATE, RENAME2, SYNCFS, TMPFILE = 38, 42, 43, 45, 50, 51

OPEN_DIRECT_IO = 1 << 0
_INIT_BIG_WRITES, _INIT_ATOMIC_O_TRUNC, _INIT_MAX_PAGES = 1 << 5, 1 << 3, 1 << 22
_MAX_WRITE = 1 << 20
_REQUEST = struct.Struct("<IIQQIIIHH")
_REPLY = struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")


@dataclass
class Request:
    """One request: its header's fields and the bytes that follow them."""

    opcode: int
    node: int
    uid: int
    gid: int
    body: bytes
    unique: int = 0
    #: how many replies had been sent when this was read
    seen: int = 0

    def unpack(self, layout: str) -> tuple[int, ...]:
        """Read integers from the start of the body."""
        return struct.unpack_from(layout, self.body)

    def names(self, after: int = 0) -> list[bytes]:
        """Read the NUL-terminated names that start at byte *after* of the body."""
        return self.body[after:].split(b"\0")[:-1]


@dataclass
class Node:
    """One inode as the kernel asks about it."""

    number: int
    mode: int
    uid: int = 0
    gid: int = 0
    links: int = 1
    atime: int = 0
    mtime: int = 0
    ctime: int = 0
    data: bytearray = field(default_factory=bytearray)
    entries: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    size: int | None = None

    def attributes(self) -> bytes:
        """Pack a ``struct fuse_attr``."""
        size = len(self.data) if self.size is None else self.size
        seconds = [moment // 10**9 for moment in (self.atime, self.mtime, self.ctime)]
        fractions = [moment % 10**9 for moment in (self.atime, self.mtime, self.ctime)]
        return _ATTRIBUTES.pack(
            self.number,
            size,
            (size + 511) // 512,
            *seconds,
            *fractions,
            self.mode,
            self.links,
            self.uid,
            self.gid,
            0,
            4096,
            0,
        )

    def entry_reply(self) -> bytes:
        """Pack a ``struct fuse_entry_out``; nothing may be cached, so that every request arrives here."""
        return struct.pack("<QQQQII", self.number, 0, 0, 0, 0, 0) + self.attributes()

    def attributes_reply(self) -> bytes:
        """Pack a ``struct fuse_attr_out``."""
        return struct.pack("<QII", 0, 0, 0) + self.attributes()


class Server:
    """A file system served from this process: mount it, then call :meth:`serve` until it is unmounted."""

    #: what OPEN and CREATE answer: every read and write comes straight to the server
    open_flags = OPEN_DIRECT_IO

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {1: Node(1, stat.S_IFDIR | 0o755, links=2)}
        self.handlers: dict[int, Callable[[Request], bytes | None]] = {}
        self._device = -1
        self._waiting: deque[Request] = deque()
        #: how many replies have been sent
        self.replied = 0

    def mount(self, where: str, kind: str, options: str = "allow_other,default_permissions") -> None:
        """Mount on the directory *where* under the type ``fuse.kind``; needs root."""
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        libc = ctypes.CDLL(None, use_errno=True)
        data = f"fd={self._device},rootmode=40000,user_id=0,group_id=0,{options}"
        no_suid_no_devices = 2 | 4
        if libc.mount(kind.encode(), os.fsencode(where), f"fuse.{kind}".encode(), no_suid_no_devices, data.encode()):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), where)

    def serve(self) -> None:
        """Answer requests, in the order in which the kernel made them, until the file system is unmounted."""
        os.set_blocking(self._device, False)
        poll = select.poll()
        poll.register(self._device, select.POLLIN)
        while True:
            if not self._receive():
                return
            if not self._waiting:
                poll.poll()
                continue
            request = self._waiting.popleft()
            code = 0
            try:
                reply = self._answer(request)
            except OSError as error:
                code, reply = error.errno or errno.EIO, b""
            # what has been asked by now was asked before this reply: a subclass may want to know
            alive = self._receive()
            try:
                os.write(self._device, _REPLY.pack(_REPLY.size + len(reply), -code, request.unique) + reply)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV):  # the caller was interrupted, or we were unmounted
                    raise
            self.replied += 1
            if not alive:
                return

    def _receive(self) -> bool:
        """Read all requests that are there, without waiting; False once the file system is unmounted."""
        while True:
            try:
                message = os.read(self._device, _MAX_WRITE + 8192)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT):  # ENOENT: the request was interrupted before it was read
                    continue
                if error.errno == errno.EAGAIN:
                    return True
                if error.errno == errno.ENODEV:
                    return False
                raise
            _, opcode, unique, node, uid, gid, _, _, _ = _REQUEST.unpack_from(message)
            if opcode not in (FORGET, BATCH_FORGET, INTERRUPT):  # these three have no reply
                body = message[_REQUEST.size :]
                self._waiting.append(Request(opcode, node, uid, gid, body, unique, self.replied))

    def _answer(self, request: Request) -> bytes:
        if request.opcode == INIT:
            major, minor, readahead, _ = request.unpack("<IIII")
            flags = _INIT_BIG_WRITES | _INIT_ATOMIC_O_TRUNC | _INIT_MAX_PAGES
            sizes = (readahead, flags, 64, 48, _MAX_WRITE, 1, _MAX_WRITE // 4096, 0, 0)
            return struct.pack("<IIIIHHIIHHI28x", major, min(minor, 38), *sizes)
        handler = self.handlers.get(request.opcode)
        if handler is None:
            raise OSError(errno.ENOSYS, "not served")
        return handler(request) or b""
