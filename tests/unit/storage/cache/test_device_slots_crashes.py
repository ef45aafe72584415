"""A cache on a store: crashes, power failures, and errors of the store."""

from __future__ import annotations

import errno
from random import Random

import pytest

from aiovblk.storage import Cache
from aiovblk.storage.cache import Policy

from ....support.cache_lines import BLOCK, LINE, block, new
from ....support.cache_store import POLICIES, Disk, cache, fill
from ....support.slow_device import Slow, settle

pytestmark = pytest.mark.slow


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
