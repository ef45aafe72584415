"""Ranges of bytes that exclude each other where they overlap."""

from __future__ import annotations

import asyncio

import pytest

from aiovblk.aio.rangelock import RangeLock


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_ranges_that_do_not_overlap_are_held_at_once() -> None:
    ranges = RangeLock()
    async with ranges.hold(0, 4), ranges.hold(4, 8):
        assert ranges.held(0, 8) == [(0, 4), (4, 8)]
    assert ranges.held(0, 8) == []


async def test_held_ranges_are_those_that_overlap_and_do_not_wait() -> None:
    ranges = RangeLock()
    async with ranges.hold(0, 4):
        waiting = asyncio.ensure_future(ranges.hold(2, 6).__aenter__())
        await turns()
        assert ranges.held(0, 8) == [(0, 4)]
        assert ranges.held(4, 8) == []
    await waiting
    assert ranges.held(0, 8) == [(2, 6)]


async def test_large_range_is_not_starved_by_small_ones_that_came_later() -> None:
    ranges, order = RangeLock(), list[str]()

    async def work(name: str, begin: int, end: int) -> None:
        async with ranges.hold(begin, end):
            order.append(name)
            await turns()

    await asyncio.gather(work("first", 0, 1), work("large", 0, 9), work("later", 5, 6))
    assert order == ["first", "large", "later"]


async def test_waiter_that_is_cancelled_is_withdrawn() -> None:
    ranges = RangeLock()
    async with ranges.hold(0, 4):
        waiting = asyncio.ensure_future(ranges.hold(2, 6).__aenter__())
        await turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        async with ranges.hold(4, 8):
            assert ranges.held(0, 8) == [(0, 4), (4, 8)]


async def test_overlapping_ranges_are_held_in_the_order_they_were_asked_for() -> None:
    ranges, order = RangeLock(), list[str]()

    async def work(name: str, begin: int, end: int) -> None:
        async with ranges.hold(begin, end):
            order.append(f"+{name}")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            order.append(f"-{name}")

    await asyncio.gather(work("a", 0, 2), work("b", 1, 3), work("c", 2, 4), work("d", 8, 9))
    assert order[:2] == ["+a", "+d"]
    assert [each for each in order if each[1] != "d"] == ["+a", "-a", "+b", "-b", "+c", "-c"]
