"""Mount a device: serve it to the kernel as a disk, until it is unmounted or handed over.

Here are the public functions; the options are checked in ``options.py``, the life of a mount is in
``lifecycle.py``, its states are in ``state.py``, and what its user sees of it is in ``handle.py``.

:func:`mounted` is over 50 lines for its docstring, which is the reference of the options.

Invariant of the whole package: nothing in the event loop's thread touches the device node. It could
wait for a request that only this loop can answer.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskStatus

from .. import kernel
from ..device import BlockDevice, DeviceFactory
from ..dispatch import DEFAULT_SLOW_REQUEST, MAX_CONCURRENCY, HandlerLimits
from ..kernel import RequestQueue
from .backend import make_backend
from .deadlines import start_thread
from .handle import Mount
from .handover.options import Handover
from .lifecycle import MountLifecycle
from .options import DEFAULT_QUEUE, UNMOUNT_TIMEOUT, Attach, MountOptions

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
    busy_poll: int | None = None,
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

    On entry the device is live: it can be read, and the kernel has looked for partitions (unless
    its driver was loaded with ``max_part=0``). On exit it is unmounted, whatever the block did; an
    exception of the block propagates as it is.

    Args:
        device: the device to serve; with ``workers``, a factory that makes it: a class, or a
            function, async or not, of a module. With ``replace`` it may be a factory too, which is
            called once the other server has handed its device over.
        path: the node, ``/dev/nbdN``, or ``/dev/ublkbN`` with ``attach="ublk"``; None for any free
            device.
        attach: how. ``ioctl`` works everywhere, but whatever stops the process (Ctrl-Z, a debugger,
            a frozen container, a suspend) ends the device. ``netlink`` survives that, and takes a
            free device without a race, but needs the first network namespace before Linux 6.12.
            ``auto`` is ``netlink`` where it can be, else ``ioctl``; both are ways of NBD. ``ublk``,
            which is experimental, is another driver, without a socket, for Linux 6.12 and later.
            It has no ``connections``, ``workers`` and ``timeout``, and ``survive`` only from Linux
            7.0 on; needs no root where an administrator has set that up; and only from Linux 6.16
            on can its devices be resized.
        connections: between the kernel and this process. The kernel uses one for each processor at
            most, and has up to 128 requests in flight on each. More than one helps where programs
            on several processors keep the device busy.
        workers: the number of worker processes, each with a connection and a device of its own, for
            when the interpreter of one process keeps one processor busy. More than one takes a
            device that declares :attr:`BlockDevice.multi_conn`. If one is lost, the others serve
            on. A device that is taken over by ``identity`` has as many connections, and workers at
            work, as it was attached with. (If the factory is in the main module, each worker
            imports that, which therefore has to guard what it does by
            ``if __name__ == "__main__"``.)
        concurrency: how many handlers may run at once, on all connections together; with workers,
            in each.
        handler_timeout: seconds after which a handler is cancelled and its request fails with EIO.
        slow_request: seconds after which :meth:`Mount.events` reports a handler that still runs;
            None for never.
        busy_poll: microseconds for which the event loop polls for the next request before it
            sleeps; None for none. It answers sooner where programs send one request at a time, and
            keeps a processor busy meanwhile, which should be one to spare.
        timeout: seconds after which the kernel gives up a connection on which a request was not
            answered. With one connection that is the end of the device, so None means never. With
            several, the request is sent again on another one, and None means 120, or 15 with
            ``survive``. By netlink the connection is reconnected, once in a row, and the request
            sent again on that.
        unmount_timeout: seconds that one request may remain unanswered during the unmount before
            its handler is cancelled.
        queue: limits and scheduler of the kernel's request queue; the previous settings are
            restored at the end.
        identity: the name of the device (``volume-42``), by which another process can take it over
            (see ``survive`` and ``replace``); up to 255 printable characters. By netlink, where
            ``aiovblk list`` shows it, or ublk. If a device of this identity is attached and has
            lost its server, this process takes it over, by the same of the two. It has to have the
            same size and block size.
        survive: if this process dies, I/O blocks up to this many seconds for a successor that
            mounts the same ``identity``. Requests that were in flight are sent again then, though
            they may have been carried out; what a write has stored by the time it returns must
            outlive the process. Meanwhile nothing ends the waiting of programs; after that time
            their requests fail. None for not at all.
        replace: if a device of this identity still has a live server, ask that to hand it over,
            which interrupts nothing (:meth:`Mount.detach`); else that is an error. If ``device``
            cannot be open twice (:class:`~aiovblk.storage.FileDevice` locks its file), give a
            factory. A server with ``workers``, or by ublk without ``survive``, refuses
            (:exc:`~aiovblk.AttachError`): that has to end first. ``workers`` of its own are started
            once the other has handed over.
        partitions: enter only when each partition of the device's table can be opened:
            ``/dev/nbd0p1`` and so on. The kernel's own nodes are there at once, those of udev soon.
            A device without a table, with an empty one, or with one that this kernel does not know,
            has none. Without this option nodes are not waited for, and a table that could not be
            read is as good as none. Later changes of the table (sfdisk, a resize) are not waited
            for.
        memory_safe: serve although memory is short: keep the thread of this event loop, and what it
            starts from now on, out of the kernel's waiting for write-back (PR_SET_IO_FLUSHER), lock
            this process's memory (mlockall), and exempt it from the OOM killer (oom_score_adj), all
            to the end of the process. What takes privileges that are missing is left out, and
            logged as a warning.

    Raises:
        NBDUnavailableError: there is no such device, no driver, or no free device.
        UblkUnavailableError: this system cannot serve devices by ublk; the message says why.
        DeviceBusyError: another process serves ``path``. On exit: something still used the
            device; its file systems were synced before it was unmounted by force.
        AttachError: the kernel refused the device; or, with ``partitions``, its table cannot be
            read, or a node does not appear within 10 s, and the device has been unmounted again, in
            order. On exit: its connection had been lost.
        Error: on exit: data could not be stored, or a handler failed.
        TypeError, ValueError: the device's declarations, or an option, cannot be.

    Cancellation: unmounts in order, then goes on.

    """
    options = MountOptions(
        attach=attach,
        connections=connections,
        workers=workers,
        limits=HandlerLimits(
            concurrency=concurrency,
            handler_timeout=handler_timeout,
            slow_request=slow_request,
            busy_poll=busy_poll,
        ),
        timeout=timeout,
        unmount_timeout=unmount_timeout,
        queue=queue,
        handover=Handover(identity=identity, survive=survive, replace=replace),
        partitions=partitions,
        memory_safe=memory_safe,
    )
    lifecycle = MountLifecycle(make_backend(device, options), options)
    mount = Mount(lifecycle)
    if memory_safe:
        # Before anything is started, which then inherits it.
        kernel.memory_safety.protect_thread()
        await start_thread(kernel.memory_safety.protect_process)
    await lifecycle.start(path)
    try:
        yield mount
        await mount.unmount()
    except BaseException:
        await lifecycle.unmount_after_error()
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
    busy_poll: int | None = None,
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
    """Mount ``device`` and serve it until it is unmounted, by this process or another.

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
        busy_poll=busy_poll,
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
