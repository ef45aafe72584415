"""Partitions: wait for their nodes after an attach, and drop them after a detach.

The kernel reads the partition table itself: it scans the device at the first open after an attach
or a resize (GD_NEED_PART_SCAN), before that open() returns, or on BLKRRPART, before that returns
(bdev_disk_changed in the kernel's block/partitions/core.c).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import AttachError, DeviceBusyError
from . import sysfs, users
from .ioctl import Ioctl, ioctl
from .sysfs import Disk

if TYPE_CHECKING:
    from .attached_disk import AttachedDisk

POLL = 0.01  # seconds between attempts, and between looks at /dev


def wait_for_partitions(attachment: AttachedDisk, seconds: float) -> None:
    """Wait until the node of each partition can be opened, once the device is live. Blocks.

    Raises:
        AttachError, OSError: as :func:`wait_for_nodes`.

    """
    with attachment.using_node():
        wait_for_nodes(attachment.disk, attachment.path, seconds, lambda: attachment.is_closed)
    attachment.drop_cache()


def wait_for_nodes(
    disk: Disk, path: str, seconds: float, is_detached: Callable[[], bool] = lambda: False
) -> None:
    """Wait until the node of each partition can be opened, of a device that has been opened.

    Blocks. If the open has found no partitions, the device is scanned again: the driver may have
    been loaded with ``max_part=0``, which leaves out scans, or another program's open may have been
    a moment too early.

    Args:
        disk: the device.
        path: the node of the device.
        seconds: for others to close the device, and for the nodes to appear.
        is_detached: returns whether the device was detached meanwhile, and may be another one by
            now.

    Raises:
        DeviceBusyError: other users of the device prevent the scan.
        AttachError: the node of a partition is missing; the message says what to do about it.
        OSError: the server has not let the kernel read its table.

    """
    deadline = time.monotonic() + seconds
    while not sysfs.partitions(disk):
        _check(is_detached)
        if _scan(path):
            break
        if time.monotonic() > deadline:
            holders = users.users(disk)
            reason = "it is in use, so the kernel cannot scan it for partitions"
            raise DeviceBusyError(
                errno.EBUSY, reason + "".join(f"; {each}" for each in holders), path, holders
            )
        time.sleep(POLL)
    for name in sysfs.partitions(disk):
        while problem := _problem(disk, name):
            _check(is_detached)
            if time.monotonic() > deadline:
                raise AttachError(errno.ENODEV, _advice(disk, name, problem), path)
            time.sleep(POLL)


def _check(is_detached: Callable[[], bool]) -> None:
    if is_detached():
        raise OSError(errno.ECANCELED, "the device was detached meanwhile")


def _scan(path: str) -> bool:
    """Have the kernel scan a device; False if another user prevents that.

    Raises:
        OSError: the table cannot be read.

    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ioctl(fd, Ioctl.BLKRRPART)
        # Before Linux 6.10 that succeeds although nothing could be read.
        os.pread(fd, 512, 0)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        return False
    finally:
        os.close(fd)
    return True


def _problem(disk: Disk, name: str) -> str | None:
    """Return why the node of a partition cannot be used yet; None if it can."""
    node = f"/dev/{name}"
    number = attribute(disk, name, "dev")
    if number is None:
        return None  # it was dropped meanwhile: another program has changed the table
    try:
        status = os.stat(node)
        if f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" != number:
            return "is another device's"
        if not stat.S_ISBLK(status.st_mode):
            return "is no block device"
        os.close(os.open(node, os.O_RDONLY | os.O_CLOEXEC))
    except FileNotFoundError:
        return "does not appear"
    except OSError as exc:
        return f"cannot be opened ({exc.strerror})"
    return None


def _advice(disk: Disk, name: str, problem: str) -> str:
    number = (attribute(disk, name, "dev") or "MAJOR:MINOR").replace(":", " ")
    return (
        f"the device has a partition {name}, but /dev/{name} {problem}; in a container nodes do not"
        f" appear by themselves: `mknod /dev/{name} b {number}`"
    )


def attribute(disk: Disk, name: str, field: str) -> str | None:
    """Read a file of a partition (``nbd0p1``); ``start`` and ``size`` are in 512-byte sectors."""
    return sysfs.read(sysfs.SYS_BLOCK / sysfs.disk_name(disk) / name / field)


def drop_partitions(index: int, path: str) -> None:
    """Have the kernel drop the partitions of a detached device; they would stay until its next use.

    Raises:
        OSError: it is in use, or gone.

    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # Not if the open has done it, since another program may have attached it meanwhile.
        if sysfs.partitions(index) and sysfs.size(index) == 0:
            ioctl(fd, Ioctl.BLKRRPART)
    finally:
        os.close(fd)
