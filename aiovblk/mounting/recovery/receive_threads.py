"""Ensure that the kernel runs a receive thread for each connection of a device.

For each connection it has a receiver, which runs as long as that lives: an item of a workqueue that
belongs to the device (recv_work in drivers/block/nbd.c). Should it take longer than 10 ms to start
a thread for them (MAYDAY_INITIAL_TIMEOUT in kernel/workqueue.c), as on a machine that is busy or
short of memory, the workqueue's rescuer takes all those that have not begun, to run them one after
another. So the first of them runs, and the others never do: the kernel sends requests on their
connections, but reads no reply, and each program that waits for one hangs.

An item that waits alone begins in any case. So connections that are opened one by one, each when
the kernel receives by the one before, are all received by. That is not possible where a device is
attached anew, which takes all connections at once: they are checked afterwards, and reconnected one
by one.

In a container with process ids of its own the kernel's threads do not show; nothing is waited for
there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from ...kernel import AttachedDisk, status
from ..connections import ConnectionGroup
from ..deadlines import KERNEL_TIMEOUT, run_in_thread

logger = logging.getLogger("aiovblk")

RECEIVER_TIMEOUT = 3.0
"""Seconds for the kernel to begin to receive by a connection, which takes it milliseconds."""

POLL = 0.01
"""Seconds between two counts of the kernel's threads."""


async def ensure_receiving(attachment: AttachedDisk, connections: ConnectionGroup) -> None:
    """Reconnect the connections of a new device if the kernel does not receive by each of them.

    By netlink all are reconnected, one by one. By ioctl none can be: those without a receiver are
    closed, and the device works with fewer.
    """
    each, reconnector = connections.all(), connections.reconnector
    if len(each) == 1 or await wait_started(attachment.index, len(each)):
        return
    count = await _count(attachment.index)
    reason = f"the kernel receives by {count} of {len(each)} connections"
    if reconnector.open_replacement is not None:
        logger.warning("%s of %s; all are reconnected, one by one", reason, attachment.path)
        reconnector.retire(each, reason)
    else:
        logger.warning("%s of %s; it works with fewer connections", reason, attachment.path)
        # The one that began last keeps the next from beginning, and so does each of those.
        reconnector.retire(each[max(count - 1, 0) : -1], reason)


async def wait_started(index: int, count: int) -> bool:
    """Wait until the kernel receives by ``count`` connections of a device.

    Returns:
        False if it does not within :data:`RECEIVER_TIMEOUT`.

    """
    return await _wait_until(index, lambda now: now >= count, RECEIVER_TIMEOUT)


async def wait_stopped(index: int, others: Callable[[], int], seconds: float) -> bool:
    """Wait until the kernel receives by no more connections of a device than ``others()`` says.

    Returns:
        False if it still does after ``seconds``.

    """
    return await _wait_until(index, lambda now: now <= others(), seconds)


async def _wait_until(index: int, fits: Callable[[int], bool], seconds: float) -> bool:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while status.sees_kernel_threads() and not fits(await _count(index)):
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(POLL)
    return True


async def _count(index: int) -> int:
    return (await run_in_thread(KERNEL_TIMEOUT, status.count_receivers))[index]
