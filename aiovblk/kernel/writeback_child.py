"""Write back what the kernel has cached for a device, in a process of its own.

No thread of a server by ublk may wait for requests of its own device in a call that no signal ends.
When a server is killed, its io_uring is closed, and what is in flight fails, once its last thread
has ended; that thread would end once its requests are answered: neither would ever happen, and the
device would hang until the machine is rebooted. The thread that calls this waits for a process.
"""

from __future__ import annotations

import errno
import logging
import os
from contextlib import suppress

from .. import interpreter
from . import sysfs, users
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
        child, output = _start(interpreter.bare_command("-c", _PROGRAM, *words))
    except OSError as exc:
        logger.debug("no process can be started to write back %s: %s", path, exc)
        sync(disk, fd)
        return
    _wait(child, output)


def sync_all_in_child() -> None:
    """Write back all dirty data of the machine: for a device whose node cannot be opened. Blocks.

    Raises:
        OSError: no process can be started.

    """
    _wait(*_start(interpreter.bare_command("-c", "import os; os.sync(); print(0)")))


def _wait(child: int, output: int) -> None:
    with os.fdopen(output, "rb") as file:
        answer = file.read()
    with suppress(ChildProcessError):  # where SIGCHLD is ignored, none is left to wait for
        os.waitpid(child, 0)
    if number := int(answer or errno.EIO):
        raise OSError(number, os.strerror(number))


def _start(command: list[str]) -> tuple[int, int]:
    """Start a process that Ctrl-C does not reach; return its id, and where to read its output."""
    output, childs_output = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, childs_output, 1)]
    try:
        child = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setpgroup=0)
    except BaseException:
        os.close(output)
        raise
    finally:
        os.close(childs_output)
    return child, output
