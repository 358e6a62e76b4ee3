"""The program under test: one operation of the library between two marks, as often as it is asked for.

It does the operation once beside the target first, so that lazy imports and caches are out of the way. Then, for each
request that comes over its socket, it forks. The child waits until strace is attached, marks the beginning (getppid),
does the operation, marks the end, reports, and waits again before it exits: until then its descriptors can be looked
at from outside. It reports by sendto and recvfrom, which the library does not use, so that a fault that lasts for
ever cannot spoil the report.
"""

import _signal
import _socket
import ctypes
import errno
import json
import os
import sys
import tempfile

spec = json.loads(sys.argv[1])
harness = _socket.socket(fileno=spec["socket"])
sys.path[:0] = spec["sys_path"]
if spec["staging"] != "unnamed":
    del os.O_TMPFILE  # as Python has it on a system without unnamed files
library = __import__(spec["library"])
if spec["staging"] == "claimed":
    # Nothing names a file or fails in one step: neither link(2) nor renameat2(2), as with exFAT through FUSE.
    from atomicio import _posix, _syscalls

    def refuse(*_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    _posix.hard_link = _syscalls.rename_new = refuse
phase = "call"


class BodyError(Exception):
    pass


def fill(file, text):
    data = text if "b" not in spec["mode"] else text.encode()
    pieces = spec["pieces"]
    size = len(data) // pieces + 1
    for start in range(0, len(data), size):
        piece = data[start : start + size]
        while piece:  # a raw file may take less than it was given
            piece = piece[file.write(piece) :]


def body(file):
    global phase
    phase = "body"
    if "+" in spec["mode"]:
        file.read()
        file.seek(0)
        file.truncate()
    fill(file, spec["text"])
    if spec["body"] == "close":
        file.close()
    if spec["body"] == "raise":
        raise BodyError("from the block")
    phase = "exit"


def perform(target):
    global phase
    phase = "call"
    call, keywords = spec["call"], dict(spec["keywords"])
    if call == "write_bytes":
        library.write_bytes(target, spec["text"].encode(), **keywords)
    elif call == "write_text":
        library.write_text(target, spec["text"], **keywords)
    elif call == "atomic_path":
        with library.atomic_path(target, **keywords) as staging:
            phase = "body"
            with open(staging, "wb") as file:
                fill(file, spec["text"])
                if spec["body"] == "raise":
                    raise BodyError("from the block")
            phase = "exit"
    elif call == "commit":
        writer = library.atomic_write(target, spec["mode"], **keywords)
        body(writer.open())
        writer.commit()
    else:
        with library.atomic_write(target, spec["mode"], **keywords) as file:
            body(file)


def once(request):
    """Do the operation in this process, a child, and never return."""
    # PR_SET_PTRACER, any process: lets strace in where Yama restricts tracing to ancestors (ptrace_scope 1).
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
    errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    os.close(errors)
    tempfile.tempdir = request["temporary"]
    if request["file_size_limit"] is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size_limit"],) * 2)
    entries = os.listdir("/proc/self/fd")
    before = [fd for fd in entries if os.path.exists(f"/proc/self/fd/{fd}")]  # without the one listdir had
    harness.send(json.dumps({"pid": os.getpid(), "before": before}).encode())
    harness.recv(1)
    answer = {"ended": "returned"}
    os.getppid()
    try:
        perform(request["target"])
        os.getppid()
    except BaseException as error:
        answer = {
            "ended": "raised",
            "class": type(error).__name__,
            "classes": [each.__name__ for each in type(error).__mro__],
            "errno": getattr(error, "errno", None),
            "filename": getattr(error, "filename", None),
            "committed": getattr(error, "committed", "absent"),
            "message": str(error),
            "phase": phase,
        }
    harness.send(json.dumps(answer).encode())
    harness.recv(1)
    os._exit(0)


_signal.signal(_signal.SIGINT, _signal.default_int_handler)
try:
    perform(spec["rehearsal"])
except Exception as error:
    if type(error).__name__ != (spec["raises"] or "BodyError"):
        raise
harness.send(b"ready")
while request := harness.recv(1 << 16):
    if (child := os.fork()) == 0:
        once(json.loads(request))
    status = os.waitpid(child, 0)[1]
    harness.send(json.dumps({"status": status}).encode())
