"""Members of a mirror fail and are dropped, and no read is ever wrong."""

from __future__ import annotations

import asyncio
import errno
import logging
from typing import Any

import pytest

from aiovblk import Extent
from aiovblk.storage import Fault, Layer, MemoryDevice, Mirror
from aiovblk.storage.extents import common
from aiovblk.storage.mirror.members import REGION
from aiovblk.testing import CrashableDisk

from ....support.mirror_members import BLOCK, SIZE, block, contents, failing, members

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
