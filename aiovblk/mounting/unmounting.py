"""Unmount gracefully: the order in which device and kernel part.

An unmount that loses nothing, each step while everything that later steps need still works:

1. claim the node exclusively, which a mounted file system refuses;
2. write back what the kernel caches, while requests are served;
3. NBD_DISCONNECT, while requests are served; the kernel answers with DISC;
4. let the requests in flight finish; then close our end of the socket;
5. NBD_DO_IT returns in its thread, which then clears the socket, so that nothing waits in vain
   (attached by netlink, there is no such call: the device is disconnected by netlink);
6. close the node, and wait until its index is free;
7. the device's ``flush()``, then its ``unmount()``.

A disconnect by another program (``nbd-client -d``, an ioctl) enters at step 2, a lost connection at
step 4. Each wait ends when the kernel has been without an answer for too long, or when it is
forced; then the socket is closed first, since that is what frees everything that hangs. A step is
skipped only if an earlier one made it pointless, or the unmount is forced. ``unmount_failures.py``
has what follows when a step fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from .. import kernel
from ..device import BlockDevice
from ..errors import Error
from .connections import ConnectionGroup
from .deadlines import KERNEL_TIMEOUT, run_in_thread, start_thread, wait_thread
from .state import MountState
from .unmount_failures import (
    RELEASE_TIMEOUT,
    AbortedError,
    abort_connections,
    explain_lost_data,
    force_release,
    log_handler_failure,
    unmount_error,
    warn_of_users,
)

logger = logging.getLogger("aiovblk")


class UnmountSequence:
    """One unmount, step by step.

    Args:
        device: what is served.
        connections: its connections.
        attachment: of the device.
        state: of the mount.
        timeout: seconds for which the kernel may be left without an answer.

    """

    def __init__(
        self,
        device: BlockDevice,
        connections: ConnectionGroup,
        attachment: kernel.AttachedDisk,
        state: MountState,
        timeout: float,
    ) -> None:
        self._lost = False  # whether the connection broke before the unmount began
        self._failures: list[str] = []  # what went wrong, in words
        self._device = device
        self._connections = connections
        self._attachment = attachment
        self._state = state
        self._timeout = timeout
        self._log_failure = partial(log_handler_failure, attachment.path, device)
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()

    async def run(self) -> Error | None:
        """Unmount, gracefully while that goes, by force when it does not; never raises.

        Returns:
            What went wrong; None if nothing is lost.

        """
        await self._run_or_abort(self._unmount_in_order())
        await self._release_device()
        # None is left when all went in order. The kernel has what it needs; these may still store.
        await self._run_or_abort(self._wait_answering(self._connections.drained()))
        for handler in (self._device.flush, self._device.unmount):
            await self._call_final_handler(handler)
        return unmount_error(
            self._attachment, self._connections, lost=self._lost, failures=self._failures
        )

    async def _run_or_abort(self, steps: Coroutine[Any, Any, None]) -> None:
        try:
            await steps
        except AbortedError as exc:
            if str(exc) not in self._failures:
                self._failures.append(str(exc))
            await abort_connections(self._connections)

    async def _unmount_in_order(self) -> None:
        # Each wait also ends when the attachment does: nothing here can be done after that.
        state, ended, wait = self._state, self._state.attachment_ended, self._wait_answering
        if ended.done():
            # The stream may hold a DISC that has not been read yet.
            await wait(state.stream_ended)
        self._lost = state.stream_ended.done() and not state.disconnected.done()
        if not state.stream_ended.done():
            await self._write_back()
        if not state.stream_ended.done() and not state.disconnected.done():
            self._connections.reconnector.stop()
            disconnecting = start_thread(self._attachment.disconnect)
            await wait(disconnecting, ended)
            # Refused if the process has given up its privileges: then closing has to do.
            if not disconnecting.done() or disconnecting.exception() is None:
                await wait(state.disconnected, state.stream_ended)
        # Nothing waits for answers either when the kernel has closed the connections: attached by
        # netlink, that is the only sign of it.
        await wait(self._connections.drained(), ended, state.stream_ended)
        await wait(self._connections.close(), ended)

    async def _write_back(self) -> None:
        """Have the kernel send what it caches, while it still can."""
        state = self._state
        from_outside = state.disconnected.done()
        syncing = start_thread(self._attachment.sync)
        await self._wait_answering(syncing, state.attachment_ended)
        error = syncing.exception() if syncing.done() else None
        if not syncing.done() or error is not None:
            failure = await explain_lost_data(self._attachment, state, error, from_outside)
            self._failures += [failure] if failure else []

    async def _release_device(self) -> None:
        """Wait until the kernel has let go, our end of the socket being closed."""
        attachment = self._attachment
        if not (
            await _release_by(attachment, attachment.disconnect_kernel)
            or await force_release(attachment, _release_by)
        ):
            self._failures.append("the kernel does not release the device; see its log (dmesg)")
            return
        with suppress(TimeoutError):
            if not await run_in_thread(KERNEL_TIMEOUT, attachment.wait_until_free, RELEASE_TIMEOUT):
                await warn_of_users(attachment)

    async def _call_final_handler(self, handler: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._start = self._loop.time()
        while True:
            task = self._loop.create_task(handler())
            # Where it is forced, there is no wait; but a task that is cancelled before its first
            # step never calls the handler.
            await asyncio.sleep(0)
            try:
                await self._wait_answering(task)
            except AbortedError as exc:
                task.cancel()
                await asyncio.wait([task], timeout=KERNEL_TIMEOUT)
                self._failures.append(self._log_failure(handler, exc))
                return
            if not (task.cancelled() and task.cancelling()):
                break
            # The end of the event loop cancels all tasks; this one must be done all the same.
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._failures.append(self._log_failure(handler, error))

    async def _wait_answering(self, *steps: asyncio.Future[Any]) -> None:
        """Wait until one of these is done, for as long as the kernel gets its answers.

        The deadline moves on with each answer: see :meth:`ConnectionGroup.unanswered_since`.

        Raises:
            AbortedError: the kernel gets no answers, or the unmount is forced.

        """
        while not any(step.done() for step in steps):
            since = max(self._start, self._connections.unanswered_since())
            seconds = since + self._timeout - self._loop.time()
            if self._state.force_requested.done():
                raise AbortedError("it was forced; what was not written yet is lost")
            if seconds <= 0:
                raise AbortedError(f"nothing was answered for {self._timeout:g} s")
            await asyncio.wait(
                [*steps, self._state.force_requested],
                timeout=seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )


async def _release_by(attachment: kernel.AttachedDisk, step: Callable[[], None]) -> bool:
    """Take one step to have the kernel let go, and close the device; False if it had no effect."""
    try:
        await run_in_thread(KERNEL_TIMEOUT, step)
        await wait_thread(KERNEL_TIMEOUT, attachment.ended)
        await run_in_thread(KERNEL_TIMEOUT, attachment.close)
    except OSError as exc:
        logger.debug("%s: %s", attachment.path, exc)
        return False
    return True
