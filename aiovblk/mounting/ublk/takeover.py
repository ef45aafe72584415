"""Take over the device of an identity by ublk: from a live server, or from one that has died.

In place of ``handover/takeover.py``. To the driver both are the same, since there is no connection
to pass on: it keeps what programs ask for, and sends that, and what was in flight, once this
process has opened the queue. A live server has nothing in flight by then (``handover/release.py``),
and passes the device's lock on, so that no third process comes between.
"""

from __future__ import annotations

import errno
import logging
from functools import partial

from ... import atfork, kernel, ublk
from ...errors import AttachError
from ..attaching import ATTACH_TIMEOUT, AttachSequence
from ..deadlines import KERNEL_TIMEOUT, run_in_thread
from ..handover.takeover import TakeoverSequence
from .attaching import UblkAttachSequence
from .dispatcher import UblkDispatcher

logger = logging.getLogger("aiovblk")


class UblkTakeoverSequence(TakeoverSequence):
    """The steps that lead to a served device which another process had made.

    Args:
        attaching: a :class:`.UblkAttachSequence`, which has what is to be served, and runs steps
            that end early if the mount is stopped.

    """

    def __init__(self, attaching: AttachSequence) -> None:
        assert isinstance(attaching, UblkAttachSequence)
        super().__init__(attaching)
        self._attaching: UblkAttachSequence = attaching

    async def take_over(self, path: str | None, identity: str) -> kernel.AttachedDisk | None:
        """Serve the queue of the device that has this identity; it has to be started yet.

        Args:
            path: of the device; None for whichever has the identity.
            identity: of the device.

        Returns:
            None if there is no such device: it is to be attached then.

        Raises:
            AttachError, DeviceBusyError: as for :func:`aiovblk.mounted`. The device is left to its
                server, or to another successor.
            StoppedError: the mount was stopped meanwhile; likewise.

        """
        attaching = self._attaching
        lock = -1
        if attaching.options.handover.replace:
            find = partial(ublk.find_by_identity, path, identity)
            found = await attaching.steps.call(ATTACH_TIMEOUT, find)
            if found is not None:
                assert found.number is not None  # it exists
                disk = ublk.disk_name(found.number)
                if given := await self._request_from_server(disk, identity):
                    lock, path = given.lock, ublk.node(found.number)
        try:
            await attaching.open_backend()
        except BaseException:
            if lock >= 0:
                atfork.close_protected(lock)
            raise
        take_over = partial(
            ublk.take_over_orphan,
            path,
            attaching.backend.device,
            attaching.options.queue,
            identity=identity,
            survive=attaching.options.handover.survive or 0,
            lock=lock,
        )
        try:
            attachment = await attaching.steps.call(ATTACH_TIMEOUT, take_over, undo=_abandon)
        except TimeoutError as exc:
            reason = f"the kernel's ublk driver did not answer in {ATTACH_TIMEOUT:g} s"
            raise AttachError(errno.ETIMEDOUT, reason, path) from exc
        if attachment is None:
            return None
        try:
            attaching.serve(attachment)
        except BaseException as exc:  # a bug, too, must not leave the device with this process
            await self.undo(attachment)
            if not isinstance(exc, OSError):
                raise
            reason = f"its queue cannot be served: {exc.strerror}"
            raise AttachError(exc.errno or errno.EIO, reason, attachment.path) from exc
        logger.info("took over %s (%s)", attachment.path, identity)
        return attachment

    async def undo(self, attachment: kernel.AttachedDisk) -> None:
        """Leave the device to another server: what is in flight is sent again, to that one."""
        connections = self._attaching.connections
        for connection in connections.all():
            assert isinstance(connection, UblkDispatcher)
            connection.leave()  # first: a handler that is cancelled must not fail its request
        connections.close()
        connections.abort()
        await run_in_thread(KERNEL_TIMEOUT, attachment.abandon)


def _abandon(attachment: ublk.UblkAttachment | None) -> None:
    if attachment is not None:
        attachment.abandon()
