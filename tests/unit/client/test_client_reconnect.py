"""Lost connections of the client: reconnect with backoff, replay of requests."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import ssl
from dataclasses import replace
from typing import Any

import pytest

from aiovblk import RemoteDevice, client
from aiovblk.client import dialing, session
from aiovblk.client.connection import ClientConnection
from aiovblk.protocol import URI, Command, ReplyMode, TransmissionFlag
from tests.support.timers import LATER, Timers

from ...support.polling import until
from ...support.scripted_server import ALL_FLAGS, Export, connected, fails, flushed, logged, stored

UNSTORED = "it is not known whether this [A-Z_]+ was stored"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MIN_BACKOFF", 0.001)
    monkeypatch.setattr(session, "MAX_BACKOFF", 0.01)


# Without reconnect


@pytest.mark.parametrize("part", [0, 10, 20], ids=["at once", "in a header", "in a payload"])
async def test_lost_connection_fails_present_and_future_requests(part: int) -> None:
    async with connected(reconnect=None) as (server, remote, peer):
        calls = [
            asyncio.ensure_future(call)
            for call in (remote.read(0, 8), remote.write(0, b"x"), remote.flush())
        ]
        requests = await peer.requests(3)
        message = bytes.fromhex("668e33ef 0001 0001") + requests[0].cookie.to_bytes(8)
        message += (16).to_bytes(4) + bytes(16)
        peer.writer.write(message[:part])
        peer.close()
        why = f"the connection to {server.uri_pattern} was lost: the server closed it"
        for call in calls:
            await fails(call, errno.ENOTCONN, why)
        await fails(asyncio.ensure_future(remote.read(0, 8)), errno.ENOTCONN, why)
        await fails(asyncio.ensure_future(remote.flush()), errno.ENOTCONN, why)
        assert remote.connections == 0


async def test_replies_before_the_loss_count() -> None:
    async with connected(reconnect=None) as (_, remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 8))
        peer.succeed(await peer.request(), b"the data")
        peer.close()
        assert bytes(await reading) == b"the data"


async def test_loss_of_one_connection_closes_all() -> None:
    export = Export(flags=ALL_FLAGS | TransmissionFlag.CAN_MULTI_CONN)
    async with connected(export, reconnect=None, connections=2) as (server, remote, peer):
        other = await server.peer()
        await _until_connected(remote, 2)
        readings = [asyncio.ensure_future(remote.read(0, 1)) for _ in range(2)]
        await peer.request()
        await other.request()
        peer.close()
        await other.hung_up()
        for each in readings:
            await fails(each, errno.ENOTCONN, "was lost")


# With reconnect


async def test_requests_in_flight_are_replayed_where_that_does_no_harm() -> None:
    async with connected() as (server, remote, peer):
        calls: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(remote.read(0, 1)),
            asyncio.ensure_future(remote.extents(0, 4096)),
            asyncio.ensure_future(remote.cache(0, 4096)),
            asyncio.ensure_future(remote.flush()),
        ]
        before = await peer.requests(4)
        peer.close()
        peer = await server.peer()
        after = await peer.requests(4)
        for each, again in zip(before, after, strict=True):
            assert again == replace(each, cookie=again.cookie)
        for request in after:
            if request.type == Command.READ:
                peer.succeed(request, b"x")
            elif request.type == Command.BLOCK_STATUS:
                payload = b"\0\0\0\x4d" + bytes.fromhex("00001000 00000000")
                peer.chunk(request, 5, payload, done=True)
            else:
                peer.succeed(request)
        await asyncio.gather(*calls)
        assert bytes(calls[0].result()) == b"x"


async def test_part_of_a_reply_before_the_loss_is_discarded() -> None:
    async with connected() as (server, remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 4))
        peer.part(await peer.request(), 0, b"ab")
        peer.close()
        peer = await server.peer()
        peer.succeed(await peer.request(), b"wxyz")
        assert bytes(await reading) == b"wxyz"


def changes(remote: RemoteDevice) -> list[asyncio.Future[None]]:
    """A request of each kind that changes something."""
    return [
        asyncio.ensure_future(remote.write(0, b"x")),
        asyncio.ensure_future(remote.trim(0, 4096)),
        asyncio.ensure_future(remote.write_zeroes(0, 4096, may_trim=True)),
    ]


async def test_what_may_have_been_stored_is_not_replayed() -> None:
    async with connected() as (server, remote, peer):
        calls = changes(remote)
        await peer.requests(3)
        peer.close()
        for call in calls:
            await fails(call, errno.EIO, UNSTORED)
        peer = await server.peer()
        await flushed(remote, peer)


async def test_write_that_was_never_sent_is_retried() -> None:
    async with connected(Export(size=1 << 30)) as (server, remote, peer):
        data = bytes(8 << 20)
        first = asyncio.ensure_future(remote.write(0, data))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(remote.write(1, b"x")) for _ in range(3)]
        for _ in range(5):
            await asyncio.sleep(0)
        peer.writer.transport.abort()
        peer = await server.peer()
        for request in await peer.requests(3):
            assert request.offset == 1
            peer.succeed(request)
        await asyncio.gather(*others)
        await fails(first, errno.EIO, UNSTORED)


async def test_what_may_have_been_stored_is_replayed_on_demand() -> None:
    async with connected(replay_writes=True) as (server, remote, peer):
        calls = changes(remote)
        await peer.requests(3)
        peer.close()
        peer = await server.peer()
        for request in await peer.requests(3):
            if request.type == Command.WRITE:
                assert peer.data[request.cookie] == b"x"
            peer.succeed(request)
        await asyncio.gather(*calls)


async def test_requests_wait_for_the_reconnect(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with connected() as (server, remote, peer):
        server.refuses = True
        peer.close()
        await server.refused()
        calls = [asyncio.ensure_future(remote.write(n, b"x")) for n in range(3)]
        await server.refused()
        assert remote.connections == 0
        server.refuses = False
        peer = await server.peer()
        for request in await peer.requests(3):
            peer.succeed(request)
        await asyncio.gather(*calls)
    assert [each.levelno for each in caplog.records if each.name == "aiovblk"] == [
        logging.WARNING,
        logging.WARNING,
    ]
    assert f"the connection to {server.uri} was lost (the server closed it)" in caplog.text
    assert f"reconnected to {server.uri} after" in caplog.text


async def test_reconnect_is_retried_while_the_server_is_down() -> None:
    async with connected() as (server, remote, _):
        await server.stop()
        reading = asyncio.ensure_future(remote.read(0, 1))
        await logged("failed: cannot connect")
        await server.listen()
        peer = await server.peer()
        peer.succeed(await peer.request(), b"x")
        assert bytes(await reading) == b"x"


@pytest.mark.parametrize("seconds", [1e-9, 0.05])
async def test_reconnect_fails_permanently_after_its_timeout(seconds: float) -> None:
    async with connected(reconnect=seconds) as (server, remote, _):
        await server.stop()
        reading = asyncio.ensure_future(remote.read(0, 1))
        why = f"the connection to {server.uri_pattern} was lost: .*No such file"
        await fails(reading, errno.ENOTCONN, why)
        await fails(asyncio.ensure_future(remote.write(0, b"x")), errno.ENOTCONN, why)
        await server.listen()


async def test_waiting_request_can_be_cancelled() -> None:
    async with connected() as (server, remote, peer):
        server.refuses = True
        peer.close()
        await server.refused()
        reading = asyncio.ensure_future(remote.read(0, 1))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        server.refuses = False
        peer = await server.peer()
        await flushed(remote, peer)


async def test_closing_while_there_is_no_connection() -> None:
    async with connected() as (server, remote, peer):
        server.refuses = True
        peer.close()
        await server.refused()
        reading = asyncio.ensure_future(remote.read(0, 1))
        await asyncio.sleep(0)
    await fails(reading, errno.ENOTCONN, "is closed")


async def test_request_that_breaks_each_connection_fails_after_the_last_attempt() -> None:
    async with connected() as (server, remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 1))
        for _ in range(session.MAX_ATTEMPTS):
            await peer.request()
            peer.close()
            peer = await server.peer()
        await fails(reading, errno.EIO, "was lost at each of 5 attempts")
        await flushed(remote, peer)


async def test_protocol_violation_fails_the_session_permanently() -> None:
    async with connected() as (_, remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 1))
        peer.simple(await peer.request(), b"x")
        await fails(reading, errno.ENOTCONN, "was lost: the server sent a simple reply")


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("size", 1 << 21, "the server now has 2097152 bytes instead of 1048576"),
        ("flags", ALL_FLAGS & ~TransmissionFlag.SEND_TRIM, "the server now lacks SEND_TRIM"),
        ("flags", ALL_FLAGS | TransmissionFlag.READ_ONLY, "the server now is read-only"),
        ("block_sizes", (512, 4096, 32 << 20), "the server now has other block sizes"),
        ("block_sizes", (1, 4096, 1 << 20), "the server now has other block sizes"),
        ("mode", ReplyMode.SIMPLE, "the server now supports less"),
        ("allocation", False, "the server now supports less"),
    ],
)
async def test_reconnect_to_another_export_fails_permanently(
    field: str, value: object, why: str
) -> None:
    async with connected() as (server, remote, peer):
        setattr(server.export, field, value)
        peer.close()
        other = await server.peer()
        await other.hung_up()
        reading = asyncio.ensure_future(remote.read(0, 1))
        await fails(reading, errno.ENOTCONN, f"was lost: {why}")


async def test_reconnect_to_a_server_that_offers_more_is_accepted() -> None:
    async with connected(Export(flags=1)) as (server, remote, peer):
        server.export.flags = ALL_FLAGS
        peer.close()
        await stored(remote, await server.peer())


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that each connection was given to be made."""
    found: list[float] = []

    async def dial(
        uri: URI, context: ssl.SSLContext | None, timeout: float, *more: Any, **options: Any
    ) -> ClientConnection:
        found.append(timeout)
        await asyncio.sleep(TAKES if len(found) == 1 else 0)
        return await dialing.dial(uri, context, timeout, *more, **options)

    monkeypatch.setattr(client, "dial", dial)
    return found


TAKES = 0.05
"""Seconds that the first of them takes at least."""


async def test_attempt_to_reconnect_has_some_seconds_only(limits: list[float]) -> None:
    async with connected(reconnect=math.inf, timeout=100) as (server, remote, peer):
        peer.close()
        await flushed(remote, await server.peer())
        assert limits == [100, session.MAX_ATTEMPT_TIMEOUT]


async def test_attempt_to_reconnect_has_more_time_where_connecting_takes_long(
    limits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MAX_ATTEMPT_TIMEOUT", TAKES / 2)
    async with connected(reconnect=math.inf) as (server, remote, peer):
        peer.close()
        await flushed(remote, await server.peer())
        assert limits[1] > TAKES  # twice that, but timers may fire a millisecond early


async def test_attempt_to_reconnect_that_hangs_is_followed_by_another(
    timers: Timers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MAX_ATTEMPT_TIMEOUT", LATER)
    async with connected(reconnect=math.inf, timeout=2 * LATER) as (server, remote, peer):
        server.max_answered = 1
        peer.close()
        for _ in range(2):
            await server.ignored()
            timers.go_off()
        server.max_answered = None
        await flushed(remote, await server.peer())


# Several connections


async def test_other_connections_replay_the_requests_of_a_lost_one() -> None:
    export = Export(flags=ALL_FLAGS | TransmissionFlag.CAN_MULTI_CONN)
    async with connected(export, connections=2) as (server, remote, peer):
        other = await server.peer()
        await _until_connected(remote, 2)
        readings = [asyncio.ensure_future(remote.read(n, 1)) for n in range(2)]
        await peer.request()
        first = await other.request()
        server.refuses = True
        peer.close()
        for request in (first, await other.request()):
            other.succeed(request, b"x")
        await asyncio.gather(*readings)
        server.refuses = False
        await server.peer()
        await _until_connected(remote, 2)


async def test_other_connections_go_on_when_one_stays_lost() -> None:
    export = Export(flags=ALL_FLAGS | TransmissionFlag.CAN_MULTI_CONN)
    async with connected(export, connections=2, reconnect=0.02) as (server, remote, peer):
        other = await server.peer()
        await _until_connected(remote, 2)
        server.refuses = True
        peer.close()
        await logged("one connection stays lost")
        await flushed(remote, other)


async def _until_connected(remote: RemoteDevice, count: int) -> None:
    await until(lambda: remote.connections == count)  # the handshakes are over
