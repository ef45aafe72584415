"""Lifetime of payloads, and memory that is released."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
import weakref
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.dispatch import Dispatcher, Stats
from aiovblk.protocol import Command, CommandFlag, Request, serialize_request
from aiovblk.storage import MemoryDevice
from aiovblk.stream import StreamProtocol

from ...support.dispatch_client import PuppetDevice, Served, served
from ...support.simulated_loop import MemoryTransport, StillLoop
from ...support.sizes import by_size

pytestmark = pytest.mark.slow

READ, WRITE = Command.READ, Command.WRITE


class KeepingDevice(BlockDevice):
    """A device that keeps payloads longer than it may."""

    block_size, blocks = 512, 8

    def __init__(self) -> None:
        self.kept: list[memoryview] = []

    async def write(self, offset: int, data: memoryview) -> None:
        self.kept.append(data)


async def test_payload_is_unusable_after_its_handler_returned() -> None:
    device = KeepingDevice()
    async with served(device) as server:
        await server.client.write(0, bytes(512))
        with pytest.raises(ValueError, match="released"):
            bytes(device.kept[0])


async def test_payload_is_unusable_after_its_handler_failed() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(WRITE, 0, data=bytes(512))
        call = await device.calls.get()
        call.fail(OSError("broken"))
        await server.client.reply()
        with pytest.raises(ValueError, match="released"):
            bytes(call.data or b"")


async def test_part_of_a_payload_that_is_kept_stays_as_it_was() -> None:
    class Device(KeepingDevice):
        async def write(self, offset: int, data: memoryview) -> None:
            self.kept.append(data[:4])

    device = Device()
    async with served(device) as server:
        for number in range(5000):
            await server.client.write(0, number.to_bytes(4, "big") * 128)
    assert [int.from_bytes(part, "big") for part in device.kept] == list(range(5000))


async def test_payload_that_is_exported_on_is_left_to_its_user() -> None:
    class Device(KeepingDevice):
        async def write(self, offset: int, data: memoryview) -> None:
            self.kept.append(memoryview(data))
            self.kept.append(memoryview(data).cast("I"))

    device = Device()
    async with served(device) as server:
        await server.client.write(0, b"\x12" * 512)
        await server.client.write(0, bytes(512))
    assert device.kept[1][0] == 0x12121212


class Buffer(bytearray):
    """Memory that shows whether it is still in use."""


class FirstIsWatched(BlockDevice):
    """A device whose first request is answered at once; the next one waits for ever.

    Attributes:
        content: of the first one: what a READ returned, or the payload of a WRITE.

    """

    block_size, blocks = 512, 8192

    def __init__(self) -> None:
        self.content: weakref.ref[Buffer | memoryview] | None = None
        self.exported: memoryview | None = None
        self.next = asyncio.Event()

    async def read(self, offset: int, length: int) -> memoryview:
        if self.content is not None:
            await self.next.wait()
        content = Buffer(length * 2 if offset else length)
        self.content = weakref.ref(content)
        return memoryview(content).toreadonly()

    async def write(self, offset: int, data: memoryview) -> None:
        if self.content is not None:
            await self.next.wait()
        self.content, self.exported = weakref.ref(data), memoryview(data)


@pytest.mark.parametrize("flags", [0, CommandFlag.FUA], ids=["direct", "queued"])
@pytest.mark.parametrize(
    ("command", "offset"), [(READ, 0), (READ, 512), (WRITE, 0)], ids=["read", "too long", "write"]
)
def test_content_is_not_kept_while_a_later_handler_waits(
    command: Command, offset: int, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Pytest would keep the record, and with it the frames of what was raised.
    monkeypatch.setattr("aiovblk.dispatch.failures.logger.error", lambda *_, **__: None)
    device = FirstIsWatched()
    with StillLoop() as loop:
        stream = StreamProtocol()
        transport = MemoryTransport(stream)
        dispatcher = Dispatcher(device, Stats(), on_disconnect=lambda: None)
        dispatcher.attach_stream(stream)
        loop.start(dispatcher.run())
        payload = bytes(512) if command == WRITE else b""
        first = serialize_request(Request(flags, command, 1, offset, 512)) + payload
        transport.deliver(first + serialize_request(Request(0, READ, 2, 0, 512)))
        loop.run_due()
        assert len(transport.sent) >= 16
        assert dispatcher.stats.in_flight == 1
        assert device.content is not None
        device.exported = None
        assert device.content() is None
        dispatcher.abort()
        loop.run_due()


async def test_payloads_stay_as_they_are_while_their_handlers_wait() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        held = []
        for number in range(100):
            server.client.send(WRITE, 0, data=bytes([number]) * 65536)
            held.append(await device.calls.get())
        for number, call in enumerate(held):
            assert bytes(call.data or b"") == bytes([number]) * 65536
            call.succeed()
        await server.client.replies(100)


async def _exchange(server: Served, count: int) -> None:
    """Write and read ``count`` times, 50 requests at a time."""
    data = bytes(512)
    for _ in range(count // 100):
        asked = [server.client.request(WRITE, number * 512, data=data) for number in range(50)]
        asked += [server.client.request(READ, number * 512, 512) for number in range(50)]
        server.client.writer.write(b"".join(message for _, message in asked))
        await server.client.replies(len(asked))


@pytest.mark.deadline(120)
@pytest.mark.parametrize("options", [{}, {"concurrency": 1}, {"handler_timeout": 15}])
async def test_many_requests_leave_nothing_behind(options: dict[str, Any]) -> None:
    async with served(MemoryDevice(1 << 20, block_size=512), **options) as server:
        count = by_size(4000, 20_000)
        await _exchange(server, 1000)
        tracemalloc.start()
        try:
            await _exchange(server, 1000)
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            await _exchange(server, count)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before < 5 * count
        finally:
            tracemalloc.stop()
        assert server.stats.reads == server.stats.writes == 1000 + count // 2
        assert not server.dispatcher._scheduler._running.tasks


async def test_requests_leave_no_garbage_that_needs_the_collector() -> None:
    async with served(MemoryDevice(1 << 20, block_size=512)) as server:
        await _exchange(server, 1000)
        gc.collect()
        gc.disable()
        try:
            await _exchange(server, 1000)
            assert gc.collect() < 100
        finally:
            gc.enable()
