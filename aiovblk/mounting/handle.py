"""The life of one mount, from the socket pair to the last handler."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import weakref
from collections.abc import Callable
from concurrent import futures
from dataclasses import replace
from functools import partial
from typing import Any

from .. import kernel
from ..aio.tasks import GracefulTask, set_once, wait_uncancelled
from ..arguments import check_count
from ..device import BlockDevice
from ..dispatch import Stats
from ..errors import AttachError, DeviceBusyError, Error
from ..events import Attached, Detached, EventStream, Resized, Unmounted
from ..events import Unmounting as UnmountingEvent
from .attaching import ATTACH_TIMEOUT, AttachSequence, MountOptions
from .backend import Backend
from .connections import ConnectionGroup
from .deadlines import StoppedError, run_in_thread
from .handover.endpoint import (
    HandoverGeometry,
    HandoverListener,
    HandoverRequest,
    HandoverRequester,
)
from .handover.release import HandoverRelease
from .recovery.receive_threads import ensure_receiving
from .resizing import ResizeSequence
from .state import MountState
from .unmounting import KERNEL_TIMEOUT, UnmountSequence

logger = logging.getLogger("aiovblk")

HANDOVER_UNSUPPORTED = "its connections are in workers; end it, and mount the device again"
"""Why a device with workers has to be left by ending its server: only a process that serves the
connections itself knows what of them it has taken and answered."""

PARTITIONS_TIMEOUT = 10.0
"""Seconds for the nodes of partitions to appear, which take the kernel milliseconds."""


class Mount:
    """A mounted device, made by :func:`mount` and :func:`mounted`.

    Attributes:
        path: the device node, ``/dev/nbdN``.
        index: N.
        identity: by which another server may come for it.

    """

    path: str
    index: int

    def __init__(self, served: Backend, options: MountOptions) -> None:
        self.identity = options.identity
        self._backend = served
        self._options = options
        self._unmount_timeout = options.unmount_timeout
        self._handover_listener: HandoverListener | None = None
        self._handover_requester: HandoverRequester | None = None
        self._state = MountState()
        self._claiming = asyncio.Lock()
        self._connections = ConnectionGroup(self._state, self._stop)
        if not options.survive:
            self._connections.timeout = options.timeout or 0.0
        self._refused: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._attachment: kernel.Attachment
        self._task: asyncio.Task[None]

    def __repr__(self) -> str:
        """Name the device and its node."""
        return f"<Mount of {self.device!r} at {getattr(self, 'path', 'no node yet')}>"

    @property
    def device(self) -> BlockDevice:
        """What is served; with workers, what stands for it in this process."""
        return self._backend.device

    @property
    def stats(self) -> Stats:
        """The counters, as they are now."""
        return self._connections.stats

    def events(self) -> EventStream:
        """What happens from now on, for ``async for``; see :mod:`aiovblk.events`.

        It begins with :class:`~aiovblk.events.Attached`, whenever that was, and ends when the
        mount has ended. Any number may listen. Nobody waits for a listener: of what it has not
        heard yet the oldest events are dropped when there are too many, and
        :class:`~aiovblk.events.EventsDropped` tells how many those were.
        """
        return self._state.broadcaster.subscribe()

    async def unmount(self, *, force: bool = False) -> None:
        """Unmount in order and wait until it is done; nothing that was written is lost.

        Takes milliseconds where nothing hangs. Where a handler does, it is given up when the
        kernel has waited ``unmount_timeout`` seconds for it. If the device is unmounted already,
        or is being unmounted, this only waits.

        Args:
            force: unmount although the device is in use. Its file systems are synced first, then
                see nothing but errors. While an unmount is under way: give up its waits at once;
                what was not written is lost.

        Raises:
            DeviceBusyError: something uses the device, and ``force`` is not set. It lives on.
            AttachError: the kernel's connection was lost.
            Error: it was unmounted, but data could not be stored, or its handlers failed.

        Cancellation: the unmount goes on.

        """
        if self._state.leaving.done():
            await self._wait_handed_over()
        if self._task.done():
            pass  # it may be somebody else's by now
        elif force and self._state.stopping.done():
            set_once(self._state.forced)
        elif not force:
            await self._ensure_unused()
        set_once(self._state.stopping)
        await self.wait()

    async def detach(self) -> None:
        """Leave the device attached, for another server that mounts the same identity.

        Takes no more requests, waits for the handlers that run, then calls ``flush()`` and
        ``unmount()`` of the device. Whoever uses it waits, for ``survive`` seconds, until another
        server goes on where this one ended; nothing fails and nothing is made twice. Returns when
        this process has nothing to do with it any more, and so does :meth:`wait`.

        (A successor that asks for it, with ``replace=True``, is given it without this call.)

        Raises:
            Error: it was not mounted with ``survive``, or has ``workers``, or what is in flight
                cannot be stored: a handler or ``flush()`` failed, or took longer than
                ``unmount_timeout``. It is served as before.

        Cancellation: the device is left all the same.

        """
        if not self._options.survive:
            raise Error("a device that is to outlive its server has to be mounted with survive=")
        if not self._connections.can_hand_over:
            raise Error(HANDOVER_UNSUPPORTED)
        set_once(self._state.leaving)
        if reason := await self._wait_handed_over():
            raise Error(reason)
        self._task.result()

    async def _wait_handed_over(self) -> str | None:
        """Wait until the device is left; a reason if it is not."""
        refused = self._refused
        steps: list[asyncio.Future[Any]] = [self._task, refused]
        await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        return refused.result() if refused.done() else None

    async def wait(self) -> None:
        """Wait until the device is unmounted, by whomever, or has another server.

        Raises:
            AttachError: the kernel's connection was lost.
            Error: it was unmounted, but data could not be stored, or its handlers failed.

        Cancellation: the device stays mounted.

        """
        await asyncio.wait([self._task])
        self._task.result()

    async def resize(self, blocks: int, *, force: bool = False) -> None:
        """Give the live device another size, and set its ``blocks``.

        Handlers are called for what is new before this returns: they must be able to by then.

        A file system on it does not notice by itself (resize2fs, xfs_growfs), nor does a partition
        table: the kernel looks at it when the device is opened next and no partition is in use.

        What the kernel has cached beyond a smaller size is written before. What programs write
        there while the device shrinks comes before, and is stored, or after, and fails: with EIO
        where it was under way, with ENOSPC where it was not. What they leave in the page cache
        there just then is lost, and their fsync does not tell (a kernel's block device takes it
        for cut off). Below the new end nothing is lost.

        Since Linux 6.12 the kernel takes no new requests while it waits for those in flight; if the
        device was attached by netlink, it answers nobody else's netlink commands either, on the
        whole machine. So after ``unmount_timeout`` seconds handlers that have been running all the
        time are cancelled, and their requests fail with EIO.

        Args:
            blocks: the new number of blocks; ``block_size`` stays.
            force: shrink although something that is in use is cut.

        Raises:
            ValueError: out of range.
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
        check_count("blocks", blocks)
        new_size = blocks * self.device.block_size
        if blocks < 1 or new_size > 2**63 - os.sysconf("SC_PAGE_SIZE"):
            raise ValueError(f"a device cannot have {blocks} blocks")
        async with self._claiming:
            if self._state.stopping.done() or self._state.leaving.done():
                raise AttachError(errno.ENODEV, "the device is unmounted", self.path)
            resizing = ResizeSequence(
                self.device, self._connections, self._attachment, self._unmount_timeout
            )
            await resizing.run(blocks, force=force)
            self._state.broadcaster.publish(Resized(new_size))

    # What follows is for `mounted`. One task leads the life of a mount. Nobody can cancel it; who
    # tries asks it to unmount.

    async def start(self, path: str | os.PathLike[str] | None) -> None:
        """Attach; returns when the device is live."""
        name = None if path is None else os.fspath(path)
        self._task = GracefulTask(self._run(name), self._stop)
        self._task.add_done_callback(self._publish_end)
        try:
            await asyncio.shield(self._state.live)
        except BaseException:
            await self.unmount_after_error()  # the workers, say, have to be ended
            raise

    async def unmount_after_error(self) -> None:
        """Unmount, used or not, while another exception is on its way out.

        Returns when it is done, and only then raises a cancellation of the meantime. What else
        goes wrong is logged.
        """
        self._stop()
        cancelled = await wait_uncancelled(self._task)
        failure = self._task.exception()
        if failure is not None and failure is not sys.exception():
            logger.error("%s", failure)
        if cancelled:
            raise asyncio.CancelledError

    async def _run(self, path: str | None) -> None:
        events = self._state
        try:
            try:
                await self._attach(path)
            except BaseException as exc:
                events.live.set_exception(exc)
                events.live.exception()  # where nobody waits any more, nobody need be told
                return
            events.broadcaster.publish(Attached(self.path), first=True)
            set_once(events.live)
            logger.info("mounted %r at %s", self.device, self.path)
            if await self._serve_until_done():
                events.broadcaster.publish(Detached())
                logger.info("left %s", self.path)
                return
            events.broadcaster.publish(UnmountingEvent())
            unmounting = await self._unmount()
        finally:
            if self._handover_listener is not None:
                self._handover_listener.close()
            if self._handover_requester is not None:
                self._handover_requester.refuse("it is unmounted")
            await self._backend.close()
        logger.info("unmounted %s", self.path)
        if unmounting.lost:
            reason = "; ".join([self._reason_of_loss(), *unmounting.failures])
            raise AttachError(errno.ENOTCONN, reason, self.path)
        if unmounting.failures:
            raise Error(f"{self.path} is unmounted, but " + "; ".join(unmounting.failures))

    async def _serve_until_done(self) -> bool:
        """Serve; whether the device is left to another server then, and not to be unmounted."""
        events = self._state
        while True:
            await asyncio.wait([events.stopping, events.leaving], return_when="FIRST_COMPLETED")
            if events.stopping.done():
                return False
            assert isinstance(self._attachment, kernel.NetlinkAttachment)  # others cannot be left
            leaving = HandoverRelease(
                self.device, self._connections, self._attachment, self._unmount_timeout
            )
            successor, self._handover_requester = self._handover_requester, None
            try:
                await leaving.run(successor)
                return True
            except Error as exc:
                events.leaving = asyncio.get_running_loop().create_future()
                refused, self._refused = self._refused, asyncio.get_running_loop().create_future()
                refused.set_result(str(exc))
                if successor is not None:
                    successor.refuse(str(exc))
                logger.warning("%s cannot be left: %s", self.path, exc)

    async def _attach(self, path: str | None) -> None:
        if path is not None:
            self._backend.set_path(path)  # the kernel reads, and that may fail, before it is live
        attaching = AttachSequence(self._backend, self._connections, self._state, self._options)
        link = self._attachment = await attaching.run(path)
        self.path, self.index = link.path, link.index
        self._backend.set_path(link.path)
        link.start()
        when_it_ends, is_served = _watch_attachment(self, link)
        link.ended.add_done_callback(when_it_ends)
        if isinstance(link, kernel.NetlinkAttachment):
            link.is_served = is_served
            self._connections.open_replacement = partial(attaching.open_replacement, link)
        try:
            await attaching.unless_stopped(ensure_receiving(link, self._connections))
            wait = partial(link.wait_until_live, ATTACH_TIMEOUT)
            await attaching.call(ATTACH_TIMEOUT, wait, patience=0)
        except StoppedError:
            # In order all the same: somebody else may have written to it already.
            await self._abort_attach(attaching.is_taken_over)
            raise
        except OSError as exc:
            set_once(self._state.forced)
            await self._abort_attach(attaching.is_taken_over)
            reason = f"the device was attached, but did not come alive: {exc.strerror}"
            raise AttachError(exc.errno or errno.EIO, reason, self.path) from exc
        if self._options.partitions:
            await self._await_partitions(attaching)
        self._listen_for_handover()

    async def _abort_attach(self, is_taken_over: bool) -> None:
        """Let go of a device that was not mounted after all; one that was there before lives on."""
        if is_taken_over:
            self._connections.abort()
            await run_in_thread(KERNEL_TIMEOUT, self._attachment.abandon)
        else:
            await self._unmount()

    async def _await_partitions(self, attaching: AttachSequence) -> None:
        try:
            wait = partial(self._attachment.wait_for_partitions, PARTITIONS_TIMEOUT)
            await attaching.call(ATTACH_TIMEOUT + PARTITIONS_TIMEOUT, wait, patience=0)
        except OSError as exc:
            await self._abort_attach(attaching.is_taken_over)
            if isinstance(exc, AttachError):
                raise
            reason = f"its partition table cannot be read: {exc.strerror}"
            raise AttachError(exc.errno or errno.EIO, reason, self.path) from exc

    def _listen_for_handover(self) -> None:
        """Let a successor ask for the device, be it only to be told why it cannot have it."""
        if self.identity is None:
            return
        try:
            self._handover_listener = HandoverListener(
                kernel.locks.socket_path(self.index), self._on_handover_request
            )
        except OSError as exc:
            logger.warning("%s cannot be handed over while it is served: %s", self.path, exc)

    async def _unmount(self) -> UnmountSequence:
        unmounting = UnmountSequence(
            self.device, self._connections, self._attachment, self._state, self._unmount_timeout
        )
        await unmounting.run()
        return unmounting

    async def _ensure_unused(self) -> None:
        """Make sure that nobody uses the device; nobody can begin to after that."""
        async with self._claiming:
            if self._state.stopping.done():
                return
            try:
                await run_in_thread(self._unmount_timeout, self._attachment.claim_exclusively)
            except TimeoutError:
                # Some program's open() hangs, since a handler does, and ours behind it.
                holders = await run_in_thread(
                    KERNEL_TIMEOUT, kernel.users.exclusive_users, self.index
                )
                if holders:
                    reason = f"the device is in use: {', '.join(holders)}"
                    raise DeviceBusyError(errno.EBUSY, reason, self.path, holders) from None
            except DeviceBusyError:
                raise
            except OSError as exc:
                # The node is gone, say. That is no reason to keep the device mounted.
                logger.debug("%s cannot be claimed: %s", self.path, exc)

    # Called by others, in the loop's thread

    def _stop(self) -> None:
        set_once(self._state.stopping)

    def _on_handover_request(self, successor: HandoverRequester) -> None:
        wanted, mine = (
            successor.request,
            HandoverRequest(self.identity or "", HandoverGeometry.of(self.device)),
        )
        if wanted not in (mine, replace(mine, geometry=None)):
            successor.refuse(f"it serves {mine}, which is not {wanted}")
        elif not self._connections.can_hand_over:
            successor.refuse(HANDOVER_UNSUPPORTED)
        elif self._handover_requester is not None or self._state.stopping.done():
            successor.refuse("it is being handed over or unmounted")
        else:
            self._handover_requester = successor
            set_once(self._state.leaving)

    def _publish_end(self, life: asyncio.Task[None]) -> None:
        self._state.broadcaster.publish(Unmounted(life.exception()))
        self._state.broadcaster.close()

    def _on_attachment_end(self) -> None:
        set_once(self._state.attachment_ended)
        self._stop()

    def _reason_of_loss(self) -> str:
        broken = self._connections.error
        number = self._attachment.ended.result() if self._attachment.ended.done() else 0
        if broken is not None:
            why = f"the connection broke: {broken}"
        elif number in (errno.EBUSY, errno.EINTR):
            why = "its thread was stopped (Ctrl-Z, a debugger, a frozen container or a suspend do)"
        else:
            why = "somebody took its socket away"
        return f"the kernel's connection was lost, and what it had not written: {why}"


def _watch_attachment(
    mount: Mount, link: kernel.Attachment
) -> tuple[Callable[[futures.Future[int]], None], Callable[[], bool]]:
    """What the thread does that comes back from NBD_DO_IT, or hears that connections have died.

    It holds the mount weakly: when an event loop was dropped with all that ran on it, the sockets
    go with it, the kernel notices, and this thread is all that is left to clean up.

    Returns:
        That, and what tells whether there still is such a loop.

    """
    reference, loop = weakref.ref(mount), weakref.ref(asyncio.get_running_loop())

    def ended(_: futures.Future[int]) -> None:
        live, running = reference(), loop()
        if live is not None and running is not None:
            try:
                running.call_soon_threadsafe(live._on_attachment_end)
                return
            except RuntimeError:  # the loop is closed
                pass
        link.abandon()

    def is_served() -> bool:
        running = loop()
        return reference() is not None and running is not None and not running.is_closed()

    return ended, is_served
