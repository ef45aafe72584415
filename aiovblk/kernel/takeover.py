"""Take over a device that is attached already: one whose server died, or handed it over.

Only a device that was attached by netlink with an identity outlives its server (see
:mod:`.identities`).
"""

from __future__ import annotations

import errno
import time

from .. import atfork
from ..errors import AttachError, DeviceBusyError
from ..protocol.constants import TransmissionFlag
from . import locks, status, sysfs
from .attaching import BUSY_RETRY_TIMEOUT, lock_index
from .attachment import AttachConfig
from .identities import find_by_identity
from .monitor import NetlinkMonitorThread
from .netlink_attachment import NetlinkAttachment


def take_over_orphan(path: str | None, config: AttachConfig) -> NetlinkAttachment | None:
    """Take over the device of an identity whose server is gone. Blocks, for seconds at most.

    No request comes before :func:`.reconnecting.replace_dead_connection` has been called.

    Args:
        path: where the device has to be, or None.
        config: as it was attached, without sockets.

    Returns:
        None if there is no such device.

    Raises:
        DeviceBusyError: it has a server, or is another one than ``path``.
        AttachError: its size, block size or access differ from ``config``.

    """
    index = find_by_identity(path, config.identity)
    if index is None:
        return None
    node = f"/dev/nbd{index}"
    lock = _lock_orphan(index, node)
    try:
        _check_unchanged(index, node, config)
        # Not before: the watchdog of its last server takes a new owner for a new server.
        locks.write_owner(lock)
        return attachment_for_existing(index, node, lock, config)
    except BaseException:
        atfork.close_protected(lock)
        raise


def attachment_for_existing(
    index: int, path: str, lock: int, config: AttachConfig
) -> NetlinkAttachment:
    """Make the attachment for a device that is attached already, and whose lock this process has.

    Raises:
        OSError: the watchdog or netlink's events cannot be had.

    """
    monitor = NetlinkMonitorThread(lambda: index, config.survive)
    return NetlinkAttachment(monitor, path, lock, config)


def _lock_orphan(index: int, path: str) -> int:
    """Take the lock of a device once its server is gone, which may just be shutting down."""
    deadline = time.monotonic() + BUSY_RETRY_TIMEOUT
    while True:
        try:
            lock = lock_index(index, path)
        except DeviceBusyError:
            if time.monotonic() > deadline:
                raise
        else:
            if not status.count_receivers()[index]:
                return lock
            atfork.close_protected(lock)
            if time.monotonic() > deadline:
                reason = "it still has a server, which does not use this library or this /run"
                raise DeviceBusyError(errno.EBUSY, reason, path, [reason])
        time.sleep(sysfs.POLL)


def _check_unchanged(index: int, path: str, config: AttachConfig) -> None:
    """Refuse to serve a device with another size, block size or access than it was attached with.

    Raises:
        AttachError: one differs.

    """
    wanted = {
        "bytes": config.block_size * config.blocks,
        "bytes in a block": config.block_size,
    }
    attached = {"bytes": sysfs.size(index), "bytes in a block": status.block_size(index)}
    for unit, number in wanted.items():
        if attached[unit] != number:
            raise AttachError(
                errno.EINVAL,
                f"{config.identity!r} is attached with {attached[unit]} {unit}, and this device"
                f" has {number}; serve the same one, or `aiovblk unmount` it first",
                path,
            )
    if config.flags & TransmissionFlag.READ_ONLY and not status.is_read_only(index):
        reason = f"{config.identity!r} is attached for writing, and this device cannot be written"
        raise AttachError(errno.EROFS, reason, path)
