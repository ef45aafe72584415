"""Write-back: dirty blocks, flush, write-back in the background."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Any

import pytest

from aiovblk.device import Extent
from aiovblk.storage import Cache

from ....support.cache_lines import BLOCK, LINE, begin, block, new
from ....support.slow_device import Slow, settle


def cache(inner: Slow, lines: int = 64, **options: Any) -> Cache:
    return Cache(
        inner,
        size=lines * LINE,
        line_size=LINE,
        policy="write-back",
        read_ahead=0,
        **{"dirty_limit": lines * LINE} | options,
    )


async def test_write_back_write_makes_no_request_to_the_inner_device() -> None:
    inner = Slow(64)
    device = cache(inner)
    await device.write(BLOCK, new(6))
    assert await device.read(BLOCK, 6 * BLOCK) == new(6)
    assert inner.asked == []
    assert device.stats.dirty_bytes == 6 * BLOCK


async def test_read_of_a_partly_valid_line_fetches_the_rest() -> None:
    inner = Slow(64)
    device = cache(inner)
    await device.write(BLOCK, new())
    assert await device.read(0, 3 * BLOCK) == block(0) + new() + block(2)
    await device.write(2 * BLOCK, new())
    assert await device.read(0, LINE) == block(0) + new(2) + block(3)
    assert inner.asked == [("read", 0, LINE)]


async def test_flush_coalesces_adjacent_dirty_blocks_and_then_flushes() -> None:
    inner = Slow(64)
    device = cache(inner)
    for at in (9, 3, 4, 5, 20, 8):
        await device.write(at * BLOCK, new())
    await device.flush()
    assert inner.take() == [
        ("write", 3 * BLOCK, 3 * BLOCK),
        ("write", 8 * BLOCK, 2 * BLOCK),
        ("write", 20 * BLOCK, BLOCK),
        ("flush",),
    ]
    assert device.stats.dirty_bytes == 0
    assert await device.read(3 * BLOCK, 3 * BLOCK) == new(3)
    await device.flush()
    assert inner.asked == [("flush",)]


async def test_flush_writes_at_most_1_mib_at_once_and_many_at_a_time() -> None:
    inner = Slow(100 * 2048, held=["write"])
    device = Cache(inner, size=inner.size * 2, policy="write-back", dirty_limit=2 * inner.size)
    await device.write(0, memoryview(inner.content)[: 40 << 20])
    (flush,) = await begin(device.flush())
    assert inner.take() == [("write", number << 20, 1 << 20) for number in range(32)]
    await inner.release()
    assert inner.take() == [("write", number << 20, 1 << 20) for number in range(32, 40)]
    await inner.release()
    await flush
    assert inner.take() == [("flush",)]


async def test_flush_waits_for_writes_in_flight() -> None:
    inner = Slow(64, held=["write"])
    device = cache(inner)
    await device.write(0, new())
    first, second = await begin(device.flush(), device.flush())
    assert inner.asked == [("write", 0, BLOCK)]
    await inner.release()
    await asyncio.gather(first, second)
    assert inner.asked == [("write", 0, BLOCK), ("flush",), ("flush",)]


async def test_block_that_is_written_during_its_write_back_stays_dirty() -> None:
    inner = Slow(64, held=["write"])
    device = cache(inner)
    await device.write(0, new(2))
    (flush,) = await begin(device.flush())
    await device.write(0, memoryview(b"2" * BLOCK))
    await inner.release()
    await flush
    assert inner.content[: 2 * BLOCK] == bytes(new(2))
    assert device.stats.dirty_bytes == BLOCK
    inner.held.clear()
    await device.flush()
    assert inner.content[: 2 * BLOCK] == b"2" * BLOCK + bytes(new())


async def test_data_of_a_write_in_flight_does_not_change() -> None:
    class Keeps(Slow):
        kept: memoryview

        async def write(self, offset: int, data: memoryview) -> None:
            self.kept = data
            await super().write(offset, data)

    inner = Keeps(64, held=["write"])
    device = cache(inner)
    await device.write(0, new())
    (flush,) = await begin(device.flush())
    await device.write(0, memoryview(b"2" * BLOCK))
    assert inner.kept == new()
    await inner.release()
    await flush


async def test_failed_write_back_is_raised_by_flush_and_retried() -> None:
    inner = Slow(64)
    device = cache(inner)
    await device.write(0, new())
    await device.write(2 * LINE, new())
    inner.errors["write"] = OSError(errno.ENOSPC, "full")
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            await device.flush()
        assert inner.take() == [("write", 0, BLOCK), ("write", 2 * LINE, BLOCK)]
        assert device.stats.dirty_bytes == 2 * BLOCK
    assert await device.read(0, BLOCK) == new()
    inner.errors.clear()
    await device.flush()
    assert inner.content[2 * LINE :][:BLOCK] == new()


async def test_background_write_back_starts_at_half_of_the_limit() -> None:
    inner = Slow(64)
    device = cache(inner, dirty_limit=4 * BLOCK)
    await device.write(0, new(2))
    await settle()
    assert inner.asked == []
    await device.write(2 * BLOCK, new())
    await settle()
    assert inner.asked == [("write", 0, 3 * BLOCK)]
    assert device.stats.dirty_bytes == 0


async def test_write_without_room_goes_to_the_inner_device() -> None:
    inner = Slow(64, held=["write"])
    device = cache(inner, dirty_limit=4 * BLOCK)
    await device.write(0, new(4))
    await settle()
    (write,) = await begin(device.write(BLOCK, memoryview(b"2" * 2 * BLOCK)))
    assert not write.done()
    await inner.release()  # after the write-back in the background there
    await inner.release()
    await write
    assert inner.take() == [("write", 0, LINE), ("write", BLOCK, 2 * BLOCK)]
    expected = bytes(new()) + b"2" * 2 * BLOCK + bytes(new())
    assert await device.read(0, LINE) == expected == inner.content[:LINE]


async def test_error_of_a_write_without_room_is_raised_by_it() -> None:
    inner = Slow(64)
    inner.errors["write"] = OSError(errno.ENOSPC, "full")
    device = cache(inner, dirty_limit=BLOCK)
    await device.write(0, new())
    with pytest.raises(OSError, match="full"):
        await device.write(0, memoryview(b"2" * BLOCK))
    assert await device.read(0, BLOCK) == new()  # unchanged
    inner.errors.clear()
    await device.flush()
    assert inner.content[:BLOCK] == new()


async def test_failed_background_write_back_is_logged_and_retried_by_flush(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = Slow(64)
    inner.errors["write"] = OSError(errno.EIO, "cut off")
    device = cache(inner, dirty_limit=4 * BLOCK)
    await device.write(0, new(3))
    await settle()
    assert inner.take() == [("write", 0, 3 * BLOCK)]
    await device.write(3 * BLOCK, new())
    await settle()
    assert inner.asked == []  # no retry at once
    assert caplog.record_tuples == [
        (
            "aiovblk",
            logging.WARNING,
            "write-back failed, the data stays dirty in memory: [Errno 5] cut off",
        )
    ]
    with pytest.raises(OSError, match="cut off"):
        await device.flush()
    inner.errors.clear()
    await device.flush()
    assert inner.content[:LINE] == new(4)


async def test_dirty_lines_leave_slots_for_others() -> None:
    inner = Slow(4096)
    device = cache(inner, lines=16, dirty_limit=1 << 20)
    inner.errors["write"] = OSError(errno.EIO, "cut off")
    refused = 0
    for number in range(32):
        try:
            await device.write(number * LINE, new())
        except OSError:
            refused += 1
    assert refused == 24
    for number in range(100, 110):
        await device.read(number * LINE, LINE)
    for number in range(8):
        assert await device.read(number * LINE, BLOCK) == new()


async def test_clean_lines_are_evicted_and_fetched_again() -> None:
    inner = Slow(4096)
    device = cache(inner, lines=4)
    for number in range(40):
        await device.write(number * LINE, memoryview(bytes([200 - number]) * BLOCK))
        await device.flush()
        assert device.stats.cached_bytes <= 4 * LINE
    for number in range(40):
        assert await device.read(number * LINE, BLOCK) == bytes([200 - number]) * BLOCK


async def test_line_written_back_and_evicted_during_a_fetch_is_not_stale() -> None:
    inner = Slow(4096)
    device = cache(inner, lines=4)
    inner.held.add("read")
    (read,) = await begin(device.read(BLOCK, BLOCK))
    await device.write(0, new())
    await device.flush()
    for number in range(10, 16):  # evicts the line
        await device.write(number * LINE, new())
        await device.flush()
    await inner.release()
    assert read.result() == block(1)
    inner.held.clear()
    assert await device.read(0, LINE) == bytes(new()) + b"".join(map(block, (1, 2, 3)))


async def test_zeroes_and_dirty_data_are_written_in_order() -> None:
    inner = Slow(64, held=["write", "write_zeroes"])
    device = cache(inner)
    await device.write(0, new(2))
    (flush,) = await begin(device.flush())
    (zeroes,) = await begin(device.write_zeroes(0, BLOCK, may_trim=True))
    assert inner.asked == [("write", 0, 2 * BLOCK)]  # zeroes wait for the write in flight
    await inner.release()
    await device.write(0, memoryview(b"3" * BLOCK))  # during the zeroes, so after them
    await inner.release()
    await asyncio.gather(flush, zeroes)
    assert await device.read(0, 2 * BLOCK) == b"3" * BLOCK + bytes(new())
    inner.held.clear()
    await device.flush()
    assert inner.content[: 2 * BLOCK] == b"3" * BLOCK + bytes(new())


async def test_zeroed_and_trimmed_blocks_are_not_dirty() -> None:
    inner = Slow(64)
    device = cache(inner)
    await device.write(0, new(4))
    await device.write_zeroes(0, BLOCK, may_trim=True)
    await device.trim(BLOCK, BLOCK)
    await device.flush()
    assert inner.asked[2:] == [("write", 2 * BLOCK, 2 * BLOCK), ("flush",)]
    assert await device.read(0, LINE) == bytes(BLOCK) + block(1) + new(2)


async def test_failed_zeroes_keep_dirty_data() -> None:
    inner = Slow(64)
    device = cache(inner)
    await device.write(0, new())
    inner.errors["write_zeroes"] = OSError(errno.EIO, "no")
    with pytest.raises(OSError, match="no"):
        await device.write_zeroes(0, LINE, may_trim=True)
    assert await device.read(0, BLOCK) == new()
    await device.flush()
    assert inner.content[:BLOCK] == new()


async def test_extents_show_dirty_data() -> None:
    inner = Slow(64)
    device = cache(inner)
    await device.write(BLOCK, new(5))
    hole = Extent(BLOCK, hole=True, zero=True)
    assert await device.extents(0, 8 * BLOCK) == [
        hole,
        Extent(5 * BLOCK),
        hole._replace(length=2 * BLOCK),
    ]
    assert await device.extents(2 * BLOCK, BLOCK) == [Extent(BLOCK)]
    assert await device.extents(8 * BLOCK, BLOCK) == [hole]


async def test_extents_show_blocks_that_become_clean_during_the_call() -> None:
    inner = Slow(64, held=["extents"])
    device = cache(inner)
    await device.write(0, new())
    (extents,) = await begin(device.extents(0, BLOCK))
    await device.flush()
    await inner.release()
    assert extents.result() == [Extent(BLOCK)]


async def test_unmount_writes_back_flushes_and_unmounts() -> None:
    inner = Slow(64)
    device = cache(inner)
    await device.write(0, new())
    await device.unmount()
    assert inner.asked == [("write", 0, BLOCK), ("flush",), ("unmount",)]


async def test_unmount_cancels_background_write_back(caplog: pytest.LogCaptureFixture) -> None:
    inner = Slow(64, held=["write"])
    device = cache(inner, dirty_limit=BLOCK)
    await device.write(0, new())
    await settle()
    inner.held.clear()
    await device.unmount()
    assert inner.asked == [("write", 0, BLOCK)] * 2 + [("flush",), ("unmount",)]
    assert caplog.records == []


async def test_unmount_unmounts_the_inner_device_when_data_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = Slow(64)
    device = cache(inner)
    await device.write(0, new())
    inner.errors["write"] = OSError(errno.EIO, "cut off")
    with pytest.raises(OSError, match="cut off"):
        await device.unmount()
    assert inner.asked[-1] == ("unmount",)
    assert caplog.messages == ["512 dirty bytes could not be written back and are lost"]
