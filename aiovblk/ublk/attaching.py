"""Make a ublk device of the wanted number, or of any: what can be refused is refused here."""

from __future__ import annotations

import errno
import logging
import os
import time
from contextlib import suppress
from dataclasses import replace

from ..device import BlockDevice
from ..errors import AttachError, DeviceBusyError, UblkUnavailableError
from ..kernel import RequestQueue, procfs
from ..kernel.capabilities import Capability, has_capability
from . import control, identities
from .attachment import OWNER_TIMEOUT, UblkAttachment
from .availability import ensure_available
from .commands import (
    MAX_IO_BYTES,
    MAX_TAG_BUFFER,
    RECOVERY,
    Feature,
    State,
    UblkDeviceInfo,
    parameters,
)
from .identified import IdentifiedAttachment
from .identities import number_of
from .memory import PAGE

logger = logging.getLogger("aiovblk")

NODE_TIMEOUT = 5.0
"""Seconds for udev to make a node."""

STOP_TIMEOUT = 5.0
"""Seconds for the driver to stop a device whose server has ended: it does so some time later."""

RELEASE_TIMEOUT = 1.0
"""Seconds for the number of a removed device to be free, if no program has that open."""

OPENING_TIME = 0.1
"""Seconds in which a process that has made a device opens it, which takes it a millisecond."""

POLL = 0.005  # seconds between questions to the driver


def is_privileged() -> bool:
    """Return whether this process may serve devices with all that the driver can do."""
    return has_capability(Capability.CAP_SYS_ADMIN)


def attach(
    path: str | None,
    device: BlockDevice,
    queue: RequestQueue,
    *,
    identity: str | None = None,
    survive: float = 0,
) -> UblkAttachment:
    """Make a device that is ready to be served. Blocks.

    Args:
        path: its node, ``/dev/ublkbN``; None for any number.
        device: its size, block size and capabilities.
        queue: the settings of its request queue.
        identity: the name by which the next server finds it; None for none.
        survive: seconds for which it outlives its server; takes an identity.

    Raises:
        UblkUnavailableError: this system cannot do it.
        DeviceBusyError: there is a device of that number, or of that identity.
        AttachError: the driver refuses.

    """
    number = None if path is None else number_of(path)
    if device.block_size > PAGE:
        reason = f"ublk takes blocks of up to {PAGE} bytes, not {device.block_size}"
        raise AttachError(errno.EINVAL, reason, path)
    features = ensure_available()
    wanted = _wanted(number, features, queue)
    if identity is not None:
        _refuse_unsound_recovery(features, survive, path)
        flags = wanted.flags | RECOVERY if survive else wanted.flags
        wanted = replace(wanted, flags=flags, mark=identities.mark_of(identity))
    info = _add(wanted, path)
    attachment = _attachment_for(info, device, queue, features, survive)
    try:
        # First: before udev has given an ordinary user the node, the driver refuses commands.
        attachment.open_char(NODE_TIMEOUT)
        attachment.set_parameters(parameters(device, info.max_io))
        if isinstance(attachment, IdentifiedAttachment):
            attachment.take_ownership()
            identities.refuse_duplicate(info, path)
    except BaseException as exc:
        with suppress(OSError):
            attachment.undo()
        if isinstance(exc, OSError) and not isinstance(exc, AttachError):
            raise AttachError(exc.errno or errno.EIO, exc.strerror or str(exc), path) from exc
        raise
    return attachment


def _refuse_unsound_recovery(features: Feature, survive: float, path: str | None) -> None:
    """Refuse what this process may not do, or what hangs this kernel."""
    if not is_privileged():
        reason = (
            "identity takes CAP_SYS_ADMIN with ublk: the driver does not let the device of an"
            " ordinary user outlive its server"
        )
        raise AttachError(errno.EPERM, reason, path)
    if survive and Feature.SAFE_STOP_DEV not in features:
        # Seen with 6.12: the kernel's Oops is a NULL dereference in io_fallback_tw, and its
        # ublk_quiesce_work waits for ever. Drivers that can stop a device safely do not do it.
        raise UblkUnavailableError(
            errno.EOPNOTSUPP,
            "survive takes a kernel whose ublk driver has SAFE_STOP_DEV, as Linux 7.0 and later:"
            " before it, the death of a server with requests in flight may hang all block devices"
            " of the machine. Leave survive out, or attach by netlink",
            path,
        )


def _attachment_for(
    info: UblkDeviceInfo,
    device: BlockDevice,
    queue: RequestQueue,
    features: Feature,
    survive: float,
) -> UblkAttachment:
    if not info.mark:
        return UblkAttachment(info, device.block_size, queue, features)
    return IdentifiedAttachment(info, device.block_size, queue, features, survive=survive)


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
    """Remove a device whose server is gone. Blocks, for seconds at most.

    Args:
        number: N of /dev/ublkbN.

    Returns:
        Whether it was one, and the driver removes it.

    """
    try:
        info = _settled(number)
        if info.state != State.DEAD or _is_served(info) or _is_being_made(info):
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
        has_settled = info.state in (State.DEAD, State.QUIESCED) or _is_served(info)
        if has_settled or time.monotonic() >= deadline:
            return info
        time.sleep(POLL)


def _is_served(info: UblkDeviceInfo) -> bool:
    """Return whether a process may be about to start a device: till then it counts as dead."""
    assert info.number is not None
    return info.server > 0 and procfs.process_of(info.server) is not None


def _is_being_made(info: UblkDeviceInfo) -> bool:
    """Return whether a process has a device open that is not started: only its server may.

    Until it has started, the driver knows no server. One that has just made it opens it at once, or
    as soon as udev has given it the node.
    """
    assert info.number is not None  # it exists
    node = control.char_node(info.number)
    if Feature.UNPRIVILEGED_DEV in info.flags and _waits_for_udev(node, info.owner):
        return True
    for _ in range(2):
        try:
            os.close(os.open(node, os.O_RDWR | os.O_CLOEXEC))
        except OSError as exc:
            return exc.errno == errno.EBUSY
        time.sleep(OPENING_TIME)
    return False


def _waits_for_udev(node: str, owner: int) -> bool:
    """Return whether a node has just been made, and is not its user's yet."""
    try:
        status = os.stat(node)
    except OSError:
        return False
    return status.st_uid != owner and time.time() - status.st_mtime < OWNER_TIMEOUT


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
