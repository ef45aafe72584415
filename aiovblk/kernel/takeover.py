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
from .sysfs import Disk


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
        check_unchanged(
            index,
            node,
            config.identity,
            size=config.block_size * config.blocks,
            block_size=config.block_size,
            read_only=bool(config.flags & TransmissionFlag.READ_ONLY),
        )
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


def check_unchanged(
    disk: Disk, path: str, identity: str | None, *, size: int, block_size: int, read_only: bool
) -> None:
    """Refuse to serve a device with another size, block size or access than it was attached with.

    Args:
        disk: the attached device.
        path: its node.
        identity: of the device.
        size: bytes of what is to be served.
        block_size: bytes of its blocks.
        read_only: whether it refuses writes.

    Raises:
        AttachError: one differs.

    """
    wanted = {"bytes": size, "bytes in a block": block_size}
    attached = {"bytes": sysfs.size(disk), "bytes in a block": status.block_size(disk)}
    for unit, number in wanted.items():
        if attached[unit] != number:
            raise AttachError(
                errno.EINVAL,
                f"{identity!r} is attached with {attached[unit]} {unit}, and this device"
                f" has {number}; serve the same one, or `aiovblk unmount` it first",
                path,
            )
    if read_only and not status.is_read_only(disk):
        reason = f"{identity!r} is attached for writing, and this device cannot be written"
        raise AttachError(errno.EROFS, reason, path)
