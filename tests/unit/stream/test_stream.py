"""InPlaceStreamReader as the StreamReader that it is, then the part that is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from aiovblk.stream import InPlaceStreamReader

Reader = asyncio.StreamReader
MakeReader = Callable[[], Reader]

either_reader = pytest.mark.parametrize("make", [asyncio.StreamReader, InPlaceStreamReader])


async def begun(task: asyncio.Task[object]) -> None:
    """Let a task run until it waits for bytes."""
    await asyncio.sleep(0)
    assert not task.done()


async def assert_incomplete(
    reading: Awaitable[object], partial: bytes, expected: int | None
) -> None:
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await reading
    assert (caught.value.partial, caught.value.expected) == (partial, expected)


@either_reader
async def test_readexactly_waits_for_bytes_that_come_one_by_one(make: MakeReader) -> None:
    reader = make()
    reading = asyncio.create_task(reader.readexactly(5))
    for byte in b"hello":
        await begun(reading)
        reader.feed_data(bytes([byte]))
    assert await reading == b"hello"


@either_reader
async def test_readexactly_returns_bytes_that_came_before(make: MakeReader) -> None:
    reader = make()
    reader.feed_data(b"hello, world")
    assert await reader.readexactly(0) == b""
    assert await reader.readexactly(5) == b"hello"
    assert await reader.readexactly(7) == b", world"


@either_reader
async def test_readexactly_at_the_end_raises_with_what_there_was(make: MakeReader) -> None:
    reader = make()
    reader.feed_data(b"hell")
    reader.feed_eof()
    await assert_incomplete(reader.readexactly(5), b"hell", 5)
    await assert_incomplete(reader.readexactly(5), b"", 5)


@either_reader
async def test_readexactly_of_a_negative_number_raises(make: MakeReader) -> None:
    with pytest.raises(ValueError, match="less than zero"):
        await make().readexactly(-1)


@either_reader
async def test_read_returns_what_there_is(make: MakeReader) -> None:
    reader = make()
    reading = asyncio.create_task(reader.read(100))
    await begun(reading)
    reader.feed_data(b"some")
    assert await reading == b"some"
    reader.feed_data(b"more")
    assert await reader.read(3) == b"mor"
    assert await reader.read(3) == b"e"
    assert await reader.read(0) == b""
    reader.feed_eof()
    assert await reader.read(3) == b""


@either_reader
async def test_read_without_limit_reads_to_the_end(make: MakeReader) -> None:
    reader = make()
    reader.feed_data(b"one ")
    reading = asyncio.create_task(reader.read())
    await begun(reading)
    reader.feed_data(b"two")
    await begun(reading)
    reader.feed_eof()
    assert await reading == b"one two"
    assert await reader.read() == b""


@either_reader
async def test_readuntil_returns_through_the_separator(make: MakeReader) -> None:
    reader = make()
    reading = asyncio.create_task(reader.readuntil(b"--"))
    for byte in b"a-b-":
        reader.feed_data(bytes([byte]))
        await begun(reading)
    reader.feed_data(b"-c--d")
    assert await reading == b"a-b--"
    assert await reader.readuntil(b"--") == b"c--"
    assert await reader.readexactly(1) == b"d"


@either_reader
@pytest.mark.parametrize("left", [b"", b"no end"])
async def test_readuntil_at_the_end_raises_with_what_there_was(
    make: MakeReader, left: bytes
) -> None:
    reader = make()
    reader.feed_data(left)
    reader.feed_eof()
    await assert_incomplete(reader.readuntil(), left, None)


@either_reader
async def test_readuntil_nothing_raises(make: MakeReader) -> None:
    with pytest.raises(ValueError, match="at least one-byte"):
        await make().readuntil(b"")


async def test_readuntil_takes_the_first_of_several_separators() -> None:
    reader = InPlaceStreamReader()
    reader.feed_data(b"a;b\nc")
    assert await reader.readuntil((b"\n", b";")) == b"a;"
    assert await reader.readuntil((b"\n", b";")) == b"b\n"


async def test_readuntil_grows_the_buffer_until_the_separator_is_there() -> None:
    reader = InPlaceStreamReader()
    long = bytes(3 * len(reader.buffer))
    reader.feed_data(long + b"\nrest")
    assert await reader.readuntil() == long + b"\n"
    assert await reader.readexactly(4) == b"rest"


@either_reader
async def test_lines_can_be_read_and_iterated(make: MakeReader) -> None:
    reader = make()
    reader.feed_data(b"one\ntwo\nthree")
    reader.feed_eof()
    assert await reader.readline() == b"one\n"
    assert [line async for line in reader] == [b"two\n", b"three"]
    assert await reader.readline() == b""


@either_reader
async def test_at_eof_only_when_all_bytes_are_read(make: MakeReader) -> None:
    reader = make()
    reader.feed_data(b"x")
    assert not reader.at_eof()
    reader.feed_eof()
    assert not reader.at_eof()
    await reader.read(1)
    assert reader.at_eof()


@either_reader
async def test_exception_reaches_who_waits_and_who_comes_later(make: MakeReader) -> None:
    reader = make()
    assert reader.exception() is None
    reading = asyncio.create_task(reader.readexactly(1))
    await begun(reading)
    broken = ConnectionResetError("gone")
    reader.set_exception(broken)
    with pytest.raises(ConnectionResetError):
        await reading
    with pytest.raises(ConnectionResetError):
        await reader.read(1)
    assert reader.exception() is broken


@either_reader
async def test_cancelled_readexactly_loses_no_byte(make: MakeReader) -> None:
    reader = make()
    reader.feed_data(b"he")
    reading = asyncio.create_task(reader.readexactly(5))
    await begun(reading)
    reading.cancel()
    reader.feed_data(b"llo")
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await reader.readexactly(5) == b"hello"


async def test_fill_needs_no_wait_for_bytes_that_came_before() -> None:
    reader = InPlaceStreamReader()
    reader.feed_data(b"hello")
    filling = reader.wait_for(5)
    with pytest.raises(StopIteration):  # done at its first step
        filling.send(None)
    assert reader.buffer[reader.start : reader.end] == b"hello"


async def test_fill_wakes_only_for_as_many_bytes_as_are_wanted() -> None:
    reader = InPlaceStreamReader()
    filling = asyncio.create_task(reader.wait_for(5))
    for byte in b"hello":
        await begun(filling)
        reader.feed_data(bytes([byte]))
    assert await filling


async def test_fill_at_a_clean_end_is_false() -> None:
    reader = InPlaceStreamReader()
    filling = asyncio.create_task(reader.wait_for(5))
    await begun(filling)
    reader.feed_eof()
    assert not await filling
    assert not await reader.wait_for(1)


async def test_fill_at_an_end_within_what_is_wanted_raises() -> None:
    reader = InPlaceStreamReader()
    reader.feed_data(b"hell")
    reader.feed_eof()
    await assert_incomplete(reader.wait_for(5), b"hell", 5)


async def test_fill_of_a_broken_connection_raises_after_the_last_byte() -> None:
    reader = InPlaceStreamReader()
    reader.feed_data(b"hello")
    reader.set_exception(ConnectionResetError("gone"))
    reader.feed_eof()
    assert await reader.wait_for(5)
    reader.start += 5
    with pytest.raises(ConnectionResetError):
        await reader.wait_for(1)


async def test_cancelled_fill_loses_no_byte() -> None:
    reader = InPlaceStreamReader()
    reader.feed_data(b"he")
    filling = asyncio.create_task(reader.wait_for(5))
    await begun(filling)
    reader.feed_data(b"llo")
    filling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await filling
    assert await reader.wait_for(5)
    assert reader.buffer[reader.start : reader.end] == b"hello"
