"""A cache in memory: hits, fetches, eviction, writes and errors."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.device import Extent, can
from aiovblk.storage import Cache, MemoryDevice
from aiovblk.storage.cache import Policy

from ....support.cache_lines import BLOCK, LINE, begin, block, new
from ....support.slow_device import Slow, settle

POLICIES: list[Policy] = ["read", "write-through", "write-back"]


def cache(inner: BlockDevice, lines: int = 64, **options: Any) -> Cache:
    """Make a cache, by default without read-ahead."""
    return Cache(inner, size=lines * LINE, line_size=LINE, **{"read_ahead": 0} | options)


# Reading


async def test_line_is_read_once_for_all_its_blocks() -> None:
    inner = Slow(64)
    device = cache(inner)
    assert [await device.read(at * BLOCK, BLOCK) for at in range(5, 8)] == [
        block(5),
        block(6),
        block(7),
    ]
    assert await device.read(LINE, LINE) == b"".join(map(block, range(4, 8)))
    assert inner.asked == [("read", LINE, LINE)]
    assert (device.stats.hits, device.stats.misses, device.stats.fetched_bytes) == (3, 1, LINE)
    assert device.stats.cached_bytes == LINE


async def test_result_is_a_copy() -> None:
    inner = Slow(64)
    device = cache(inner, lines=1)
    results = [
        await device.read(*where) for where in [(0, BLOCK), (0, BLOCK), (0, LINE), (0, LINE)]
    ]
    await device.write(0, new(4))
    await device.read(LINE, LINE)  # reuses the slot
    assert results == [block(0), block(0), *[b"".join(map(block, range(4)))] * 2]


async def test_adjacent_lines_are_fetched_by_one_read_up_to_1_mib() -> None:
    inner = Slow(3 * 2048)
    device = cache(inner, lines=2000)
    await device.read(LINE, LINE)
    assert await device.read(0, inner.size) == inner.content
    mib = 1 << 20
    assert inner.asked == [
        ("read", LINE, LINE),
        ("read", 0, LINE),
        ("read", 2 * LINE, mib - 2 * LINE),
        ("read", mib, mib),
        ("read", 2 * mib, mib),
    ]


async def test_last_line_may_be_short() -> None:
    inner = Slow(6)
    device = cache(inner)
    for _ in range(2):
        assert await device.read(4 * BLOCK, 2 * BLOCK) == block(4) + block(5)
    assert inner.asked == [("read", LINE, 2 * BLOCK)]


async def test_concurrent_reads_of_a_line_share_one_fetch() -> None:
    inner = Slow(64, held=["read"])
    device = cache(inner)
    reads = await begin(*(device.read(at * BLOCK, BLOCK) for at in (0, 1, 1, 3)))
    two_lines = (await begin(device.read(3 * BLOCK, 2 * BLOCK)))[0]
    assert inner.asked == [("read", 0, LINE), ("read", LINE, LINE)]
    await inner.release()
    assert [read.result() for read in reads] == [block(0), block(1), block(1), block(3)]
    assert two_lines.result() == block(3) + block(4)


async def test_cancelled_read_does_not_disturb_the_others() -> None:
    inner = Slow(64, held=["read"])
    device = cache(inner)
    first, second = await begin(device.read(0, BLOCK), device.read(BLOCK, BLOCK))
    first.cancel()
    await inner.release()
    assert first.cancelled()
    assert second.result() == block(1)
    assert inner.asked == [("read", 0, LINE)]


async def test_fetch_without_a_waiting_reader_is_cancelled() -> None:
    inner = Slow(64, held=["read"])
    device = cache(inner)
    first, second = await begin(device.read(0, BLOCK), device.read(BLOCK, BLOCK))
    first.cancel()
    second.cancel()
    await settle()
    (again,) = await begin(device.read(0, BLOCK))  # does not join the one that hung
    assert inner.asked == [("read", 0, LINE)] * 2
    await inner.release()
    assert again.result() == block(0)


async def test_failed_fetch_fails_all_waiting_reads_and_is_not_cached() -> None:
    inner = Slow(64, held=["read"])
    inner.errors["read"] = OSError(errno.EREMOTEIO, "far away")
    device = cache(inner)
    reads = await begin(device.read(0, BLOCK), device.read(BLOCK, BLOCK))
    await inner.release()
    for read in reads:
        with pytest.raises(OSError, match="far away"):
            await read
    inner.errors.clear()
    inner.held.clear()
    assert await device.read(0, BLOCK) == block(0)


async def test_read_of_the_wrong_length_is_refused() -> None:
    class Short(Slow):
        async def read(self, offset: int, length: int) -> bytes:
            return bytes(length - 1)

    with pytest.raises(ValueError, match="read returned 2047 bytes where 2048 were asked for"):
        await cache(Short(64)).read(0, BLOCK)


async def test_buffer_that_the_inner_device_reuses_is_copied() -> None:
    class Reuses(BlockDevice):
        block_size, blocks = BLOCK, 64
        buffer = bytearray(LINE)

        async def read(self, offset: int, length: int) -> bytearray:
            self.buffer[:] = bytes([offset // LINE]) * length
            return self.buffer

    device = cache(Reuses())
    reads = await begin(device.read(0, BLOCK), device.read(LINE, BLOCK))
    assert [read.result() for read in reads] == [bytes(BLOCK), b"\x01" * BLOCK]


async def test_read_that_is_larger_than_the_cache_ends() -> None:
    inner = Slow(64)
    device = cache(inner, lines=1)
    await device.read(0, BLOCK)
    assert await device.read(0, inner.size) == inner.content
    assert device.stats.cached_bytes == LINE


# Eviction


async def test_there_are_never_more_lines_than_fit() -> None:
    inner = Slow(256)
    device = cache(inner, lines=5)
    for at in range(0, inner.size, BLOCK):
        assert await device.read(at, BLOCK) == block(at // BLOCK)
        assert device.stats.cached_bytes <= 5 * LINE
    assert device.stats.evictions == 64 - 5


@pytest.mark.parametrize("size", [BLOCK, LINE, 8 * LINE])
async def test_scan_does_not_evict_hot_lines(size: int) -> None:
    inner = Slow(4096)
    device = cache(inner, lines=32)
    hot = [number * LINE for number in range(0, 8)]
    for _ in range(3):
        for offset in hot:
            await device.read(offset, BLOCK)
    for offset in range(100 * LINE, 900 * LINE, size):
        await device.read(offset, size)
    inner.take()
    for offset in hot:
        await device.read(offset, BLOCK)
    assert inner.asked == []


async def test_hot_lines_are_evicted_in_the_end() -> None:
    inner = Slow(4096)
    device = cache(inner, lines=16)
    for first in (0, 100):
        for _ in range(6):
            for number in range(first, first + 12):
                await device.read(number * LINE, BLOCK)
        inner.take()
    for number in range(100, 112):
        await device.read(number * LINE, BLOCK)
    assert inner.asked == []


# Writing


@pytest.mark.parametrize(("policy", "reads"), [("read", 1), ("write-through", 0)])
async def test_write_goes_to_the_inner_device(policy: Policy, reads: int) -> None:
    inner = Slow(64)
    device = cache(inner, policy=policy)
    await device.read(0, LINE)
    await device.write(BLOCK, new(2))
    assert inner.take() == [("read", 0, LINE), ("write", BLOCK, 2 * BLOCK)]
    assert await device.read(0, LINE) == block(0) + new(2) + block(3)
    assert len(inner.asked) == reads


async def test_write_through_needs_no_fetch_and_a_read_fetches_the_rest() -> None:
    inner = Slow(64)
    device = cache(inner)
    await device.write(BLOCK, new())
    assert await device.read(BLOCK, BLOCK) == new()
    assert inner.take() == [("write", BLOCK, BLOCK)]
    assert await device.read(0, LINE) == block(0) + new() + block(2) + block(3)
    assert inner.take() == [("read", 0, LINE)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["write", "write_zeroes"])
async def test_change_during_a_fetch_is_not_undone_by_what_was_fetched(
    policy: Policy, kind: str
) -> None:
    inner = Slow(64, held=["read"])
    device = cache(inner, policy=policy)
    (old,) = await begin(device.read(0, BLOCK))
    if kind == "write":
        await device.write(0, new())
    else:
        await device.write_zeroes(0, BLOCK, may_trim=True)
    expected = bytes(new()) if kind == "write" else bytes(BLOCK)
    (after,) = await begin(device.read(0, 2 * BLOCK))
    await inner.release()
    assert old.result() in (block(0), expected)
    assert after.result() == expected + block(1)
    inner.held.clear()
    assert await device.read(0, LINE) == expected + b"".join(map(block, (1, 2, 3)))
    await device.flush()
    assert inner.content[:BLOCK] == expected


@pytest.mark.parametrize("policy", ["read", "write-through"])
async def test_fetch_that_began_during_a_write_is_not_stored(policy: Policy) -> None:
    inner = Slow(64, held=["write"])
    before = bytes(inner.content[:LINE])

    async def read(offset: int, length: int) -> bytes:
        inner.asked.append(("read", offset, length))
        return before[offset:][:length]  # by the old contents

    device = cache(inner, policy=policy)
    inner.read = read  # type: ignore[method-assign]
    (write,) = await begin(device.write(0, new()))
    assert await device.read(0, BLOCK) == block(0)
    await inner.release()
    await write
    del inner.read
    assert await device.read(0, BLOCK) == new()


async def test_change_elsewhere_in_the_line_does_not_invalidate_the_fetch() -> None:
    inner = Slow(64, held=["read"])
    device = cache(inner)
    await begin(device.read(0, BLOCK))
    await device.write(3 * BLOCK, new())
    (read,) = await begin(device.read(BLOCK, BLOCK))
    await inner.release()
    assert read.result() == block(1)
    inner.take()
    assert await device.read(0, LINE) == b"".join(map(block, (0, 1, 2))) + new()
    assert inner.asked == []


async def test_overlapping_writes_are_made_one_after_the_other() -> None:
    inner = Slow(64, held=["write"])
    device = cache(inner)
    writes = await begin(
        device.write(0, new(2)),
        device.write(BLOCK, memoryview(b"2" * 2 * BLOCK)),
        device.write(3 * BLOCK, new()),
    )
    assert inner.take() == [("write", 0, 2 * BLOCK), ("write", 3 * BLOCK, BLOCK)]
    await inner.release()
    assert inner.take() == [("write", BLOCK, 2 * BLOCK)]
    await inner.release()
    await asyncio.gather(*writes)
    assert await device.read(0, LINE) == bytes(new()) + b"2" * 2 * BLOCK + bytes(new())
    assert inner.content[:LINE] == await device.read(0, LINE)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["write", "write_zeroes"])
async def test_failed_change_leaves_what_the_inner_device_has(policy: Policy, kind: str) -> None:
    inner = Slow(64)
    device = cache(inner, policy=policy, dirty_limit=1)
    await device.read(0, LINE)
    inner.errors[kind] = OSError(errno.EIO, "no")
    with pytest.raises(OSError, match="no"):
        if kind == "write":
            await device.write(0, new())
        else:
            await device.write_zeroes(0, BLOCK, may_trim=True)
    inner.content[:BLOCK] = b"?" * BLOCK  # it took effect all the same
    assert await device.read(0, BLOCK) == b"?" * BLOCK


@pytest.mark.parametrize("policy", ["read", "write-through"])
async def test_cancelled_write_leaves_what_the_inner_device_has(policy: Policy) -> None:
    inner = Slow(64, held=["write"])
    device = cache(inner, policy=policy)
    await device.read(0, LINE)
    (write,) = await begin(device.write(0, new()))
    write.cancel()
    await settle()
    assert await device.read(0, BLOCK) == new()


@pytest.mark.parametrize("policy", POLICIES)
async def test_trimmed_and_zeroed_blocks_are_fetched_again(policy: Policy) -> None:
    inner = Slow(64)
    device = cache(inner, policy=policy)
    await device.read(0, 2 * LINE)
    await device.trim(0, BLOCK)
    await device.write_zeroes(BLOCK, LINE, may_trim=True)
    inner.content[:BLOCK] = b"?" * BLOCK
    inner.take()
    assert await device.read(5 * BLOCK, BLOCK) == block(5)
    assert inner.asked == []
    assert await device.read(0, 2 * BLOCK) == b"?" * BLOCK + bytes(BLOCK)


async def test_trim_of_the_whole_device_visits_cached_lines_only() -> None:
    device = Cache(MemoryDevice(1 << 40), size=1 << 20)
    await device.read(0, 4096)
    await device.trim(0, device.size)
    await device.write_zeroes(0, device.size, may_trim=True)
    assert await device.read(0, 4096) == bytes(4096)


# Other handlers and options


async def test_hint_fetches_as_much_as_half_of_the_cache() -> None:
    inner = Slow(256)
    device = cache(inner, lines=16)
    await device.read(2 * LINE, LINE)
    inner.take()
    await device.cache(0, inner.size)
    assert inner.asked == [("read", 0, 2 * LINE), ("read", 3 * LINE, 5 * LINE)]
    inner.errors["read"] = OSError(errno.EIO, "not now")
    await device.cache(20 * LINE, LINE)


def test_cache_has_hints_and_flush_over_any_device() -> None:
    device = Cache(MemoryDevice(1 << 20), size=1 << 20)
    assert can(device, "flush")
    assert can(device, "cache")


async def test_what_cannot_be_written_is_read_only() -> None:
    class OnlyReads(BlockDevice):
        blocks = 4
        multi_conn = True

        async def read(self, offset: int, length: int) -> bytes:
            return b"r" * length

    device = Cache(OnlyReads(), size=1 << 20, policy="write-back")
    assert (device.read_only, device.multi_conn) == (True, True)
    with pytest.raises(PermissionError):
        await device.write(0, memoryview(bytes(4096)))
    assert await device.read(0, 8192) == b"r" * 8192


def test_copies_of_a_writable_device_are_not_one_disk() -> None:
    inner = Slow(64)
    inner.multi_conn = True
    assert not cache(inner).multi_conn


async def test_extents_are_those_of_the_inner_device() -> None:
    assert await cache(Slow(64)).extents(0, LINE) == [Extent(LINE, hole=True, zero=True)]


async def test_device_that_becomes_larger_has_more_in_its_last_line() -> None:
    inner = Slow(16)
    inner.blocks = 6
    device = cache(inner)
    await device.read(LINE, 2 * BLOCK)
    device.blocks = 16
    assert await device.read(LINE, LINE) == b"".join(map(block, range(4, 8)))


@pytest.mark.parametrize("policy", POLICIES)
async def test_blocks_that_a_resize_removed_do_not_come_back(policy: Policy) -> None:
    inner = Slow(16)
    device = cache(inner, policy=policy)
    await device.read(0, inner.size)
    await device.write(10 * BLOCK, new(2))
    device.blocks = 6
    assert device.stats.dirty_bytes == 0
    inner.content[6 * BLOCK :] = bytes(10 * BLOCK)
    device.blocks = 16
    assert await device.read(LINE, 3 * LINE) == block(4) + block(5) + bytes(10 * BLOCK)


async def test_unmount_cancels_fetches_and_unmounts_the_inner_device() -> None:
    inner = Slow(64, held=["read"])
    device = cache(inner)
    (read,) = await begin(device.read(0, BLOCK))
    await device.unmount()
    with pytest.raises(OSError, match="cancelled"):
        await read
    assert inner.asked == [("read", 0, LINE), ("flush",), ("unmount",)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": None}, "needs a size"),
        ({"size": LINE - 1}, "no line of 2048 bytes fits"),
        ({"policy": "write-around"}, "one of read, write-through, write-back, not 'write-around'"),
        ({"line_size": 700}, "line_size must be a multiple of 512, not 700"),
        ({"dirty_limit": 0}, "dirty_limit must be at least 1, not 0"),
    ],
)
def test_wrong_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cache(Slow(64), **{"size": 1 << 20, "line_size": LINE} | options)
