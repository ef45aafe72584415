"""Attach by ublk: make the device, serve its queue, then start it."""

from __future__ import annotations

import asyncio
import errno
import weakref
from contextlib import suppress
from functools import partial

from ... import ublk
from ...errors import AttachError
from ..attaching import ATTACH_TIMEOUT, AttachSequence
from ..deadlines import KERNEL_TIMEOUT, start_thread
from .dispatcher import UblkDispatcher


class UblkAttachSequence(AttachSequence):
    """The steps that lead to a device served by ublk; as :class:`AttachSequence` otherwise."""

    async def attach(self, path: str | None) -> ublk.UblkAttachment:
        """Make ``/dev/ublkbN`` and serve its queue; it has to be started yet.

        Args:
            path: of the device; None for any number.

        Raises:
            AttachError: as for :func:`aiovblk.mounted`.
            StoppedError: the mount was stopped meanwhile.

        """
        if self.options.partitions and not ublk.is_privileged():
            reason = (
                "the kernel does not look for partitions on an ordinary user's ublk device: leave"
                " partitions out"
            )
            raise AttachError(errno.EPERM, reason, path)
        await self.open_backend()
        handover = self.options.handover
        attach = partial(
            ublk.attach,
            path,
            self.backend.device,
            self.options.queue,
            identity=handover.identity,
            survive=handover.survive or 0,
        )
        try:
            undo = ublk.UblkAttachment.undo
            attachment = await self.steps.call(ATTACH_TIMEOUT, attach, undo=undo)
        except TimeoutError as exc:
            reason = f"the kernel's ublk driver did not answer in {ATTACH_TIMEOUT:g} s"
            raise AttachError(errno.ETIMEDOUT, reason, path) from exc
        try:
            self.serve(attachment)
        except BaseException as exc:  # a bug, too, must not leave the device attached
            self.connections.slots[0].connection.close()
            await asyncio.wait([start_thread(attachment.undo)], timeout=KERNEL_TIMEOUT)
            if not isinstance(exc, OSError):
                raise
            reason = f"its queue cannot be served: {exc.strerror}"
            raise AttachError(exc.errno or errno.EIO, reason, attachment.path) from exc
        return attachment

    def serve(self, attachment: ublk.UblkAttachment) -> None:
        """Serve the queue of a device.

        Raises:
            OSError: the kernel refuses.

        """
        (slot,) = self.connections.slots
        dispatcher = slot.connection
        assert isinstance(dispatcher, UblkDispatcher)
        dispatcher.attach_queue(attachment.open_queue())
        attachment.on_release = partial(
            _close_later, weakref.ref(asyncio.get_running_loop()), weakref.ref(dispatcher)
        )
        slot.is_connected = True
        self.connections.start()


def _close_later(
    loop: weakref.ref[asyncio.AbstractEventLoop], dispatcher: weakref.ref[UblkDispatcher]
) -> None:
    """Close a dispatcher from any thread; neither it nor its loop is kept alive for that."""
    found, closing = loop(), dispatcher()
    if found is not None and closing is not None:
        with suppress(RuntimeError):  # the loop is closed
            found.call_soon_threadsafe(closing.close)
