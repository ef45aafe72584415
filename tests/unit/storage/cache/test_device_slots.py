"""A cache on a store: what is stored in it, and restored at the next start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiovblk.storage import Cache, FileDevice
from aiovblk.storage.cache import Policy

from ....support.cache_lines import BLOCK, LINE, begin, block, new
from ....support.cache_store import POLICIES, SLOTS, STORE_BLOCKS, Disk, cache, fill
from ....support.slow_device import Slow, settle

# Hits and stores


async def test_hit_reads_the_store() -> None:
    inner, store = Slow(64), Disk().open()
    device = cache(inner, store)
    for _ in range(2):
        assert await device.read(BLOCK, LINE) == b"".join(map(block, range(1, 5)))
        await settle()
    assert inner.asked == [("read", 0, 2 * LINE)]
    assert (device.stats.hits, device.stats.misses) == (1, 1)


async def test_reader_does_not_wait_for_the_store() -> None:
    inner, store = Slow(64), Disk().open()
    device = cache(inner, store)
    await device.read(LINE, LINE)
    store.held.add("write")
    (first,) = await begin(device.read(0, BLOCK))
    (second,) = await begin(device.read(BLOCK, BLOCK))
    assert (first.result(), second.result()) == (block(0), block(1))
    assert inner.asked == [("read", LINE, LINE), ("read", 0, LINE)]
    await store.release()
    assert await device.read(0, BLOCK) == block(0)
    assert device.stats.hits == 1


async def test_write_while_the_line_is_being_stored_is_not_undone() -> None:
    inner, store = Slow(64), Disk().open()
    device = cache(inner, store)
    await device.read(LINE, LINE)
    store.held.add("write")
    await begin(device.read(0, BLOCK))
    (write,) = await begin(device.write(0, new()))
    store.held.clear()
    await store.release()
    await write
    for _ in range(2):
        assert await device.read(0, LINE) == bytes(new()) + b"".join(map(block, (1, 2, 3)))
        await settle()


async def test_writes_to_the_store_that_finish_in_any_order_leave_what_is_right() -> None:
    class Late(Slow):
        async def write(self, offset: int, data: memoryview) -> None:
            await self._answer("write")
            self.content[offset : offset + len(data)] = data

    inner, store = Slow(64), Disk().open(Late)
    device = cache(inner, store)
    await device.read(LINE, LINE)
    store.held.add("write")
    await begin(device.read(0, BLOCK))
    (write,) = await begin(device.write(0, new()))
    store.held.clear()
    while store.waiting:
        store.waiting.reverse()
        await store.release(most=1)
    await write
    for _ in range(2):
        assert await device.read(0, LINE) == bytes(new()) + b"".join(map(block, (1, 2, 3)))
        await settle()


async def test_store_is_not_written_beyond_its_size() -> None:
    inner, disk = Slow(1024), Disk()
    device = cache(inner, disk.open(), size=2 * 4096 + 5 * (LINE + 8))
    for number in range(100):
        await device.read(number * LINE, LINE)
        await settle()
    assert device.stats.cached_bytes == 5 * LINE
    assert not any(disk.content[2 * 4096 + 5 * LINE :])


async def test_write_back_keeps_dirty_data_in_memory_only() -> None:
    inner, store = Slow(64), Disk().open()
    device = cache(inner, store, policy="write-back", dirty_limit=4 * LINE)
    await device.write(0, new())
    assert (inner.asked, store.asked) == ([], [])
    await device.flush()
    assert ("write", 0, BLOCK) in inner.asked
    lower = device.inner
    assert isinstance(lower, Cache)
    assert lower.stats.cached_bytes == LINE


# The next start


@pytest.mark.parametrize("policy", POLICIES)
async def test_cache_is_warm_after_it_was_unmounted(policy: Policy) -> None:
    inner, disk = Slow(66), Disk()
    device = cache(inner, disk.open(), policy=policy, dirty_limit=4 * LINE)
    await device.read(0, 4 * LINE)
    await device.read(64 * BLOCK, 2 * BLOCK)  # a short line
    await device.write(BLOCK, new(2))
    if policy == "read":
        await device.read(0, BLOCK)
        await settle()
        await device.read(BLOCK, BLOCK)
    await settle()
    await device.unmount()
    inner.take()
    device = cache(inner, disk.open(), policy=policy, dirty_limit=4 * LINE)
    assert await device.read(0, 4 * LINE) == inner.content[: 4 * LINE]
    assert await device.read(64 * BLOCK, 2 * BLOCK) == inner.content[64 * BLOCK :]
    assert inner.asked == []
    await device.unmount()


async def test_restored_lines_are_evicted_like_others() -> None:
    inner, disk = Slow(1024), Disk()
    await fill(disk, inner)
    device = cache(inner, disk.open())
    for number in range(200):
        assert await device.read(number * LINE, BLOCK) == block(number * 4)
        await settle()
        assert device.stats.cached_bytes <= SLOTS * LINE
    assert device.stats.evictions == 200 - SLOTS


async def test_file_keeps_a_cache(tmp_path: Path) -> None:
    inner = Slow(64)
    store = FileDevice.create(tmp_path / "cache", STORE_BLOCKS * BLOCK)
    device = cache(inner, store)
    assert await device.read(0, inner.size) == inner.content
    await device.unmount()
    assert inner.take() == [("read", 0, inner.size), ("flush",), ("unmount",)]
    device = cache(inner, FileDevice(tmp_path / "cache"))
    assert await device.read(0, inner.size) == inner.content
    assert inner.asked == []
    await device.unmount()


async def test_cache_that_was_not_used_stays_as_it_was() -> None:
    inner, disk = Slow(64), Disk()
    await fill(disk, inner)
    await cache(inner, disk.open()).unmount()
    inner.take()
    await cache(inner, disk.open()).read(0, 4 * LINE)
    assert inner.asked == []


@pytest.mark.parametrize(
    "change",
    [{"identity": "another"}, {"line_size": 2 * LINE}, {"size": STORE_BLOCKS * BLOCK - LINE}],
)
async def test_cache_of_another_device_is_emptied(
    change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    inner, disk = Slow(64), Disk()
    await fill(disk, inner, identity="one")
    other = Slow(64)
    other.content = bytearray(b"o" * other.size)
    device = cache(other, disk.open(), **{"identity": "one"} | change)
    assert await device.read(0, LINE) == b"o" * LINE
    assert caplog.messages == [
        "what was cached is dropped: it is not of what this device holds, or has other lines"
    ]


async def test_identity_function_is_called_at_open_and_at_the_end() -> None:
    fetch = [("read", 0, LINE)]
    inner, disk = Slow(64), Disk()
    for begins, ends, asked in (("1", "2", fetch), ("2", "3", []), ("other", "4", fetch)):
        versions = iter((begins, ends))
        device = cache(inner, disk.open(), identity=lambda versions=versions: next(versions))
        await device.read(0, LINE)
        assert inner.take() == asked
        await device.unmount()
        inner.take()


async def test_cache_of_a_device_that_has_grown_meanwhile_is_emptied() -> None:
    inner, disk = Slow(64), Disk()
    inner.blocks = 63
    await fill(disk, inner)
    inner.blocks = 64
    await cache(inner, disk.open()).read(0, LINE)
    assert inner.asked == [("read", 0, LINE)]


@pytest.mark.parametrize(
    ("position", "reason"), [(20, "its header is damaged"), (4096 + 3, "its table is damaged")]
)
async def test_damaged_cache_is_emptied(
    position: int, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    inner, disk = Slow(64), Disk()
    await fill(disk, inner)
    disk.content[position] ^= 1
    await cache(inner, disk.open()).read(0, LINE)
    assert inner.asked == [("read", 0, LINE)]
    assert caplog.messages == [f"what was cached is dropped: {reason}"]


async def test_store_with_something_else_is_refused_and_unchanged() -> None:
    inner, disk = Slow(64), Disk()
    disk.content[:4] = b"ext4"
    device = cache(inner, disk.open())
    for request in (device.read(0, LINE), device.write(0, new()), device.cache(0, LINE)):
        with pytest.raises(FileExistsError, match="holds something that is no cache"):
            await request
    await device.unmount()
    assert disk.content == b"ext4".ljust(len(disk.content), b"\0")
    assert inner.asked == [("flush",), ("unmount",)]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: Slow(64, block_size=1024), {}, "blocks of 1024 bytes are too large"),
        (lambda: Slow(64), {"size": 65 * BLOCK}, "has 32768 bytes, fewer than 33280"),
        (lambda: Slow(20), {}, "no line of 2048 bytes fits"),
    ],
)
def test_store_that_does_not_fit_is_refused(
    make: Callable[[], Slow], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cache(Slow(64), make(), **options)


def test_store_that_cannot_be_written_is_refused() -> None:
    store = Slow(64)
    store.read_only = True
    with pytest.raises(ValueError, match="read-only"):
        cache(Slow(64), store)
