"""A cache on a store: restored at the next start, and errors of the store."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import Cache, FileDevice
from aiovblk.storage.cache import Policy

from ....support.slow_device import Slow, settle
from .test_cache import BLOCK, LINE, begin, block, new

SLOTS = 16
STORE_BLOCKS = (2 * 4096 + SLOTS * (LINE + 8)) // BLOCK + 1
POLICIES: list[Policy] = ["read", "write-through", "write-back"]


class Disk:
    """Contents that outlive the devices over them."""

    def __init__(self) -> None:
        self.content = bytearray(STORE_BLOCKS * BLOCK)

    def open(self, kind: type[Slow] = Slow) -> Slow:
        device = kind(STORE_BLOCKS)
        device.content = self.content
        return device


class Killed(Slow):
    """A device whose process is killed at its n-th request, reads not counted."""

    left = 1 << 30

    async def write(self, offset: int, data: memoryview) -> None:
        self._count()
        await super().write(offset, data)

    async def flush(self) -> None:
        self._count()

    def _count(self) -> None:
        if self.left == 0:
            raise OSError(errno.EIO, "killed")
        self.left -= 1


def cache(inner: BlockDevice, store: BlockDevice, **options: Any) -> Cache:
    return Cache(inner, store, **{"line_size": LINE, "read_ahead": 0} | options)


async def fill(disk: Disk, inner: Slow, **options: Any) -> None:
    """Mount a cache, read lines 0 to 3, and unmount it cleanly."""
    device = cache(inner, disk.open(), **options)
    await device.read(0, 4 * LINE)
    await settle()
    await device.unmount()
    inner.take()


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


# Crashes


async def test_cache_that_was_not_unmounted_is_emptied(caplog: pytest.LogCaptureFixture) -> None:
    inner, disk = Slow(64), Disk()
    await fill(disk, inner)
    device = cache(inner, disk.open())
    await device.read(0, LINE)  # the second process, which is killed
    assert inner.asked == []
    device = cache(inner, disk.open())
    await device.read(0, LINE)
    assert inner.asked == [("read", 0, LINE)]
    assert caplog.messages == ["what was cached is dropped: it was not closed cleanly"]


async def test_store_is_marked_as_in_use_before_the_inner_device_changes() -> None:
    class Watched(Slow):
        async def write(self, offset: int, data: memoryview) -> None:
            assert store.asked[-2:] == [("write", 0, 4096), ("flush",)]
            await super().write(offset, data)

    inner, store = Watched(64), Disk().open()
    await cache(inner, store).write(0, new())


async def life(device: Cache, random: Random, model: bytearray) -> None:
    """Make requests, record those that are done, and unmount cleanly."""
    for _ in range(12):
        first = random.randrange(60)
        if random.random() < 0.5:
            await device.read(first * BLOCK, 4 * BLOCK)
        else:
            data = random.randbytes(random.randint(1, 4) * BLOCK)
            await device.write(first * BLOCK, memoryview(data))
            model[first * BLOCK : first * BLOCK + len(data)] = data
        await settle()
    await device.flush()
    await device.unmount()


@pytest.mark.parametrize("policy", POLICIES)
async def test_cache_killed_at_any_write_to_its_store_is_never_stale(policy: Policy) -> None:
    """The inner device survives: its writes after the last one of the store must be read later."""
    for left in range(200):
        inner, disk = Slow(64), Disk()
        model, random = bytearray(inner.content), Random(left)
        await life(cache(inner, disk.open(), policy=policy), random, model)
        killed = disk.open(Killed)
        assert isinstance(killed, Killed)
        killed.left = left
        try:
            await life(cache(inner, killed, policy=policy), random, model)
            assert inner.content == model
        except OSError:
            model = inner.content  # the store could not be opened, and nothing was flushed
        device = cache(inner, disk.open(), policy=policy)
        assert await device.read(0, inner.size) == inner.content == model
        await device.unmount()
        if killed.left:
            return
    pytest.fail("it was never done")


class Volatile(Slow):
    """A device that keeps through a power failure what was flushed, and some other writes."""

    def __init__(self, blocks: int) -> None:
        super().__init__(blocks)
        self.unflushed: dict[int, bytes] = {}

    async def write(self, offset: int, data: memoryview) -> None:
        for at in range(0, len(data), BLOCK):
            self.unflushed.setdefault(offset + at, bytes(self.content[offset + at :][:BLOCK]))
        await super().write(offset, data)

    async def flush(self) -> None:
        self.unflushed.clear()

    def lose(self, random: Random) -> None:
        for offset, old in self.unflushed.items():
            if random.random() < 0.5:
                self.content[offset : offset + BLOCK] = old


@pytest.mark.parametrize("policy", POLICIES)
async def test_cache_after_a_power_failure_is_never_stale(policy: Policy) -> None:
    for seed in range(50):
        inner, disk, random = Slow(64), Disk(), Random(seed)
        model = bytearray(inner.content)
        for _ in range(2):
            await life(cache(inner, disk.open(), policy=policy), random, model)
        store = disk.open(Volatile)
        assert isinstance(store, Volatile)
        device = cache(inner, store, policy=policy)
        for _ in range(random.randint(0, 10)):
            data = random.randbytes(2 * BLOCK)
            first = random.randrange(62)
            await device.write(first * BLOCK, memoryview(data))
            await device.read(first // 4 * LINE, LINE)
        await device.flush()
        if random.random() < 0.5:
            await device.unmount()
        store.lose(random)
        again = cache(inner, disk.open(), policy=policy)
        assert await again.read(0, inner.size) == inner.content


async def test_dirty_data_of_a_killed_process_does_not_come_back() -> None:
    inner, disk = Slow(64), Disk()
    await fill(disk, inner, policy="write-back")
    killed = cache(inner, disk.open(), policy="write-back")
    await killed.write(0, new())
    device = cache(inner, disk.open(), policy="write-back")
    assert await device.read(0, BLOCK) == block(0)
    await device.unmount()
    assert inner.content[:BLOCK] == block(0)


# A store that fails


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("kind", ["read", "write"])
async def test_error_of_the_store_fails_no_request(
    policy: Policy, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    inner, store = Slow(64), Disk().open()
    device = cache(inner, store, policy=policy, dirty_limit=LINE)
    await device.read(0, 2 * LINE)
    await device.write(BLOCK, new())
    await device.flush()
    await settle()
    store.errors[kind] = OSError(errno.ENOSPC, "disk full")
    await device.write(0, new())
    expected = bytes(new(2)) + bytes(inner.content[2 * BLOCK :])
    for _ in range(2):
        assert await device.read(0, inner.size) == expected
        await settle()
    await device.flush()
    assert inner.content == expected
    await device.unmount()
    assert caplog.messages == [
        "caching has stopped, because the store has failed: [Errno 28] disk full"
    ]
    assert inner.asked[-1] == store.asked[-1] == ("unmount",)


async def test_no_read_ahead_after_the_store_has_failed() -> None:
    inner, store = Slow(256), Disk().open()
    device = cache(inner, store, read_ahead=8 * LINE)
    await device.read(0, LINE)
    store.errors["write"] = OSError(errno.EIO, "no")
    for number in range(1, 10):
        await device.read(number * LINE, BLOCK)
        await settle()
    assert device.stats.read_ahead_bytes == 2 * LINE  # before the failure


async def test_store_that_failed_once_is_empty_the_next_time() -> None:
    inner, disk = Slow(64), Disk()
    await fill(disk, inner)
    store = disk.open()
    device = cache(inner, store)
    await device.read(0, LINE)
    store.errors["write"] = OSError(errno.EIO, "for a while")
    await device.write(LINE, new())
    store.errors.clear()
    await device.unmount()
    device = cache(inner, disk.open())
    assert await device.read(LINE, BLOCK) == new()


async def test_store_that_cannot_be_opened_fails_the_requests_until_it_can() -> None:
    inner, disk = Slow(64), Disk()
    await fill(disk, inner)
    store = disk.open()
    store.errors["write"] = OSError(errno.EROFS, "read-only")
    device = cache(inner, store)
    for request in (device.read(0, LINE), device.write(0, new())):
        with pytest.raises(OSError, match="read-only"):
            await request
    assert inner.asked == []
    store.errors.clear()
    await device.read(0, LINE)
    assert inner.content[:BLOCK] == block(0)
    await device.unmount()


async def test_cache_is_empty_the_next_time_if_the_last_flush_failed() -> None:
    inner, disk = Slow(64), Disk()
    device = cache(inner, disk.open())
    await device.read(0, LINE)
    await settle()
    inner.errors["flush"] = OSError(errno.EIO, "lost")
    with pytest.raises(OSError, match="lost"):
        await device.unmount()
    assert inner.asked[-1] == ("unmount",)
    inner.errors.clear()
    inner.take()
    await cache(inner, disk.open()).read(0, LINE)
    assert inner.asked == [("read", 0, LINE)]


async def test_unmount_unmounts_all_devices_whatever_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner, store = Slow(64), Disk().open()
    device = cache(inner, store)
    await device.read(0, LINE)
    await settle()
    store.errors |= dict.fromkeys(["write", "unmount"], OSError(errno.EIO, "store"))
    with pytest.raises(OSError, match="store"):
        await device.unmount()
    assert inner.asked[-1] == store.asked[-1] == ("unmount",)
    assert caplog.messages == [
        "the cache will start empty next time, its store could not be closed: [Errno 5] store"
    ]


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
