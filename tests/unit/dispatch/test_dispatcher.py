"""Requests and replies of a dispatcher, as its client sees them."""

from __future__ import annotations

import array
import asyncio
import errno
import mmap
import struct
import tracemalloc
from collections.abc import Iterable

import pytest

from aiovblk import BlockDevice
from aiovblk.protocol import (
    MAX_PAYLOAD,
    Command,
    CommandFlag,
    Request,
    serialize_request,
)
from aiovblk.storage import MemoryDevice

from ...support.dispatch_client import PuppetDevice, served

READ, WRITE, FLUSH = Command.READ, Command.WRITE, Command.FLUSH
TRIM, WRITE_ZEROES, DISC = Command.TRIM, Command.WRITE_ZEROES, Command.DISC
FUA, NO_HOLE = CommandFlag.FUA, CommandFlag.NO_HOLE


async def test_what_was_written_is_read() -> None:
    async with served(MemoryDevice(1 << 20)) as server:
        await server.client.write(8192, b"\xa5" * 4096)
        assert await server.client.read(4096, 8192) == bytes(4096) + b"\xa5" * 4096


async def test_reply_of_a_read_is_header_and_payload_to_the_byte() -> None:
    class Device(BlockDevice):
        block_size, blocks = 512, 8

        async def read(self, offset: int, length: int) -> bytes:
            return b"\xaa" * length

    async with served(Device()) as server:
        server.client.writer.write(
            bytes.fromhex("25609513 0000 0000 1122334455667788 0000000000000200 00000200")
        )
        reply = await server.client.reader.readexactly(16 + 512)
        assert reply == bytes.fromhex("67446698 00000000 1122334455667788") + b"\xaa" * 512


@pytest.mark.parametrize("cookie", [0, 1, 2**63, 2**64 - 1])
async def test_cookie_comes_back_as_it_was(cookie: int) -> None:
    async with served(MemoryDevice(4096)) as server:
        server.client.writer.write(serialize_request(Request(0, FLUSH, cookie, 0, 0)))
        reply = await server.client.reader.readexactly(16)
        assert reply == struct.pack(">IIQ", 0x67446698, 0, cookie)


async def test_quick_request_overtakes_a_slow_one() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        slow = server.client.send(READ, 0, 512)
        slow_call = await device.calls.get()
        quick = server.client.send(READ, 512, 512)
        (await device.calls.get()).succeed(b"q" * 512)
        assert await server.client.reply() == (quick, 0, b"q" * 512)
        slow_call.succeed(b"s" * 512)
        assert await server.client.reply() == (slow, 0, b"s" * 512)


async def test_each_of_many_interleaved_requests_gets_its_own_reply() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        sent = {server.client.send(READ, number * 512, 512): number for number in range(100)}
        calls = [await device.calls.get() for _ in sent]
        for call in reversed(calls):
            call.succeed(struct.pack(">I", call.offset) * 128)
        for cookie, reply in (await server.client.replies(100)).items():
            assert reply.data == struct.pack(">I", sent[cookie] * 512) * 128


async def test_no_payload_follows_an_error() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        failing = server.client.send(READ, 0, 4096)
        (await device.calls.get()).fail(OSError(errno.EIO, "broken"))
        assert await server.client.reply() == (failing, errno.EIO, b"")
        good = server.client.send(READ, 0, 4096)
        (await device.calls.get()).succeed(b"g" * 4096)
        assert await server.client.reply() == (good, 0, b"g" * 4096)


@pytest.mark.parametrize(
    ("command", "name"), [(WRITE, "write"), (TRIM, "trim"), (WRITE_ZEROES, "write_zeroes")]
)
async def test_fua_flushes_after_the_handler_and_before_the_reply(
    command: Command, name: str
) -> None:
    device = PuppetDevice()
    async with served(device) as server:
        data = bytes(512) if command == WRITE else b""
        server.client.send(command, 0, 512, data, flags=FUA)
        call = await device.calls.get()
        assert (call.name, device.calls.empty()) == (name, True)
        call.succeed()
        flush = await device.calls.get()
        assert flush.name == "flush"
        await server.accepted()
        assert server.stats.in_flight == 1
        flush.succeed()
        assert (await server.client.reply()).error == 0


async def test_failing_flush_fails_a_write_with_fua() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(WRITE, 0, data=bytes(512), flags=FUA)
        (await device.calls.get()).succeed()
        (await device.calls.get()).fail(OSError(errno.ENOSPC, "full"))
        assert (await server.client.reply()).error == errno.ENOSPC


async def test_failing_write_with_fua_is_not_flushed() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(WRITE, 0, data=bytes(512), flags=FUA)
        (await device.calls.get()).fail(OSError(errno.ENOSPC, "full"))
        assert (await server.client.reply()).error == errno.ENOSPC
        assert device.calls.empty()


@pytest.mark.parametrize(("command", "length"), [(READ, 512), (FLUSH, 0)])
async def test_fua_is_accepted_where_it_changes_nothing(command: Command, length: int) -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(command, 0, length, flags=FUA)
        (await device.calls.get()).succeed()
        assert (await server.client.reply()).error == 0
        assert device.calls.empty()


async def test_write_split_at_every_byte_arrives_whole() -> None:
    device = MemoryDevice(4096, block_size=512)
    async with served(device) as server:
        for split in range(1, 28 + 512):
            data = struct.pack(">H", split) * 256
            cookie, message = server.client.request(WRITE, 1024, data=data)
            await server.arrive(message[:split])
            await server.arrive(message[split:])
            assert await server.client.reply() == (cookie, 0, b"")
            assert await device.read(1024, 512) == data


async def test_requests_that_come_byte_by_byte_are_served() -> None:
    async with served(MemoryDevice(4096, block_size=512)) as server:
        written, write = server.client.request(WRITE, 512, data=b"\x25" * 512)
        read, message = server.client.request(READ, 512, 512)
        for byte in write + message:
            await server.arrive(bytes([byte]))
        assert await server.client.reply() == (written, 0, b"")
        assert await server.client.reply() == (read, 0, b"\x25" * 512)


async def test_write_of_32_mib_is_served() -> None:
    device = MemoryDevice(64 << 20)
    async with served(device) as server:
        data = struct.pack(">I", 0xDEADBEEF) * (MAX_PAYLOAD // 4)
        await server.client.write(4096, data)
        assert await server.client.read(4096, MAX_PAYLOAD) == data


async def test_last_block_can_be_written_and_read() -> None:
    async with served(MemoryDevice(8192)) as server:
        await server.client.write(4096, b"\x77" * 4096)
        assert await server.client.read(0, 8192) == bytes(4096) + b"\x77" * 4096


async def test_trim_of_4_gib_allocates_nothing() -> None:
    device = PuppetDevice()
    device.blocks = 2**33 // 512
    async with served(device) as server:
        tracemalloc.start()
        try:
            server.client.send(TRIM, 4096, 2**32 - 4096)
            call = await device.calls.get()
            assert (call.offset, call.length) == (4096, 2**32 - 4096)
            call.succeed()
            assert (await server.client.reply()).error == 0
            assert tracemalloc.get_traced_memory()[1] < 1 << 20  # the client receives into 256 KiB
        finally:
            tracemalloc.stop()


class ZeroLogDevice(BlockDevice):
    """A device without write_zeroes that records the writes in its place."""

    blocks = 2**21

    def __init__(self) -> None:
        self.pieces: list[tuple[int, int]] = []

    async def write(self, offset: int, data: memoryview) -> None:
        assert data.nbytes <= 1 << 20
        assert not any(data.tobytes().strip(b"\0"))
        self.pieces.append((offset, data.nbytes))


@pytest.mark.parametrize("length", [4096, 1 << 20, (5 << 20) + 4096, 300 << 20])
async def test_zeroes_are_written_in_bounded_pieces(length: int) -> None:
    device = ZeroLogDevice()
    async with served(device) as server:
        assert (await server.client.call(WRITE_ZEROES, 8192, length)).error == 0
    end = 8192
    for offset, size in device.pieces:
        assert offset == end
        end += size
    assert end == 8192 + length


@pytest.mark.parametrize(("flags", "may_trim"), [(0, True), (NO_HOLE, False), (FUA, True)])
async def test_write_zeroes_passes_on_whether_it_may_trim(flags: int, may_trim: bool) -> None:
    passed: list[bool] = []

    class Device(MemoryDevice):
        async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
            passed.append(may_trim)

    async with served(Device(4096)) as server:
        assert (await server.client.call(WRITE_ZEROES, 0, 4096, flags=flags)).error == 0
    assert passed == [may_trim]


async def test_disc_is_reported_to_the_owner_and_gets_no_reply() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        call = await device.calls.get()
        server.client.send(DISC)
        await server.disconnected()
        call.succeed(b"x" * 512)
        assert (await server.client.reply()).data == b"x" * 512


async def test_requests_after_disc_are_served_and_a_second_disc_is_reported() -> None:
    async with served(MemoryDevice(4096)) as server:
        for _ in range(2):
            await server.accepted()
            await server.client.write(0, b"\3" * 4096)
            assert await server.client.read(0, 4096) == b"\3" * 4096


def _matrix(data: bytes) -> memoryview:
    return memoryview(data).cast("B", (16, 32))


def _mapped(data: bytes) -> memoryview:
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memoryview(memory)


@pytest.mark.parametrize(
    "form",
    [
        bytearray,
        memoryview,
        lambda data: memoryview(bytearray(data)),
        lambda data: memoryview(array.array("I", data)),
        lambda data: memoryview(data).cast("d"),
        _matrix,
        _mapped,
        lambda data: type("Bytes", (bytes,), {})(data),
    ],
)
async def test_read_may_return_any_contiguous_bytes(form: type) -> None:
    pattern = bytes(range(256)) * 2

    class Device(BlockDevice):
        block_size, blocks = 512, 8

        async def read(self, offset: int, length: int) -> memoryview:
            data: memoryview = form(pattern)
            return data

    async with served(Device()) as server:
        assert await server.client.read(0, 512) == pattern


async def test_bytearray_may_be_changed_after_it_was_returned() -> None:
    class Device(BlockDevice):
        block_size, blocks = 512, 8
        scratch = bytearray(512)

        async def read(self, offset: int, length: int) -> bytearray:
            self.scratch[:] = bytes([offset // 512]) * 512
            return self.scratch

    async with served(Device()) as server:
        asked = [server.client.request(READ, number * 512, 512) for number in range(8)]
        server.client.writer.write(b"".join(message for _, message in asked))
        replies = await server.client.replies(8)
        assert [replies[cookie].data[0] for cookie, _ in asked] == list(range(8))


async def test_run_goes_on_where_it_was_cancelled() -> None:
    async with served(MemoryDevice(4096)) as server:
        cookie, message = server.client.request(WRITE, 0, data=b"\4" * 4096)
        await server.arrive(message[:1000])
        server.serving.cancel()
        await asyncio.wait([server.serving])
        server.serving = asyncio.ensure_future(server.dispatcher.run())
        await server.arrive(message[1000:])
        assert await server.client.reply() == (cookie, 0, b"")
        assert await server.client.read(0, 4096) == b"\4" * 4096


async def test_who_lets_go_of_the_socket_waits_for_replies_that_have_not_left() -> None:
    device = PuppetDevice()
    async with served(device) as server:
        server.client.send(READ, 0, 512)
        call = await device.calls.get()
        server.serving.cancel()
        await asyncio.wait([server.serving])
        call.succeed()
        await asyncio.sleep(0)
        # The handler has ended, and its reply is sent at the next turn of the loop.
        drained = server.dispatcher.drained()
        assert not drained.done()
        await drained
        sock, received = server.dispatcher.detach()
        sock.close()
        assert received == b""
        assert (await server.client.reply()).error == 0


class SpyTransport:
    """Record what the dispatcher sends, and pass it on."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.batches: list[bytes] = []
        self._transport = transport

    def writelines(self, parts: Iterable[bytes | memoryview]) -> None:
        parts = list(parts)
        self.batches.append(b"".join(parts))
        self._transport.writelines(parts)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


async def test_replies_that_are_ready_together_leave_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with served(MemoryDevice(4096, block_size=512)) as server:
        spy = SpyTransport(server.dispatcher._stream.transport)
        monkeypatch.setattr(server.dispatcher._stream, "transport", spy)
        asked = [server.client.request(READ, number * 512, 512) for number in range(8)]
        message = b"".join(message for _, message in asked)
        await server.arrive(message)
        await server.client.replies(8)
        assert [len(batch) for batch in spy.batches] == [8 * (16 + 512)]
