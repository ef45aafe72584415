"""Durability: flush after a lost connection."""

from __future__ import annotations

import asyncio
import errno

import pytest

from aiovblk.client import session
from aiovblk.client.receiving import ReplyReceiver
from aiovblk.protocol import Command

from ...support.scripted_server import Export, connected, fails, flushed, stored


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MIN_BACKOFF", 0.001)
    monkeypatch.setattr(session, "MAX_BACKOFF", 0.01)


async def test_flush_fails_once_after_a_loss_of_what_no_flush_made_durable() -> None:
    async with connected() as (server, remote, peer):
        await stored(remote, peer)
        await flushed(remote, peer)
        await stored(remote, peer)
        await stored(remote, peer)
        peer.close()
        peer = await server.peer()
        why = "not known whether 2 writes from before the connection was lost are stored"
        await fails(asyncio.ensure_future(remote.flush()), errno.EIO, why)
        await flushed(remote, peer)
        await stored(remote, peer)
        await flushed(remote, peer)


async def test_write_of_zeroes_counts_as_a_write_and_a_hint_does_not() -> None:
    async with connected() as (server, remote, peer):
        for call in (remote.trim(0, 4096), remote.cache(0, 4096), remote.read(0, 4096)):
            task = asyncio.ensure_future(call)
            request = await peer.request()
            peer.succeed(request, bytes(4096) if request.type == Command.READ else b"")
            await task
        peer.close()
        peer = await server.peer()
        await flushed(remote, peer)
        zeroing = asyncio.ensure_future(remote.write_zeroes(0, 4096, may_trim=True))
        peer.succeed(await peer.request())
        await zeroing
        peer.close()
        await server.peer()
        await fails(asyncio.ensure_future(remote.flush()), errno.EIO, "whether 1 writes")


async def test_flush_in_flight_fails_where_something_may_be_lost() -> None:
    async with connected() as (server, remote, peer):
        await stored(remote, peer)
        flushing = asyncio.ensure_future(remote.flush())
        await peer.request()
        peer.close()
        await fails(flushing, errno.EIO, "whether 1 writes")
        await flushed(remote, await server.peer())


async def test_flush_covers_only_what_was_stored_before_it_began() -> None:
    async with connected() as (server, remote, peer):
        flushing = asyncio.ensure_future(remote.flush())
        request = await peer.request()
        await stored(remote, peer)
        peer.succeed(request)
        await flushing
        peer.close()
        await server.peer()
        await fails(asyncio.ensure_future(remote.flush()), errno.EIO, "whether 1 writes")


async def test_flush_that_failed_makes_nothing_durable() -> None:
    async with connected() as (server, remote, peer):
        await stored(remote, peer)
        flushing = asyncio.ensure_future(remote.flush())
        peer.fail(await peer.request(), errno.EIO)
        await fails(flushing, errno.EIO, "Input/output error")
        peer.close()
        await server.peer()
        await fails(asyncio.ensure_future(remote.flush()), errno.EIO, "whether 1 writes")


async def test_acknowledgement_right_before_the_loss_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = ReplyReceiver.take

    def take_and_end(receiver: ReplyReceiver) -> None:
        """As when a reply and the end of file are received together."""
        original(receiver)
        receiver._reader.feed_eof()

    async with connected() as (server, remote, peer):
        monkeypatch.setattr(ReplyReceiver, "take", take_and_end)
        await stored(remote, peer)
        monkeypatch.undo()
        await server.peer()
        await fails(asyncio.ensure_future(remote.flush()), errno.EIO, "whether 1 writes")


async def test_no_write_is_lost_where_writes_are_durable_when_they_return() -> None:
    async with connected(Export(flags=1)) as (server, remote, peer):
        await stored(remote, peer)
        peer.close()
        await stored(remote, await server.peer())
        await remote.flush()
