"""The name of a Unix socket in the file system, which only one process at a time may take or free.

A socket that nobody listens on any more keeps its name. Between finding that out and taking the
name in its place another process may have done the same, and then both listen, one of them where
nobody finds it. Between bind() and listen() a new socket looks like one that was left, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOCK_TIMEOUT = 5.0
"""Seconds to wait for others, who take milliseconds."""

_PAUSE = 0.005


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of a socket's name: a file beside it, which is gone afterwards.

    Raises:
        TimeoutError: another process holds it, and goes on doing so.
        OSError: it cannot be made.

    """
    lock = _take(f"{name}.lock")
    try:
        yield
    finally:
        os.unlink(f"{name}.lock")  # before others can have it: they look whether it is still there
        os.close(lock)


def _take(path: str) -> int:
    deadline = time.monotonic() + LOCK_TIMEOUT
    while (lock := try_to_take(path)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"another process holds {path}")
        time.sleep(_PAUSE)
    return lock


def try_to_take(path: str) -> int | None:
    """Take the lock, if nobody has it; a descriptor of its file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(path, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.lstat(path)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass  # it is another's; or was, who has removed it
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None
