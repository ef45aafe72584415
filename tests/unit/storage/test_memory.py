from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from aiovblk import BlockDevice
from aiovblk.contract import check_geometry
from aiovblk.device import Extent
from aiovblk.dispatch import transmission_flags
from aiovblk.protocol import TransmissionFlag as Flag
from aiovblk.storage import MemoryDevice

PAGE = os.sysconf("SC_PAGE_SIZE")


async def filled(size: int, block_size: int = 512) -> MemoryDevice:
    device = MemoryDevice(size, block_size=block_size)
    await device.write(0, memoryview(b"\xff" * size))
    return device


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


async def test_new_device_is_all_zeroes() -> None:
    assert await MemoryDevice(65536).read(0, 65536) == bytes(65536)


async def test_what_was_written_is_read_and_nothing_else_changed() -> None:
    device = MemoryDevice(4096, block_size=512)
    await device.write(512, memoryview(b"\x01" * 1024))
    assert await device.read(0, 4096) == bytes(512) + b"\x01" * 1024 + bytes(2560)


async def test_what_was_read_does_not_change_with_the_device() -> None:
    device = await filled(4096)
    data = await device.read(0, 512)
    await device.write(0, memoryview(bytes(512)))
    assert data == b"\xff" * 512


@pytest.mark.parametrize("block_size", [512, 4096])
def test_geometry_follows_from_the_size(block_size: int) -> None:
    device = MemoryDevice(5 * 4096, block_size=block_size)
    check_geometry(device)
    assert (device.block_size, device.size) == (block_size, 5 * 4096)


@pytest.mark.parametrize("size", [512, 4097, 6144])
def test_size_that_is_no_multiple_of_the_block_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4096 bytes, not {size}"):
        MemoryDevice(size)


def test_memory_has_trim_and_write_zeroes_and_no_flush() -> None:
    device: BlockDevice = MemoryDevice(4096)
    assert transmission_flags(device) == Flag.HAS_FLAGS | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES


EDGES = [0, 512, PAGE - 512, PAGE, PAGE + 512, 2 * PAGE, 3 * PAGE - 512, 3 * PAGE]
RANGES = [(begin, end) for begin in EDGES for end in EDGES if begin < end]


@pytest.mark.parametrize(("begin", "end"), RANGES)
@pytest.mark.parametrize("may_trim", [True, False])
async def test_write_zeroes_clears_its_range_and_nothing_else(
    begin: int, end: int, may_trim: bool
) -> None:
    device = await filled(3 * PAGE)
    await device.write_zeroes(begin, end - begin, may_trim=may_trim)
    expected = b"\xff" * begin + bytes(end - begin) + b"\xff" * (3 * PAGE - end)
    assert await device.read(0, 3 * PAGE) == expected


@pytest.mark.parametrize(("begin", "end"), RANGES)
async def test_trim_changes_nothing_outside_its_range(begin: int, end: int) -> None:
    device = await filled(3 * PAGE)
    await device.trim(begin, end - begin)
    assert await device.read(0, begin) == b"\xff" * begin
    assert await device.read(end, 3 * PAGE - end) == b"\xff" * (3 * PAGE - end)


async def test_trim_makes_whole_pages_zeroes() -> None:
    device = await filled(3 * PAGE)
    await device.trim(512, 3 * PAGE - 512)
    assert await device.read(PAGE, 2 * PAGE) == bytes(2 * PAGE)


async def test_trim_and_write_zeroes_give_memory_back() -> None:
    size = 64 << 20
    device = await filled(size)
    full = resident()
    await device.trim(0, size // 2)
    assert resident() < full - size // 4
    await device.write_zeroes(0, size, may_trim=True)
    assert resident() < full - 3 * (size // 4)


async def test_device_of_5_tib_costs_only_what_is_written() -> None:
    before = resident()
    device = MemoryDevice(5 << 40)
    check_geometry(device)
    last = device.size - 4096
    await device.write(last, memoryview(b"\x05" * 4096))
    assert await device.read(last, 4096) == b"\x05" * 4096
    assert await device.read(device.size // 2, 4096) == bytes(4096)
    await device.trim(0, 2**32 - 4096)
    await device.write_zeroes(0, 2**32 - 4096, may_trim=True)
    await device.write_zeroes(last, 4096, may_trim=True)
    assert await device.read(last, 4096) == bytes(4096)
    assert resident() - before < 16 << 20


GRAIN = 256 * 1024
SIZE = 16 * GRAIN + 1536  # ends within a grain, and within a page


def data(length: int) -> Extent:
    return Extent(length)


def hole(length: int) -> Extent:
    return Extent(length, hole=True, zero=True)


async def test_new_device_is_one_hole() -> None:
    device = MemoryDevice(5 << 40)
    assert await device.extents(0, 5 << 40) == [hole(5 << 40)]
    assert await device.extents(4096, 8192) == [hole(8192)]


async def test_extents_begin_and_end_with_the_request() -> None:
    device = MemoryDevice(SIZE, block_size=512)
    await device.write(2 * GRAIN - 512, memoryview(b"\x01" * 1024))
    assert await device.extents(0, SIZE) == [hole(GRAIN), data(2 * GRAIN), hole(SIZE - 3 * GRAIN)]
    assert await device.extents(GRAIN - 512, 1024) == [hole(512), data(512)]
    assert await device.extents(GRAIN, 512) == [data(512)]
    assert await device.extents(3 * GRAIN - 512, 1024) == [data(512), hole(512)]
    assert await device.extents(3 * GRAIN, 512) == [hole(512)]


async def test_data_in_the_last_unit_ends_with_the_device() -> None:
    device = MemoryDevice(SIZE, block_size=512)
    await device.write(SIZE - 512, memoryview(b"\x01" * 512))
    assert await device.extents(0, SIZE) == [hole(16 * GRAIN), data(1536)]
    await device.trim(16 * GRAIN, 1536)  # no whole page: the bytes stay
    assert await device.extents(16 * GRAIN, 1536) == [data(1536)]
    await device.write_zeroes(16 * GRAIN, 1536, may_trim=False)
    assert await device.extents(0, SIZE) == [hole(SIZE)]


@pytest.mark.parametrize("zeroing", [False, True])
async def test_whole_units_become_holes_again(zeroing: bool) -> None:
    device = await filled(SIZE)
    begin, length = GRAIN - 512, 2 * GRAIN + 1024
    if zeroing:
        await device.write_zeroes(begin, length, may_trim=False)
    else:
        await device.trim(begin, length)
    assert await device.extents(0, SIZE) == [data(GRAIN), hole(2 * GRAIN), data(SIZE - 3 * GRAIN)]
    await device.write(GRAIN, memoryview(b"\x01" * GRAIN))
    assert await device.extents(0, SIZE) == [
        data(2 * GRAIN),
        hole(GRAIN),
        data(SIZE - 3 * GRAIN),
    ]


async def test_number_of_extents_is_limited() -> None:
    device = MemoryDevice(4096 * GRAIN)
    for at in range(0, device.size, 2 * GRAIN):
        await device.write(at, memoryview(b"\x01" * 4096))
    found = await device.extents(0, device.size)
    assert found == [data(GRAIN), hole(GRAIN)] * 512
    assert await device.extents(1024 * GRAIN, device.size - 1024 * GRAIN) == found


@pytest.mark.parametrize("seed", range(8))
async def test_extents_are_exactly_the_units_that_were_written(seed: int) -> None:
    random = Random(seed)
    device = MemoryDevice(SIZE, block_size=512)
    written: set[int] = set()
    for _ in range(100):
        begin, end = sorted(random.sample(range(0, SIZE + 1, 512), 2))
        inside = range(-(-begin // GRAIN), 17 if end == SIZE else end // GRAIN)
        if random.random() < 0.5:
            end = min(begin + random.randrange(512, GRAIN, 512), SIZE)
            await device.write(begin, memoryview(b"\x01" * (end - begin)))
            written |= set(range(begin // GRAIN, -(-end // GRAIN)))
        else:
            await device.write_zeroes(begin, end - begin, may_trim=True)
            written -= set(inside)
        found = await device.extents(0, SIZE)
        assert sum(extent.length for extent in found) == SIZE
        at = 0
        for extent in found:
            grains = range(at // GRAIN, -(-(at + extent.length) // GRAIN))
            assert [grain in written for grain in grains] == [not extent.zero] * len(grains)
            at += extent.length
