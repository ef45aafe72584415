"""Resize a live device: claim what would be cut off (O_EXCL), then change its size.

The kernel does not ask the users of a device that shrinks: a mounted file system finds out when a
request beyond the end fails. So what lies beyond the new end is claimed before; users of it make
the resize fail.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Iterator

from .. import atfork
from ..errors import DeviceBusyError
from . import partitions, request_queue, sysfs, users
from .attached_disk import AttachedDisk
from .sysfs import Disk

logger = logging.getLogger("aiovblk")


class ExclusiveClaims:
    """A set of exclusively opened nodes, which others can neither mount nor claim meanwhile.

    Concurrency: one thread adds; any thread may release, before, meanwhile or after.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._fds: list[int] = []
        self._released = False

    def add(self, path: str) -> bool:
        """Claim a node exclusively.

        Returns:
            False if it is claimed already, or for a whole device one of its partitions is.

        Raises:
            OSError: it cannot be opened.

        """
        try:
            fd = atfork.open_protected(path, os.O_EXCL)
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                return False
            raise
        with self._guard:
            if not self._released:
                self._fds.append(fd)
                return True
        atfork.close_protected(fd)  # opened too late
        return True

    def release(self) -> None:
        """Release all claims, and claim no more. May block: a last close writes back."""
        with self._guard:
            self._released = True
            fds, self._fds = self._fds, []
        for fd in fds:
            atfork.close_protected(fd)


def resize(attachment: AttachedDisk, blocks: int) -> None:
    """Change the size of a live device. Since Linux 6.12 it waits for requests in flight.

    Raises:
        OSError: the kernel refuses, or the device is detached.

    """
    attachment.set_size(blocks)
    # Since then a change of the size resets the read-ahead (blk_apply_bdi_limits).
    read_ahead = attachment.queue.read_ahead_kb
    try:
        request_queue.apply(attachment.disk, {}, read_ahead_kb=read_ahead)
    except OSError as exc:
        # The device has the new size nevertheless, and the caller has to know that.
        logger.warning("resized, but the read-ahead could not be restored: %s", exc)


def claim_beyond(disk: Disk, path: str, size: int, claims: ExclusiveClaims) -> None:
    """Claim exclusively what reaches beyond a smaller size of a device.

    Args:
        disk: the device.
        path: the device node.
        size: the new size in bytes.
        claims: receives the claims.

    Raises:
        DeviceBusyError: a file system, swap, another device or a program has claimed the whole
            device, or a partition that ends beyond ``size``; or a loop device lies on it, or it is
            exported. Mere readers and writers do not count.
        OSError: a node cannot be opened.

    """
    beyond = _partitions_beyond(disk, size)
    if holders := users.shared_users(disk, [sysfs.disk_name(disk), *beyond]):
        raise _in_use_error(path, size, holders)
    if claims.add(path):
        return
    # The kernel grants a claim on the whole device, or claims on its partitions, not both
    # (bd_may_claim). So if a partition that stays is claimed, only the partitions matter.
    within = [name for name in sysfs.partitions(disk) if name not in beyond]
    holders = users.exclusive_users(disk, [sysfs.disk_name(disk), *beyond])
    if holders or not users.exclusive_users(disk, within):
        raise _in_use_error(path, size, holders or users.users(disk))
    for name in beyond:
        if not claims.add(f"/dev/{name}"):
            raise _in_use_error(path, size, users.users(disk, [name]))


def _partitions_beyond(disk: Disk, size: int) -> list[str]:
    return [name for name, end in _partition_ends(disk) if end > size]


def _partition_ends(disk: Disk) -> Iterator[tuple[str, int]]:
    """Yield each partition, and the byte of the device at which it ends."""
    for name in sysfs.partitions(disk):
        start, length = (
            int(partitions.attribute(disk, name, attribute) or 0) * sysfs.SECTOR
            for attribute in ("start", "size")
        )
        yield name, start + length


def _in_use_error(path: str, size: int, holders: list[str]) -> DeviceBusyError:
    reason = f"it cannot shrink to {size} bytes while what lies beyond is in use"
    named = f": {', '.join(holders)}" if holders else ""
    return DeviceBusyError(errno.EBUSY, reason + named, path, holders)
