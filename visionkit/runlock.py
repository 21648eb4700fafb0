"""One process to a run directory: a lock that ends with its process, however that ends.

It is a POSIX record lock on `.lock` in the directory. Unlike flock's it is not inherited by forked
loader workers, which may outlive a killed run by seconds, and NFS passes it on to the server, so
that it holds between machines. Where a file system has no locks (some network mounts) or the
system none of this kind (Windows), the process named in status.json is looked for instead; that
does not see other machines.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("visionkit")
_held: dict[Path, int] = {}  # descriptors of the locks of this process


class Locked(Exception):
    """Another process, or another thread of this one, trains there; says which."""


def acquire(run: Path) -> bool:
    """Take the directory; False where there are no locks. Raises Locked and OSError."""
    key = run.resolve()
    if key in _held:
        raise Locked("this process")
    if fcntl is None:
        return False
    descriptor = os.open(key / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise Locked(holder or "another process") from error
        log.warning("%s: its file system has no locks (%s)", run, error.strerror)
        return False
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
    _held[key] = descriptor
    return True


def release(run: Path) -> None:
    descriptor = _held.pop(run.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)
