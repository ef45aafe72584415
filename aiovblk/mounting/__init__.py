"""A device, a socket pair and the kernel: :func:`mount`, :func:`mounted` and :class:`Mount`.

Nothing in the event loop's thread touches the device node: it could wait for a request that only
this loop can answer.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import get_args

import anyio
from anyio.abc import TaskStatus

from .. import kernel
from ..arguments import MAX_WORKERS, check_count, check_seconds
from ..device import BlockDevice, DeviceFactory
from ..dispatch import DEFAULT_SLOW_REQUEST, MAX_CONCURRENCY
from ..kernel import RequestQueue
from .attaching import Attach, MountOptions
from .backend import Backend, DeferredBackend, LocalBackend
from .deadlines import start_thread
from .handle import Mount
from .unmounting import UNMOUNT_TIMEOUT
from .workers.backend import WorkerBackend

DEFAULT_QUEUE = RequestQueue()

__all__ = ["UNMOUNT_TIMEOUT", "Attach", "Mount", "mount", "mounted"]


@asynccontextmanager
async def mounted(
    device: BlockDevice | DeviceFactory,
    path: str | os.PathLike[str] | None = None,
    *,
    attach: Attach = "auto",
    connections: int = 1,
    workers: int | None = None,
    concurrency: int = MAX_CONCURRENCY,
    handler_timeout: float | None = None,
    slow_request: float | None = DEFAULT_SLOW_REQUEST,
    timeout: float | None = None,
    unmount_timeout: float = UNMOUNT_TIMEOUT,
    queue: RequestQueue = DEFAULT_QUEUE,
    identity: str | None = None,
    survive: float | None = None,
    replace: bool = False,
    partitions: bool = False,
    memory_safe: bool = False,
) -> AsyncIterator[Mount]:
    """Mount ``device`` for the length of an ``async with`` block.

    Entering means that the device is live: it can be read, and the kernel has looked for partitions
    (unless its driver was loaded with ``max_part=0``). Leaving unmounts it, whatever the block did;
    an exception of the block comes out as it is.

    Args:
        device: what to serve; with ``workers``, what makes it: a class, or a function, async or
            not, of a module. With ``replace`` it may be such a thing too, which is then called when
            the other server has let go of its own.
        path: the node, ``/dev/nbdN``; None takes any device that is free.
        attach: how. ``ioctl`` works everywhere, but whatever stops the process (Ctrl-Z, a debugger,
            a frozen container, a suspend) ends the device. ``netlink`` bears that, and takes a free
            device without a race, but needs the first network namespace before Linux 6.12.
            ``auto`` is ``netlink`` where it can be, else ``ioctl``.
        connections: between the kernel and this process. The kernel uses one for each processor at
            most, and has up to 128 requests in flight on each. More than one helps where programs
            on several processors keep the device busy.
        workers: so many processes, each with a connection and a device of its own, serve together
            what one process cannot, whose interpreter keeps one processor busy. More than one
            takes a device that declares :attr:`BlockDevice.multi_conn`. If one is lost, the others
            serve on. A device that is taken over by ``identity`` has as many connections, and
            workers at work, as it was attached with. (What makes a device of the main module has
            each of them import that, which therefore has to guard what it does by
            ``if __name__ == "__main__"``.)
        concurrency: how many handlers may run at once, whichever connection they serve; with
            workers, in each.
        handler_timeout: seconds after which a handler is cancelled and its request fails with EIO.
        slow_request: seconds after which :meth:`Mount.events` tells that a handler still runs; None
            for never.
        timeout: seconds after which the kernel gives up a connection on which a request was not
            answered. With one connection that is the end of the device, so None means never. With
            several, the request is sent again on another one, and None means 120. By netlink the
            connection is made again, once in a row, and the request sent again on that.
        unmount_timeout: seconds that one request may remain unanswered during the unmount before
            it is given up.
        queue: what the kernel's requests look like; what was set before is set again at the end.
        identity: what the device is known by (``volume-42``), to :attr:`survive` its server, and in
            ``aiovblk list``; up to 255 printable characters. By netlink only. If a device of this
            identity is attached and has no server any more, this goes on where that one ended. It
            has to have the same size and block size.
        survive: seconds for which the device outlives its server: should this process end without
            unmounting it, whoever uses it waits so long for another that mounts the same
            ``identity``. Requests that were in flight are made again then, though they may have
            been carried out; what a write has stored by the time it returns must outlive the
            process. Until then there is nobody to give up on what waits; after that it
            fails. None for not at all.
        replace: if a device of this identity still has a server, ask that to hand it over, which
            interrupts nothing (:meth:`Mount.detach`); else it is an error. If ``device`` cannot be
            there twice (:class:`~aiovblk.storage.FileDevice` locks its file), give what makes it.
            A server with ``workers`` refuses (:exc:`~aiovblk.AttachError`): that has to end first.
            ``workers`` of its own are started when the other has let go.
        partitions: enter only when each partition of the table that the device has can be opened:
            ``/dev/nbd0p1`` and so on. The kernel's own nodes are there at once, those of udev soon.
            A device without a table, with an empty one, or with one that this kernel does not know,
            has none. Otherwise nobody waits for nodes, and a table that could not be read is as
            good as none. What becomes of the table later (sfdisk, a resize) is not waited for.
        memory_safe: serve although memory is short: take the thread of this event loop, and what it
            starts from now on, out of the kernel's waiting for write-back (PR_SET_IO_FLUSHER), lock
            this process's memory (mlockall), and never be killed for memory (oom_score_adj), all to
            the end of the process. What takes privileges that are missing is left out, and logged
            as a warning.

    Raises:
        NBDUnavailableError: there is no such device, no driver, or no free device.
        DeviceBusyError: somebody else serves ``path``. On leaving: something still used the
            device; its file systems were synced before it was unmounted by force.
        AttachError: the kernel refused the device; or, with ``partitions``, its table cannot be
            read, or a node does not appear within 10 s, and the device has been unmounted again, in
            order. On leaving: its connection had been lost.
        Error: on leaving: data could not be stored, or a handler failed.
        TypeError, ValueError: the device's declarations, or an option, cannot be.

    Cancellation: unmounts in order, then goes on.

    """
    served = _served(
        device,
        connections,
        workers,
        concurrency,
        handler_timeout,
        slow_request,
        replace,
        memory_safe,
    )
    limits = {"timeout": timeout, "unmount_timeout": unmount_timeout, "survive": survive}
    for name, seconds in limits.items():
        check_seconds(name, seconds)
    if attach not in get_args(Attach):
        raise ValueError(f"attach must be one of {', '.join(get_args(Attach))}, not {attach!r}")
    _check_identity(identity, survive, replace, attach)
    options = MountOptions(
        attach=attach,
        timeout=timeout,
        unmount_timeout=unmount_timeout,
        queue=queue,
        identity=identity,
        survive=survive or 0,
        replace=replace,
        partitions=partitions,
    )
    mount = Mount(served, options)
    if memory_safe:
        # Before anything is started, which then inherits it.
        kernel.memory_safety.protect_thread()
        await start_thread(kernel.memory_safety.protect_process)
    await mount.start(path)
    try:
        yield mount
        await mount.unmount()
    except BaseException:
        await mount.unmount_after_error()
        raise


async def mount(
    device: BlockDevice | DeviceFactory,
    path: str | os.PathLike[str] | None = None,
    *,
    attach: Attach = "auto",
    connections: int = 1,
    workers: int | None = None,
    concurrency: int = MAX_CONCURRENCY,
    handler_timeout: float | None = None,
    slow_request: float | None = DEFAULT_SLOW_REQUEST,
    timeout: float | None = None,
    unmount_timeout: float = UNMOUNT_TIMEOUT,
    queue: RequestQueue = DEFAULT_QUEUE,
    identity: str | None = None,
    survive: float | None = None,
    replace: bool = False,
    partitions: bool = False,
    memory_safe: bool = False,
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
        attach=attach,
        connections=connections,
        workers=workers,
        concurrency=concurrency,
        handler_timeout=handler_timeout,
        slow_request=slow_request,
        timeout=timeout,
        unmount_timeout=unmount_timeout,
        queue=queue,
        identity=identity,
        survive=survive,
        replace=replace,
        partitions=partitions,
        memory_safe=memory_safe,
    ) as live:
        task_status.started(live)
        await live.wait()


def _served(
    device: BlockDevice | DeviceFactory,
    connections: int,
    workers: int | None,
    concurrency: int,
    handler_timeout: float | None,
    slow_request: float | None,
    replace: bool,
    memory_safe: bool,
) -> Backend:
    check_count("connections", connections, maximum=MAX_WORKERS)
    check_count("workers", workers, maximum=MAX_WORKERS)
    check_count("concurrency", concurrency)
    check_seconds("handler_timeout", handler_timeout)
    check_seconds("slow_request", slow_request)
    if workers is None and replace and callable(device):
        return DeferredBackend(
            device,
            connections=connections,
            concurrency=concurrency,
            handler_timeout=handler_timeout,
            slow_request=slow_request,
        )
    if workers is None:
        return LocalBackend(
            device,
            connections=connections,
            concurrency=concurrency,
            handler_timeout=handler_timeout,
            slow_request=slow_request,
        )
    if isinstance(device, BlockDevice) or not callable(device):
        raise TypeError(
            f"workers make devices of their own: with workers={workers}, give what makes one (a"
            f" class, a function, a functools.partial), not {device!r}"
        )
    if connections != 1:
        raise ValueError("each worker has one connection: leave connections out")
    return WorkerBackend(
        device,
        workers=workers,
        concurrency=concurrency,
        handler_timeout=handler_timeout,
        slow_request=slow_request,
        memory_safe=memory_safe,
        opens_after_handover=replace,
    )


def _check_identity(
    identity: str | None, survive: float | None, replace: bool, attach: Attach
) -> None:
    if identity is None:
        if survive is not None or replace:
            name = "replace" if replace else "survive"
            raise ValueError(f"{name} takes an identity, by which to find the device again")
        return
    if attach == "ioctl":
        raise ValueError("a device that was attached by ioctl has no identity; use netlink")
    # In /sys it is a line.
    if not 0 < len(identity) <= 255 or not identity.isprintable() or identity.strip() != identity:
        raise ValueError(
            f"an identity has 1 to 255 printable characters, and no space around them: {identity!r}"
        )
