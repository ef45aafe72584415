"""The order in which device and kernel part.

An unmount that loses nothing, each step while everything that later steps need still works:

1. claim the node exclusively, which a mounted file system refuses;
2. write back what the kernel caches, while requests are served;
3. NBD_DISCONNECT, while requests are served; the kernel answers with DISC;
4. let the requests in flight finish; then close our end of the socket;
5. NBD_DO_IT returns in its thread, which then clears the socket, so that nobody waits in vain;
6. close the node, and wait until its index is free;
7. the device's ``flush()``, then its ``unmount()``.

A disconnect by somebody else (``nbd-client -d``, another program's ioctl) enters at step 2, a lost
connection at step 4. Each wait ends when the kernel has been without an answer for too long, or
when somebody forces it; then the socket is closed first, since that is what frees everything that
hangs. No step is ever skipped but those that the one before made pointless.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from .. import kernel
from ..device import BlockDevice
from ..dispatch import format_exception, is_bug
from .connections import ConnectionGroup
from .deadlines import run_in_thread, start_thread, wait_thread
from .state import MountState

T = TypeVar("T")

logger = logging.getLogger("aiovblk")

UNMOUNT_TIMEOUT = 30.0
"""Seconds for which the kernel may be left without an answer during an unmount."""

KERNEL_TIMEOUT = 5.0
"""Seconds for steps that depend on the kernel alone and take it milliseconds."""

RELEASE_TIMEOUT = 0.5
"""Seconds to wait for others to close a device that is detached."""


class UnmountSequence:
    """One unmount, step by step.

    Attributes:
        lost: whether the connection broke before anybody wanted it to.
        failures: what went wrong, in words.

    """

    def __init__(
        self,
        device: BlockDevice,
        lines: ConnectionGroup,
        link: kernel.Attachment,
        events: MountState,
        patience: float,
    ) -> None:
        """Take what is to part; ``patience`` is in seconds."""
        self.lost = False
        self.failures: list[str] = []
        self._device = device
        self._lines = lines
        self._link = link
        self._events = events
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._begin = self._loop.time()

    async def run(self) -> None:
        """Part, in order while that goes, by force when it does not; never raises."""
        await self._run_or_abort(self._unmount_in_order())
        await self._release_device()
        # None is left when all went in order. The kernel has what it needs; these may still store.
        await self._run_or_abort(self._wait_answering(self._lines.drained()))
        for handler in (self._device.flush, self._device.unmount):
            await self._call_final_handler(handler)

    async def _run_or_abort(self, steps: Coroutine[Any, Any, None]) -> None:
        try:
            await steps
        except _AbortedError as exc:
            if str(exc) not in self.failures:
                self.failures.append(str(exc))
            # A resize that waits in the kernel for an answer (it freezes the queue) keeps
            # NBD_CLEAR_SOCK and netlink waiting too, and closing is no answer.
            self._lines.fail_running()
            await asyncio.wait([self._lines.drained()], timeout=RELEASE_TIMEOUT)
            self._lines.abort()

    async def _unmount_in_order(self) -> None:
        # Each wait also ends when NBD_DO_IT does, since nothing here can be done after that.
        events, ended, patiently = self._events, self._events.attachment_ended, self._wait_answering
        if ended.done():
            # The stream may hold a DISC that has not been read yet.
            await patiently(events.stream_ended)
        self.lost = events.stream_ended.done() and not events.disconnected.done()
        if not events.stream_ended.done():
            await self._write_back()
        if not events.stream_ended.done() and not events.disconnected.done():
            self._lines.stop_reconnecting()
            disconnecting = start_thread(self._link.disconnect)
            await patiently(disconnecting, ended)
            # Refused if the process has given up its privileges: then closing has to do.
            if not disconnecting.done() or disconnecting.exception() is None:
                await patiently(events.disconnected, events.stream_ended)
        # Nor does anybody wait for answers when the kernel has closed the connections: attached by
        # netlink, that is all there is to tell.
        await patiently(self._lines.drained(), ended, events.stream_ended)
        await patiently(self._lines.close(), ended)

    async def _write_back(self) -> None:
        """Have the kernel send what it caches, while it still can."""
        events = self._events
        from_outside = events.disconnected.done()
        syncing = start_thread(self._link.sync)
        await self._wait_answering(syncing, events.attachment_ended)
        error = syncing.exception() if syncing.done() else None
        if syncing.done() and error is None:
            return
        if from_outside or events.attachment_ended.done():
            # A disconnect by ioctl leaves the connection open; one by netlink shuts it after DISC,
            # and then a sync fails whether there was anything to write or not.
            await asyncio.wait([events.stream_ended], timeout=RELEASE_TIMEOUT)
        if events.stream_ended.done():
            logger.warning(
                "%s was cut off from outside; what the kernel cached is lost", self._link.path
            )
        else:
            self.failures.append(f"the kernel could not write back all data ({error})")

    async def _release_device(self) -> None:
        """Wait until the kernel has let go, our end of the socket being closed."""
        link = self._link
        for step in (link.disconnect_kernel, link.clear_socket, link.force_disconnect):
            try:
                if step != link.disconnect_kernel:
                    logger.warning("%s: the kernel does not let go; %s", link.path, step)
                await run_in_thread(KERNEL_TIMEOUT, step)
                await wait_thread(KERNEL_TIMEOUT, link.ended)
                await run_in_thread(KERNEL_TIMEOUT, link.close)
                break
            except OSError as exc:
                logger.debug("%s: %s", link.path, exc)
        else:
            self.failures.append("the kernel does not let go of it; see its log")
            return
        with suppress(TimeoutError):
            await self._warn_who_holds_the_index()

    async def _warn_who_holds_the_index(self) -> None:
        link = self._link
        if not await run_in_thread(KERNEL_TIMEOUT, link.wait_until_free, RELEASE_TIMEOUT):
            holders = await run_in_thread(KERNEL_TIMEOUT, kernel.users.users, link.index)
            logger.warning(
                "%s is unmounted, but cannot be mounted again while it is in use: %s",
                link.path,
                ", ".join(holders) or "by a process that cannot be seen",
            )

    async def _call_final_handler(self, handler: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._begin = self._loop.time()
        while True:
            task = self._loop.create_task(handler())
            # Where force was asked for, nobody waits; but a task that is cancelled before its
            # first step never calls the handler.
            await asyncio.sleep(0)
            try:
                await self._wait_answering(task)
            except _AbortedError as exc:
                task.cancel()
                await asyncio.wait([task], timeout=KERNEL_TIMEOUT)
                self._record_failure(handler, exc)
                return
            if not (task.cancelled() and task.cancelling()):
                break
            # The end of the event loop cancels all tasks; this one must be done all the same.
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None:
            self._record_failure(handler, error)

    def _record_failure(self, handler: Callable[..., Any], error: BaseException) -> None:
        shows_bug = not isinstance(error, _AbortedError) and is_bug(error, self._device)
        logger.error(
            "%s: %s() failed: %s",
            self._link.path,
            handler.__qualname__,
            format_exception(error),
            exc_info=error if shows_bug else None,
        )
        self.failures.append(f"its {handler.__name__}() failed: {error!r}")

    async def _wait_answering(self, *steps: asyncio.Future[Any]) -> None:
        """Wait until one of these is done, for as long as the kernel gets its answers.

        Raises:
            _GivenUpError: it does not, or force was asked for.

        """
        while not any(step.done() for step in steps):
            since = max(self._begin, self._lines.unanswered_since())
            seconds = since + self._patience - self._loop.time()
            if self._events.forced.done():
                raise _AbortedError("it was forced; what was not written yet is lost")
            if seconds <= 0:
                raise _AbortedError(f"nothing was answered for {self._patience:g} s")
            await asyncio.wait(
                [*steps, self._events.forced],
                timeout=seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )


class _AbortedError(Exception):
    """A wait has been ended by its deadline, or by force."""
