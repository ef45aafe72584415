"""Have malloc keep what is freed, for devices whose reads return new blocks of memory.

``bytes(view)`` or a slice of a bytearray is a new block for each read. Depending on what was freed
before, glibc gives large ones back to the kernel as soon as they are freed: then each page of the
next read is a page fault and a page to be cleared, and a read of 256 KiB takes four times as much
CPU time in all.

For commands only: in an application that is the application's choice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from .. import libc

# malloc.h; each with the variable that glibc reads when a program starts, for workers.
M_TRIM_THRESHOLD, TRIM_VARIABLE = -1, "MALLOC_TRIM_THRESHOLD_"
M_MMAP_THRESHOLD, MMAP_VARIABLE = -3, "MALLOC_MMAP_THRESHOLD_"

MAX_KEPT = 64 << 20
"""Free bytes at the end of the heap that are not given back: 128 requests of 512 KiB."""

MAX_HEAP_BLOCK = 4 << 20
"""Bytes from which on a block is mapped for itself, and unmapped when it is freed.

Larger requests are rare, and much of this size in the heap would leave it with holes.
"""

SETTINGS = (
    (M_MMAP_THRESHOLD, MMAP_VARIABLE, MAX_HEAP_BLOCK),
    (M_TRIM_THRESHOLD, TRIM_VARIABLE, MAX_KEPT),
)

_libc = libc.Functions(mallopt=["int", "int"])

_added: set[str] = set()
"""The variables that this process has added to its environment."""


def keep_freed_memory(environ: MutableMapping[str, str] = os.environ) -> None:
    """Raise malloc's thresholds, for this process and the workers that it starts.

    No-op: the user has set one, in glibc's environment variables; or the C library has none; or
    this Python has no ctypes, which costs speed and must not cost the command.
    """
    if TRIM_VARIABLE in environ or MMAP_VARIABLE in environ:
        return
    if "_threshold=" in environ.get("GLIBC_TUNABLES", ""):
        return
    try:
        mallopt = _libc.mallopt
    except (AttributeError, ImportError):  # as in musl; a Python without libffi
        return
    for option, variable, value in SETTINGS:
        mallopt(option, value)
        environ[variable] = str(value)
        _added.add(variable)


def environment_for_others(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a program of the user: without these settings of ours."""
    return {name: value for name, value in environ.items() if name not in _added}
