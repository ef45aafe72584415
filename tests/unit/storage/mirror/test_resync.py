"""Members of a mirror that were dropped, or are stale, are made equal to the others again."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import Fault, Layer, MemoryDevice, Mirror
from aiovblk.storage.mirror.members import REGION
from aiovblk.testing import CrashableDisk

from ....support.mirror_members import BLOCK, SIZE, Watched, block, contents, failing, members


async def test_resync_copies_missed_regions_only() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    for region in range(3):
        await mirror.write(region * REGION, block(1))
    await mirror.flush()
    await mirror.write(0, block(2))  # unflushed, so it may be lost on the member
    one.add(failing("write"))
    await mirror.write(2 * REGION, block(3))
    two.asked.clear()
    done: list[int] = []
    await mirror.resync(one, advance=done.append)
    assert two.regions("read") == {0, 2}
    assert sum(done) == 2 * REGION
    assert mirror.in_sync == (one, two)
    assert await contents(one) == await contents(two)


async def test_member_that_failed_a_flush_may_have_lost_what_it_covered() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    await mirror.write(REGION, block(1))
    one.add(failing("flush"))
    await mirror.flush()
    two.asked.clear()
    await mirror.resync(one)
    assert two.regions("read") == {1}


async def test_resync_copies_all_of_a_stale_member() -> None:
    one, two = members()
    await one.write(0, block(1))
    await two.write(REGION, block(2))
    mirror = Mirror(one, two, stale=[one])
    assert await mirror.read(0, BLOCK) == bytes(BLOCK)
    await mirror.resync(one)
    assert await contents(one) == await contents(two)
    assert mirror.in_sync == (one, two)


async def test_resync_of_a_member_in_sync_copies_all_of_it() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    await one.write(0, block(1))  # as a crash may leave one
    await mirror.resync(two)
    assert await two.read(0, BLOCK) == block(1)


@pytest.mark.parametrize("seed", range(5))
async def test_writes_continue_during_a_resync(seed: int) -> None:
    one, two = members()
    mirror = Mirror(one, two, stale=[two])
    random, expected = Random(seed), bytearray(SIZE)
    two.asked.clear()
    coming = asyncio.ensure_future(mirror.resync(two))
    value = 0
    while not coming.done():
        value = value % 255 + 1
        offset = random.randrange(SIZE // BLOCK - 1) * BLOCK
        expected[offset : offset + 2 * BLOCK] = bytes([value]) * 2 * BLOCK
        await mirror.write(offset, memoryview(bytes([value]) * 2 * BLOCK))
        if random.random() < 0.2:
            await mirror.flush()
        assert await mirror.read(offset, BLOCK) == block(value)
    await coming
    assert await contents(one) == await contents(two) == expected


async def test_write_that_began_before_a_resync_is_not_missed() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    two.add(failing("write"))
    await mirror.write(0, block(1))
    one.add(Fault("write", delay=0.01, times=1))
    writing = asyncio.ensure_future(mirror.write(REGION, block(2)))
    await asyncio.sleep(0)
    await mirror.resync(two)
    await writing
    assert await contents(one) == await contents(two)


class SlowFlush(Layer):
    """A flush that returns only when the test lets it."""

    def __init__(self, inner: BlockDevice) -> None:
        super().__init__(inner)
        self.made, self.let_go = asyncio.Event(), asyncio.Event()

    async def flush(self) -> None:
        await super().flush()
        self.made.set()
        await self.let_go.wait()


async def test_flush_during_a_resync_is_durable_on_the_member() -> None:
    medium = CrashableDisk(SIZE)
    one, two = MemoryDevice(SIZE), SlowFlush(medium.open())
    mirror = Mirror(one, two, stale=[two])
    coming = asyncio.ensure_future(mirror.resync(two))
    await two.made.wait()
    await mirror.write(0, block(1))
    flushing = asyncio.ensure_future(mirror.flush())
    two.let_go.set()
    await asyncio.gather(flushing, coming)
    medium.crash()
    assert await medium.open().read(0, BLOCK) == block(1)


async def test_write_during_a_flush_is_not_covered_by_it() -> None:
    slow = SlowFlush(CrashableDisk(SIZE).open())
    one, two = Watched(MemoryDevice(SIZE)), Watched(slow)
    mirror = Mirror(one, two)
    flushing = asyncio.ensure_future(mirror.flush())
    await slow.made.wait()
    await mirror.write(REGION, block(1))
    slow.let_go.set()
    await flushing
    two.add(failing("write"))
    await mirror.write(2 * REGION, block(1))
    one.asked.clear()
    await mirror.resync(two)
    assert one.regions("read") == {1, 2}


async def test_cancelled_resync_continues_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiovblk.storage.mirror.resync.REGIONS_PER_FLUSH", 1)
    one, two = members()
    mirror = Mirror(one, two, stale=[two])
    done: list[int] = []

    def advance(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            coming.cancel()

    coming = asyncio.ensure_future(mirror.resync(two, advance=advance))
    with pytest.raises(asyncio.CancelledError):
        await coming
    assert two not in mirror.in_sync
    await mirror.resync(two, advance=done.append)
    assert sum(done) == SIZE + REGION  # the second region was not flushed, and is copied again
    assert two in mirror.in_sync


async def test_member_that_cannot_be_written_stays_dropped() -> None:
    one, two = members()
    await one.write(0, block(1))
    mirror = Mirror(one, two, stale=[two])
    two.add(failing("write"))
    with pytest.raises(OSError, match="on purpose"):
        await mirror.resync(two)
    assert two not in mirror.in_sync
    await mirror.resync(two)
    assert await two.read(0, BLOCK) == block(1)


async def test_impossible_resync_is_refused() -> None:
    one, two = members()
    mirror = Mirror(one, two, stale=[two])
    with pytest.raises(ValueError, match="is no member of this mirror"):
        await mirror.resync(MemoryDevice(SIZE))
    with pytest.raises(ValueError, match="no other member to copy from"):
        await mirror.resync(one)
    coming = asyncio.ensure_future(mirror.resync(two))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already"):
        await mirror.resync(two)
    await coming
