"""Calls of the C library that Python has no safe way to make.

Loaded once for the package's kernel room. Each call releases the interpreter's lock, so other
threads run while it blocks.
"""

from __future__ import annotations

import ctypes
import os

LIBRARY = ctypes.CDLL(None, use_errno=True)
"""The C library of this process; :func:`last_error` reads the errno of the last failed call."""

LIBRARY.ioctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong]
LIBRARY.mlockall.argtypes = [ctypes.c_int]
LIBRARY.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
LIBRARY.syncfs.argtypes = [ctypes.c_int]


def last_error(call: str | None = None) -> OSError:
    """Make an exception of the errno that the last failed call of this thread has set.

    Args:
        call: the name of the call, to begin the message with.

    """
    number = ctypes.get_errno()
    reason = os.strerror(number)
    return OSError(number, f"{call}: {reason}" if call else reason)


def syncfs(fd: int) -> None:
    """Write back the whole file system that contains an open file. Blocks.

    Raises:
        OSError: the file system could not be written.

    """
    if LIBRARY.syncfs(fd) < 0:
        raise last_error("syncfs")
