"""Giving a live device another size.

Who serves it knows a larger size before the kernel does, and a smaller one after it, so that no
request of the kernel's is refused for lying beyond the end.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable

from .. import kernel
from ..device import BlockDevice
from ..threads import run_in_daemon_thread
from .connections import ConnectionGroup
from .deadlines import run_in_thread, start_thread, wait_thread
from .unmounting import KERNEL_TIMEOUT

logger = logging.getLogger("aiovblk")


class ResizeSequence:
    """One change of size.

    Args:
        device: what is served.
        lines: its connections.
        link: its attachment.
        patience: seconds for each step that waits for handlers, for workers or for the kernel.

    """

    def __init__(
        self, device: BlockDevice, lines: ConnectionGroup, link: kernel.Attachment, patience: float
    ) -> None:
        self._device = device
        self._lines = lines
        self._link = link
        self._patience = patience

    async def run(self, blocks: int, *, force: bool) -> None:
        """Resize, and set the device's ``blocks``; raises what :meth:`Mount.resize` does."""
        size = blocks * self._device.block_size
        claims = kernel.ExclusiveClaims()
        try:
            if size < self._device.size and not force:
                await run_in_thread(self._patience, self._link.claim_beyond, size, claims)
            if size > self._device.size:
                # The kernel may use what is new before its call returns.
                await self._resize_lines(size)
            else:
                await run_in_thread(self._patience, self._link.sync)
            await self._call_answered(self._link.resize, blocks)
            self._device.blocks = blocks  # it is so, whatever goes wrong from here on
            await self._resize_lines(size)
        finally:
            # Before anybody is told, so that whoever mounts it next finds it free.
            await asyncio.wait([start_thread(claims.release)], timeout=KERNEL_TIMEOUT)

    async def _resize_lines(self, size: int) -> None:
        try:
            async with asyncio.timeout(self._patience):
                await self._lines.resize(size)
        except TimeoutError:
            reason = f"a worker has not answered for {self._patience:g} s"
            raise TimeoutError(errno.ETIMEDOUT, reason) from None

    async def _call_answered(self, step: Callable[[int], None], blocks: int) -> None:
        """Call what waits in the kernel until all that is in flight is answered, and see to that.

        Raises:
            TimeoutError: it has not returned, though what hung was given up.

        """
        since = asyncio.get_running_loop().time()
        calling = run_in_daemon_thread(step, blocks)
        try:
            await wait_thread(self._patience, calling)
        except TimeoutError:
            logger.warning("%s: handlers that the kernel waits for are given up", self._link.path)
            self._lines.fail_running(since)
            await wait_thread(self._patience, calling)
