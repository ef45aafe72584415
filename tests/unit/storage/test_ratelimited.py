"""Which requests a rate limit counts, how it is changed, and what it refuses."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import MemoryDevice, Rate, RateLimited
from aiovblk.testing import CrashableDisk, check_block_device

from ...support.clocks import ManualClock

BLOCK = 4096
DATA = memoryview(bytes(BLOCK))


async def run_ready() -> None:
    """Let every task go on until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


class Limited:
    """A limited disk with a clock that the test moves, and the requests that were made to it."""

    def __init__(self, *limit: Rate, inner: BlockDevice | None = None, **limits: Rate) -> None:
        self.clock = ManualClock()
        self.device = RateLimited(
            inner or CrashableDisk(64 * BLOCK).open(), *limit, clock=self.clock, **limits
        )

    async def start(self, request: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(request)
        await run_ready()
        return task

    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        await run_ready()


async def test_bytes_are_those_of_reads_and_writes() -> None:
    disk = Limited(Rate(bytes=BLOCK))
    await disk.device.trim(0, 64 * BLOCK)
    await disk.device.write_zeroes(0, 64 * BLOCK, may_trim=True)
    await disk.device.extents(0, 64 * BLOCK)
    await disk.device.flush()
    await disk.device.write(0, DATA)
    read = await disk.start(disk.device.read(0, BLOCK))
    assert not read.done()
    await disk.advance(1)
    assert read.result() == DATA


async def test_zeroes_that_are_written_as_data_are_bytes() -> None:
    class OnlyWrites(BlockDevice):
        blocks = 64

        async def write(self, offset: int, data: memoryview) -> None:
            pass

        async def read(self, offset: int, length: int) -> bytes:
            return bytes(length)

    disk = Limited(Rate(bytes=BLOCK), inner=OnlyWrites())
    await disk.device.write_zeroes(0, 2 * BLOCK, may_trim=False)
    read = await disk.start(disk.device.read(0, BLOCK))
    assert not read.done()
    await disk.advance(2)
    assert read.done()


async def test_requests_are_all_but_flushes_and_extents() -> None:
    disk = Limited(Rate(requests=1))
    await disk.device.read(0, BLOCK)
    await disk.device.flush()
    await disk.device.extents(0, BLOCK)
    waiting = [
        await disk.start(request)
        for request in (
            disk.device.trim(0, BLOCK),
            disk.device.write_zeroes(0, BLOCK, may_trim=False),
            disk.device.write(0, DATA),
            disk.device.read(0, BLOCK),
        )
    ]
    for done in range(len(waiting) + 1):
        assert [task.done() for task in waiting] == [number < done for number in range(4)]
        await disk.advance(1)


async def test_reads_pass_while_writes_wait_for_their_own_limit() -> None:
    disk = Limited(write_limit=Rate(requests=1), read_limit=Rate(requests=2))
    await disk.device.write(0, DATA)
    write = await disk.start(disk.device.write(0, DATA))
    await disk.device.read(0, BLOCK)
    await disk.device.read(0, BLOCK)
    read = await disk.start(disk.device.read(0, BLOCK))
    assert not write.done()
    assert not read.done()
    await disk.advance(0.5)
    assert (read.done(), write.done()) == (True, False)
    await disk.advance(0.5)
    assert write.done()


async def test_limit_of_all_counts_reads_and_writes_in_the_order_of_their_arrival() -> None:
    disk = Limited(Rate(requests=1))
    await disk.device.write(0, DATA)
    tasks = [
        await disk.start(request)
        for request in (disk.device.read(0, BLOCK), disk.device.write(0, DATA))
    ]
    await disk.advance(1)
    assert [task.done() for task in tasks] == [True, False]
    await disk.advance(1)
    assert tasks[1].done()


async def test_request_larger_than_a_burst_passes_and_the_next_waits_for_its_debt() -> None:
    disk = Limited(Rate(bytes=BLOCK, burst=2))
    await disk.device.read(0, 10 * BLOCK)
    read = await disk.start(disk.device.read(0, BLOCK))
    await disk.advance(8.9)
    assert not read.done()
    await disk.advance(0.1)
    assert read.done()


async def test_without_burst_requests_are_spaced() -> None:
    disk = Limited(Rate(requests=10, burst=0))
    reads = [await disk.start(disk.device.read(0, BLOCK)) for _ in range(3)]
    assert [read.done() for read in reads] == [True, False, False]
    await disk.advance(0.1)
    assert [read.done() for read in reads] == [True, True, False]
    await disk.advance(0.1)
    assert reads[2].done()


async def test_cancelled_request_costs_neither_limit_anything() -> None:
    disk = Limited(Rate(requests=1), read_limit=Rate(requests=5))
    await disk.device.read(0, BLOCK)
    waiting = [await disk.start(disk.device.read(0, BLOCK)) for _ in range(4)]
    for task in waiting:
        task.cancel()
    await run_ready()
    disk.device.limit = None
    for _ in range(4):
        assert (await disk.start(disk.device.read(0, BLOCK))).done()
    assert not (await disk.start(disk.device.read(0, BLOCK))).done()
    disk.device.read_limit = None
    await run_ready()


async def test_limits_are_changed_while_requests_wait() -> None:
    disk = Limited()
    assert (disk.device.limit, disk.device.read_limit, disk.device.write_limit) == (None,) * 3
    disk.device.write_limit = slow = Rate(bytes=1)
    write = await disk.start(disk.device.write(0, DATA))
    assert write.done()  # a burst was saved
    write = await disk.start(disk.device.write(0, DATA))
    assert not write.done()
    assert disk.device.write_limit is slow
    disk.device.write_limit = Rate(bytes=BLOCK)
    await disk.advance(2.01)
    assert write.done()


def test_limit_may_be_set_where_no_loop_runs() -> None:
    device = RateLimited(MemoryDevice(BLOCK), Rate(bytes=1))
    device.limit = Rate(requests=1)


@pytest.mark.parametrize("number", [0, -1, math.nan, math.inf, True, "1", 10**400])
@pytest.mark.parametrize("name", ["bytes", "requests"])
def test_rate_that_is_no_positive_number_is_refused(name: str, number: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a positive number per second"):
        Rate(**{name: number})


@pytest.mark.parametrize("huge", [10**300, 1e300])
@pytest.mark.parametrize("name", ["bytes", "requests"])
def test_burst_of_more_than_a_number_can_be_is_refused(name: str, huge: float) -> None:
    with pytest.raises(ValueError, match=f"{name} per second, for .* seconds of burst, are too"):
        Rate(**{name: huge}, burst=huge)


@pytest.mark.parametrize("burst", [-1, math.nan, math.inf, "1", None, 10**400])
def test_burst_that_is_no_number_of_seconds_is_refused(burst: Any) -> None:
    with pytest.raises(ValueError, match="burst must be 0 or a number of seconds"):
        Rate(bytes=1, burst=burst)


def test_limit_that_is_no_rate_is_refused() -> None:
    with pytest.raises(TypeError, match="a limit must be a Rate, or None"):
        RateLimited(MemoryDevice(BLOCK), 5)  # type: ignore[arg-type]


async def test_limited_device_keeps_the_contract() -> None:
    medium = CrashableDisk(256 * 1024)
    await check_block_device(
        lambda: RateLimited(medium.open(), Rate(bytes=1e9, requests=1e5, burst=0.001)),
        crash=lambda device: medium.crash(),
        rounds=40,
    )
