"""Serve one connection of a mount in a worker process, with a device of its own."""

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
    HandlerLimits,
    Reporter,
    Stats,
    transmission_flags,
)
from ...events import EventStream
from ...workers import Notify

logger = logging.getLogger("aiovblk")

REPORT_INTERVAL = 0.2
"""Seconds between reports of the counters and events to the parent, while they change."""

MAX_RECEIVED = 256 * 1024
"""Bytes of requests in one message to a worker, whose size has a limit."""

MAX_EVENTS = 256
"""Events in one message, likewise: one takes up to little more than 1 KiB, with the reason of a
failure."""

SHUTDOWN_TIMEOUT = 30.0
"""Seconds for ``flush()``, and again for ``unmount()``, when the parent is gone."""


class DeviceInfo(NamedTuple):
    """What the kernel is given of a device; the same for all workers."""

    name: str
    block_size: int
    blocks: int
    read_only: bool
    rotational: bool
    flags: int
    multi_conn: bool

    def check_sharing(self) -> None:
        """Refuse several workers unless their devices declare that they share their data.

        Raises:
            ValueError: they do not, so their data could differ.

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
        limits: of the handlers.
        is_one_of_several: whether other workers have a device of the same factory.
        memory_safe: whether it is to serve although memory is short.
        notify: sends a notification to the parent.

    """

    def __init__(
        self,
        factory: DeviceFactory,
        limits: HandlerLimits,
        is_one_of_several: bool,
        memory_safe: bool,
        notify: Notify,
    ) -> None:
        if memory_safe:
            # Not a warning again: what is refused here was refused to the parent, which warned.
            kernel.memory_safety.protect_thread(level=logging.DEBUG)
            kernel.memory_safety.protect_process(level=logging.DEBUG)
        self._factory = factory
        self._limits = limits
        self._is_one_of_several = is_one_of_several
        self._notify = notify
        self._device: BlockDevice | None = None
        self._dispatcher: Dispatcher | None = None
        self._failures = FailureLog()
        self._reporter: Reporter
        self._received = b""
        self._reported = Stats()
        # Sent to the parent in batches that one message can hold.
        self._events = EventStream()

    async def open(self) -> DeviceInfo:
        """Make the device, and return what the kernel is given of it."""
        device = check_device(await make_device(self._factory))
        self._device = device
        self._reporter = Reporter(self._failures, device, f"worker {os.getpid()}")
        info = DeviceInfo(
            type(device).__name__,
            device.block_size,
            device.blocks,
            bool(device.read_only),
            bool(device.rotational),
            transmission_flags(device, multi_conn=self._is_one_of_several),
            bool(device.multi_conn),
        )
        if self._is_one_of_several:
            info.check_sharing()
        return info

    async def set_path(self, path: str) -> None:
        """Set the device node that the log names."""
        self._reporter.where = f"{path}, worker {os.getpid()}"

    async def receive(self, piece: bytes) -> None:
        """Store a piece of what was received on the connection before :meth:`connect`."""
        self._received += piece

    async def connect(self, sock: socket.socket) -> None:
        """Take over the server's end of a socket pair."""
        device = self._opened()
        dispatcher = Dispatcher(
            device,
            Stats(),
            limiter=ConcurrencyLimiter(self._limits.concurrency),
            handler_timeout=self._limits.handler_timeout,
            slow_request=self._limits.slow_request,
            busy_poll=self._limits.busy_poll,
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
        """Resize the device."""
        device = self._opened()
        device.blocks = size // device.block_size
        await self._connected().resize(size)

    async def fail_running(self, since: float) -> None:
        """Fail requests whose handlers have been running since then.

        In the loop's time, which all processes share.
        """
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
        """Make durable what was written to this device, or another of the same factory."""
        await self._opened().flush()

    async def unmount(self) -> None:
        """Call the device's ``unmount()``."""
        device, self._device = self._opened(), None
        await device.unmount()

    async def shutdown(self) -> None:
        """Flush and unmount the device if the parent is gone without having done so."""
        if self._dispatcher is not None:
            self._dispatcher.abort()
        self._failures.close()
        if self._device is None:
            return
        for handler in (self._device.flush, self._device.unmount):
            try:
                async with asyncio.timeout(SHUTDOWN_TIMEOUT):
                    await handler()
            except BaseException:  # the parent is gone: only the log is left
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
