"""A device that is served by several processes: what each of them does."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import NamedTuple

from ... import atfork, kernel
from ...contract import check_device
from ...device import BlockDevice, DeviceFactory, make_device
from ...dispatch import (
    ConcurrencyLimiter,
    Dispatcher,
    FailureLog,
    Reporter,
    Stats,
    transmission_flags,
)
from ...events import EventStream
from ...workers import Notify

logger = logging.getLogger("aiovblk")

REPORT_INTERVAL = 0.2
"""Seconds between reports of the counters and events, while there is something to tell."""

MAX_RECEIVED = 256 * 1024
"""Bytes of requests in one message to a worker, whose size has a limit."""

MAX_EVENTS = 256
"""In one message, likewise: one may take little more than 1 KiB, with the reason of a failure."""

SHUTDOWN_TIMEOUT = 30.0
"""Seconds for a device to store what it has, and again to let go, when the parent is gone."""


class DeviceInfo(NamedTuple):
    """What the kernel is told of a device; the same for all workers."""

    name: str
    block_size: int
    blocks: int
    read_only: bool
    rotational: bool
    flags: int
    multi_conn: bool

    def check_sharing(self) -> None:
        """Refuse to have several workers where nothing says that they have one disk.

        Raises:
            ValueError: their data would differ.

        """
        if not self.multi_conn:
            raise ValueError(
                f"{self.name} cannot be served by several workers, since nothing says that its"
                " instances share their data; if they do, have it declare multi_conn = True"
            )


class ConnectionService:
    """One connection and one device, in a worker.

    Args:
        factory: makes the device.
        concurrency: how many handlers may run at once.
        handler_timeout: seconds for one.
        slow_request: seconds after which one is told of.
        is_one_of_several: whether other workers have a device of the same factory.
        memory_safe: whether it is to serve although memory is short.
        tell: tells the parent.

    """

    def __init__(
        self,
        factory: DeviceFactory,
        concurrency: int,
        handler_timeout: float | None,
        slow_request: float | None,
        is_one_of_several: bool,
        memory_safe: bool,
        tell: Notify,
    ) -> None:
        if memory_safe:
            # Not a warning again: what is refused here was refused to the parent.
            kernel.memory_safety.protect_thread(level=logging.DEBUG)
            kernel.memory_safety.protect_process(level=logging.DEBUG)
        self._factory = factory
        self._concurrency = concurrency
        self._handler_timeout = handler_timeout
        self._slow_request = slow_request
        self._is_one_of_several = is_one_of_several
        self._notify = tell
        self._device: BlockDevice | None = None
        self._dispatcher: Dispatcher | None = None
        self._failures = FailureLog()
        self._reporter: Reporter
        self._received = b""
        self._reported = Stats()
        # The parent hears of as many at a time as one message can hold.
        self._events = EventStream()

    async def open(self) -> DeviceInfo:
        """Make the device."""
        device = check_device(await make_device(self._factory))
        self._device = device
        self._reporter = Reporter(self._failures, device, f"worker {os.getpid()}")
        geometry = DeviceInfo(
            type(device).__name__,
            device.block_size,
            device.blocks,
            bool(device.read_only),
            bool(device.rotational),
            transmission_flags(device, multi_conn=self._is_one_of_several),
            bool(device.multi_conn),
        )
        if self._is_one_of_several:
            geometry.check_sharing()
        return geometry

    async def set_path(self, path: str) -> None:
        """Be told which node the device has, for the log."""
        self._reporter.where = f"{path}, worker {os.getpid()}"

    async def receive(self, piece: bytes) -> None:
        """Take some of what was received before :meth:`connect` on the connection."""
        self._received += piece

    async def connect(self, sock: socket.socket) -> None:
        """Take over the server's end of a socket pair."""
        device = self._opened()
        dispatcher = Dispatcher(
            device,
            Stats(),
            limiter=ConcurrencyLimiter(self._concurrency),
            handler_timeout=self._handler_timeout,
            slow_request=self._slow_request,
            reporter=self._reporter,
            on_event=self._events.put,
            on_disconnect=lambda: self._notify("disconnected"),
        )
        received, self._received = self._received, b""
        await dispatcher.connect(atfork.protect_socket(sock), received)
        self._dispatcher = dispatcher  # not before: it could not be aborted

    async def run(self) -> None:
        """Serve until the connection ends."""
        reporting = asyncio.create_task(self._report_regularly())
        try:
            await self._connected().run()
        finally:
            reporting.cancel()
            self._report()

    async def resize(self, size: int) -> None:
        """Change the size of the device."""
        device = self._opened()
        device.blocks = size // device.block_size
        await self._connected().resize(size)

    async def fail_running(self, since: float) -> None:
        """Fail what has been running since then, in the loop's time, which all processes share."""
        self._connected().fail_running(since)

    async def drained(self) -> None:
        """Wait until every request that has arrived is answered."""
        await self._connected().drained()
        self._report()

    async def close(self) -> None:
        """Send what is queued, then close."""
        await self._connected().close()
        self._report()

    async def abort(self) -> None:
        """Close at once, and cancel the handlers."""
        if self._dispatcher is not None:
            self._dispatcher.abort()

    async def flush(self) -> None:
        """Make durable what this device, or another of the same factory, was given."""
        await self._opened().flush()

    async def unmount(self) -> None:
        """Let go of the device."""
        device, self._device = self._opened(), None
        await device.unmount()

    async def shutdown(self) -> None:
        """Let go of a device that nobody has unmounted."""
        if self._dispatcher is not None:
            self._dispatcher.abort()
        self._failures.close()
        if self._device is None:
            return
        for handler in (self._device.flush, self._device.unmount):
            try:
                async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                    await handler()
            except BaseException:  # the parent is gone: there is nobody else to tell
                logger.exception("%s: %s() failed", self._reporter.name, handler.__qualname__)

    def _opened(self) -> BlockDevice:
        assert self._device is not None  # the parent calls `open` first, and `unmount` last
        return self._device

    def _connected(self) -> Dispatcher:
        assert self._dispatcher is not None  # the parent calls `connect` before
        return self._dispatcher

    async def _report_regularly(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            self._report()

    def _report(self) -> None:
        dispatcher = self._connected()
        if dispatcher.stats != self._reported:
            self._reported = dispatcher.stats.copy()
            self._notify("report", self._reported, dispatcher.last_reply, dispatcher.oldest_start)
        events = self._events.drain()
        for first in range(0, len(events), MAX_EVENTS):
            self._notify("events", events[first : first + MAX_EVENTS])
