"""Request queue settings: request size, read-ahead and I/O scheduler, in /sys/block/*/queue.

They outlive a detach, so a server that changes them has to restore them
(Documentation/ABI/stable/sysfs-block in the kernel's source).
"""

from __future__ import annotations

import errno
import logging
import re
from dataclasses import dataclass

from ..arguments import check_count
from ..errors import AttachError
from . import sysfs
from .sysfs import Disk

logger = logging.getLogger("aiovblk")

MAX_REQUEST_KB = 32768
"""KiB of the largest request that the driver has ever sent (its max_hw_sectors_kb)."""

MAX_READ_AHEAD_KB = (1 << 30) - 4
"""KiB of the longest read-ahead; far more than the kernel ever reads at once."""


@dataclass(frozen=True, slots=True)
class RequestQueue:
    """How the kernel forms the requests of one device; None leaves a setting as it is.

    Raises:
        TypeError, ValueError: a value is no number, or out of range.

    """

    max_sectors_kb: int | None = 1024
    """KiB of the largest read or write; a multiple of 4, to 32768. Larger ones are split. (The
    kernel's own default is 128, since Linux 6.12 it is 1280.)"""
    read_ahead_kb: int | None = 4096
    """KiB of read-ahead, for a program that reads sequentially through the page cache; 0 for none.
    (The kernel's own default is 128 or 256.)"""
    scheduler: str | None = "none"
    """The I/O scheduler: ``none``, ``mq-deadline``, or another that the kernel has. ``none`` sends
    requests as they come, which suits all devices that do not spin."""

    def __post_init__(self) -> None:
        """Check the values: refuse those that the kernel would refuse, or would round."""
        check_count("max_sectors_kb", self.max_sectors_kb, minimum=4)
        check_count("read_ahead_kb", self.read_ahead_kb, minimum=0)
        largest = self.max_sectors_kb
        if largest is not None and not (4 <= largest <= MAX_REQUEST_KB and largest % 4 == 0):
            raise ValueError(
                f"max_sectors_kb must be a multiple of 4 from 4 to {MAX_REQUEST_KB}, not {largest}"
            )
        ahead = self.read_ahead_kb
        if ahead is not None and not (0 <= ahead <= MAX_READ_AHEAD_KB and ahead % 4 == 0):
            raise ValueError(f"read_ahead_kb must be a multiple of 4, 0 or more, not {ahead}")


def apply(disk: Disk, before: dict[str, str], **values: int | str | None) -> None:
    """Set attributes of a device's request queue, in this order; None leaves one as it is.

    Where /sys cannot be written to (in a container, say) they stay as they are, with a warning. Of
    a device that is detached meanwhile nothing is said.

    Args:
        disk: the device.
        before: receives the old value of each changed attribute that it does not have yet. To
            restore them, pass them to this function again.
        values: the new values by attribute name.

    Raises:
        AttachError: the kernel refuses a value.

    """
    for name, value in values.items():
        old = sysfs.queue_attribute(disk, name)
        if value is None or old is None or str(value) == old:
            continue
        try:
            _write(disk, name, str(value))
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                raise _refused_error(disk, name, value) from exc
            if sysfs.queue_attribute(disk, name) is None:
                return  # the device has just been detached
            logger.warning(
                "%s of /dev/%s stays %s: %s", name, sysfs.disk_name(disk), old, exc.strerror
            )
        else:
            before.setdefault(name, old)


def _write(disk: Disk, name: str, value: str) -> None:
    """Write to a file of the queue. Mostly that blocks until no request is in flight.

    Raises:
        OSError: EINVAL if the kernel refuses the value.

    """
    (sysfs.SYS_BLOCK / sysfs.disk_name(disk) / "queue" / name).write_text(value)


def _refused_error(disk: Disk, name: str, value: int | str) -> AttachError:
    known = ", ".join(_choices(disk, name))
    reason = f"the kernel refuses {name}={value}" + (f"; it knows {known}" if known else "")
    return AttachError(errno.EINVAL, reason, f"/dev/{sysfs.disk_name(disk)}")


def _choices(disk: Disk, name: str) -> list[str]:
    """Return the values that the kernel lists for a setting; empty if it lists none."""
    text = sysfs.attribute(disk, f"queue/{name}") or ""
    return re.sub(r"[][]", "", text).split() if "[" in text else []
