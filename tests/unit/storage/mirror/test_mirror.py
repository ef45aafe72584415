"""Members of a mirror fail, are dropped, and are resynced, and no read is ever wrong."""

from __future__ import annotations

import asyncio
import errno
import logging
from random import Random
from typing import Any

import pytest

from aiovblk import BlockDevice, Extent
from aiovblk.storage import Fault, Faults, Layer, MemoryDevice, Mirror
from aiovblk.storage.extents import common
from aiovblk.storage.mirror.members import REGION
from aiovblk.testing import CrashableDisk

BLOCK = 4096
SIZE = 4 * REGION


def block(value: int) -> memoryview:
    return memoryview(bytes([value]) * BLOCK)


class Watched(Faults):
    """A member that records its requests."""

    def __init__(self, inner: BlockDevice, *faults: Fault) -> None:
        super().__init__(inner, *faults)
        self.asked: list[tuple[str, int]] = []

    async def intercept(self, command: str, offset: int, length: int, call: Any) -> Any:
        self.asked.append((command, offset))
        return await super().intercept(command, offset, length, call)

    def regions(self, command: str) -> set[int]:
        return {offset // REGION for name, offset in self.asked if name == command}


def members(count: int = 2, size: int = SIZE) -> list[Watched]:
    return [Watched(CrashableDisk(size, seed=seed).open()) for seed in range(count)]


async def contents(device: BlockDevice) -> bytes:
    return bytes(await device.read(0, device.size))


def failing(command: str) -> Fault:
    return Fault(command, error=errno.EIO, times=1)


# Reading


async def test_reads_are_spread_over_the_members() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    await mirror.read(0, SIZE)
    assert (one.regions("read"), two.regions("read")) == ({0, 2}, {1, 3})


async def test_read_that_fails_is_answered_by_another_member() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    await mirror.write(0, block(1))
    one.add(Fault("read", error=errno.EIO))
    assert await mirror.read(0, BLOCK) == block(1)
    assert mirror.in_sync == (one, two)


async def test_read_that_all_members_fail_fails() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    for member in one, two:
        member.add(Fault("read", error=errno.ETIMEDOUT))
    with pytest.raises(OSError, match="no member could be read at 0") as caught:
        await mirror.read(0, BLOCK)
    assert caught.value.errno == errno.EIO


# Members that are dropped


async def test_member_that_fails_a_write_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    dropped: list[Any] = []
    one, two = members()
    mirror = Mirror(one, two, on_drop=lambda member, error: dropped.append((member, error)))
    one.add(failing("write"))
    with caplog.at_level(logging.ERROR, "aiovblk"):
        await mirror.write(0, block(1))
    assert mirror.in_sync == (two,)
    assert dropped[0][0] is one
    assert "is dropped" in caplog.text
    assert await mirror.read(0, BLOCK) == block(1)
    assert one.regions("read") == set()


async def test_member_is_dropped_before_the_write_has_returned() -> None:
    one, two = members()
    order: list[str] = []
    mirror = Mirror(one, two, on_drop=lambda member, error: order.append("dropped"))
    two.add(failing("write_zeroes"))
    await mirror.write_zeroes(0, BLOCK, may_trim=True)
    order.append("returned")
    assert order == ["dropped", "returned"]


async def test_member_that_fails_a_flush_is_dropped() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    two.add(failing("flush"))
    await mirror.flush()
    assert mirror.in_sync == (one,)


@pytest.mark.parametrize("command", ["write", "flush"])
async def test_request_that_fails_on_all_members_is_eio_and_drops_none(command: str) -> None:
    one, two = members()
    mirror = Mirror(one, two)
    for member in one, two:
        member.add(Fault(command, error=errno.ENOSPC, times=1))
    with pytest.raises(OSError, match="all members of the mirror have failed") as caught:
        await (mirror.write(0, block(1)) if command == "write" else mirror.flush())
    assert caught.value.errno == errno.EIO
    assert mirror.in_sync == (one, two)


async def test_last_member_is_never_dropped() -> None:
    one, two = members()
    mirror = Mirror(one, two, stale=[one])
    two.add(failing("write"))
    with pytest.raises(OSError, match="all members"):
        await mirror.write(0, block(1))
    assert mirror.in_sync == (two,)


async def test_failed_trim_drops_no_member() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    one.add(Fault("trim", error=errno.EIO))
    await mirror.trim(0, BLOCK)
    two.add(Fault("trim", error=errno.EIO))
    with pytest.raises(OSError, match="all members"):
        await mirror.trim(0, BLOCK)
    assert mirror.in_sync == (one, two)


# Order of changes, and reconciliation


async def test_overlapping_writes_are_made_in_one_order() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    for _ in range(20):
        await asyncio.gather(*(mirror.write(0, block(value)) for value in range(1, 6)))
        assert await one.read(0, BLOCK) == await two.read(0, BLOCK)


async def test_members_are_reconciled_by_a_flush_after_a_cancelled_write() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    two.add(Fault("write", delay=1000, times=1))
    writing = asyncio.ensure_future(mirror.write(REGION, block(1)))
    for _ in range(10):  # more steps of the loop than a write takes
        await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await contents(one) != await contents(two)
    await mirror.flush()
    assert await contents(one) == await contents(two)


async def test_flush_succeeds_although_a_divergent_region_cannot_be_read() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    for member in one, two:
        member.add(failing("write"))
    with pytest.raises(OSError, match="all members"):
        await mirror.write(0, block(1))
    for member in one, two:
        member.add(Fault("read", error=errno.EIO))
    await mirror.flush()


async def test_extents_are_zeroes_where_all_members_have_them() -> None:
    one, two = members()
    mirror = Mirror(one, two)
    await one.write(0, block(1))
    assert (await mirror.extents(0, 2 * BLOCK))[0] == Extent(BLOCK)
    two.add(Fault("extents", error=errno.EIO))
    assert await mirror.extents(0, 2 * BLOCK) == [Extent(BLOCK), Extent(BLOCK)]


def test_common_extents_end_with_the_shortest() -> None:
    zero = {"hole": True, "zero": True}
    several = [[Extent(3, **zero), Extent(4)], [Extent(1), Extent(4, **zero), Extent(9)]]
    assert list(common(several)) == [Extent(1), Extent(2, **zero), Extent(2), Extent(2)]


# Resync


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


# As a device


async def test_mirror_has_the_size_and_the_handlers_of_its_members() -> None:
    one, two = MemoryDevice(SIZE), MemoryDevice(SIZE)
    mirror = Mirror(one, two)
    assert (mirror.size, mirror.read_only, mirror.rotational) == (SIZE, False, False)
    two.read_only = two.rotational = True
    assert Mirror(one, two).read_only
    assert Mirror(one, two).rotational


def test_members_that_do_not_fit_are_refused() -> None:
    one, two = MemoryDevice(SIZE), MemoryDevice(SIZE, block_size=512)
    with pytest.raises(ValueError, match="8192 blocks of 512 bytes are not 1024 of 4096"):
        Mirror(one, two)
    with pytest.raises(ValueError, match="only once"):
        Mirror(one, one)
    three = MemoryDevice(SIZE)
    with pytest.raises(ValueError, match="not all members can be stale"):
        Mirror(one, three, stale=[three, one])
    with pytest.raises(ValueError, match="must be a member"):
        Mirror(one, three, stale=[two])


async def test_all_members_are_unmounted_whatever_fails() -> None:
    class Stuck(Layer):
        async def unmount(self) -> None:
            await super().unmount()
            raise OSError(errno.EIO, "stuck")

    media = [CrashableDisk(SIZE), CrashableDisk(SIZE)]
    with pytest.raises(OSError, match="stuck"):
        await Mirror(Stuck(media[0].open()), Stuck(media[1].open())).unmount()
    for medium in media:
        medium.open()  # would be refused
