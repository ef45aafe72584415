"""Requests that are refused before they reach a handler, and bytes that are no request."""

from __future__ import annotations

import asyncio
import errno

import pytest

from aiovblk import ProtocolError
from aiovblk.protocol import MAX_PAYLOAD, Command, CommandFlag, Request, serialize_request
from aiovblk.storage import MemoryDevice

from ...support.dispatch_client import PuppetDevice, served

READ, WRITE, FLUSH = Command.READ, Command.WRITE, Command.FLUSH
TRIM, WRITE_ZEROES = Command.TRIM, Command.WRITE_ZEROES
FUA, NO_HOLE = CommandFlag.FUA, CommandFlag.NO_HOLE


@pytest.mark.parametrize(
    "command", [Command.CACHE, Command.BLOCK_STATUS, Command.RESIZE, 9, 0xFFFF]
)
async def test_unknown_command_replies_einval(command: int) -> None:
    async with served(MemoryDevice(4096)) as server:
        assert (await server.client.call(command, 0, 4096)).error == errno.EINVAL
        assert await server.client.read(0, 4096) == bytes(4096)


@pytest.mark.parametrize("flags", [CommandFlag.DF, NO_HOLE, 1 << 15, FUA | 1 << 7])
async def test_unknown_flag_replies_einval_and_skips_the_payload(flags: int) -> None:
    async with served(MemoryDevice(4096)) as server:
        reply = await server.client.call(WRITE, 0, data=b"\x25" * 4096, flags=flags)
        assert reply.error == errno.EINVAL
        assert await server.client.read(0, 4096) == bytes(4096)


@pytest.mark.parametrize("command", [READ, WRITE, TRIM, WRITE_ZEROES])
@pytest.mark.parametrize(
    ("offset", "length", "beyond"),
    [
        (256, 512, False),
        (0, 256, False),
        (512, 513, False),
        (0, 0, False),
        (4096, 512, True),
        (3584, 1024, True),
        (2**64 - 512, 512, True),
        (2**63, 1024, True),
    ],
)
async def test_request_outside_the_blocks_never_reaches_a_handler(
    command: Command, offset: int, length: int, beyond: bool
) -> None:
    device = PuppetDevice()
    device.blocks = 8
    async with served(device) as server:
        error = errno.ENOSPC if beyond and command in (WRITE, WRITE_ZEROES) else errno.EINVAL
        data = bytes(length) if command == WRITE else b""
        assert (await server.client.call(command, offset, length, data)).error == error
        assert device.calls.empty()


@pytest.mark.parametrize(("offset", "length"), [(0, 512), (512, 0)])
async def test_flush_of_a_range_replies_einval(offset: int, length: int) -> None:
    async with served(MemoryDevice(4096)) as server:
        assert (await server.client.call(FLUSH, offset, length)).error == errno.EINVAL


async def test_read_of_more_than_32_mib_replies_einval() -> None:
    async with served(MemoryDevice(64 << 20)) as server:
        assert (await server.client.call(READ, 0, MAX_PAYLOAD + 4096)).error == errno.EINVAL


@pytest.mark.parametrize("command", [WRITE, TRIM, WRITE_ZEROES])
async def test_read_only_device_replies_eperm_to_what_would_change_it(command: Command) -> None:
    device = MemoryDevice(4096)
    device.read_only = True
    async with served(device) as server:
        data = b"\1" * 4096 if command == WRITE else b""
        assert (await server.client.call(command, 0, 4096, data)).error == errno.EPERM
        assert await server.client.read(0, 4096) == bytes(4096)
        assert (await server.client.call(FLUSH)).error == 0


async def test_garbage_in_place_of_a_request_is_a_protocol_error() -> None:
    async with served(MemoryDevice(4096)) as server:
        _, good = server.client.request(READ, 0, 4096)
        server.client.writer.write(good + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await server.client.reply()).data == bytes(4096)  # what came before is answered
        with pytest.raises(ProtocolError, match="0x47455420"):
            await server.serving


async def test_write_of_more_than_32_mib_is_a_protocol_error() -> None:
    async with served(MemoryDevice(64 << 20)) as server:
        server.client.writer.write(serialize_request(Request(0, WRITE, 1, 0, MAX_PAYLOAD + 1)))
        with pytest.raises(ProtocolError, match="33554433 bytes with one request"):
            await server.serving


@pytest.mark.parametrize("sent", [1, 27, 28, 28 + 4095])
async def test_end_within_a_request_is_an_incomplete_read(sent: int) -> None:
    async with served(MemoryDevice(4096)) as server:
        _, message = server.client.request(WRITE, 0, data=bytes(4096))
        server.client.writer.write(message[:sent])
        server.client.writer.write_eof()
        with pytest.raises(asyncio.IncompleteReadError) as caught:
            await server.serving
        assert caught.value.partial == message[:sent]
