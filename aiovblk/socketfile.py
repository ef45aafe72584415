"""Lock the path of a Unix socket, so that only one process at a time binds or removes it.

A stale socket, whose listener is gone, keeps its path. Between the check for that and bind()
another process may do the same; then both listen, one of them on a socket that has no path any
more. Between bind() and listen() a new socket looks stale, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

LOCK_TIMEOUT = 5.0
"""Seconds to wait for other processes, which hold the lock for milliseconds."""

_PAUSE = 0.005
"""Seconds between two attempts to take the lock."""


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock of a socket's path in a ``with`` block: a lock file beside it.

    Raises:
        TimeoutError: another process has held the lock for :data:`LOCK_TIMEOUT`.
        OSError: the lock file cannot be created.

    """
    lock = _take(f"{name}.lock")
    try:
        yield
    finally:
        os.unlink(f"{name}.lock")  # while it is locked: others check that it still exists
        os.close(lock)


def _take(path: str) -> int:
    """Take the lock, retrying until :data:`LOCK_TIMEOUT`; return the descriptor of its file."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while (lock := try_to_take(path)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, f"another process holds {path}")
        time.sleep(_PAUSE)
    return lock


def try_to_take(path: str) -> int | None:
    """Try to take the lock; return the descriptor of its file, or None if it is held."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(path, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.lstat(path)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass  # held by another process, or removed by it just now
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None
