"""Release a device that stays attached, for another server to go on (graceful handover).

Requests wait meanwhile, and none of them is in flight: what was taken is answered first, then
flushed, since another process sees nothing of what this one keeps to itself. So no request is made
twice, as it is when a server was killed.

By ublk there are no sockets to hand over, but the lock alone. What was not taken is in the queue
yet; when that is closed, and the device is detached, the driver sends it to the next server. (Its
own command for this, QUIESCE_DEV, cannot be taken back: a handler that hangs, or a flush() that
fails, would be the end of this server.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from ... import kernel, ublk
from ...aio.tasks import wait_for_task
from ...device import BlockDevice
from ...errors import Error
from ..connections import ConnectionGroup, close_all
from ..deadlines import KERNEL_TIMEOUT, run_in_thread
from .connections import detach, pause, resume
from .endpoint import HandoverGeometry, HandoverRequester

logger = logging.getLogger("aiovblk")


class HandoverRelease:
    """One release of a device, step by step.

    Args:
        device: what is served.
        connections: its connections.
        attachment: of the device.
        timeout: seconds for handlers to end, again for ``flush()``, and for ``unmount()``.

    """

    def __init__(
        self,
        device: BlockDevice,
        connections: ConnectionGroup,
        attachment: kernel.NetlinkAttachment | ublk.IdentifiedAttachment,
        timeout: float,
    ) -> None:
        self._device = device
        self._connections = connections
        self._attachment = attachment
        self._timeout = timeout

    async def run(self, requester: HandoverRequester | None) -> None:
        """Quiesce, close the device, and hand the sockets over to a successor, if one waits.

        Args:
            requester: the successor; None if there is none yet.

        Raises:
            Error: that cannot be; requests are served as before.

        """
        try:
            await self._quiesce()
            if requester is not None and not requester.is_connected():
                raise Error("the process that asked for it has not waited")
        except BaseException:
            resume(self._connections)
            raise
        # From here on there is no way back: the device may release what it has.
        await self._close_device()
        sockets = detach(self._connections)
        geometry = HandoverGeometry.of(self._device)
        attachment = self._attachment
        if requester is not None and not requester.send(attachment.lock, sockets, geometry):
            logger.warning(
                "%s: the process that asked for it is gone; it waits for another", attachment.path
            )
        # Without a successor the kernel finds the connections dead, and lets requests wait.
        close_all([sock for sock, _ in sockets])
        with suppress(TimeoutError):  # what waits for the next server, as a last close does
            await run_in_thread(KERNEL_TIMEOUT, attachment.detach)

    async def _quiesce(self) -> None:
        """Wait until nothing is in flight, then flush the device."""
        try:
            await wait_for_task(self._timeout, pause(self._connections))
        except TimeoutError:
            raise Error(f"its handlers did not end within {self._timeout:g} s") from None
        error = await self._call(self._device.flush)
        if error is not None:
            raise Error(f"its flush() failed: {error!r}") from error

    async def _close_device(self) -> None:
        error = await self._call(self._device.unmount)
        if error is not None:
            # All is stored; but the successor may find locked what this device did not release.
            name = f"{self._attachment.path} ({type(self._device).__name__})"
            logger.error("%s: unmount() failed during the handover", name, exc_info=error)

    async def _call(self, handler: Callable[[], Coroutine[Any, Any, None]]) -> BaseException | None:
        """Call a handler, and return what it raises, whatever that is.

        The task that serves must not end by it: the device would be left without a server.
        """
        try:
            await wait_for_task(self._timeout, handler())
        except GeneratorExit:
            raise  # the loop is gone
        except BaseException as exc:
            return exc
        return None
