"""Make a ublk device of the wanted number, or of any: what can be refused is refused here."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from contextlib import suppress

from ..device import BlockDevice
from ..errors import AttachError, DeviceBusyError
from ..kernel import RequestQueue, procfs
from ..kernel.capabilities import Capability, has_capability
from . import control
from .attachment import UblkAttachment
from .availability import ensure_available
from .commands import MAX_IO_BYTES, MAX_TAG_BUFFER, Feature, State, UblkDeviceInfo, parameters
from .memory import PAGE

logger = logging.getLogger("aiovblk")

NODE_TIMEOUT = 5.0
"""Seconds for udev to make a node, and to give it to its user."""

STOP_TIMEOUT = 5.0
"""Seconds for the driver to stop a device whose server has ended: it does so some time later."""

RELEASE_TIMEOUT = 1.0
"""Seconds for the number of a removed device to be free, if no program has that open."""

POLL = 0.005  # seconds between questions to the driver

MAX_NUMBER = (1 << 20) - 1
"""The largest N of /dev/ublkbN (the driver's UBLK_MAX_UBLKS)."""

_NODE = re.compile(r"/dev/ublkb([0-9]{1,7})", re.ASCII)


def is_privileged() -> bool:
    """Tell whether this process may serve devices with all that the driver can do."""
    return has_capability(Capability.CAP_SYS_ADMIN)


def number_of(path: str) -> int:
    """Return N of /dev/ublkbN.

    Raises:
        AttachError: it is no such path.

    """
    found = _NODE.fullmatch(path)
    if found is None or int(found[1]) > MAX_NUMBER:
        reason = f"ublk devices are called /dev/ublkb0 to /dev/ublkb{MAX_NUMBER}"
        raise AttachError(errno.EINVAL, reason, path)
    return int(found[1])


def attach(path: str | None, device: BlockDevice, queue: RequestQueue) -> UblkAttachment:
    """Make a device that is ready to be served. Blocks.

    Args:
        path: its node, ``/dev/ublkbN``; None for any number.
        device: its size, block size and capabilities.
        queue: the settings of its request queue.

    Raises:
        UblkUnavailableError: this system cannot do it.
        DeviceBusyError: there is a device of that number.
        AttachError: the driver refuses.

    """
    number = None if path is None else number_of(path)
    if device.block_size > PAGE:
        reason = f"ublk takes blocks of up to {PAGE} bytes, not {device.block_size}"
        raise AttachError(errno.EINVAL, reason, path)
    features = ensure_available()
    info = _add(_wanted(number, features, queue), path)
    attachment = UblkAttachment(info, device.block_size, queue, features)
    try:
        # First: before udev has given an ordinary user the node, the driver refuses commands.
        attachment.open_char(NODE_TIMEOUT)
        attachment.set_parameters(parameters(device, info.max_io))
    except BaseException as exc:
        with suppress(OSError):
            attachment.undo()
        if isinstance(exc, OSError) and not isinstance(exc, AttachError):
            raise AttachError(exc.errno or errno.EIO, exc.strerror or str(exc), path) from exc
        raise
    return attachment


def _wanted(number: int | None, features: Feature, queue: RequestQueue) -> UblkDeviceInfo:
    flags = Feature.CMD_IOCTL_ENCODE
    largest = MAX_IO_BYTES if queue.max_sectors_kb is None else queue.max_sectors_kb * 1024
    if not is_privileged():
        flags |= Feature.UNPRIVILEGED_DEV
    elif Feature.USER_COPY in features:
        flags |= Feature.USER_COPY
    if Feature.USER_COPY not in flags:
        largest = min(largest, MAX_TAG_BUFFER)
    return UblkDeviceInfo(number=number, max_io=largest, flags=flags, server=os.getpid())


def _add(wanted: UblkDeviceInfo, path: str | None) -> UblkDeviceInfo:
    """Make a device; one of that number whose server is gone is removed first."""
    try:
        return control.add(wanted)
    except OSError as exc:
        if exc.errno != errno.EEXIST or wanted.number is None:
            raise _refused(exc, path) from exc
    # Its number must not be given back unless nothing serves it: it may be another server's.
    was_dead = remove_dead(wanted.number)
    deadline = time.monotonic() + (RELEASE_TIMEOUT if was_dead else 0)
    while True:
        try:
            return control.add(wanted)
        except OSError as exc:
            if exc.errno != errno.EEXIST:
                raise _refused(exc, path) from exc
            if time.monotonic() >= deadline:
                raise _taken_error(wanted.number, path) from exc
        time.sleep(POLL)


def remove_dead(number: int) -> bool:
    """Remove a device whose server is gone; return whether it was one."""
    try:
        info = _settled(number)
        if info.state != State.DEAD or _is_served(info):
            return False
        control.ControlledDevice(number, info.flags).delete()
    except OSError as exc:
        logger.debug("ublk device %d cannot be removed: %s", number, exc)
        return False
    logger.info("removed the ublk device %d, whose server was gone", number)
    return True


def _settled(number: int) -> UblkDeviceInfo:
    """Return what the driver knows of a device, once it has noticed the end of its server."""
    deadline = time.monotonic() + STOP_TIMEOUT
    while True:
        info = control.info(number)
        if info.state == State.DEAD or _is_served(info) or time.monotonic() >= deadline:
            return info
        time.sleep(POLL)


def _is_served(info: UblkDeviceInfo) -> bool:
    """Whether a process may be about to start a device: until then it counts as dead."""
    assert info.number is not None
    return info.server > 0 and procfs.process_of(info.server) is not None


def _taken_error(number: int, path: str | None) -> DeviceBusyError:
    holders = []
    with suppress(OSError):
        process = control.info(number).server
        if process > 0 and (found := procfs.process_of(process)):
            holders.append(f"served by process {process} ({found[1]})")
    reason = "".join(f", {each}" for each in holders) + "; choose another or unmount it"
    return DeviceBusyError(errno.EBUSY, f"the device exists{reason}", path, holders)


def _refused(exc: OSError, path: str | None) -> AttachError:
    if exc.errno in (errno.EACCES, errno.EPERM):
        reason = "the driver refuses to make a device for this user"
    elif exc.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "there are too many devices of ordinary users (the module's option ublks_max)"
    else:
        reason = exc.strerror or str(exc)
    return AttachError(exc.errno or errno.EIO, reason, path)
