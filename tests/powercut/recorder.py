"""A disk that remembers: one file, served through FUSE, that logs every write and every flush in order.

A loop device with direct I/O stands in front of that file.  The loop driver turns a flush of the block layer
(``REQ_OP_FLUSH``) into fsync of the file, so what arrives here is exactly what a drive would be told.  A second file,
``marks``, lets the workload write its own remarks ("begin 3", "return 3") into the same log.

Run as a program: ``recorder.py MOUNTPOINT IMAGE LOG PARENT``; it prints ``ready`` once it is mounted and ends when
unmounted, or with the process whose number is PARENT.
"""

from __future__ import annotations

import bisect
import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "support"))

import mounts
import raw_fuse

_RECORD = struct.Struct("<cQI")
DISK, MARKS = 2, 3


@dataclass(frozen=True)
class Event:
    """One entry of the log: a write (``W``), a flush (``F``) or a mark of the workload (``M``).

    The *offset* of a flush is the number of writes that it covers, counted from the beginning: those that the disk had
    reported as done when it was told to flush.
    """

    kind: str
    offset: int
    data: bytes


def read_log(path: str) -> Iterator[Event]:
    """Yield the events of a log in the order in which the disk saw them."""
    with open(path, "rb") as log:
        while header := log.read(_RECORD.size):
            kind, offset, length = _RECORD.unpack(header)
            yield Event(kind.decode(), offset, log.read(length))


class RecordingDisk(raw_fuse.Server):
    """Serves ``disk`` (backed by *image*) and ``marks``, and logs to *log*."""

    def __init__(self, image: str, log: str) -> None:
        super().__init__()
        self._image = os.open(image, os.O_RDWR | os.O_CLOEXEC)
        self._log = open(log, "wb")
        self._replies: list[int] = []  # for each write the number of the reply that reports it
        regular = stat.S_IFREG | 0o600
        self.nodes[DISK] = raw_fuse.Node(DISK, regular, size=os.fstat(self._image).st_size)
        self.nodes[MARKS] = raw_fuse.Node(MARKS, regular, size=0)
        self.handlers = {
            raw_fuse.LOOKUP: self._lookup,
            raw_fuse.GETATTR: lambda request: self.nodes[request.node].attributes_reply(),
            raw_fuse.SETATTR: lambda request: self.nodes[request.node].attributes_reply(),
            raw_fuse.OPEN: lambda request: struct.pack("<QII", 0, self.open_flags, 0),
            raw_fuse.READ: self._read,
            raw_fuse.WRITE: self._write,
            raw_fuse.FSYNC: self._fsync,
            raw_fuse.FLUSH: lambda request: b"",
            raw_fuse.RELEASE: lambda request: b"",
            raw_fuse.STATFS: lambda request: struct.pack("<QQQQQIIII24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0),
        }

    def close(self) -> None:
        """Finish the log."""
        self._log.close()
        os.close(self._image)

    def _lookup(self, request: raw_fuse.Request) -> bytes:
        number = {b"disk": DISK, b"marks": MARKS}.get(request.names()[0])
        if number is None:
            raise OSError(errno.ENOENT, "only disk and marks")
        return self.nodes[number].entry_reply()

    def _read(self, request: raw_fuse.Request) -> bytes:
        _, offset, size = request.unpack("<QQI")
        return os.pread(self._image, size, offset)

    def _write(self, request: raw_fuse.Request) -> bytes:
        _, offset, size = request.unpack("<QQI")
        data = request.body[40 : 40 + size]
        if request.node == DISK:
            written = os.pwrite(self._image, data, offset)
            if written != size:
                raise OSError(errno.EIO, "the image could not take it all")
            self._replies.append(self.replied)
            self._record(b"W", offset, data)
        else:
            self._record(b"M", 0, data)
        return struct.pack("<II", size, 0)

    def _fsync(self, request: raw_fuse.Request) -> bytes:
        if request.node == DISK:
            self._record(b"F", bisect.bisect_left(self._replies, request.seen), b"")
        return b""

    def _record(self, kind: bytes, offset: int, data: bytes) -> None:
        self._log.write(_RECORD.pack(kind, offset, len(data)))
        self._log.write(data)


def main(mountpoint: str, image: str, log: str, parent: str) -> None:
    """Mount, say so, and serve."""
    mounts.die_with_parent(int(parent))
    disk = RecordingDisk(image, log)
    disk.mount(mountpoint, "recorder")
    mounts.leave_mounts_to_others(mountpoint)
    print("ready", flush=True)
    try:
        disk.serve()
    finally:
        disk.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
