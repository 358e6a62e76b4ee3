"""Atomic writes as people write them by hand, each with a flaw, for the judge to find.

``temporary`` is the usual recipe: it leaves its temporary file behind when something fails. The others clean up, and
have one flaw each.
"""

import os


def write_bytes(target, data, *, flaw):
    if flaw == "in place":
        with open(target, "wb") as file:
            file.write(data)
        return
    if flaw == "noise":
        os.write(2, b"writing\n")
    if flaw == "gap" and os.path.exists(target):
        os.unlink(target)
    if flaw == "litter":
        open(target + ".orig", "wb").close()
    if flaw == "interrupt":
        try:
            os.stat(target)
        except KeyboardInterrupt:
            pass
    temporary = fd = None
    try:
        temporary = os.path.join(os.path.dirname(target), f".atomicio-{os.urandom(8).hex()}.tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            if flaw == "one write":
                os.write(fd, data)  # may stop short
            else:
                with open(fd, "wb", closefd=False) as file:
                    file.write(data)
            try:
                os.fsync(fd)
            except OSError:
                if flaw != "swallowed fsync":
                    raise
        finally:
            if flaw != "descriptor":
                os.close(fd)
        if flaw == "mode":
            os.chmod(temporary, 0o600)
        os.rename(temporary, target)
    except OSError as error:
        if flaw != "temporary" and fd is not None:
            os.unlink(temporary)
        if flaw == "silent":
            return
        if flaw == "errno":
            error = OSError(error.errno + 1, "something went wrong")
        if flaw != "not told":
            error.committed = False
        if flaw != "name":
            error.filename = target
        raise error
    if flaw == "late error":
        directory = os.open(os.path.dirname(target), os.O_RDONLY)
        try:
            os.fsync(directory)
        except OSError as error:
            error.filename, error.committed = target, False
            raise
        finally:
            os.close(directory)
