"""Serve a mount by a pool of worker processes: the parent's side.

Each worker has one connection and one device of its own; ``service.py`` is what runs in it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from ...aio.tasks import GracefulTask
from ...device import BlockDevice, DeviceFactory
from ...dispatch import HandlerLimits, Stats
from ...events import Event
from ...workers import Worker, WorkerLostError
from ..connections import ConnectionGroup, KernelConnection
from .service import MAX_RECEIVED, ConnectionService, DeviceInfo


class WorkerBackend:
    """The worker pool of a mount: a process for each connection.

    Args:
        factory: makes the device, in each worker.
        workers: how many.
        limits: of the handlers in each.
        memory_safe: whether each is to serve although memory is short.
        opens_after_handover: whether the devices are made only once another server has handed its
            own over.

    Attributes:
        device: stands for the workers' devices in this process.

    """

    def __init__(
        self,
        factory: DeviceFactory,
        *,
        workers: int,
        limits: HandlerLimits,
        memory_safe: bool,
        opens_after_handover: bool = False,
    ) -> None:
        self._make_service = partial(ConnectionService, factory, limits, workers > 1, memory_safe)
        self.opens_after_handover = opens_after_handover
        self._count = workers
        self._connections: list[WorkerConnection] = []
        self._path = ""
        self._device_info: DeviceInfo
        self.device: BlockDevice = WorkersDevice(self)

    @property
    def flags(self) -> int:
        """The transmission flags; 0 before the devices are made: the kernel has them then."""
        return self._device_info.flags if self.device.blocks else 0

    async def open(self, connections: ConnectionGroup) -> None:
        """Start the workers, and have them make their devices.

        Raises:
            TypeError: the factory cannot be pickled for another process.
            ValueError: the devices differ, or do not share their data.
            WorkerLostError: a worker ended.
            Exception: what the factory raises.

        """
        for _ in range(self._count):
            connections.add(partial(self._add, connections.publish))
        opening = [
            asyncio.ensure_future(each.open(self._make_service)) for each in self._connections
        ]
        try:
            infos = await asyncio.gather(*opening)
        finally:
            for each in opening:
                each.cancel()
            await asyncio.wait(opening)
        if len(set(infos)) > 1:
            raise ValueError(f"the workers' devices differ: {', '.join(map(str, infos))}")
        self._device_info = info = infos[0]
        self.device.block_size, self.device.blocks = info.block_size, info.blocks
        self.device.read_only, self.device.rotational = info.read_only, info.rotational

    def _add(
        self, publish: Callable[[Event], None], on_disconnect: Callable[[], None]
    ) -> WorkerConnection:
        self._connections.append(WorkerConnection(publish, on_disconnect))
        return self._connections[-1]

    async def open_replacement(self, old: KernelConnection | None, new: KernelConnection) -> None:
        """Start a worker in place of one that is lost, or for one connection more.

        Raises:
            ValueError: its device differs from the others, or does not share their data.
            Exception: as :meth:`open` does.

        """
        if old is None:
            self._device_info.check_sharing()
        else:
            assert isinstance(old, WorkerConnection)  # all are this pool's
            self._connections.remove(old)
            await old.stop()
        assert isinstance(new, WorkerConnection)
        info = await new.open(self._make_service)
        if self._path:
            new.worker.call("set_path", self._path)
        if info != self._device_info._replace(blocks=self.device.blocks):
            raise ValueError(f"the workers' devices differ: {self._device_info}, {info}")

    def set_path(self, path: str) -> None:
        """Set the device node that the workers' logs name."""
        self._path = path
        for each in self._connections:
            each.worker.call("set_path", path)

    async def close(self) -> None:
        """Shut the workers down gracefully."""
        # Not left off at the end of the loop, which cancels all tasks.
        await asyncio.gather(
            *(GracefulTask(each.stop(), lambda: None) for each in self._connections)
        )

    def describe(self) -> str:
        """Return how many workers there are, and the name of their devices."""
        name = self._device_info.name if self.device.blocks else "a device that is not there yet"
        return f"{self._count} with {name}"

    async def call_all(self, name: str) -> None:
        """Call a method of each worker that is left; what one has stored counts for all.

        Raises:
            WorkerLostError: none is left.
            Exception: what the first raises that fails.

        """
        calls = [each.worker.call(name) for each in self._connections]
        await asyncio.wait(calls)
        errors = [call.exception() for call in calls]
        left = [error for error in errors if not isinstance(error, WorkerLostError)]
        for error in left or errors[:1]:
            if error is not None:
                raise error


class WorkersDevice(BlockDevice):
    """Stand for the workers' devices in their parent: flush and unmount reach all of them."""

    def __init__(self, backend: WorkerBackend) -> None:
        self._backend = backend

    def __repr__(self) -> str:
        """Name the number of workers, and their devices."""
        return f"<Workers: {self._backend.describe()}>"

    async def flush(self) -> None:
        """Make durable what was written to any of them."""
        await self._backend.call_all("flush")

    async def unmount(self) -> None:
        """Call the ``unmount()`` of each."""
        await self._backend.call_all("unmount")


class WorkerConnection:
    """A kernel connection that is served by a worker.

    Args:
        publish: called with each event of a request.
        on_disconnect: called when the kernel sends DISC.

    Attributes:
        worker: the process.
        stats, last_reply, oldest_start: as the worker last reported them, some tenths of a second
            ago.

    """

    def __init__(self, publish: Callable[[Event], None], on_disconnect: Callable[[], None]) -> None:
        self.worker = Worker(self._on_event)
        self.stats = Stats()
        self.last_reply = asyncio.get_running_loop().time()
        self.oldest_start: float | None = None
        self._publish = publish
        self._on_disconnect = on_disconnect
        self._sock: socket.socket | None = None

    async def open(self, make_service: Callable[..., ConnectionService]) -> DeviceInfo:
        """Start the worker, and have it make its device."""
        await self.worker.start(make_service)
        info: DeviceInfo = await self.worker.call("open")
        return info

    async def stop(self) -> None:
        """Close the connection, and end the worker."""
        self._close()
        await self.worker.stop()

    async def connect(self, sock: socket.socket, received: bytes = b"") -> None:
        """Hand the server's end to the worker."""
        # It is kept here as well: shutting it down works even when the worker hangs. So the kernel
        # does not notice by itself when the worker ends; `run` closes the socket then.
        self._sock = sock
        for first in range(0, len(received), MAX_RECEIVED):
            await self.worker.call("receive", received[first : first + MAX_RECEIVED])
        await self.worker.call("connect", sockets=(sock,))

    async def run(self) -> None:
        """Serve until the connection ends."""
        try:
            await self.worker.call("run")
        except WorkerLostError:
            self._close()
            # No reply is to be waited for any more.
            self.oldest_start, self.stats.in_flight = None, 0
            raise

    async def resize(self, size: int) -> None:
        """Resize the worker's device. No-op if the worker is lost."""
        with suppress(WorkerLostError):
            await self.worker.call("resize", size)

    def fail_running(self, since: float) -> None:
        """Fail the requests whose handlers have been running since then."""
        self.worker.call("fail_running", since)

    def drained(self) -> asyncio.Future[Any]:
        """Return a future that is done once every request that has arrived is answered."""
        return self._call("drained")

    def stop_receiving(self) -> None:
        """Shut down receiving; :meth:`run` serves what has arrived, and returns."""
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)

    def close(self) -> asyncio.Future[Any]:
        """Send what is queued, then close."""
        return self._call("close", then=self._close)

    def abort(self) -> None:
        """Close at once, and cancel the handlers."""
        self._close()
        self.worker.call("abort")

    def _call(self, name: str, then: Callable[[], None] = lambda: None) -> asyncio.Future[None]:
        """Return a future that is done, and never fails, once the worker answers or is lost."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(call: asyncio.Future[Any]) -> None:
            then()
            if not answered.done():
                answered.set_result(None)

        self.worker.call(name).add_done_callback(done)
        return answered

    def _close(self) -> None:
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            self._sock.close()
            self._sock = None

    def _on_event(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "disconnected":
            self._on_disconnect()
        elif name == "events":
            for event in arguments[0]:
                self._publish(event)
        else:
            self.stats, self.last_reply, self.oldest_start = arguments
