"""Replies that violate the protocol: each ends the connection, and every request on it."""

from __future__ import annotations

import asyncio
import errno
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from aiovblk import RemoteDevice, connect
from aiovblk.client import pending
from aiovblk.protocol import ReplyMode, Request

from ...support.scripted_server import ALLOCATION_ID, Peer, listening

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
    "all of it after a part": (
        in_turn(chunk(1, ">Q5s", 100, bytes(5), done=False), chunk(1, ">Q10s", 100, bytes(10))),
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


async def test_form_of_reply_that_was_not_negotiated_ends_the_connection() -> None:
    def simple(peer: Peer, request: Request) -> None:
        peer.simple(request)
        peer.simple(request)  # as many bytes as the header that is expected

    def write(remote: RemoteDevice) -> Any:
        return remote.write(0, b"x")

    await _violate(simple, "expected an extended reply", write, mode=ReplyMode.EXTENDED)
    await _violate(header(0, 0), "expected a reply", write, mode=ReplyMode.SIMPLE)


async def test_length_of_nothing_in_reply_to_a_write_ends_the_connection() -> None:
    await _violate(header(0, 4), "cannot have 4 bytes", lambda remote: remote.write(0, b"x"))


async def test_data_in_too_many_scattered_parts_ends_the_connection() -> None:
    def scatter(peer: Peer, request: Request) -> None:
        for offset in range(0, 2 * pending.MAX_READ_FRAGMENTS + 2, 2):
            peer.part(request, offset, b"x")

    await _violate(scatter, "scattered parts", lambda remote: remote.read(0, 1 << 16))


async def _violate(lie: Lie, why: str, call: Callable[[Any], Any], **fields: Any) -> None:
    async with listening(**fields) as server, connect(server.uri) as remote:
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
