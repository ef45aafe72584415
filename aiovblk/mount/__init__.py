"""A device, a socket pair and the kernel: :func:`mount`, :func:`mounted` and :class:`Mount`.

Nothing in the event loop's thread touches the device node: it could wait for a request that only
this loop can answer.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskStatus

from ..device import BlockDevice
from ..dispatch import MAX_CONCURRENCY
from ..kernel import RequestQueue
from .life import Mount
from .unmounting import UNMOUNT_TIMEOUT

DEFAULT_QUEUE = RequestQueue()

__all__ = ["UNMOUNT_TIMEOUT", "Mount", "mount", "mounted"]


@asynccontextmanager
async def mounted(
    device: BlockDevice,
    path: str | os.PathLike[str] | None = None,
    *,
    connections: int = 1,
    concurrency: int = MAX_CONCURRENCY,
    handler_timeout: float | None = None,
    timeout: float | None = None,
    unmount_timeout: float = UNMOUNT_TIMEOUT,
    queue: RequestQueue = DEFAULT_QUEUE,
) -> AsyncIterator[Mount]:
    """Mount ``device`` for the length of an ``async with`` block.

    Entering means that the device is live: it can be read, and its partitions are known. Leaving
    unmounts it, whatever the block did; an exception of the block comes out as it is.

    Args:
        device: what to serve.
        path: the node, ``/dev/nbdN``; None takes any device that is free.
        connections: between the kernel and this process. The kernel uses one for each processor at
            most, and has up to 128 requests in flight on each. More than one helps where programs
            on several processors keep the device busy.
        concurrency: how many handlers may run at once, whichever connection they serve.
        handler_timeout: seconds after which a handler is cancelled and its request fails with EIO.
        timeout: seconds after which the kernel gives up a connection on which a request was not
            answered. With one connection that is the end of the device, so None means never. With
            several, the request is sent again on another one, and None means 120.
        unmount_timeout: seconds that one request may remain unanswered during the unmount before
            it is given up.
        queue: what the kernel's requests look like; what was set before is set again at the end.

    Raises:
        NBDUnavailableError: there is no such device, no driver, or no free device.
        DeviceBusyError: somebody else serves ``path``. On leaving: something still used the
            device; its file systems were synced before it was unmounted by force.
        AttachError: the kernel refused the device. On leaving: its connection had been lost.
        Error: on leaving: data could not be stored, or a handler failed.
        TypeError, ValueError: the device's declarations, or an option, cannot be.

    Cancellation: unmounts in order, then goes on.

    """
    mount = Mount(
        device,
        connections=connections,
        concurrency=concurrency,
        handler_timeout=handler_timeout,
        timeout=timeout,
        unmount_timeout=unmount_timeout,
        queue=queue,
    )
    await mount.start(path)
    try:
        yield mount
        await mount.unmount()
    except BaseException:
        await mount.leave()
        raise


async def mount(
    device: BlockDevice,
    path: str | os.PathLike[str] | None = None,
    *,
    connections: int = 1,
    concurrency: int = MAX_CONCURRENCY,
    handler_timeout: float | None = None,
    timeout: float | None = None,
    unmount_timeout: float = UNMOUNT_TIMEOUT,
    queue: RequestQueue = DEFAULT_QUEUE,
    task_status: TaskStatus[Mount] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Mount ``device`` and serve it until it is unmounted, by whomever.

    To be awaited, or run as a task; with anyio, ``await group.start(aiovblk.mount, device)``
    returns the :class:`Mount` once the device is live.

    The arguments are those of :func:`mounted`, and so are the exceptions.

    Cancellation: unmounts in order, then re-raises. A file system that is still mounted on the
    device is synced before, and sees nothing but errors afterwards.
    """
    async with mounted(
        device,
        path,
        connections=connections,
        concurrency=concurrency,
        handler_timeout=handler_timeout,
        timeout=timeout,
        unmount_timeout=unmount_timeout,
        queue=queue,
    ) as live:
        task_status.started(live)
        await live.wait()
