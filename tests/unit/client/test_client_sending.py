"""Sending requests: batches, copies, backpressure while the server does not read, cancellation."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence

import pytest

from aiovblk import connect
from aiovblk.client import connection
from aiovblk.protocol import REQUEST, Command
from aiovblk.stream import PooledBuffer, StreamProtocol

from ...support.scripted_server import Peer, listening, remote_of

MIB = 1 << 20


class Watch:
    """What was passed to the transport, call by call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[list[bytes | memoryview]] = []
        original = StreamProtocol.send

        def send(stream: StreamProtocol, buffers: Sequence[bytes | memoryview]) -> None:
            self.sent.append(list(buffers))
            original(stream, buffers)

        monkeypatch.setattr(StreamProtocol, "send", send)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


async def test_requests_of_one_turn_are_sent_together(watch: Watch) -> None:
    async with remote_of() as (remote, peer):
        reads = [asyncio.ensure_future(remote.read(n, 1)) for n in range(20)]
        for request in await peer.requests(20):
            peer.succeed(request, b"x")
        await asyncio.gather(*reads)
        assert [len(b"".join(each)) for each in watch.sent] == [20 * REQUEST.size]


async def test_requests_of_callers_that_go_on_together_are_sent_together(watch: Watch) -> None:
    """Their replies arrive together, so their next requests leave in the turn that wakes them."""
    async with remote_of() as (remote, peer):

        async def read_twice(offset: int) -> None:
            await remote.read(offset, 1)
            await remote.read(offset, 1)

        reads = [asyncio.ensure_future(read_twice(n)) for n in range(20)]
        for _ in range(2):
            for request in await peer.requests(20):
                peer.succeed(request, b"x")
        await asyncio.gather(*reads)
        assert [len(b"".join(each)) for each in watch.sent] == 2 * [20 * REQUEST.size]


async def test_bytes_are_sent_as_they_are_and_other_memory_is_copied(watch: Watch) -> None:
    async with remote_of() as (remote, peer):
        data = b"data"
        for given in (data, memoryview(data), bytearray(data), memoryview(bytearray(data))):
            writing = asyncio.ensure_future(remote.write(0, given))
            peer.succeed(await peer.request())
            await writing
        bodies = [memoryview(each[1]) for each in watch.sent]
        assert bodies == 4 * [data]
        assert [each.obj is data for each in bodies] == [True, True, False, False]


async def test_what_was_read_from_a_server_is_sent_to_another_without_a_copy(watch: Watch) -> None:
    async with (
        remote_of(size=MIB) as (source, source_peer),
        remote_of(size=MIB) as (target, target_peer),
    ):
        data = os.urandom(MIB)
        reading = asyncio.ensure_future(source.read(0, MIB))
        source_peer.succeed(await source_peer.request(), data)
        view = await reading
        watch.sent.clear()
        writing = asyncio.ensure_future(target.write(0, view))
        request = await target_peer.request()
        assert target_peer.data[request.cookie] == data
        target_peer.succeed(request)
        await writing
        assert memoryview(watch.sent[0][1]).obj is view.obj


async def test_payload_that_a_device_may_change_is_copied(watch: Watch) -> None:
    async with remote_of(size=MIB) as (remote, peer):
        received = memoryview(PooledBuffer(4096))
        writing = asyncio.ensure_future(remote.write(0, received))
        peer.succeed(await peer.request())
        await writing
        assert isinstance(watch.sent[0][1], bytes)


async def test_backpressure_write_waits_while_the_server_does_not_read(watch: Watch) -> None:
    async with remote_of(size=256 * MIB) as (remote, peer):
        data = os.urandom(MIB)
        writes = [asyncio.ensure_future(remote.write(n * MIB, data)) for n in range(64)]
        reading = asyncio.ensure_future(remote.read(0, 1))
        for _ in range(20):
            await asyncio.sleep(0)
        # No more is sent than the sockets hold, the limit, and one request.
        waiting = sum(map(len, _flat(watch)))
        assert waiting < 8 * MIB
        for _ in range(64):
            request = await peer.request()
            assert request.type == Command.WRITE
            assert peer.data.pop(request.cookie) == data
            peer.succeed(request)
        peer.succeed(await peer.request(), b"x")
        await asyncio.gather(*writes, reading)


def _flat(watch: Watch) -> list[bytes | memoryview]:
    return [each for buffers in watch.sent for each in buffers]


async def test_requests_that_wait_for_the_server_to_read_fail_when_it_is_lost() -> None:
    async with listening() as server, connect(server.uri) as remote:
        peer = await server.peer()
        writes = [asyncio.ensure_future(remote.write(0, bytes(4 * MIB))) for _ in range(8)]
        for _ in range(20):
            await asyncio.sleep(0)
        peer.writer.transport.abort()
        for each in writes:
            with pytest.raises(OSError, match="was lost") as caught:
                await each
            assert caught.value.errno == errno.ENOTCONN


async def test_requests_that_wait_for_the_server_to_read_fail_when_the_session_closes() -> None:
    async with listening() as server:
        async with connect(server.uri) as remote:
            peer = await server.peer()
            data = bytes(4 * MIB)
            writes = [asyncio.ensure_future(remote.write(0, data)) for _ in range(8)]
            for _ in range(20):
                await asyncio.sleep(0)
            answering = asyncio.ensure_future(_answer_all(peer))
        assert 0 < await answering < 8
        outcomes = await asyncio.gather(*writes, return_exceptions=True)
        assert {str(each) for each in outcomes} == {
            "None",
            f"[Errno {errno.ENOTCONN}] the connection to {server.uri} is closed",
        }


async def _answer_all(peer: Peer) -> int:
    """Answer requests until the client disconnects; returns how many there were."""
    count = 0
    while (request := await peer.request()).type != Command.DISC:
        peer.succeed(request)
        count += 1
    return count


# Cancellation


async def test_reply_to_a_cancelled_request_is_dropped() -> None:
    async with remote_of() as (remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 4))
        request = await peer.request()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        other = asyncio.ensure_future(remote.read(100, 4))
        peer.part(request, 0, b"ab")
        peer.part(request, 2, b"cd", done=True)
        peer.succeed(await peer.request(), b"efgh")
        assert bytes(await other) == b"efgh"


async def test_error_of_a_cancelled_request_is_dropped() -> None:
    async with remote_of() as (remote, peer):
        writing = asyncio.ensure_future(remote.write(0, b"x"))
        request = await peer.request()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        peer.fail(request, errno.EIO)


async def test_closing_waits_for_cancelled_requests_too() -> None:
    async with remote_of() as (remote, peer):
        reading = asyncio.ensure_future(remote.read(0, 1))
        request = await peer.request()
        reading.cancel()
        leaving = asyncio.ensure_future(remote.unmount())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not leaving.done()
        peer.succeed(request, b"x")
        await leaving


@pytest.mark.parametrize("turns", [0, 1, 5], ids=["not started", "queued", "being sent"])
async def test_buffer_may_be_used_again_after_its_write_was_cancelled(turns: int) -> None:
    """The transport keeps most of it, and sends it much later."""
    async with remote_of(size=64 * MIB) as (remote, peer):
        buffer = bytearray(os.urandom(16 * MIB))
        as_it_was = bytes(buffer)
        view = memoryview(buffer)
        writing = asyncio.ensure_future(remote.write(0, view))
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        view.release()
        buffer[:] = bytes(len(buffer))
        flushing = asyncio.ensure_future(remote.flush())
        request = await peer.request()
        if request.type == Command.WRITE:
            assert peer.data[request.cookie] == as_it_was
            peer.succeed(request)
            request = await peer.request()
        else:
            assert turns == 0
        peer.succeed(request)
        await flushing


async def test_cancelled_view_of_bytes_may_be_released_at_once() -> None:
    async with remote_of(size=64 * MIB) as (remote, peer):
        view = memoryview(bytes(4096))
        writing = asyncio.ensure_future(remote.write(0, view))
        await asyncio.sleep(0)
        writing.cancel()
        view.release()
        with pytest.raises(asyncio.CancelledError):
            await writing
        request = await peer.request()
        assert peer.data[request.cookie] == bytes(4096)
        peer.succeed(request)


async def test_cancelled_wait_for_the_server_to_read_sends_nothing() -> None:
    async with remote_of(size=64 * MIB) as (remote, peer):
        first = asyncio.ensure_future(remote.write(0, bytes(8 * connection.SEND_BUFFER)))
        for _ in range(5):
            await asyncio.sleep(0)
        second = asyncio.ensure_future(remote.write(0, b"x"))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        peer.succeed(await peer.request())
        await first
