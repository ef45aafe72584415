"""Orphans and zombies: attached devices without a server. Explain one, and free it if unused."""

from __future__ import annotations

import errno
import logging

from ..errors import DeviceBusyError
from . import netlink, status, sysfs, users
from .attach_errors import taken_error
from .capabilities import is_initial
from .status import DeviceState
from .sysfs import wait_until_free
from .users import busy_error

logger = logging.getLogger("aiovblk")

FREEING_TIMEOUT = 1.0
"""Seconds for the kernel to free a device that has neither server nor users."""


def free_if_unused(index: int) -> bool:
    """Free a device whose server is gone, if nothing uses it.

    The kernel keeps a device that was attached by netlink when its server is killed together with
    its watchdog, as happens to all processes of a container. This ends such a device.

    Returns:
        True if it is free now.

    """
    if sysfs.is_free(index):
        return True
    if status.state(index) is not DeviceState.DEAD or users.users(index):
        return False
    try:
        netlink.disconnect(index)
    except OSError as exc:
        logger.debug("/dev/nbd%d has no server, and cannot be freed: %s", index, exc)
        return False
    logger.info("freed /dev/nbd%d, whose server was gone", index)
    return wait_until_free(index, FREEING_TIMEOUT)


def orphan_error(index: int, path: str) -> DeviceBusyError:
    """Make the error for a device that is taken without a visible server; says what frees it."""
    if sysfs.server_thread(index) is None:
        return busy_error(index, path)
    state = status.state(index)
    # Attached since, or its server is ending: where all processes show, none serves it unseen.
    if state is DeviceState.ALIVE and (status.server(index) is not None or is_initial("pid")):
        return taken_error(index, path)
    holders = users.users(index)
    used = ", ".join(holders)
    force = f"`aiovblk unmount --force {path}`"
    match state:
        case DeviceState.DEAD:
            reason = "its server is gone" + (f", but it is still in use: {used}" if used else "")
            remedy = "`aiovblk doctor --clean` frees it"
        case DeviceState.LOST:
            name = status.identity(index)
            successor = f"another of the identity {name!r}" if name else "that"
            reason = f"it has lost its server, and waits for {successor} to come back"
            remedy = f"{force} gives it up"
        case DeviceState.ALIVE:
            reason = "it has a server that cannot be seen from here, in another container, say"
            remedy = f"unmount it there; {force} takes it away"
        case DeviceState.UNKNOWN:
            reason = "it is attached, and its server cannot be seen from here" + (
                f"; {used}" if used else ""
            )
            remedy = f"unmount it where it was mounted; {force} takes it away"
    return DeviceBusyError(errno.EBUSY, f"{reason}; {remedy}, or choose another", path, holders)
