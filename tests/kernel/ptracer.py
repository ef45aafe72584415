"""A debugger: `python ptracer.py PID attach|interrupt|seize`, until its input ends.

It takes hold of all threads of a process, as gdb does (``attach``), or as strace and later
debuggers do (``interrupt``), and stops them; ``seize`` alone stops nothing. A process of its own,
since a parent would mistake the stops of its child for its end.
"""

from __future__ import annotations

import ctypes
import os
import sys

ATTACH, DETACH, SEIZE, INTERRUPT = 16, 17, 0x4206, 0x4207  # include/uapi/linux/ptrace.h
WALL = 0x40000000  # any thread

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def ptrace(request: int, thread: int) -> None:
    if _libc.ptrace(request, thread, None, None) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main(process: int, how: str) -> None:
    threads = [int(thread) for thread in os.listdir(f"/proc/{process}/task")]
    for thread in threads:
        ptrace(ATTACH if how == "attach" else SEIZE, thread)
        if how == "interrupt":
            ptrace(INTERRUPT, thread)
    if how != "seize":
        for thread in threads:
            os.waitpid(thread, WALL)
    print("holds it", flush=True)
    sys.stdin.read()
    if how != "seize":  # which ends with this process
        for thread in threads:
            ptrace(DETACH, thread)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
