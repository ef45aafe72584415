"""Reconnect a device by netlink: offer the kernel a connection in place of a dead one.

This process may do so, or the next server. The kernel sends what was in flight on the dead one
again when the timer of the request next expires: it then looks whether the connection is still the
same (nbd_xmit_timeout). So that timer is short where it does nothing else.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from . import netlink, request_queue, status, sysfs
from .attachment import AttachConfig, socket_pair

if TYPE_CHECKING:
    from .netlink_attachment import NetlinkAttachment

RESEND_CHECK_INTERVAL_MS = 2000
"""Milliseconds after which the kernel checks whether a request has to be sent again on another
connection. The kernel rounds them up to whole seconds, and logs each request that takes longer."""

DEFAULT_IO_TIMEOUT = "30000"
"""Milliseconds; ``io_timeout`` of a new queue (30 * HZ in blk_mq_init_allocated_queue)."""


def set_resend_timer(index: int, config: AttachConfig, queue_before: dict[str, str]) -> None:
    """Have the kernel check soon whether a request has to be sent again, where that is all it does.

    That is so with one connection, and no timeout.

    Args:
        index: N of /dev/nbdN.
        config: what the device was attached with.
        queue_before: receives the value to be restored: the kernel's default, whatever it was
            before, since an earlier server may have set it.

    """
    queue_before["io_timeout"] = DEFAULT_IO_TIMEOUT
    if len(config.sockets) == 1 and not config.timeout:
        request_queue.apply(index, queue_before, io_timeout=RESEND_CHECK_INTERVAL_MS)


def has_died(attachment: NetlinkAttachment, seconds: float) -> bool:
    """Return whether a connection that has ended died, and was not removed by a command. Blocks.

    NBD_CLEAR_SOCK drops the page cache, so a server must not reconnect after it as if nothing had
    happened; but the kernel would accept that. The kernel sends LINK_DEAD for connections that die
    by themselves only. In another network namespace it sends none: there each connection counts as
    dead.

    Args:
        attachment: of the device.
        seconds: for which to wait for the event.

    """
    died = attachment.monitor.dead_connections
    return not status.receives_link_dead_events() or died.acquire(timeout=seconds)


def replace_dead_connection(attachment: NetlinkAttachment, seconds: float) -> socket.socket | None:
    """Offer the kernel a connection in place of a dead one. Blocks.

    Args:
        attachment: of the device.
        seconds: for which to wait until a connection is dead.

    Returns:
        The server's end of the new one, on which requests come at once; None if none is dead.

    Raises:
        OSError: the device is no longer attached, or its connections cannot be replaced.

    """
    deadline = time.monotonic() + seconds
    while True:
        attachment.check_is_ours()
        ours, theirs = socket_pair()
        try:
            identity = attachment.config.identity
            if netlink.offer_connection(attachment.index, identity, ours, theirs):
                # If another server's device took it, that finds it closed again.
                attachment.check_is_ours()
                return ours
        except BaseException:
            ours.close()
            raise
        ours.close()
        if time.monotonic() > deadline:
            return None
        time.sleep(sysfs.POLL)  # the kernel may not know yet that a connection has died
