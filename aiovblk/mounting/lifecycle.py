"""The life of one mount, from the socket pair to the last handler, in one task.

The ordinary path: attach (``attaching.py``), wait until the device is live, serve on its
connections (``connections.py``), unmount (``unmounting.py``). It calls the other rooms at named
points only:

* ``handover/takeover.py`` before attaching, if the mount has an identity;
* ``recovery/`` once the device is attached: receive threads, lost connections;
* ``handover/provider.py`` while the device is live, for successors, and when it is left to one;
* ``workers/`` behind the :class:`.backend.Backend`.

The phases and what leads from one to the next are in ``state.py``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
import weakref
from collections.abc import Callable
from concurrent import futures
from functools import partial

from .. import kernel
from ..aio.tasks import GracefulTask, wait_uncancelled
from ..errors import AttachError, DeviceBusyError, Error
from ..events import Attached, Detached, Unmounted, Unmounting
from .attaching import ATTACH_TIMEOUT, AttachSequence
from .backend import Backend
from .connections import ConnectionGroup
from .deadlines import KERNEL_TIMEOUT, StoppableSteps, StoppedError, run_in_thread
from .handover.provider import HandoverProvider
from .handover.takeover import TakeoverSequence
from .options import MountOptions
from .recovery.receive_threads import ensure_receiving
from .recovery.reconnect import Reconnector, ReplacementOpener
from .state import MountState, Phase
from .unmounting import UnmountSequence

logger = logging.getLogger("aiovblk")

PARTITIONS_TIMEOUT = 10.0
"""Seconds for the nodes of partitions to appear, which take the kernel milliseconds."""


class MountLifecycle:
    """Runs one mount: attaches, serves, and unmounts or hands over.

    Args:
        backend: what is served.
        options: of the mount.

    Attributes:
        path, index: of the device node; set once the device is attached.
        attachment: of the device; likewise.
        state: the phase, and the conditions that lead to the next.
        connections: between the kernel and the device.
        reconnector: reconnects those that are lost.
        handover: hands the live device over.
        claiming: held while the device is claimed or resized.
        task: the task that runs the mount; set by :meth:`start`. It cannot be cancelled: that
            requests the unmount.

    """

    path: str
    index: int
    attachment: kernel.Attachment
    task: asyncio.Task[None]

    def __init__(self, backend: Backend, options: MountOptions) -> None:
        self.backend = backend
        self.options = options
        self.state = state = MountState()
        self.connections = ConnectionGroup(state)
        # With survive a connection is reconnected however often the kernel gives it up.
        request_timeout = 0.0 if options.handover.survive else options.timeout or 0.0
        self.reconnector = Reconnector(self.connections, state, request_timeout)
        self.handover = HandoverProvider(backend, self.connections, state, options)
        self.claiming = asyncio.Lock()

    async def start(self, path: str | os.PathLike[str] | None) -> None:
        """Start the task; returns when the device is live.

        Raises:
            Exception: as for :func:`aiovblk.mounted`.

        Cancellation: unmounts what is attached by then.

        """
        name = None if path is None else os.fspath(path)
        self.task = GracefulTask(self._run(name), self.state.request_stop)
        self.task.add_done_callback(self._publish_end)
        try:
            await asyncio.shield(self.state.live)
        except BaseException:
            await self.unmount_after_error()  # the workers, say, have to be ended
            raise

    async def unmount_after_error(self) -> None:
        """Unmount, in use or not, while another exception propagates.

        Returns when it is done, and only then raises a cancellation of the meantime. What else
        goes wrong is logged.
        """
        self.state.request_stop()
        cancelled = await wait_uncancelled(self.task)
        failure = self.task.exception()
        if failure is not None and failure is not sys.exception():
            logger.error("%s", failure)
        if cancelled:
            raise asyncio.CancelledError

    async def _run(self, path: str | None) -> None:
        state = self.state
        try:
            try:
                await self._attach(path)
            except BaseException as exc:
                state.enter(Phase.NOT_MOUNTED)
                state.mark_not_mounted(exc)
                return
            state.enter(Phase.SERVING)
            state.broadcaster.publish(Attached(self.path), first=True)
            state.mark_live()
            logger.info("mounted %r at %s", self.backend.device, self.path)
            if await self._serve_until_done():
                state.broadcaster.publish(Detached())
                logger.info("handed over %s", self.path)
                return
            state.enter(Phase.UNMOUNTING)
            state.broadcaster.publish(Unmounting())
            unmounting = await self._unmount()
        finally:
            self.handover.close()
            await self.backend.close()
        state.enter(Phase.UNMOUNTED)
        logger.info("unmounted %s", self.path)
        if unmounting.lost:
            reason = "; ".join([self._loss_reason(), *unmounting.failures])
            raise AttachError(errno.ENOTCONN, reason, self.path)
        if unmounting.failures:
            raise Error(f"{self.path} is unmounted, but " + "; ".join(unmounting.failures))

    # Attach, until the device is live

    async def _attach(self, path: str | None) -> None:
        if path is not None:
            # The kernel reads before the device is live, and the log names it if that fails.
            self.backend.set_path(path)
        attaching = AttachSequence(self.backend, self.connections, self.state, self.options)
        attachment, is_taken_over = await self._obtain_attachment(attaching, path)
        self.attachment, self.path, self.index = attachment, attachment.path, attachment.index
        self.backend.set_path(attachment.path)
        attachment.start()
        on_end, is_served = _watch_attachment(self, attachment)
        attachment.ended.add_done_callback(on_end)
        if isinstance(attachment, kernel.NetlinkAttachment):
            attachment.is_served = is_served
            self.reconnector.open_replacement = ReplacementOpener(
                self.backend, self.connections, attachment
            ).open
        await self._wait_until_live(attaching.steps, is_taken_over)
        if self.options.partitions:
            await self._wait_for_partitions(attaching.steps, is_taken_over)
        self.handover.listen(self.index, self.path)

    async def _obtain_attachment(
        self, attaching: AttachSequence, path: str | None
    ) -> tuple[kernel.Attachment, bool]:
        """Take over the device that has this identity, or attach one.

        Returns:
            The attachment, and whether another process had attached it before.

        """
        identity = self.options.handover.identity
        if not self.backend.opens_after_handover:
            await attaching.open_backend()
        if identity is not None:
            attachment = await TakeoverSequence(attaching).take_over(path, identity)
            if attachment is not None:
                return attachment, True
        return await attaching.attach(path), False

    async def _wait_until_live(self, steps: StoppableSteps, is_taken_over: bool) -> None:
        try:
            await steps.run(ensure_receiving(self.attachment, self.connections, self.reconnector))
            wait = partial(self.attachment.wait_until_live, ATTACH_TIMEOUT)
            await steps.call(ATTACH_TIMEOUT, wait, timeout_after_stop=0)
        except StoppedError:
            # In order all the same: another program may have written to it already.
            await self._abort_attach(is_taken_over)
            raise
        except OSError as exc:
            self.state.request_force()
            await self._abort_attach(is_taken_over)
            reason = f"the device was attached, but did not come alive: {exc.strerror}"
            raise AttachError(exc.errno or errno.EIO, reason, self.path) from exc

    async def _wait_for_partitions(self, steps: StoppableSteps, is_taken_over: bool) -> None:
        try:
            wait = partial(self.attachment.wait_for_partitions, PARTITIONS_TIMEOUT)
            await steps.call(ATTACH_TIMEOUT + PARTITIONS_TIMEOUT, wait, timeout_after_stop=0)
        except OSError as exc:
            await self._abort_attach(is_taken_over)
            if isinstance(exc, AttachError):
                raise
            reason = f"its partition table cannot be read: {exc.strerror}"
            raise AttachError(exc.errno or errno.EIO, reason, self.path) from exc

    async def _abort_attach(self, is_taken_over: bool) -> None:
        """Release a device that was not mounted after all; one that was attached before stays."""
        if is_taken_over:
            self.connections.abort()
            await run_in_thread(KERNEL_TIMEOUT, self.attachment.abandon)
        else:
            await self._unmount()

    # Serve, then unmount

    async def _serve_until_done(self) -> bool:
        """Serve until the device is to be unmounted, or was handed over; whether it was."""
        state = self.state
        while True:
            steps = [state.stop_requested, state.handover_requested]
            await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
            if state.stop_requested.done():
                return False
            if await self.handover.release(self.attachment):
                return True

    async def _unmount(self) -> UnmountSequence:
        unmounting = UnmountSequence(
            self.backend.device,
            self.connections,
            self.attachment,
            self.state,
            self.options.unmount_timeout,
        )
        await unmounting.run()
        return unmounting

    async def ensure_unused(self) -> None:
        """Claim the device for an unmount: nothing uses it, and nothing can begin to after that.

        Raises:
            DeviceBusyError: something uses it.

        """
        async with self.claiming:
            if self.state.stop_requested.done():
                return
            try:
                await run_in_thread(self.options.unmount_timeout, self.attachment.claim_exclusively)
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

    def _publish_end(self, task: asyncio.Task[None]) -> None:
        self.state.broadcaster.publish(Unmounted(task.exception()))
        self.state.broadcaster.close()

    def _loss_reason(self) -> str:
        error, ended = self.connections.error, self.attachment.ended
        number = ended.result() if ended.done() else 0
        if error is not None:
            why = f"the connection broke: {error}"
        elif number in (errno.EBUSY, errno.EINTR):
            why = "its thread was stopped (Ctrl-Z, a debugger, a frozen container or a suspend do)"
        else:
            why = "another program took its socket away"
        return f"the kernel's connection was lost, and what it had not written: {why}"


def _watch_attachment(
    lifecycle: MountLifecycle, attachment: kernel.Attachment
) -> tuple[Callable[[futures.Future[int]], None], Callable[[], bool]]:
    """Make the callbacks of the thread that learns of the end of an attachment.

    (By ioctl it returns from NBD_DO_IT; by netlink it receives that connections have died.)

    They hold the mount weakly: when an event loop was dropped with all that ran on it, the sockets
    go with it, the kernel notices, and this thread is all that is left to clean up.

    Returns:
        The callback for the end; and one that tells whether the mount and its loop still exist.

    """
    reference, loop = weakref.ref(lifecycle), weakref.ref(asyncio.get_running_loop())

    def on_end(_: futures.Future[int]) -> None:
        live, running = reference(), loop()
        if live is not None and running is not None:
            try:
                running.call_soon_threadsafe(live.state.mark_attachment_ended)
                return
            except RuntimeError:  # the loop is closed
                pass
        attachment.abandon()

    def is_served() -> bool:
        running = loop()
        return reference() is not None and running is not None and not running.is_closed()

    return on_end, is_served
