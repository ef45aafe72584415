"""Take over a device that is attached already: from a live server, or from one that has died.

A live server hands over its sockets, with what was received on them: nothing is interrupted, and no
request is made twice. A device whose server has died (an orphan) has dead connections only: the
kernel takes new ones in their place, and sends what was in flight again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from ... import atfork, kernel
from ...errors import AttachError
from ..attaching import ATTACH_TIMEOUT, AttachSequence
from ..deadlines import KERNEL_TIMEOUT, StoppedError, run_in_thread
from ..recovery.replacement import replace_all_dead_connections
from .connections import take_over
from .endpoint import HandoverGeometry, HandoverRequest, HandoverResult, request_handover

logger = logging.getLogger("aiovblk")


class TakeoverSequence:
    """The steps that lead to a served device which another process had attached.

    Args:
        attaching: has what is to be served, and runs steps that end early if the mount is stopped.

    """

    def __init__(self, attaching: AttachSequence) -> None:
        self._attaching = attaching
        self._backend = attaching.backend
        self._connections = attaching.connections
        self._options = attaching.options
        self._steps = attaching.steps

    async def take_over(self, path: str | None, identity: str) -> kernel.AttachedDisk | None:
        """Serve the device that has this identity; requests are served when this returns.

        Args:
            path: of the device; None for whichever has the identity.
            identity: of the device.

        Returns:
            None if there is no such device: it is to be attached then.

        Raises:
            AttachError, DeviceBusyError: as for :func:`aiovblk.mounted`. The device is left to its
                server, or, where that has handed it over, to a third.
            StoppedError: the mount was stopped meanwhile; likewise.
            Exception: whatever a device factory raises; likewise.

        """
        find = partial(kernel.find_by_identity, path, identity)
        index = await self._steps.call(ATTACH_TIMEOUT, find)
        if index is None:
            return None
        given = None
        if self._options.handover.replace:
            given = await self._request_from_server(index, identity)
        attachment: kernel.NetlinkAttachment | None
        if given is not None:
            attachment = await self._adopt_connections(given, index)
        else:
            attachment = await self._adopt_orphan(path)
        if attachment is not None:
            logger.info("took over %s (%s)", attachment.path, identity)
        return attachment

    async def undo(self, attachment: kernel.AttachedDisk) -> None:
        """Leave the device to another server."""
        self._connections.abort()
        await run_in_thread(KERNEL_TIMEOUT, attachment.abandon)

    async def _adopt_orphan(self, path: str | None) -> kernel.NetlinkAttachment | None:
        """Replace the dead connections of a device; None if it has just been unmounted."""
        await self._attaching.open_backend()
        adopt = partial(kernel.take_over_orphan, path, self._attaching.config([]))
        attachment = await self._steps.call(ATTACH_TIMEOUT, adopt, undo=_abandon)
        if attachment is None:
            return None
        sockets = await self._steps.run(replace_all_dead_connections(attachment))
        await self._serve(attachment, sockets)
        return attachment

    async def _adopt_connections(
        self, given: HandoverResult, index: int
    ) -> kernel.NetlinkAttachment:
        """Go on where another server has left off; the device is left to a third on failure."""
        kernel.locks.write_owner(given.lock)
        path, geometry = f"/dev/nbd{index}", given.geometry
        blocks = geometry.size // geometry.block_size
        config = replace(self._attaching.config([]), block_size=geometry.block_size, blocks=blocks)
        attachment = await run_in_thread(
            ATTACH_TIMEOUT, kernel.attachment_for_existing, index, path, given.lock, config
        )
        try:
            await self._attaching.open_backend()
            made = HandoverGeometry.of(self._backend.device)
            if made != geometry:
                reason = f"{geometry} was handed over, and {made} was made; serve the same"
                raise AttachError(errno.EINVAL, reason, path)
        except BaseException:
            given.close()
            await run_in_thread(KERNEL_TIMEOUT, attachment.abandon)
            raise
        await self._serve(attachment, list(given.connections))
        return attachment

    async def _serve(
        self, attachment: kernel.NetlinkAttachment, sockets: list[tuple[socket.socket, bytes]]
    ) -> None:
        prepare = partial(self._backend.open_replacement, None)
        try:
            await self._steps.run(take_over(self._connections, sockets, prepare))
        except BaseException:
            await run_in_thread(KERNEL_TIMEOUT, attachment.abandon)
            raise
        self._connections.start()

    async def _request_from_server(
        self, disk: kernel.sysfs.Disk, identity: str
    ) -> HandoverResult | None:
        """Ask the live server for the device; None if there is no live server."""
        backend = self._backend
        geometry = None
        if not backend.opens_after_handover:
            geometry = HandoverGeometry.of(backend.device)
        request = HandoverRequest(identity, geometry)
        # For its handlers to end, its flush() and its unmount(), each of which it limits alike.
        seconds = 4 * self._options.unmount_timeout
        path = kernel.locks.socket_path(disk)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ask = partial(request_handover, path, request, seconds, sock)
        asking = asyncio.create_task(self._steps.call(2 * seconds, ask, undo=_release_unused))
        steps: list[asyncio.Future[Any]] = [asking, self._steps.stop_requested]
        await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            # Its server sees that this process no longer waits, and serves on.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        try:
            given = await asking
        except AttachError:
            if self._steps.stop_requested.done():
                raise StoppedError from None
            raise
        if self._steps.stop_requested.done():
            _release_unused(given)
            raise StoppedError
        return given


def _abandon(attachment: kernel.Attachment | None) -> None:
    if attachment is not None:
        attachment.abandon()


def _release_unused(given: HandoverResult | None) -> None:
    """Release a device that was handed over too late; it waits for another server then."""
    if given is not None:
        given.close()
        atfork.close_protected(given.lock)
