"""The public face of a mount: what its user can see and do while it lives.

:meth:`Mount.resize` is over 50 lines for its docstring: what a resize does to data takes that.
"""

from __future__ import annotations

import asyncio

from ..device import BlockDevice
from ..dispatch import Stats
from ..events import EventStream
from .lifecycle import MountLifecycle
from .resizing import resize


class Mount:
    """A mounted device, made by :func:`mount` and :func:`mounted`.

    Attributes:
        identity: the name by which another process can take the device over; None if it has none.

    """

    def __init__(self, lifecycle: MountLifecycle) -> None:
        self.identity = lifecycle.options.handover.identity
        self._lifecycle = lifecycle

    def __repr__(self) -> str:
        """Name the device and its node."""
        return f"<Mount of {self.device!r} at {getattr(self, 'path', 'no node yet')}>"

    @property
    def path(self) -> str:
        """The device node, ``/dev/nbdN`` or ``/dev/ublkbN``."""
        return self._lifecycle.path

    @property
    def index(self) -> int:
        """The N of the device node."""
        return self._lifecycle.index

    @property
    def device(self) -> BlockDevice:
        """The device that is served; with workers, what stands for it in this process."""
        return self._lifecycle.backend.device

    @property
    def stats(self) -> Stats:
        """The counters, as they are now."""
        return self._lifecycle.connections.stats

    def events(self) -> EventStream:
        """Subscribe to what happens from now on, for ``async for``; see :mod:`aiovblk.events`.

        It begins with :class:`~aiovblk.events.Attached`, whenever that was, and ends when the
        mount has ended. Any number may listen. The mount does not wait for a listener: of what it
        has not received yet the oldest events are dropped when there are too many, and
        :class:`~aiovblk.events.EventsDropped` has their number.
        """
        return self._lifecycle.state.broadcaster.subscribe()

    async def unmount(self, *, force: bool = False) -> None:
        """Unmount gracefully and wait until it is done; nothing that was written is lost.

        Takes milliseconds where nothing hangs. Where a handler does, it is cancelled when the
        kernel has waited ``unmount_timeout`` seconds for it. If the device is unmounted already,
        or is being unmounted, this only waits.

        Args:
            force: unmount although the device is in use. Its file systems are synced first, then
                see nothing but errors. While an unmount is under way: end its waits at once;
                what was not written is lost.

        Raises:
            DeviceBusyError: something uses the device, and ``force`` is not set. It stays mounted.
            AttachError: the kernel's connection was lost.
            Error: it was unmounted, but data could not be stored, or its handlers failed.

        Cancellation: the unmount goes on.

        """
        lifecycle = self._lifecycle
        state = lifecycle.state
        if state.handover_requested.done():
            await lifecycle.handover.wait_handed_over(lifecycle.task)
        if lifecycle.task.done():
            pass  # another process may have the device by now
        elif force and state.stop_requested.done():
            state.request_force()
        elif not force:
            await lifecycle.ensure_unused()
        state.request_stop()
        await self.wait()

    async def detach(self) -> None:
        """Leave the device attached, for another server that mounts the same identity.

        Takes no more requests, waits for the handlers that run, then calls ``flush()`` and
        ``unmount()`` of the device. I/O on it blocks, for ``survive`` seconds, until another
        server takes over; nothing fails and nothing is done twice. Returns when this process has
        nothing to do with it any more, and so does :meth:`wait`.

        (A successor that asks for it, with ``replace=True``, is handed the device without this
        call.)

        Raises:
            Error: it was not mounted with ``survive``, or has ``workers``, or what is in flight
                cannot be stored: a handler or ``flush()`` failed, or took longer than
                ``unmount_timeout``. It is served as before.

        Cancellation: the device is left all the same.

        """
        await self._lifecycle.handover.detach(self._lifecycle.task)

    async def wait(self) -> None:
        """Wait until the device is unmounted, by this process or another, or is handed over.

        Raises:
            AttachError: the kernel's connection was lost.
            Error: it was unmounted, but data could not be stored, or its handlers failed.

        Cancellation: the device stays mounted.

        """
        await asyncio.wait([self._lifecycle.task])
        self._lifecycle.task.result()

    async def resize(self, blocks: int, *, force: bool = False) -> None:
        """Resize the live device, and set its ``blocks``.

        Handlers are called for what is new before this returns: they must be able to by then.

        A file system on it does not notice by itself (resize2fs, xfs_growfs), nor does a partition
        table: the kernel reads it again when the device is opened next and no partition is in use.

        What the kernel has cached beyond a smaller size is written before. What programs write
        there while the device shrinks comes before, and is stored, or after, and fails: with EIO
        where it was under way, with ENOSPC where it was not. What they leave in the page cache
        there just then is lost, and their fsync does not report it (a kernel's block device takes
        it for cut off). Below the new end nothing is lost.

        Since Linux 6.12 the kernel takes no new requests while it waits for those in flight; if the
        device was attached by netlink, it answers no other process's netlink commands either, on
        the whole machine. So after ``unmount_timeout`` seconds handlers that have been running all
        the time are cancelled, and their requests fail with EIO.

        Args:
            blocks: the new number of blocks; ``block_size`` stays.
            force: shrink although something that is in use is cut.

        Raises:
            ValueError: out of range, or the device cannot grow so far.
            DeviceBusyError: a file system, swap, another device or a program has the device, or a
                partition that ends beyond the new size, for itself. Nothing has been changed.
                Mere readers and writers do not count.
            AttachError: the device is unmounted, or about to be.
            OSError: what is cached cannot be written, and nothing has been changed; or the kernel
                refused; or it, or a worker, did not do it in time. Then its size is known again
                after the next resize.

        Concurrency: one at a time; others, and :meth:`unmount` without ``force``, wait.

        Cancellation: the device may have either size; resize it again.

        """
        await resize(self._lifecycle, blocks, force=force)
