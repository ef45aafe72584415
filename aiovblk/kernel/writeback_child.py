"""Write back what the kernel has cached for a device, in a process of its own.

No thread of a server by ublk may wait for requests of its own device in a call that no signal ends:
see :mod:`.child_process`.
"""

from __future__ import annotations

import logging

from . import child_process, sysfs, users
from .sysfs import Disk
from .writeback import sync

logger = logging.getLogger("aiovblk")

_FILE_SYSTEM, _DEVICE = "f", "d"  # the first letters of the words of the program

_PROGRAM = """
import os, sys
error = 0
for word in sys.argv[1:]:
    try:
        fd = os.open(word[1:], os.O_RDONLY)
    except OSError:  # a partition without a node in this container, say
        continue
    try:
        if word[0] == "d":
            os.fsync(fd)
        else:
            import ctypes
            if ctypes.CDLL(None, use_errno=True).syncfs(fd):
                raise OSError(ctypes.get_errno(), "syncfs")
    except OSError as exc:
        error = exc.errno
    os.close(fd)
print(error)
"""


def sync_in_child(disk: Disk, path: str, fd: int) -> None:
    """Write back all dirty data of a device, as :func:`.writeback.sync` does. Blocks.

    Args:
        disk: the device.
        path: its node.
        fd: that node, open.

    Raises:
        OSError: the last error, after everything was tried.

    """
    points = [_FILE_SYSTEM + point for point in users.stacked_mount_points(disk)]
    names = [*users.stacked_devices(disk), *sysfs.partitions(disk)]
    words = [*points, *(f"{_DEVICE}/dev/{name}" for name in names), _DEVICE + path]
    try:
        child = child_process.start(_PROGRAM, *words)
    except OSError as exc:
        logger.debug("no process can be started to write back %s: %s", path, exc)
        sync(disk, fd)
        return
    child_process.wait(child)


def sync_all_in_child() -> None:
    """Write back all dirty data of the machine: for a device whose node cannot be opened. Blocks.

    Raises:
        OSError: no process can be started.

    """
    child_process.wait(child_process.start("import os; os.sync(); print(0)"))
