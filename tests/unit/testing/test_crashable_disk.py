"""The disk with a volatile write cache: reads, flushes and crashes."""

from __future__ import annotations

import errno

import pytest

from aiovblk import Extent
from aiovblk.testing import CrashableDisk

BLOCK = 4096
ONE, TWO = (memoryview(bytes([value]) * BLOCK) for value in (1, 2))


async def left_of(seed: int, *, flushed: bool) -> bytes:
    """What a crash leaves of two blocks that were written twice."""
    medium = CrashableDisk(2 * BLOCK, seed=seed)
    device = medium.open()
    for data in (ONE, TWO):
        for block in range(2):
            await device.write(block * BLOCK, data)
    if flushed:
        await device.flush()
    medium.crash()
    left = await medium.open().read(0, 2 * BLOCK)
    return bytes([left[0], left[BLOCK]])


async def test_crash_leaves_any_version_of_each_block_since_the_flush() -> None:
    left = {await left_of(seed, flushed=False) for seed in range(100)}
    assert left == {bytes([first, second]) for first in range(3) for second in range(3)}


async def test_crash_leaves_what_was_flushed() -> None:
    assert {await left_of(seed, flushed=True) for seed in range(20)} == {b"\2\2"}


async def test_contents_outlive_an_unmount_without_a_flush() -> None:
    medium = CrashableDisk(2 * BLOCK)
    device = medium.open()
    await device.write(0, ONE)
    await device.unmount()
    assert await medium.open().read(0, BLOCK) == ONE


async def test_dead_and_unmounted_devices_fail_with_eio() -> None:
    medium = CrashableDisk(2 * BLOCK)
    for end in (medium.crash, None):
        device = medium.open()
        end() if end else await device.unmount()
        with pytest.raises(OSError, match="lost its power") as caught:
            await device.read(0, BLOCK)
        assert caught.value.errno == errno.EIO


async def test_dead_device_does_not_close_its_successor() -> None:
    medium = CrashableDisk(2 * BLOCK)
    dead = medium.open()
    medium.crash()
    device = medium.open()
    await dead.unmount()
    await device.write(0, ONE)


def test_one_device_is_open_at_a_time() -> None:
    medium = CrashableDisk(2 * BLOCK)
    medium.open()
    with pytest.raises(RuntimeError, match="unmount that"):
        medium.open()


async def test_zeroes_and_what_was_never_written_are_holes() -> None:
    device = CrashableDisk(4 * BLOCK).open()
    await device.write(0, memoryview(bytes([3]) * 3 * BLOCK))
    await device.write_zeroes(BLOCK, BLOCK, may_trim=False)
    assert await device.extents(0, 4 * BLOCK) == [
        Extent(BLOCK),
        Extent(BLOCK, hole=True, zero=True),
        Extent(BLOCK),
        Extent(BLOCK, hole=True, zero=True),
    ]


@pytest.mark.parametrize(
    ("offset", "length"), [(2 * BLOCK, BLOCK), (BLOCK, 2 * BLOCK), (-BLOCK, BLOCK), (512, BLOCK)]
)
async def test_requests_that_a_device_never_gets_are_bugs(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="bytes at"):
        await CrashableDisk(2 * BLOCK).open().read(offset, length)


def test_size_is_whole_blocks() -> None:
    with pytest.raises(ValueError, match="a multiple of 4096 bytes, not 5000"):
        CrashableDisk(5000)
