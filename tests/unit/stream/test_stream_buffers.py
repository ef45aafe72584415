"""Where an InPlaceStreamReader keeps its bytes, and when it takes more of them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aiovblk.stream import InPlaceStreamReader, StreamProtocol
from aiovblk.stream.receive_buffer import BUFFER_SIZE, INITIAL_BUFFER_SIZE, MIN_RECEIVE_ROOM


class PausableTransport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def take(reader: InPlaceStreamReader, count: int) -> memoryview:
    """Consume bytes as a view of them, as the dispatcher does with a payload."""
    view = memoryview(reader.buffer)[reader.start : reader.start + count]
    reader.start += count
    return view


def busy_reader() -> InPlaceStreamReader:
    """A reader that has got a buffer of the ordinary size, and is at its begin."""
    reader = InPlaceStreamReader()
    reader.feed_data(bytes(INITIAL_BUFFER_SIZE))
    reader.start = reader.end
    reader.feed_data(b"\0")
    reader.start = reader.end = 0
    assert len(reader.buffer) == BUFFER_SIZE
    return reader


async def test_view_stays_as_it_is_while_more_arrives() -> None:
    reader = InPlaceStreamReader()
    first = os.urandom(BUFFER_SIZE // 2)
    reader.feed_data(first)
    view = take(reader, len(first))
    for _ in range(5):
        reader.feed_data(bytes(BUFFER_SIZE // 2))
        reader.start = reader.end
    assert view == first


async def test_viewed_buffer_is_left_and_bytes_not_consumed_move_on() -> None:
    reader = InPlaceStreamReader()
    reader.feed_data(b"payload" + b"next")
    view = take(reader, 7)
    pinned = reader.buffer
    reader.feed_data(bytes(BUFFER_SIZE))
    assert reader.buffer is not pinned
    assert reader.buffer[reader.start : reader.start + 4] == b"next"
    assert reader.end - reader.start == 4 + BUFFER_SIZE
    assert bytes(view) == b"payload"


async def test_buffer_is_used_again_once_its_views_are_released() -> None:
    reader = busy_reader()
    reader.feed_data(b"payload")
    pinned = reader.buffer
    with take(reader, 7):
        reader.feed_data(bytes(BUFFER_SIZE - 7))
        reader.start = reader.end
        reader.feed_data(b"next")
        reader.start = reader.end
        assert reader.buffer is not pinned
    for _ in range(3):
        reader.feed_data(bytes(BUFFER_SIZE // 2))
        with take(reader, BUFFER_SIZE // 2):
            reader.feed_data(bytes(BUFFER_SIZE // 2))
        reader.start = reader.end
        if reader.buffer is pinned:
            return
    raise AssertionError("the released buffer was not used again")


async def test_buffer_without_views_is_used_for_ever() -> None:
    reader = busy_reader()
    only = reader.buffer
    message = os.urandom(100_000)
    for _ in range(200):
        reader.feed_data(message)
        with take(reader, len(message)) as view:
            assert view == message
        assert reader.buffer is only


async def test_quick_consumer_of_views_needs_a_handful_of_buffers() -> None:
    reader = InPlaceStreamReader()
    seen: list[bytearray] = []
    previous = memoryview(b"")
    for _ in range(1000):
        reader.feed_data(bytes(60_000))
        previous.release()  # each view outlives the arrival of the next one
        previous = take(reader, 60_000)
        if not any(reader.buffer is each for each in seen):
            seen.append(reader.buffer)
    previous.release()
    assert len(seen) <= 3


async def test_many_live_views_each_keep_their_bytes() -> None:
    reader = InPlaceStreamReader()
    views = []
    for number in range(100):
        reader.feed_data(bytes([number]) * 100_000)
        views.append(take(reader, 100_000))
    for number, view in enumerate(views):
        assert view == bytes([number]) * 100_000


async def test_buffer_stays_small_while_little_arrives_at_once() -> None:
    reader = InPlaceStreamReader()
    only = reader.buffer
    for _ in range(1000):
        reader.feed_data(bytes(100))
        assert await reader.wait_for(100)
        take(reader, 100).release()
        assert reader.buffer is only
    assert len(only) == INITIAL_BUFFER_SIZE


@pytest.mark.parametrize("size", [INITIAL_BUFFER_SIZE, INITIAL_BUFFER_SIZE + 1, BUFFER_SIZE // 2])
async def test_buffer_grows_to_its_ordinary_size_when_much_arrives_at_once(size: int) -> None:
    reader = InPlaceStreamReader()
    data = os.urandom(size)
    reader.feed_data(data)
    assert await reader.readexactly(size) == data
    reader.feed_data(b"next")
    assert len(reader.buffer) == BUFFER_SIZE


async def test_buffer_grows_for_a_payload_that_does_not_fit() -> None:
    reader = InPlaceStreamReader()
    filling = asyncio.create_task(reader.wait_for(INITIAL_BUFFER_SIZE + 1))
    await asyncio.sleep(0)
    reader.feed_data(b"\0")
    assert len(reader.buffer) == BUFFER_SIZE
    reader.feed_data(bytes(INITIAL_BUFFER_SIZE))
    assert await filling


async def test_payload_that_is_only_announced_takes_little_memory() -> None:
    reader = InPlaceStreamReader()
    filling = asyncio.create_task(reader.wait_for(32 * BUFFER_SIZE))
    await asyncio.sleep(0)
    for arrived in range(0, 32 * BUFFER_SIZE, BUFFER_SIZE // 4):
        assert len(reader.buffer) <= max(2 * BUFFER_SIZE, 4 * arrived)
        reader.feed_data(bytes(BUFFER_SIZE // 4))
    assert await filling


async def test_payload_larger_than_the_buffer_arrives_whole() -> None:
    reader = InPlaceStreamReader()
    payload = os.urandom(3 * BUFFER_SIZE + 17)
    filling = asyncio.create_task(reader.wait_for(len(payload)))
    await asyncio.sleep(0)
    for start in range(0, len(payload), 50_001):
        reader.feed_data(payload[start : start + 50_001])
    assert await filling
    with take(reader, len(payload)) as view:
        assert view == payload


async def test_payload_larger_than_the_buffer_is_moved_once_at_most() -> None:
    reader = InPlaceStreamReader()
    filling = asyncio.create_task(reader.wait_for(28))
    reader.feed_data(bytes(1000))
    await filling
    wanted = BUFFER_SIZE + BUFFER_SIZE // 4
    filling = asyncio.create_task(reader.wait_for(wanted))
    await asyncio.sleep(0)
    moves, missing = 0, wanted - 1000
    while missing:  # the last pieces are small, as those of a slow sender are
        piece = max(1, missing // 2)
        before = reader.buffer
        reader.feed_data(bytes(piece))
        moves += reader.buffer is not before
        missing -= piece
    assert await filling
    assert moves == 1


async def test_buffers_of_a_large_payload_are_not_kept_for_ever() -> None:
    reader = InPlaceStreamReader()
    filling = asyncio.create_task(reader.wait_for(8 * BUFFER_SIZE))
    await asyncio.sleep(0)
    reader.feed_data(bytes(8 * BUFFER_SIZE))
    await filling
    take(reader, 8 * BUFFER_SIZE).release()
    for _ in range(30):
        reader.feed_data(bytes(BUFFER_SIZE))
        assert await reader.wait_for(1)
        with take(reader, BUFFER_SIZE):
            reader.feed_data(b"next")
        reader.start = reader.end
    assert len(reader.buffer) + sum(map(len, reader._pool._buffers)) <= 4 * BUFFER_SIZE


async def test_reading_pauses_while_full_and_resumes_when_more_is_wanted() -> None:
    reader, transport = InPlaceStreamReader(), PausableTransport()
    reader.set_transport(transport)
    reader.feed_data(bytes(BUFFER_SIZE - MIN_RECEIVE_ROOM))
    assert transport.reading
    reader.feed_data(b"\0")
    assert not transport.reading
    assert await reader.wait_for(100)
    assert not transport.reading  # what has arrived comes first
    reader.start = reader.end
    filling = asyncio.create_task(reader.wait_for(100))
    await asyncio.sleep(0)
    assert transport.reading
    reader.feed_data(bytes(100))
    assert await filling


async def test_reading_does_not_pause_before_a_whole_payload_is_there() -> None:
    reader, transport = InPlaceStreamReader(), PausableTransport()
    reader.set_transport(transport)
    filling = asyncio.create_task(reader.wait_for(2 * BUFFER_SIZE))
    await asyncio.sleep(0)
    reader.feed_data(bytes(2 * BUFFER_SIZE - 1))
    assert transport.reading
    reader.feed_data(b"\0")
    assert await filling


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[StreamProtocol, asyncio.StreamWriter]]:
    """A protocol on one end of a socket pair, and the other end."""
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_unix_connection(StreamProtocol, sock=ours)
    _, writer = await asyncio.open_unix_connection(sock=theirs)
    try:
        yield protocol, writer
    finally:
        transport.abort()
        writer.close()
        await protocol.closed


async def test_sender_is_held_back_until_the_consumer_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with connected() as (protocol, writer):
        reader = protocol.reader
        paused = asyncio.Event()
        original = reader.received

        def received(count: int) -> None:
            original(count)
            if reader._paused:
                paused.set()

        monkeypatch.setattr(reader, "received", received)
        data = os.urandom(8 * BUFFER_SIZE)
        writer.write(data)
        await paused.wait()
        assert reader.end <= BUFFER_SIZE
        assert await reader.readexactly(len(data)) == data


async def test_bytes_before_the_end_are_read_before_it() -> None:
    async with connected() as (protocol, writer):
        writer.write(b"last words")
        writer.close()
        assert await protocol.reader.read() == b"last words"
        assert protocol.reader.at_eof()
        assert not protocol.closed.done()  # replies may still be under way


async def test_closed_tells_why_the_connection_ended() -> None:
    async with connected() as (protocol, _):
        protocol.connection_lost(broken := ConnectionResetError("gone"))
        assert await protocol.closed is broken
        assert protocol.reader.exception() is broken


async def test_closed_is_none_when_nothing_was_wrong() -> None:
    async with connected() as (protocol, _):
        protocol.connection_lost(None)
        assert await protocol.closed is None
        assert not await protocol.reader.wait_for(1)
