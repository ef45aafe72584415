"""Open the standard descriptors (0, 1, 2) that the command was started without.

``aiovblk ... <&-`` (init scripts and supervisors do that) leaves the number 0 free. The next
descriptor that is opened gets it: the event loop's epoll, which libuv (uvloop) refuses by abort(),
a disk's file, to which a print() of some library would write, or a socket that a child inherits.
"""

from __future__ import annotations

import os
import sys
from typing import IO

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_standard_descriptors() -> None:
    """Open those of 0 to 2 that are closed on /dev/null. Call it before anything is opened."""
    for number, (name, mode) in enumerate(_STREAMS):
        if _is_open(number):
            continue
        # open() returns the lowest free number, which is this one.
        opened = os.open(os.devnull, os.O_RDWR)
        assert opened == number  # all below are open
        os.set_inheritable(opened, True)  # children need it, too; PEP 446 makes it not inheritable
        if getattr(sys, name) is None:
            setattr(sys, name, _stream(number, mode))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # EBADF, the only error possible for a number
        return False
    return True


def _stream(number: int, mode: str) -> IO[str]:
    # closefd=False: closing the object would free the number again.
    return open(number, mode, closefd=False)  # for as long as the process lives
