"""The ioctls of NBD devices and block devices.

``fcntl.ioctl`` takes its argument as a C int, which ends at 2 GiB; the arguments of NBD's ioctls
are unsigned longs, passed by value (nbd_ioctl in the kernel's drivers/block/nbd.c).
"""

from __future__ import annotations

import platform
from enum import IntEnum

from .. import libc

_libc = libc.Functions(ioctl=["int", "ulong", "ulong"], syncfs=["int"])

# _IO(0xab, n) of include/uapi/linux/nbd.h, _IO(0x12, n) of fs.h. These architectures have a bit for
# "no argument".
_NO_DIRECTION = 1 << 29 if platform.machine().startswith(("alpha", "mips", "ppc", "sparc")) else 0
_BASE = _NO_DIRECTION | 0xAB00


class Ioctl(IntEnum):
    """The requests in use here, from include/uapi/linux/nbd.h and linux/fs.h."""

    NBD_SET_SOCK = _BASE + 0
    NBD_SET_BLKSIZE = _BASE + 1
    NBD_DO_IT = _BASE + 3
    NBD_CLEAR_SOCK = _BASE + 4
    NBD_CLEAR_QUE = _BASE + 5
    NBD_SET_SIZE_BLOCKS = _BASE + 7
    NBD_DISCONNECT = _BASE + 8
    NBD_SET_TIMEOUT = _BASE + 9
    NBD_SET_FLAGS = _BASE + 10
    BLKRRPART = _NO_DIRECTION | 0x125F
    BLKFLSBUF = _NO_DIRECTION | 0x1261


def ioctl(fd: int, request: Ioctl, argument: int = 0) -> None:
    """Make one ioctl on an open device node. Blocks without holding the interpreter's lock.

    Raises:
        OSError: with the kernel's error number, EINTR included.

    """
    if _libc.ioctl(fd, request, argument) < 0:
        raise libc.last_error(request.name)


def syncfs(fd: int) -> None:
    """Write the whole file system that a descriptor lies on to its device.

    Raises:
        OSError: the file system could not be written.

    """
    if _libc.syncfs(fd) < 0:
        raise libc.last_error("syncfs")
