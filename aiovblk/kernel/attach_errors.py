"""The errors of an attach: why a device cannot be attached, and which command helps."""

from __future__ import annotations

import errno
import os
import re

from ..errors import AttachError, DeviceBusyError, NBDUnavailableError
from . import status, sysfs

_NODE_NAME = re.compile(r"nbd([0-9]{1,9})", re.ASCII)
_UBLK_NAME = re.compile(r"ublkb[0-9]+", re.ASCII)

# The driver has minor numbers for so many, with the 16 partitions that it allows each by default
# (MINORBITS - part_shift in nbd_init).
_MAX_DEVICES = 1 << 15


def as_attach_error(exc: OSError, index: int, path: str | None) -> AttachError:
    """Convert an error of the kernel; the message says what to do about it."""
    if exc.errno == errno.EBUSY and path is not None:
        return taken_error(index, path)
    if exc.errno in (errno.EPERM, errno.EACCES):
        return AttachError(
            exc.errno,
            "attaching a device takes CAP_SYS_ADMIN in the initial user namespace: run as root",
            path,
        )
    if exc.errno == errno.ENOENT:
        return NBDUnavailableError(errno.ENOENT, "no such device node", path)
    return AttachError(exc.errno or errno.EIO, exc.strerror or str(exc), path)


def taken_error(index: int, path: str) -> DeviceBusyError:
    """Make the error for a device that is taken, which names its server as the holder.

    Without a holder no server is visible: another process may just be attaching or detaching it.
    """
    process = status.server(index)
    if process is None:
        return DeviceBusyError(errno.EBUSY, "the device is just being attached or detached", path)
    holder = f"served by process {process[0]} ({process[1]})"
    return DeviceBusyError(
        errno.EBUSY, f"already attached, {holder}; choose another or unmount it", path, [holder]
    )


def all_taken_error(count: int) -> NBDUnavailableError:
    """Make the error for a machine whose ``count`` devices are all in use."""
    return NBDUnavailableError(
        errno.EBUSY,
        f"all {count} NBD devices are in use; `modprobe -r nbd` and "
        f"`modprobe nbd nbds_max={count * 2}` make more",
    )


def no_family_error() -> AttachError:
    """Make the error for a network namespace without the kernel's NBD netlink family."""
    return AttachError(
        errno.ENOENT,
        "the kernel's NBD netlink family cannot be reached (before Linux 6.12 it is in the"
        ' first network namespace only); attach="ioctl" works without',
    )


def no_driver_error(reason: str, path: str | None) -> NBDUnavailableError:
    """Make the error for a driver that cannot be loaded, for this ``reason``."""
    return NBDUnavailableError(
        errno.ENODEV,
        f"the kernel's NBD driver is not loaded and cannot be ({reason}); as root, on the "
        "machine itself and not in a container, run `modprobe nbd`",
        path,
    )


def missing_node_error(path: str) -> NBDUnavailableError:
    """Make the error for a device that the kernel has, but whose node is missing."""
    return NBDUnavailableError(errno.ENOENT, _missing_node_reason(path), path)


def missing_device_error(path: str) -> NBDUnavailableError:
    """Make the error for a node that is not there: says why, and what makes one."""
    return NBDUnavailableError(errno.ENOENT, _missing_reason(path), path)


def _missing_reason(path: str) -> str:
    if _UBLK_NAME.fullmatch(os.path.basename(path)):
        return 'a ublk device, which takes attach="ublk"; NBD devices are called /dev/nbdN'
    wanted = index_in_name(path)
    last = max(sysfs.indices(), default=-1)
    if wanted is None:
        return "no such device; NBD devices are called /dev/nbd0, /dev/nbd1 and so on"
    if last < 0:
        return "no such device; the kernel's NBD driver is not loaded (`modprobe nbd` loads it)"
    if wanted <= last:
        return _missing_node_reason(path)
    reason = f"no such device; the kernel has /dev/nbd0 to /dev/nbd{last}"
    if wanted < _MAX_DEVICES:
        reason += f" (`modprobe -r nbd; modprobe nbd nbds_max={wanted + 1}` makes more)"
    return reason


def _missing_node_reason(path: str) -> str:
    return f"no such node; in a container, make it with `mknod {path} b 43 MINOR`"


def index_in_name(path: str) -> int | None:
    """Return N if a path ends in nbdN."""
    name = _NODE_NAME.fullmatch(os.path.basename(path))
    return None if name is None else int(name[1])
