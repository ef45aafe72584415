"""The devices of both drivers, NBD and ublk: which one a path names, and which are attached."""

from __future__ import annotations

import errno
import os
import re

from ..errors import AttachError
from ..kernel import driver, sysfs
from ..kernel.sysfs import Disk
from ..ublk import status
from ..ublk.attachment import disk_name

NODE = "/dev/nbdN | /dev/ublkbN"
"""How a usage calls the node of a device."""

_UBLK = re.compile(r"ublkb(0|[1-9][0-9]{0,6})", re.ASCII)


def ublk_number(disk: Disk) -> int | None:
    """Return N of /dev/ublkbN; None for a device of NBD."""
    found = _UBLK.fullmatch(disk) if isinstance(disk, str) else None
    return None if found is None else int(found[1])


def is_named_as_ublk(path: str) -> bool:
    """Return whether a path is one that a ublk device may have."""
    directory, name = os.path.split(path)
    return directory == "/dev" and ublk_number(name) is not None


def resolve(path: str) -> Disk:
    """Return the device that a node stands for.

    A ublk device is found by its name, even if it has no node (any more).

    Raises:
        NBDUnavailableError: there is no such node.
        AttachError: it is something else.

    """
    name = _name_of(path)
    if ublk_number(name) is not None:
        return name
    if whole := re.fullmatch(r"(ublkb\d+)p\d+", name):
        reason = f"a partition; use the whole device, /dev/{whole[1]}"
        raise AttachError(errno.EINVAL, reason, path)
    return driver.resolve(path)


def _name_of(path: str) -> str:
    """Return the kernel's name of a node, which may have another in a link."""
    try:
        found = sysfs.name_of(os.stat(path).st_rdev)
    except OSError:
        found = None
    directory, name = os.path.split(path)
    return found or (name if directory == "/dev" else "")


def is_attached(disk: Disk) -> bool:
    """Return whether a device is attached: whether it can be used, or could be."""
    number = ublk_number(disk)
    if number is not None:
        return status.exists(number)
    assert isinstance(disk, int)
    return not sysfs.is_free(disk)


def attached_disks() -> list[Disk]:
    """Return every device that is attached, NBD's first."""
    nbd = [index for index in sysfs.indices() if not sysfs.is_free(index)]
    return [*nbd, *map(disk_name, status.numbers())]


def server_of(disk: Disk) -> tuple[int, str] | None:
    """Return the id and name of the process that serves a ublk device; None if none is seen."""
    number = ublk_number(disk)
    return None if number is None else status.status_of(number).server
