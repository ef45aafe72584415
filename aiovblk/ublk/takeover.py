"""Take over a ublk device that has lost its server: what waits, or was in flight, comes here.

Its server has died, or has parted with it, which is the same to the driver.

The driver grants it to one process: /dev/ublkcN can be open only once.
"""

from __future__ import annotations

import errno
import time

from .. import atfork
from ..device import BlockDevice
from ..errors import AttachError
from ..kernel import RequestQueue
from ..kernel.takeover import check_unchanged
from . import control, identities
from .attaching import NODE_TIMEOUT
from .attachment import POLL, disk_name, node
from .availability import ensure_available
from .commands import State, UblkDeviceInfo
from .identified import IdentifiedAttachment

DEATH_TIMEOUT = 10.0
"""Seconds for the kernel to part with a server that is dead: until its last thread, and the last
child that it has forked, have ended."""


def take_over_orphan(
    path: str | None,
    device: BlockDevice,
    queue: RequestQueue,
    *,
    identity: str,
    survive: float,
    lock: int = -1,
) -> IdentifiedAttachment | None:
    """Take over the device of an identity whose server is gone. Blocks, for seconds at most.

    Requests come once its queue is open.

    Args:
        path: where the device has to be, or None.
        device: what is to be served.
        queue: the settings of its request queue.
        identity: of the device.
        survive: seconds for which it is to outlive this process, too.
        lock: of the device at ``path``, if its server has handed it over; closed if this fails.

    Returns:
        None if there is no such device: it is to be attached then.

    Raises:
        UblkUnavailableError: this system cannot do it.
        DeviceBusyError: it has a server, or is another one than ``path``.
        AttachError: its size, block size or access differ from those of ``device``; or this
            process may not.

    """
    recovered = None
    try:
        features = ensure_available()
        if (found := identities.find_by_identity(path, identity)) is not None:
            assert found.number is not None  # it exists
            if lock < 0:
                lock = identities.lock_device(found.number)
            recovered = _start_recovery(found, device, identity)
    finally:
        if recovered is None and lock >= 0:
            atfork.close_protected(lock)
    if recovered is None:
        return None
    attachment = IdentifiedAttachment(
        recovered, device.block_size, queue, features, survive=survive, lock=lock
    )
    try:
        attachment.take_ownership()
        attachment.open_char(NODE_TIMEOUT)
    except BaseException as exc:
        attachment.abandon()
        if isinstance(exc, OSError) and not isinstance(exc, AttachError):
            if exc.errno == errno.EBUSY:
                raise identities.served_error(attachment.index) from exc
            raise AttachError(
                exc.errno or errno.EIO, exc.strerror or str(exc), attachment.path
            ) from exc
        raise
    return attachment


def _start_recovery(
    found: UblkDeviceInfo, device: BlockDevice, identity: str
) -> UblkDeviceInfo | None:
    """Begin the recovery as soon as the last server is gone; None if the device is.

    Raises:
        DeviceBusyError: it still has a server, which does not use this /run.
        AttachError: what is to be served differs.

    """
    number = found.number
    assert number is not None  # it exists
    deadline = time.monotonic() + DEATH_TIMEOUT
    while True:
        try:
            info = control.info(number)
            if info.mark != found.mark or info.state == State.DEAD:
                return None
            if info.state == State.QUIESCED:
                _check_unchanged(number, device, identity)
                control.ControlledDevice(number, info.flags).start_recovery()
                return info
        except AttachError:
            raise
        except OSError as exc:
            if exc.errno in (errno.ENODEV, errno.ENOENT):
                return None
            if exc.errno != errno.EBUSY:
                reason = f"it cannot be taken over: {exc.strerror}"
                raise AttachError(exc.errno or errno.EIO, reason, node(number)) from exc
        if time.monotonic() > deadline:
            raise identities.served_error(number)
        time.sleep(POLL)


def _check_unchanged(number: int, device: BlockDevice, identity: str) -> None:
    check_unchanged(
        disk_name(number),
        node(number),
        identity,
        size=device.size,
        block_size=device.block_size,
        read_only=bool(device.read_only),
    )
