"""A device that is served by several processes: their parent's side."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from ...aio.tasks import GracefulTask
from ...device import BlockDevice, DeviceFactory
from ...dispatch import Stats
from ...events import Event
from ...workers import Worker, WorkerLostError
from ..connections import ConnectionGroup, KernelConnection
from .service import MAX_RECEIVED, ConnectionService, DeviceInfo


class WorkerBackend:
    """As many processes as the device is to have connections, each with a device of its own.

    Args:
        factory: makes the device, in each of them.
        workers: how many.
        concurrency: how many handlers may run at once in each.
        handler_timeout: seconds for one.
        slow_request: seconds after which one is told of.
        memory_safe: whether each is to serve although memory is short.
        opens_after_handover: whether the devices are made only when another server has let go of its own.

    """

    def __init__(
        self,
        factory: DeviceFactory,
        *,
        workers: int,
        concurrency: int,
        handler_timeout: float | None,
        slow_request: float | None,
        memory_safe: bool,
        opens_after_handover: bool = False,
    ) -> None:
        self._make_service = partial(
            ConnectionService,
            factory,
            concurrency,
            handler_timeout,
            slow_request,
            workers > 1,
            memory_safe,
        )
        self.opens_after_handover = opens_after_handover
        self._count = workers
        self._connections: list[WorkerConnection] = []
        self._path = ""
        self._device_info: DeviceInfo
        self.device: BlockDevice = WorkersDevice(self)

    @property
    def flags(self) -> int:
        """What the kernel is told; of one that was attached by another server it knows already."""
        return self._device_info.flags if self.device.blocks else 0

    async def open(self, lines: ConnectionGroup) -> None:
        """Start the processes, and have them make their devices.

        Raises:
            TypeError: the factory cannot be handed to another process.
            ValueError: the devices differ, or do not share their data.
            WorkerLostError: a process ended.
            Exception: what the factory raises.

        """
        for _ in range(self._count):
            lines.add(partial(self._add, lines.publish))
        opening = [
            asyncio.ensure_future(line.open(self._make_service)) for line in self._connections
        ]
        try:
            geometries = await asyncio.gather(*opening)
        finally:
            for each in opening:
                each.cancel()
            await asyncio.wait(opening)
        if len(set(geometries)) > 1:
            raise ValueError(f"the workers' devices differ: {', '.join(map(str, geometries))}")
        self._device_info = geometry = geometries[0]
        self.device.block_size, self.device.blocks = geometry.block_size, geometry.blocks
        self.device.read_only, self.device.rotational = geometry.read_only, geometry.rotational

    def _add(
        self, tell: Callable[[Event], None], on_disconnect: Callable[[], None]
    ) -> WorkerConnection:
        self._connections.append(WorkerConnection(tell, on_disconnect))
        return self._connections[-1]

    async def open_replacement(self, old: KernelConnection | None, new: KernelConnection) -> None:
        """Start a process, in place of another one, or for one connection more.

        Raises:
            ValueError: its device differs from the others, or does not share their data.
            Exception: as :meth:`open` does.

        """
        if old is None:
            self._device_info.check_sharing()
        else:
            assert isinstance(old, WorkerConnection)  # all are the crew's own
            self._connections.remove(old)
            await old.stop()
        assert isinstance(new, WorkerConnection)
        geometry = await new.open(self._make_service)
        if self._path:
            new.worker.call("set_path", self._path)
        if geometry != self._device_info._replace(blocks=self.device.blocks):
            raise ValueError(f"the workers' devices differ: {self._device_info}, {geometry}")

    def set_path(self, path: str) -> None:
        """Tell the workers which node the device has."""
        self._path = path
        for line in self._connections:
            line.worker.call("set_path", path)

    async def close(self) -> None:
        """End the processes."""
        # Not left off at the end of the loop, which cancels all tasks.
        await asyncio.gather(
            *(GracefulTask(line.stop(), lambda: None) for line in self._connections)
        )

    def describe(self) -> str:
        """How many there are, and what they have."""
        name = self._device_info.name if self.device.blocks else "a device that is not there yet"
        return f"{self._count} with {name}"

    async def call_all(self, name: str) -> None:
        """Call a method of each service that is left; what one has stored counts for all.

        Raises:
            WorkerLostError: none is left.
            Exception: what the first raises that fails.

        """
        calls = [line.worker.call(name) for line in self._connections]
        await asyncio.wait(calls)
        errors = [call.exception() for call in calls]
        left = [error for error in errors if not isinstance(error, WorkerLostError)]
        for error in left or errors[:1]:
            if error is not None:
                raise error


class WorkersDevice(BlockDevice):
    """What stands for the workers' devices in their parent."""

    def __init__(self, crew: WorkerBackend) -> None:
        self._backend = crew

    def __repr__(self) -> str:
        """How many there are, and what they have."""
        return f"<Workers: {self._backend.describe()}>"

    async def flush(self) -> None:
        """Make durable what any of them was given."""
        await self._backend.call_all("flush")

    async def unmount(self) -> None:
        """Let each let go."""
        await self._backend.call_all("unmount")


class WorkerConnection:
    """A connection that is served by a worker.

    Attributes:
        worker: the process.
        stats, last_reply, oldest_start: as they were some tenths of a second ago.

    """

    def __init__(self, tell: Callable[[Event], None], on_disconnect: Callable[[], None]) -> None:
        self.worker = Worker(self._on_event)
        self.stats = Stats()
        self.last_reply = asyncio.get_running_loop().time()
        self.oldest_start: float | None = None
        self._publish = tell
        self._on_disconnect = on_disconnect
        self._sock: socket.socket | None = None

    async def open(self, make_service: Callable[..., ConnectionService]) -> DeviceInfo:
        """Start the process, and have it make its device."""
        await self.worker.start(make_service)
        geometry: DeviceInfo = await self.worker.call("open")
        return geometry

    async def stop(self) -> None:
        """End the process."""
        self._close()
        await self.worker.stop()

    async def connect(self, sock: socket.socket, received: bytes = b"") -> None:
        """Hand the server's end to the worker."""
        # It is kept here as well: shutting it down works even when the worker hangs. So the kernel
        # is not told by itself when the worker ends, but by `run`.
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
            # Nobody waits any more for what it had begun.
            self.oldest_start, self.stats.in_flight = None, 0
            raise

    async def resize(self, size: int) -> None:
        """Change the size of the worker's device; of one that is lost nothing has to be changed."""
        with suppress(WorkerLostError):
            await self.worker.call("resize", size)

    def fail_running(self, since: float) -> None:
        """Have what has been running since then failed."""
        self.worker.call("fail_running", since)

    def drained(self) -> asyncio.Future[Any]:
        """Done as soon as every request that has arrived is answered."""
        return self._call("drained")

    def stop_receiving(self) -> None:
        """Let the kernel send no more; :meth:`run` takes what it has sent, and returns."""
        if self._sock is not None:
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RD)

    def close(self) -> asyncio.Future[Any]:
        """Send what is queued, then close."""
        return self._call("close", then=self._close)

    def abort(self) -> None:
        """Close at once, and have the handlers cancelled."""
        self._close()
        self.worker.call("abort")

    def _call(self, name: str, then: Callable[[], None] = lambda: None) -> asyncio.Future[None]:
        """A future that is done, and never fails, once the worker has answered or is lost."""
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
