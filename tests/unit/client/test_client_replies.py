"""Replies to the client: all formats and orders, errors, and protocol violations."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from aiovblk import Extent
from aiovblk.client import pending
from aiovblk.protocol import Command, ReplyMode, Request

from ...support.scripted_server import ALLOCATION_ID, Peer, remote_of

HEADERS = {
    ReplyMode.SIMPLE: (16, 16),
    ReplyMode.STRUCTURED: (20, 28),
    ReplyMode.EXTENDED: (32, 40),
}
"""Bytes before the end of a reply without data, and before the data of one that has some."""

each_mode = pytest.mark.parametrize("mode", list(ReplyMode))
chunked = pytest.mark.parametrize("mode", [ReplyMode.STRUCTURED, ReplyMode.EXTENDED])

SIZES = [1, 4096, pending.MIN_ZERO_COPY - 1, pending.MIN_ZERO_COPY, 3 << 20]


@each_mode
@pytest.mark.parametrize("size", SIZES)
async def test_read_returns_the_data_as_a_readonly_view(mode: ReplyMode, size: int) -> None:
    async with remote_of(mode=mode, size=16 << 20) as (remote, peer):
        reading = asyncio.ensure_future(remote.read(4096, size))
        request = await peer.request()
        assert request == Request(0, Command.READ, request.cookie, 4096, size)
        data = os.urandom(size)
        peer.succeed(request, data)
        result = await reading
        assert result == data
        assert result.readonly


@each_mode
async def test_data_of_a_read_stays_as_it_is_while_more_is_received(mode: ReplyMode) -> None:
    async with remote_of(mode=mode, size=64 << 20) as (remote, peer):
        sent, received = [], []
        for _ in range(8):
            reading = asyncio.ensure_future(remote.read(0, pending.MIN_ZERO_COPY))
            sent.append(os.urandom(pending.MIN_ZERO_COPY))
            peer.succeed(await peer.request(), sent[-1])
            received.append(await reading)
        assert received == sent


@each_mode
async def test_requests_without_result(mode: ReplyMode) -> None:
    async with remote_of(mode=mode) as (remote, peer):
        for call, command, flags, where in [
            (remote.write(512, memoryview(b"data")), Command.WRITE, 0, (512, 4)),
            (remote.flush(), Command.FLUSH, 0, (0, 0)),
            (remote.trim(1, 2), Command.TRIM, 0, (1, 2)),
            (remote.write_zeroes(3, 4, may_trim=True), Command.WRITE_ZEROES, 0, (3, 4)),
            (remote.write_zeroes(5, 6, may_trim=False), Command.WRITE_ZEROES, 2, (5, 6)),
            (remote.cache(7, 8), Command.CACHE, 0, (7, 8)),
        ]:
            task = asyncio.ensure_future(call)
            request = await peer.request()
            # With extended headers, a payload is announced by a flag.
            announced = 1 << 5 if (mode, command) == (ReplyMode.EXTENDED, Command.WRITE) else 0
            assert request.flags == flags | announced
            assert (request.type, (request.offset, request.length)) == (command, where)
            assert peer.data.get(request.cookie) == (b"data" if command == Command.WRITE else None)
            peer.succeed(request)
            await task


@each_mode
async def test_replies_may_come_in_any_order(mode: ReplyMode) -> None:
    async with remote_of(mode=mode) as (remote, peer):
        readings = [asyncio.ensure_future(remote.read(n, 1)) for n in range(10)]
        for request in reversed(await peer.requests(10)):
            peer.succeed(request, bytes([request.offset]))
        assert [bytes(await each) for each in readings] == [bytes([n]) for n in range(10)]


@each_mode
@pytest.mark.parametrize("number", [errno.EPERM, errno.EIO, errno.ENOSPC, errno.ESHUTDOWN])
async def test_error_fails_its_request_alone(mode: ReplyMode, number: int) -> None:
    async with remote_of(mode=mode) as (remote, peer):
        writing = asyncio.ensure_future(remote.write(0, b"x"))
        reading = asyncio.ensure_future(remote.read(0, 1))
        first, second = await peer.requests(2)
        peer.fail(first, number)
        peer.succeed(second, b"y")
        assert bytes(await reading) == b"y"
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            await writing
        assert caught.value.errno == number


@each_mode
async def test_unknown_error_value_is_einval(mode: ReplyMode) -> None:
    async with remote_of(mode=mode) as (remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 1))
        peer.fail(await peer.request(), 4711)
        with pytest.raises(OSError) as caught:  # noqa: PT011 (its errno is checked)
            await reading
        assert caught.value.errno == errno.EINVAL


@each_mode
async def test_reply_may_be_cut_anywhere(mode: ReplyMode) -> None:
    size = 4
    async with remote_of(mode=mode) as (remote, peer):
        for cut in range(1, HEADERS[mode][1] + size):
            reading = asyncio.ensure_future(remote.read(cut, size))
            with captured(peer) as sent:
                peer.succeed(await peer.request(), b"data")
            await in_two_parts(peer, sent, cut)
            assert bytes(await reading) == b"data"


@each_mode
async def test_reply_without_data_may_be_cut_anywhere(mode: ReplyMode) -> None:
    async with remote_of(mode=mode) as (remote, peer):
        for cut in range(1, HEADERS[mode][0]):
            writing = asyncio.ensure_future(remote.write(0, b"data"))
            with captured(peer) as sent:
                peer.succeed(await peer.request())
            await in_two_parts(peer, sent, cut)
            await writing


@contextmanager
def captured(peer: Peer) -> Iterator[bytearray]:
    """What the peer says in the block, in place of sending it."""
    with pytest.MonkeyPatch.context() as patched:
        sent = bytearray()
        patched.setattr(peer.writer, "write", sent.extend)
        yield sent


async def in_two_parts(peer: Peer, data: bytearray, cut: int) -> None:
    """Send it so that the client receives what is before the cut alone."""
    peer.writer.write(data[:cut])
    for _ in range(3):
        await asyncio.sleep(0)
    peer.writer.write(data[cut:])


# Chunks


@chunked
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
async def test_chunks_may_come_in_any_order(mode: ReplyMode, order: tuple[int, ...]) -> None:
    async with remote_of(mode=mode) as (remote, peer):
        reading = asyncio.ensure_future(remote.read(100, 10))
        request = await peer.request()
        parts: list[Callable[[], None]] = [
            lambda: peer.part(request, 100, b"ab"),
            lambda: peer.hole(request, 102, 3),
            lambda: peer.part(request, 105, b"c"),
            lambda: peer.part(request, 106, b"defg"),
        ]
        for index in order:
            parts[index]()
        peer.chunk(request, 0, done=True)
        assert bytes(await reading) == b"ab\0\0\0cdefg"


@chunked
async def test_last_chunk_may_have_data_and_chunks_of_requests_may_be_mixed(
    mode: ReplyMode,
) -> None:
    async with remote_of(mode=mode) as (remote, peer):
        readings = [asyncio.ensure_future(remote.read(n, 2)) for n in (0, 100)]
        first, second = await peer.requests(2)
        peer.part(first, 0, b"a")
        peer.part(second, 101, b"d")
        peer.part(first, 1, b"b", done=True)
        peer.part(second, 100, b"c", done=True)
        assert [bytes(await each) for each in readings] == [b"ab", b"cd"]


@chunked
async def test_one_hole_for_all(mode: ReplyMode) -> None:
    async with remote_of(mode=mode) as (remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 4096))
        request = await peer.request()
        peer.hole(request, 0, 4096, done=True)
        assert await reading == bytes(4096)


async def test_replies_that_arrive_byte_by_byte() -> None:
    async with remote_of() as (remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 4))
        cookie = (await peer.request()).cookie
        message = struct.pack(">IHHQIQ", 0x668E33EF, 0, 1, cookie, 10, 0) + b"ab"
        message += struct.pack(">IHHQIQI", 0x668E33EF, 1, 2, cookie, 12, 2, 2)
        for byte in message:
            peer.writer.write(bytes([byte]))
            await peer.writer.drain()
            await asyncio.sleep(0)
        assert bytes(await reading) == b"ab\0\0"


@chunked
@pytest.mark.parametrize("chunk", [32769, 32770, 40000], ids=["ERROR", "ERROR_OFFSET", "unknown"])
@pytest.mark.parametrize("done", [True, False], ids=["last", "before the last"])
async def test_error_chunk_after_data_fails_the_request(
    mode: ReplyMode, chunk: int, done: bool
) -> None:
    async with remote_of(mode=mode) as (remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 4))
        request = await peer.request()
        peer.part(request, 0, b"ab")
        place = struct.pack(">Q", 2) if chunk == 32770 else b""
        text = b"bad sector"
        payload = struct.pack(">IH", errno.ENOMEM, len(text)) + text + place
        peer.chunk(request, chunk, payload, done=done)
        if not done:
            peer.part(request, 2, b"cd", done=True)
        with pytest.raises(OSError, match="bad sector") as caught:
            await reading
        assert caught.value.errno == errno.ENOMEM


@chunked
async def test_error_chunk_fails_a_write_although_another_one_ends_its_reply(
    mode: ReplyMode,
) -> None:
    async with remote_of(mode=mode) as (remote, peer):
        writing = asyncio.ensure_future(remote.write(0, b"x"))
        request = await peer.request()
        peer.error(request, errno.ENOSPC, "full", done=False)
        peer.chunk(request, 0, done=True)
        with pytest.raises(OSError, match="full") as caught:
            await writing
        assert caught.value.errno == errno.ENOSPC


async def test_simple_reply_without_data_is_accepted_with_structured_replies() -> None:
    async with remote_of() as (remote, peer):
        writing = asyncio.ensure_future(remote.write(0, b"x"))
        peer.simple(await peer.request())
        await writing
        asking = asyncio.ensure_future(remote.extents(0, 4096))
        peer.simple(await peer.request(), error=errno.EIO)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await asking


# Extents


async def test_extents_of_a_structured_reply() -> None:
    async with remote_of() as (remote, peer):
        asking = asyncio.ensure_future(remote.extents(4096, 8192))
        request = await peer.request()
        assert (request.type, request.offset, request.length) == (7, 4096, 8192)
        payload = struct.pack(">I8I", ALLOCATION_ID, 1, 0, 2, 1, 3, 2, 9999, 3)
        peer.chunk(request, 5, payload, done=True)
        assert await asking == [
            Extent(1),
            Extent(2, hole=True),
            Extent(3, zero=True),
            Extent(9999, hole=True, zero=True),
        ]


async def test_extents_of_an_extended_reply() -> None:
    async with remote_of(mode=ReplyMode.EXTENDED) as (remote, peer):
        asking = asyncio.ensure_future(remote.extents(0, 1 << 50))
        request = await peer.request()
        assert request.length == 1 << 50
        payload = struct.pack(">II2Q", ALLOCATION_ID, 1, 1 << 50, 3)
        peer.chunk(request, 6, payload, done=True)
        assert await asking == [Extent(1 << 50, hole=True, zero=True)]


async def test_extents_are_requested_in_32_bits_without_extended_headers() -> None:
    async with remote_of(size=1 << 50) as (remote, peer):
        asking = asyncio.ensure_future(remote.extents(0, 1 << 40))
        request = await peer.request()
        assert request.length == 2**32 - 2**16
        peer.chunk(request, 5, struct.pack(">III", ALLOCATION_ID, 4096, 0), done=True)
        assert await asking == [Extent(4096)]
