"""Resize a live device.

What serves it, and the device, know a larger size before the kernel does, and a smaller one after
it, so that no request of the kernel's is refused for lying beyond the end. A device that cannot
have the size says so before anything is changed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from functools import partial

from .. import kernel
from ..arguments import check_count
from ..contract import MAX_SIZE
from ..device import BlockDevice
from ..errors import AttachError
from ..events import Resized
from ..threads import run_in_daemon_thread
from .connections import ConnectionGroup
from .deadlines import KERNEL_TIMEOUT, run_in_thread, start_thread, wait_thread
from .lifecycle import MountLifecycle

logger = logging.getLogger("aiovblk")


async def resize(lifecycle: MountLifecycle, blocks: int, *, force: bool) -> None:
    """Resize the device of a mount; one call at a time, others wait.

    Raises:
        Exception: as for :meth:`.Mount.resize`.

    """
    check_count("blocks", blocks)
    device, state = lifecycle.backend.device, lifecycle.state
    new_size = blocks * device.block_size
    if blocks < 1 or new_size > MAX_SIZE:
        raise ValueError(f"a device cannot have {blocks} blocks")
    async with lifecycle.claiming:
        if state.stop_requested.done() or state.handover_requested.done():
            raise AttachError(errno.ENODEV, "the device is unmounted", lifecycle.path)
        timeout = lifecycle.options.unmount_timeout
        sequence = ResizeSequence(device, lifecycle.connections, lifecycle.attachment, timeout)
        await sequence.run(blocks, force=force)
        state.broadcaster.publish(Resized(new_size))


class ResizeSequence:
    """One resize, step by step.

    Args:
        device: what is served.
        connections: its connections.
        attachment: of the device.
        timeout: seconds for each step that waits for handlers, for workers or for the kernel.

    """

    def __init__(
        self,
        device: BlockDevice,
        connections: ConnectionGroup,
        attachment: kernel.AttachedDisk,
        timeout: float,
    ) -> None:
        self._device = device
        self._connections = connections
        self._attachment = attachment
        self._timeout = timeout

    async def run(self, blocks: int, *, force: bool) -> None:
        """Resize, and set the device's ``blocks``; raises what :meth:`.Mount.resize` does."""
        size = blocks * self._device.block_size
        attachment = self._attachment
        claims = kernel.resizing.ExclusiveClaims()
        claim = partial(kernel.resizing.claim_beyond, attachment.disk, attachment.path)
        try:
            if size < self._device.size and not force:
                await run_in_thread(self._timeout, claim, size, claims)
            if size > self._device.size:
                await self._grow(blocks)
            else:
                await run_in_thread(self._timeout, attachment.sync)
                await self._resize_answered(blocks)
            self._device.blocks = blocks  # it has that size, whatever goes wrong from here on
            await self._resize_connections(size)
        finally:
            # Before the result is known, so that what is mounted or opened next finds it free.
            await asyncio.wait([start_thread(claims.release)], timeout=KERNEL_TIMEOUT)

    async def _grow(self, blocks: int) -> None:
        before, self._device.blocks = self._device.blocks, blocks
        try:
            # The kernel may use what is new before its call returns.
            await self._resize_connections(self._device.size)
            await self._resize_answered(blocks)
        except TimeoutError:
            raise  # the kernel may still do it
        except OSError:
            self._device.blocks = before
            raise

    async def _resize_connections(self, size: int) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                for connection in self._connections.all():
                    await connection.resize(size)
        except TimeoutError:
            reason = f"a worker has not answered for {self._timeout:g} s"
            raise TimeoutError(errno.ETIMEDOUT, reason) from None

    async def _resize_answered(self, blocks: int) -> None:
        """Have the kernel change the size, for which it waits until all requests are answered.

        Those whose handlers hang are failed after the timeout, and it gets the same time again.

        Raises:
            TimeoutError: it has not returned, though the requests were failed.

        """
        since = asyncio.get_running_loop().time()
        calling = run_in_daemon_thread(kernel.resizing.resize, self._attachment, blocks)
        try:
            await wait_thread(self._timeout, calling)
        except TimeoutError:
            logger.warning(
                "%s: the kernel waits for handlers that hang; they are cancelled",
                self._attachment.path,
            )
            self._connections.fail_running(since)
            await wait_thread(self._timeout, calling)
