"""Standard descriptors that the command was started without.

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
    """Open those of 0 to 2 that are closed on /dev/null; to be called before anything is opened."""
    for number, (name, mode) in enumerate(_STREAMS):
        if _is_open(number):
            continue
        # The lowest number that is free is this one. Children are to have it, too (PEP 446).
        opened = os.open(os.devnull, os.O_RDWR)
        assert opened == number  # all below are open
        os.set_inheritable(opened, True)
        if getattr(sys, name) is None:
            setattr(sys, name, _stream(number, mode))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # EBADF, the only error that is left for a number
        return False
    return True


def _stream(number: int, mode: str) -> IO[str]:
    # Not closed with the object: the number would be free again.
    return open(number, mode, closefd=False)  # for as long as the process lives
