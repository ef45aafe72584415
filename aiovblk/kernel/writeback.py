"""Write-back of what the kernel has cached for a device: page cache, file systems on it."""

from __future__ import annotations

import logging
import os

from .. import atfork
from . import sysfs, users
from .ioctl import syncfs
from .sysfs import Disk

logger = logging.getLogger("aiovblk")


def sync(disk: Disk, fd: int) -> None:
    """Write back all dirty data of a device, from the top of its stack down. Blocks.

    First the file systems on it and on the devices on top of it, then those devices (a loop device
    caches what was written through it), then its partitions, then the device itself. Each of them
    has a page cache of its own, and a mounted file system holds dirty data that is in none of them.

    Args:
        disk: the device.
        fd: its open node.

    Raises:
        OSError: the last error, after everything was tried.

    """
    failure: OSError | None = None
    for point in users.stacked_mount_points(disk):
        failure = _sync_path(point, file_system=True) or failure
    for name in [*users.stacked_devices(disk), *sysfs.partitions(disk)]:
        failure = _sync_path(f"/dev/{name}", file_system=False) or failure
    os.fsync(fd)
    if failure is not None:
        raise failure


def _sync_path(path: str, *, file_system: bool) -> OSError | None:
    """Sync one file system or device; return the error, None if there is none to report."""
    try:
        fd = atfork.open_protected(path)
    except OSError as exc:
        # A partition without a node in this container, a mount of another namespace.
        logger.debug("cannot sync %s: %s", path, exc)
        return None
    try:
        if file_system:
            syncfs(fd)
        else:
            os.fsync(fd)
    except OSError as exc:
        return exc
    finally:
        atfork.close_protected(fd)
    return None
