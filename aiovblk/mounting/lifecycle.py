"""The life of one mount, from the socket pair to the last handler, in one task.

The ordinary path: attach (``attaching.py``), wait until the device is live, serve on its
connections (``connections.py``), unmount (``unmounting.py``). It calls the other rooms at named
points only:

* ``handover/takeover.py`` before attaching, if the mount has an identity;
* ``recovery/`` once the device is attached: receive threads, lost connections;
* ``handover/provider.py`` while the device is live, for successors, and when it is left to one;
* ``workers/`` behind the :class:`.backend.Backend`;
* ``ublk/`` for attaching and taking over, in place of the files above, with ``attach="ublk"``.

The phases and what leads from one to the next are in ``state.py``.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sys
from functools import partial

from .. import kernel
from ..aio.tasks import GracefulTask, wait_shielded, wait_uncancelled
from ..errors import AttachError, Error
from ..events import Attached, Detached, Unmounted, Unmounting
from .attaching import ATTACH_TIMEOUT, AttachSequence
from .backend import Backend
from .connections import ConnectionGroup
from .deadlines import StoppableSteps, StoppedError, run_in_thread
from .handover.provider import HandoverProvider
from .handover.takeover import TakeoverSequence
from .options import MountOptions
from .partitions import wait_for_partitions
from .recovery import dropped_loop
from .recovery.receive_threads import ensure_receiving
from .recovery.replacement import enable_reconnecting
from .state import MountState, Phase
from .ublk.attaching import UblkAttachSequence
from .ublk.takeover import UblkTakeoverSequence
from .unmount_failures import refuse_if_used
from .unmounting import UnmountSequence

logger = logging.getLogger("aiovblk")


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
        handover: hands the live device over.
        claiming: held while the device is claimed or resized.
        task: the task that runs the mount; set by :meth:`start`. It cannot be cancelled: that
            requests the unmount.

    """

    path: str
    index: int
    attachment: kernel.AttachedDisk
    task: asyncio.Task[None]

    def __init__(self, backend: Backend, options: MountOptions) -> None:
        self.backend = backend
        self.options = options
        self.state = state = MountState()
        # With survive a connection is reconnected however often the kernel gives it up.
        request_timeout = 0.0 if options.handover.survive else options.timeout or 0.0
        self.connections = ConnectionGroup(state, request_timeout)
        self.handover = HandoverProvider(backend, self.connections, state, options)
        self.claiming = asyncio.Lock()
        self._takeover: TakeoverSequence | None = None  # of a device that was attached before

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
            await wait_shielded(self.state.live)
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
            error = await self._unmount()
        finally:
            self.handover.close()
            await self.backend.close()
        state.enter(Phase.UNMOUNTED)
        logger.info("unmounted %s", self.path)
        if error is not None:
            raise error

    # Attach, until the device is live

    async def _attach(self, path: str | None) -> None:
        if path is not None:
            # The kernel reads before the device is live, and the log names it if that fails.
            self.backend.set_path(path)
        sequence = UblkAttachSequence if self.options.attach == "ublk" else AttachSequence
        attaching = sequence(self.backend, self.connections, self.state, self.options)
        attachment = await self._obtain_attachment(attaching, path)
        self.attachment, self.path, self.index = attachment, attachment.path, attachment.index
        self.backend.set_path(attachment.path)
        attachment.start()
        dropped_loop.watch(attachment, self.state)
        enable_reconnecting(self.backend, self.connections, attachment)
        await self._wait_until_live(attaching.steps)
        self.handover.listen(attachment.disk, self.path)

    async def _obtain_attachment(
        self, attaching: AttachSequence, path: str | None
    ) -> kernel.AttachedDisk:
        """Take over the device that has this identity, or attach one."""
        if not self.backend.opens_after_handover:
            await attaching.open_backend()
        if identity := self.options.handover.identity:
            is_ublk = isinstance(attaching, UblkAttachSequence)
            takeover = (UblkTakeoverSequence if is_ublk else TakeoverSequence)(attaching)
            attachment = await takeover.take_over(path, identity)
            if attachment is not None:
                self._takeover = takeover
                return attachment
        return await attaching.attach(path)

    async def _wait_until_live(self, steps: StoppableSteps) -> None:
        attachment = self.attachment
        try:
            await steps.run(ensure_receiving(attachment, self.connections))
            wait = partial(attachment.wait_until_live, ATTACH_TIMEOUT)
            await steps.call(ATTACH_TIMEOUT, wait, timeout_after_stop=0)
        except Exception as exc:  # a bug, too, must not leave the device attached
            # After a stop in order all the same: another program may have written to it already.
            if not isinstance(exc, StoppedError):
                self.state.request_force()
            await self._abort_attach()
            if isinstance(exc, StoppedError) or not isinstance(exc, OSError):
                raise
            reason = f"the device was attached, but did not come alive: {exc.strerror}"
            raise AttachError(exc.errno or errno.EIO, reason, self.path) from exc
        if self.options.partitions:
            try:
                await wait_for_partitions(steps, attachment)
            except Exception:
                await self._abort_attach()
                raise

    async def _abort_attach(self) -> None:
        """Release a device that was not mounted after all; one that was attached before stays."""
        if self._takeover is not None:
            await self._takeover.undo(self.attachment)
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

    async def _unmount(self) -> Error | None:
        unmounting = UnmountSequence(
            self.backend.device,
            self.connections,
            self.attachment,
            self.state,
            self.options.unmount_timeout,
        )
        return await unmounting.run()

    async def ensure_unused(self) -> None:
        """Claim the device for an unmount if possible; refuse if something is known to use it.

        Raises:
            DeviceBusyError: something uses it.

        """
        async with self.claiming:
            if self.state.stop_requested.done():
                return
            try:
                await run_in_thread(self.options.unmount_timeout, self.attachment.claim_exclusively)
            except OSError as exc:
                await refuse_if_used(self.attachment, exc)

    def _publish_end(self, task: asyncio.Task[None]) -> None:
        self.state.broadcaster.publish(Unmounted(task.exception()))
        self.state.broadcaster.close()
