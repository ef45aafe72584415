"""Replies to the client: all formats and orders, errors, and protocol violations."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from aiovblk import Extent, connect
from aiovblk.client import pending
from aiovblk.protocol import Command, ReplyMode, Request

from ...support.scripted_server import ALLOCATION_ID, Peer, listening, remote_of

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


# Protocol violations: each ends the connection, and every request on it.

Lie = Callable[[Peer, Request], None]


def header(chunk: int, length: int, *, done: bool = True) -> Lie:
    """A chunk of which only the header arrives."""

    def send(peer: Peer, request: Request) -> None:
        fields = 0x668E33EF, int(done), chunk, request.cookie, length
        peer.writer.write(struct.pack(">IHHQI", *fields))

    return send


def chunk(kind: int, layout: str, *fields: Any, done: bool = True) -> Lie:
    return lambda peer, request: peer.chunk(request, kind, struct.pack(layout, *fields), done=done)


def in_turn(*lies: Lie) -> Lie:
    def send(peer: Peer, request: Request) -> None:
        for each in lies:
            each(peer, request)

    return send


def another_cookie(peer: Peer, request: Request) -> None:
    peer.succeed(replace(request, cookie=request.cookie + 1))


LIES_ABOUT_READS: dict[str, tuple[Lie, str]] = {
    "magic": (lambda peer, _: peer.writer.write(bytes(20)), "magic number"),
    "cookie": (another_cookie, "replied to a request that was not sent"),
    "simple reply": (lambda peer, request: peer.simple(request, bytes(10)), "a simple reply"),
    "too long": (header(1, 8 + 11), "11 bytes in reply to a READ"),
    "without data": (header(1, 8), "0 bytes in reply to a READ"),
    "without offset": (header(1, 7), "-1 bytes in reply to a READ"),
    "far too long": (header(1, 2**32 - 1), "cannot have 4294967295 bytes"),
    "long hole": (header(2, 13), "cannot have 13 bytes"),
    "short hole": (header(2, 11), "a chunk of type 2 and 11 bytes"),
    "empty hole": (chunk(2, ">QI", 100, 0), "that was not requested"),
    "nothing": (chunk(0, ">"), "only a part of the data"),
    "nothing, not the last": (chunk(0, ">", done=False), "not the last one"),
    "nothing, long": (header(0, 4), "cannot have 4 bytes"),
    "a part": (chunk(1, ">Q9s", 100, bytes(9)), "only a part of the data"),
    "before": (chunk(1, ">Q10s", 99, bytes(10)), "data at 99 that was not requested"),
    "after": (chunk(1, ">Q10s", 101, bytes(10)), "data at 101 that was not requested"),
    "hole after": (chunk(2, ">QI", 109, 2), "data at 109 that was not requested"),
    "far away": (chunk(1, ">Q1s", 2**64 - 1, b"x"), "that was not requested"),
    "twice": (
        in_turn(chunk(1, ">Q5s", 100, bytes(5), done=False), chunk(2, ">QI", 104, 6)),
        "the data at 104 twice",
    ),
    "twice, backwards": (
        in_turn(chunk(2, ">QI", 104, 6, done=False), chunk(1, ">Q5s", 100, bytes(5))),
        "the data at 100 twice",
    ),
    "extents": (chunk(5, ">III", ALLOCATION_ID, 1, 0), "a chunk of type 5"),
    "unknown chunk": (header(9, 0), "a chunk of type 9"),
    "error without number": (chunk(32769, ">IH", 0, 0), "without an error"),
    "error that is too short": (chunk(32769, ">I", 5), "without an error"),
    "error with a cut text": (chunk(32769, ">IH", 5, 3), "cut short"),
    "error that is too long": (header(32769, 5000), "cannot have 5000 bytes"),
}


@pytest.mark.parametrize(("lie", "why"), LIES_ABOUT_READS.values(), ids=list(LIES_ABOUT_READS))
async def test_lie_about_a_read_ends_the_connection(lie: Lie, why: str) -> None:
    await _violate(lie, why, lambda remote: remote.read(100, 10))


LIES_ABOUT_EXTENTS: dict[str, tuple[Lie, str]] = {
    "simple reply": (lambda peer, request: peer.simple(request), "a simple reply without extents"),
    "nothing": (chunk(0, ">"), "no extents"),
    "none": (chunk(5, ">I", ALLOCATION_ID), "without extents"),
    "empty": (chunk(5, ">III", ALLOCATION_ID, 0, 0), "empty extent"),
    "cut": (chunk(5, ">IIH", ALLOCATION_ID, 1, 0), "cut short"),
    "context": (chunk(5, ">III", ALLOCATION_ID + 1, 1, 0), "not negotiated"),
    "context twice": (
        in_turn(*2 * [chunk(5, ">III", ALLOCATION_ID, 1, 0, done=False)]),
        "or one twice",
    ),
    "more than bytes": (header(5, 4 + 11 * 8), "a chunk of type 5 and 92 bytes"),
    "extended": (chunk(6, ">IIQQ", ALLOCATION_ID, 1, 1, 0), "a chunk of type 6"),
    "data": (chunk(1, ">Q10s", 100, bytes(10)), "a chunk of type 1"),
}


@pytest.mark.parametrize(("lie", "why"), LIES_ABOUT_EXTENTS.values(), ids=list(LIES_ABOUT_EXTENTS))
async def test_lie_about_extents_ends_the_connection(lie: Lie, why: str) -> None:
    await _violate(lie, why, lambda remote: remote.extents(100, 10))


async def test_data_in_reply_to_a_write_ends_the_connection() -> None:
    why = "a chunk of type 1 in reply to a WRITE"
    await _violate(chunk(1, ">Q1s", 0, b"x"), why, lambda remote: remote.write(0, b"x"))


async def test_data_in_too_many_scattered_parts_ends_the_connection() -> None:
    def scatter(peer: Peer, request: Request) -> None:
        for offset in range(0, 2 * pending.MAX_READ_FRAGMENTS + 2, 2):
            peer.part(request, offset, b"x")

    await _violate(scatter, "scattered parts", lambda remote: remote.read(0, 1 << 16))


async def _violate(lie: Lie, why: str, call: Callable[[Any], Any]) -> None:
    async with listening() as server, connect(server.uri) as remote:
        peer = await server.peer()
        other = asyncio.ensure_future(remote.flush())
        await peer.request()
        task = asyncio.ensure_future(call(remote))
        lie(peer, await peer.request())
        await peer.hung_up()
        for each in (task, other, asyncio.ensure_future(remote.flush())):
            with pytest.raises(
                OSError, match=f"the connection to {server.uri_pattern} was lost: .*{why}"
            ) as caught:
                await each
            assert caught.value.errno == errno.ENOTCONN
