"""A server leaves a device that stays attached, for another one to go on.

Requests wait meanwhile, and none of them is in flight: what was taken is answered first, then
flushed, since another process sees nothing of what this one keeps to itself. So no request is made
twice, as it is when a server was killed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from ... import kernel
from ...device import BlockDevice
from ...errors import Error
from ..connections import ConnectionGroup, close_all
from ..deadlines import run_in_thread, wait_for_task
from ..unmounting import KERNEL_TIMEOUT
from .endpoint import HandoverGeometry, HandoverRequester

logger = logging.getLogger("aiovblk")


class HandoverRelease:
    """One server's leave.

    Args:
        device: what is served.
        lines: its connections.
        link: its attachment.
        patience: seconds for handlers to end, for ``flush()``, and for ``unmount()``.

    """

    def __init__(
        self,
        device: BlockDevice,
        lines: ConnectionGroup,
        link: kernel.NetlinkAttachment,
        patience: float,
    ) -> None:
        self._device = device
        self._lines = lines
        self._link = link
        self._patience = patience

    async def run(self, successor: HandoverRequester | None) -> None:
        """Leave, and hand everything to a successor, if there is one already.

        Raises:
            Error: that cannot be; requests are served as before.

        """
        try:
            await self._quiesce()
            if successor is not None and not successor.is_connected():
                raise Error("who asked for it has not waited")
        except BaseException:
            self._lines.resume()
            raise
        # From here on there is no way back: the device may let go of what it has.
        await self._close_device()
        connections = self._lines.detach()
        geometry = HandoverGeometry.of(self._device)
        if successor is not None and not successor.send(self._link.lock, connections, geometry):
            logger.warning("%s: who asked for it is gone; it waits for another", self._link.path)
        # Without a successor the kernel finds the connections dead, and lets requests wait.
        close_all([sock for sock, _ in connections])
        await run_in_thread(KERNEL_TIMEOUT, self._link.detach)

    async def _quiesce(self) -> None:
        """Have nothing in flight, and all that was written stored."""
        try:
            await wait_for_task(self._patience, self._lines.pause())
        except TimeoutError:
            raise Error(f"its handlers did not end within {self._patience:g} s") from None
        error = await self._call(self._device.flush)
        if error is not None:
            raise Error(f"its flush() failed: {error!r}") from error

    async def _close_device(self) -> None:
        error = await self._call(self._device.unmount)
        if error is not None:
            # All is stored; whoever takes over may not find what this one did not let go of.
            name = f"{self._link.path} ({type(self._device).__name__})"
            logger.error("%s: unmount() failed while it was left", name, exc_info=error)

    async def _call(self, handler: Callable[[], Coroutine[Any, Any, None]]) -> BaseException | None:
        """Call a handler; what it has raised, whatever that is.

        The task that serves must not end by it: the device would be left with nobody.
        """
        try:
            await wait_for_task(self._patience, handler())
        except GeneratorExit:
            raise  # the loop is gone
        except BaseException as exc:
            return exc
        return None
