"""Sequential reads are detected, and the next lines are read ahead."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

from aiovblk.storage import Cache
from aiovblk.storage.cache.readahead import ReadAhead

from ....support.cache_lines import BLOCK, LINE, begin, block
from ....support.slow_device import Slow, settle


def cache(inner: Slow, *, ahead: int = 8, lines: int = 512) -> Cache:
    return Cache(inner, size=lines * LINE, line_size=LINE, read_ahead=ahead * LINE)


def lines(*asked: Any) -> list[tuple[int, int]]:
    """The first line and the number of lines of each request to the inner device."""
    return [(offset // LINE, length // LINE) for _, offset, length in asked]


async def read_lines(device: Cache, numbers: Iterable[int]) -> None:
    for number in numbers:
        assert await device.read(number * LINE, BLOCK) == block(number * LINE // BLOCK)
        await settle()


async def test_read_ahead_window_doubles_up_to_the_limit() -> None:
    inner = Slow(4096)
    device = cache(inner)
    await read_lines(device, range(10, 12))
    assert lines(*inner.take()) == [(10, 1), (11, 1), (12, 2)]
    await read_lines(device, [12])
    assert lines(*inner.take()) == [(14, 4)]
    await read_lines(device, [13])
    assert inner.take() == []
    await read_lines(device, [14])
    assert lines(*inner.take()) == [(18, 8)]
    await read_lines(device, range(15, 27))
    assert lines(*inner.take()) == [(26, 8), (34, 8)]
    assert device.stats.misses == 2
    assert device.stats.read_ahead_bytes == 30 * LINE


async def test_reads_within_one_line_are_not_sequential() -> None:
    inner = Slow(4096)
    device = cache(inner)
    for at in range(4):
        await device.read(at * BLOCK, BLOCK)
    await settle()
    assert lines(*inner.asked) == [(0, 1)]


async def test_random_reads_cause_no_read_ahead() -> None:
    inner = Slow(4096)
    device = cache(inner)
    await read_lines(device, [5, 100, 7, 50, 3, 200, 99, 1])
    assert device.stats.read_ahead_bytes == 0


async def test_reader_that_stops_causes_no_more_read_ahead() -> None:
    inner = Slow(4096)
    device = cache(inner)
    await read_lines(device, range(3))
    inner.take()
    await read_lines(device, [300, 200, 3, 100])
    assert lines(*inner.take()) == [(300, 1), (200, 1), (100, 1)]


async def test_interleaved_streams_are_detected() -> None:
    inner = Slow(4096)
    device = cache(inner)
    for at in range(3):
        await read_lines(device, [at, 300 + at, 600 + at])
    assert lines(*inner.asked) == [
        *[(0, 1), (300, 1), (600, 1)],
        *[(1, 1), (2, 2), (301, 1), (302, 2), (601, 1), (602, 2)],
        *[(4, 4), (304, 4), (604, 4)],
    ]


async def test_first_window_is_twice_the_length_of_a_read() -> None:
    inner = Slow(4096)
    device = cache(inner)
    await device.read(0, 3 * LINE)
    await device.read(3 * LINE, 3 * LINE)
    await settle()
    assert lines(*inner.asked) == [(0, 3), (3, 3), (6, 6)]


async def test_cached_lines_are_not_read_ahead() -> None:
    inner = Slow(4096)
    device = cache(inner)
    await read_lines(device, [3])
    await read_lines(device, [0, 1, 2])
    assert lines(*inner.asked) == [(3, 1), (0, 1), (1, 1), (2, 1), (4, 4)]


async def test_read_ahead_requests_have_1_mib_at_most() -> None:
    mib = 1 << 20
    inner = Slow(64 * 2048)
    device = Cache(inner, size=64 * mib, line_size=mib // 2, read_ahead=4 * mib)
    for number in range(3):
        await device.read(number * mib // 2, BLOCK)
        await settle()
    assert inner.asked[2:] == [
        ("read", mib, mib),
        ("read", 2 * mib, mib),
        ("read", 3 * mib, mib),
    ]


async def test_requested_line_is_fetched_before_read_ahead() -> None:
    inner = Slow(4096, held=["read"])
    device = cache(inner)
    (first,) = await begin(device.read(0, BLOCK))
    await inner.release()
    (second,) = await begin(device.read(LINE, BLOCK))
    assert lines(*inner.asked) == [(0, 1), (1, 1), (2, 2)]
    await inner.release(most=1)
    assert second.result() == block(4)
    await first
    await device.unmount()


async def test_reader_joins_read_ahead_in_flight() -> None:
    inner = Slow(4096, held=["read"])
    device = cache(inner)
    for number in range(2):
        await begin(device.read(number * LINE, BLOCK))
        await inner.release(most=1)
    inner.take()
    (read,) = await begin(device.read(3 * LINE, BLOCK))
    assert inner.asked == []
    await inner.release()
    assert read.result() == block(12)


async def test_reader_with_many_reads_in_flight_is_one_stream() -> None:
    inner = Slow(4096, held=["read"])
    device = cache(inner)
    reads = [(await begin(device.read(number * LINE, BLOCK)))[0] for number in range(10)]
    assert lines(*inner.asked) == [(0, 1), (1, 1), (2, 2), (4, 4), (8, 8), (16, 8)]
    await inner.release()
    assert [await each for each in reads] == [block(4 * number) for number in range(10)]
    assert device.stats.misses == 10


async def test_read_ahead_is_aligned_to_its_largest_request() -> None:
    mib = 1 << 20
    inner = Slow(64 * 2048)
    device = Cache(inner, size=64 * mib, line_size=mib // 4, read_ahead=4 * mib)
    for number in range(3):
        await device.read(number * mib // 4, BLOCK)
        await settle()
    assert inner.asked[2:] == [
        ("read", mib // 2, mib // 2),
        ("read", mib, mib),
    ]


async def test_errors_of_read_ahead_are_silent_and_fail_no_read() -> None:
    inner = Slow(4096, held=["read"])
    device = cache(inner)
    for number in range(2):
        await begin(device.read(number * LINE, BLOCK))
        await inner.release(most=1)
    (joined,) = await begin(device.read(2 * LINE, BLOCK))
    inner.errors["read"] = OSError(errno.EIO, "ahead")
    inner.take()
    await inner.release(most=1)
    inner.errors.clear()
    assert lines(*inner.take()) == [(2, 1)]
    await inner.release()
    assert joined.result() == block(8)
    await device.unmount()


async def test_read_ahead_of_all_streams_is_limited() -> None:
    inner = Slow(8192)
    device = cache(inner, ahead=2, lines=2048)
    await read_lines(device, range(0, 2000, 100))
    inner.held.add("read")
    reads = []
    for number in range(1, 2001, 100):
        reads += await begin(device.read(number * LINE, BLOCK))
    assert device.stats.read_ahead_bytes == 4 * 2 * LINE
    await inner.release()
    for read in reads:
        await read


async def test_window_is_limited_by_the_cache_and_the_end_of_the_device() -> None:
    inner = Slow(6 * 4)
    device = cache(inner, ahead=100, lines=16)
    await read_lines(device, range(6))
    assert lines(*inner.asked) == [(0, 1), (1, 1), (2, 2), (4, 2)]
    assert device.stats.cached_bytes == 6 * LINE


async def test_no_read_ahead_if_it_is_switched_off() -> None:
    inner = Slow(4096)
    device = cache(inner, ahead=0)
    await read_lines(device, range(6))
    assert len(inner.asked) == 6


async def test_unmount_cancels_read_ahead() -> None:
    inner = Slow(4096, held=["read"])
    device = cache(inner)
    for number in range(2):
        await begin(device.read(number * LINE, BLOCK))
        await inner.release(most=1)
    await device.unmount()
    assert inner.asked[-2:] == [("flush",), ("unmount",)]


def test_number_of_streams_is_limited() -> None:
    ahead = ReadAhead(8)
    for number in range(0, 10_000, 10):
        ahead.demand(range(number, number + 1), missed=True)
    assert len(ahead.awaited) == 64
    assert not ahead.demand(range(1, 2), missed=True)
    assert ahead.demand(range(9991, 9992), missed=True) == range(9992, 9994)
