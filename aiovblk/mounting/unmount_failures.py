"""What an unmount does when the kernel does not let go, and how it reports what went wrong.

Escalation: where the ordinary release of a device hangs, ``NBD_CLEAR_SOCK`` fails what is in
flight, then netlink disconnects a device whose node cannot be opened any more. The socket is
closed by then, which wakes the kernel's sender.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from .. import kernel
from ..device import BlockDevice
from ..dispatch import format_exception, is_bug
from ..errors import AttachError, DeviceBusyError, Error
from .connections import ConnectionGroup
from .deadlines import KERNEL_TIMEOUT, run_in_thread
from .state import MountState

logger = logging.getLogger("aiovblk")


RELEASE_TIMEOUT = 0.5
"""Seconds to wait for others to close a device that is detached."""


class AbortedError(Exception):
    """A wait of an unmount has ended by its deadline, or by force."""


async def abort_connections(connections: ConnectionGroup) -> None:
    """Answer all requests with EIO, then close: what frees everything that hangs."""
    # A resize that waits in the kernel for an answer (it freezes the queue) keeps NBD_CLEAR_SOCK
    # and netlink waiting too, and closing is no answer.
    connections.fail_running()
    await asyncio.wait([connections.drained()], timeout=RELEASE_TIMEOUT)
    connections.abort()


async def explain_lost_data(
    attachment: kernel.AttachedDisk,
    state: MountState,
    error: BaseException | None,
    from_outside: bool,
) -> str:
    """Explain that the kernel has not written back what it caches.

    Args:
        attachment: of the device.
        state: of the mount.
        error: what it reported; None if it has not returned.
        from_outside: whether another program had asked for the disconnect before.

    Returns:
        What went wrong, in words; empty if it was another program's doing, which is logged.

    """
    if from_outside or state.attachment_ended.done():
        # A disconnect by ioctl leaves the connection open; one by netlink shuts it after DISC,
        # and then a sync fails whether there was anything to write or not.
        await asyncio.wait([state.stream_ended], timeout=RELEASE_TIMEOUT)
    if not state.stream_ended.done():
        return f"the kernel could not write back all data ({error})"
    # That program may have written it back before, as `aiovblk unmount` does.
    logger.warning(
        "%s was cut off from outside; what the kernel had not written back is lost", attachment.path
    )
    return ""


async def force_release(
    attachment: kernel.AttachedDisk,
    release_by: Callable[[kernel.AttachedDisk, Callable[[], None]], Awaitable[bool]],
) -> bool:
    """Release a device by ever stronger steps, after the ordinary one has failed.

    Args:
        attachment: of the device.
        release_by: takes one step and waits for its effect; returns whether it had any.

    Returns:
        False if the kernel does not let go.

    """
    for step in attachment.forced_steps:
        logger.warning(
            "%s: the kernel does not let go; trying %s()", attachment.path, step.__name__
        )
        if await release_by(attachment, step):
            return True
    return False


async def warn_of_users(attachment: kernel.AttachedDisk) -> None:
    """Warn of a device that is unmounted, but whose index stays taken.

    Raises:
        TimeoutError: its users could not be found out.

    """
    holders = await run_in_thread(KERNEL_TIMEOUT, kernel.users.users, attachment.disk)
    logger.warning(
        "%s is unmounted, but cannot be mounted again while it is in use: %s",
        attachment.path,
        ", ".join(holders) or "a process that cannot be seen",
    )


async def refuse_if_used(attachment: kernel.AttachedDisk, error: OSError) -> None:
    """Find out why a device could not be claimed for an unmount; return if that is no obstacle.

    Raises:
        DeviceBusyError: something uses the device.

    """
    if isinstance(error, DeviceBusyError):
        raise error
    if isinstance(error, TimeoutError):
        # Some program's open() hangs, since a handler does, and ours behind it.
        holders = await run_in_thread(KERNEL_TIMEOUT, kernel.users.exclusive_users, attachment.disk)
        if holders:
            reason = f"the device is in use: {', '.join(holders)}"
            raise DeviceBusyError(errno.EBUSY, reason, attachment.path, holders) from None
    else:
        # The node is gone, say. That is no reason to keep the device mounted.
        logger.debug("%s cannot be claimed: %s", attachment.path, error)


def log_handler_failure(
    path: str, device: BlockDevice, handler: Callable[..., Any], error: BaseException
) -> str:
    """Log that the final ``flush()`` or ``unmount()`` of a device has failed.

    Args:
        path: the device node.
        device: what was served.
        handler: the method.
        error: what it raised, with its traceback if that is a bug; or :exc:`AbortedError`.

    Returns:
        What went wrong, in words.

    """
    shows_bug = not isinstance(error, AbortedError) and is_bug(error, device)
    logger.error(
        "%s: %s() failed: %s",
        path,
        handler.__qualname__,
        format_exception(error),
        exc_info=error if shows_bug else None,
    )
    return f"its {handler.__name__}() failed: {error!r}"


def unmount_error(
    attachment: kernel.AttachedDisk,
    connections: ConnectionGroup,
    *,
    lost: bool,
    failures: list[str],
) -> Error | None:
    """Make the error of an unmount; None if all went well.

    Args:
        attachment: of the device.
        connections: its connections.
        lost: whether the connection broke before the unmount began.
        failures: what went wrong, in words.

    """
    path = attachment.path
    if lost:
        reason = "; ".join([_loss_reason(attachment, connections), *failures])
        return AttachError(errno.ENOTCONN, reason, path)
    if failures:
        return Error(f"{path} is unmounted, but " + "; ".join(failures))
    return None


def _loss_reason(attachment: kernel.AttachedDisk, connections: ConnectionGroup) -> str:
    error, ended = connections.error, attachment.ended
    number = ended.result() if ended.done() else 0
    if error is not None:
        why = f"the connection broke: {error}"
    elif number in (errno.EBUSY, errno.EINTR):
        why = "its thread was stopped (Ctrl-Z, a debugger, a frozen container or a suspend do)"
    else:
        why = "another program took its socket away"
    return f"the kernel's connection was lost, and what it had not written: {why}"
