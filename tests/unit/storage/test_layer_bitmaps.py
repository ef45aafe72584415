"""Which layers pass the dirty bitmaps of the device below on, and how."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

import pytest

from aiovblk import BlockDevice
from aiovblk.bitmaps import DirtyExtent, SupportsDirtyBitmaps, cut_extents, find_dirty, list_bitmaps
from aiovblk.storage import (
    BlockSize,
    Cache,
    Fault,
    Faults,
    Intercept,
    Layer,
    MemoryDevice,
    Metered,
    Mirror,
    Overlay,
    Partition,
    Rate,
    RateLimited,
    ReadOnly,
    Retry,
    Shared,
)
from tests.support.bitmap_disk import BitmapDisk, dirty_ranges

SIZE = 1 << 20
MakeLayer = Callable[[BlockDevice], BlockDevice]


class Passing(Layer):
    passes_bitmaps = True


PASSING: dict[str, MakeLayer] = {
    "Retry": lambda inner: Retry(inner, delay=0),
    "RateLimited": lambda inner: RateLimited(inner, Rate(requests=1e9)),
    "Metered": Metered,
    "Faults": Faults,
    "ReadOnly": ReadOnly,
    "Shared": lambda inner: Shared(inner).handle(),
    "Partition of all": lambda inner: Partition(inner, 0, SIZE),
    "BlockSize": lambda inner: BlockSize(inner, 4096),
    "Cache": lambda inner: Cache(inner, size=SIZE),
    "Cache of reads": lambda inner: Cache(inner, size=SIZE, policy="read"),
    "a layer that says so": Passing,
    "several": lambda inner: Retry(Metered(Partition(inner, 0, SIZE))),
}

HIDING: dict[str, MakeLayer] = {
    "Layer": Layer,
    "Intercept": Intercept,
    "Cache with write-back": lambda inner: Cache(inner, size=SIZE, policy="write-back"),
    "Cache with write-back and a store": lambda inner: Cache(
        inner, MemoryDevice(SIZE, block_size=512), policy="write-back"
    ),
    "Mirror": lambda inner: Mirror(inner, MemoryDevice(SIZE, block_size=512)),
    "one that hides among others": lambda inner: Retry(Layer(Metered(inner))),
}


@pytest.fixture
def disk() -> BitmapDisk:
    disk = BitmapDisk(SIZE, "a", "b")
    disk.mark("a", 4096, 8192)
    return disk


@pytest.mark.parametrize("name", PASSING)
async def test_layer_that_passes_data_unchanged_passes_bitmaps(name: str, disk: BitmapDisk) -> None:
    layer = PASSING[name](disk)
    assert isinstance(layer, SupportsDirtyBitmaps)
    assert await layer.dirty_bitmaps() == ["a", "b"]
    assert dirty_ranges(await layer.dirty_extents("a", 0, SIZE)) == [(4096, 8192)]
    with pytest.raises(KeyError):
        await layer.dirty_extents("other", 0, SIZE)
    if not layer.read_only:
        await layer.write(65536, memoryview(bytes(4096)))
        assert dirty_ranges(await layer.dirty_extents("b", 0, SIZE)) == [(65536, 4096)]


@pytest.mark.parametrize("name", HIDING)
async def test_layer_whose_data_may_differ_has_no_bitmaps(name: str, disk: BitmapDisk) -> None:
    layer = HIDING[name](disk)
    assert list(await list_bitmaps(layer)) == []
    with pytest.raises(KeyError):
        await find_dirty(layer, "a", 0, SIZE)
    await layer.unmount()


async def test_overlay_has_no_bitmaps(disk: BitmapDisk) -> None:
    overlay = await Overlay.create(disk, MemoryDevice(4 * SIZE))
    assert list(await list_bitmaps(overlay)) == []
    await overlay.unmount()


@pytest.mark.parametrize("name", PASSING)
async def test_layer_on_a_device_without_bitmaps_has_none(name: str) -> None:
    layer = PASSING[name](MemoryDevice(SIZE, block_size=512))
    assert list(await list_bitmaps(layer)) == []
    with pytest.raises(KeyError):
        await find_dirty(layer, "a", 0, SIZE)


async def test_partition_shifts_its_bitmaps(disk: BitmapDisk) -> None:
    part = Partition(disk, 8192, 65536)
    assert dirty_ranges(await part.dirty_extents("a", 0, 65536)) == [(0, 4096)]
    assert disk.queries == [("a", 8192, 65536)]


async def test_larger_block_is_dirty_if_a_part_of_it_is(disk: BitmapDisk) -> None:
    disk.mark("b", 4096 + 512, 512)
    disk.mark("b", 16384 - 512, 1024)
    larger = BlockSize(disk, 4096)
    assert await larger.dirty_extents("b", 0, 32768) == [
        (4096, False),
        (4096, True),
        (4096, False),
        (8192, True),
        (12288, False),
    ]


@pytest.mark.parametrize("covered", [512, 4096, 4608, 8191])
async def test_larger_block_that_is_covered_in_part_is_asked_for_again(covered: int) -> None:
    class Short(BitmapDisk):
        async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
            return [DirtyExtent(min(covered, length), False)]

    larger = BlockSize(Short(SIZE, "a"), 4096)
    found = await larger.dirty_extents("a", 0, 32768)
    # Where not even one block is known, it counts as dirty.
    assert found == [DirtyExtent(4096, covered < 4096)]


async def test_smaller_blocks_are_cut_from_those_of_the_device() -> None:
    disk = BitmapDisk(SIZE, "a", block_size=4096)
    disk.mark("a", 4096, 4096)
    smaller = BlockSize(disk, 512)
    assert await smaller.dirty_extents("a", 3584, 1024) == [(512, False), (512, True)]
    assert disk.queries == [("a", 0, 8192)]


async def test_query_of_a_bitmap_counts_as_one_for_extents(disk: BitmapDisk) -> None:
    metered = Metered(disk)
    await metered.dirty_extents("a", 0, 4096)
    with pytest.raises(KeyError):
        await metered.dirty_extents("other", 0, 4096)
    assert (metered.counts["extents"].requests, metered.counts["extents"].errors) == (2, 1)


async def test_query_of_a_bitmap_is_tried_again(disk: BitmapDisk) -> None:
    faults = Faults(disk, Fault("extents", error=errno.EIO, times=2))
    assert await Retry(faults, delay=0).dirty_extents("a", 4096, 512) == [(512, True)]
    assert faults.injected == 2


@pytest.mark.parametrize(
    ("skip", "length", "expected"),
    [
        (0, 3000, [(1000, False), (500, True), (1500, False)]),
        (0, 1000, [(1000, False)]),
        (999, 2, [(1, False), (1, True)]),
        (1000, 500, [(500, True)]),
        (2000, 9000, [(1000, False)]),
        (3000, 10, []),
    ],
)
def test_extents_are_cut_to_a_range(
    skip: int, length: int, expected: list[tuple[int, bool]]
) -> None:
    extents = [DirtyExtent(1000, False), DirtyExtent(500, True), DirtyExtent(1500, False)]
    assert cut_extents(extents, skip, length) == expected


async def test_block_of_which_only_a_part_is_known_counts_as_dirty() -> None:
    class Short(BitmapDisk):
        async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
            return [DirtyExtent(512, False)]

    smaller = BlockSize(Short(SIZE, "a", block_size=4096), 512)
    assert await smaller.dirty_extents("a", 4608, 8192) == [(3584, True)]
