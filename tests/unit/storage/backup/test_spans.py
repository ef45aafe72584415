"""What a run plans to copy, to compare and to zero."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from aiovblk import BlockDevice, Extent
from aiovblk.bitmaps import DirtyExtent
from aiovblk.storage.backup.spans import How, Planner, Span, merge
from aiovblk.storage.backup.states import NOTHING, UNKNOWN, Region

from ....support.backups import in_small_pieces
from ....support.bitmap_device import BLOCK, BitmapDevice

SIZE = 64 * BLOCK


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with in_small_pieces():
        yield


class Shaped(BlockDevice):
    """A device of which only the extents are asked for.

    Args:
        holes: begin and end of what reads as zeroes, in blocks; ascending.

    """

    blocks = SIZE // BLOCK

    def __init__(self, *holes: tuple[int, int]) -> None:
        self.holes = holes

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        for begin, end in self.holes:
            if offset < begin * BLOCK:
                return [Extent(begin * BLOCK - offset)]
            if offset < end * BLOCK:
                return [Extent(end * BLOCK - offset, hole=True, zero=True)]
        return [Extent(SIZE)]  # more than what is left


def in_blocks(spans: Sequence[Span]) -> list[tuple[int, int, How]]:
    return [(begin // BLOCK, end // BLOCK, how) for begin, end, how in spans]


async def plan(source: Shaped, target: Shaped, *points: str | None) -> list[tuple[int, int, How]]:
    planner = Planner(source, target, BLOCK)
    return in_blocks(await planner.of_regions(None, [Region(0, SIZE, points)]))


async def test_first_backup_copies_data_and_zeroes_what_the_target_has_there() -> None:
    source, target = Shaped((8, 32), (48, 64)), Shaped((0, 16), (40, 56))
    assert await plan(source, target, NOTHING) == [
        (0, 8, How.COPY),
        (16, 32, How.ZERO),
        (32, 48, How.COPY),
        (56, 64, How.ZERO),
    ]


async def test_unknown_state_is_compared_where_the_target_has_data() -> None:
    source, target = Shaped((8, 32)), Shaped((0, 4), (16, 24), (40, 48))
    assert await plan(source, target, UNKNOWN) == [
        (0, 4, How.COPY),
        (4, 8, How.COMPARE),
        (8, 16, How.ZERO),
        (24, 32, How.ZERO),
        (32, 40, How.COMPARE),
        (40, 48, How.COPY),
        (48, 64, How.COMPARE),
    ]


async def test_what_differs_from_any_possible_state_is_copied() -> None:
    source = BitmapDevice(SIZE)
    await source.add("a")
    await source.fill(1, b"x")
    await source.add("b")
    await source.fill(3, b"x", 2)
    planner = Planner(source, Shaped(), BLOCK)
    regions = [Region(0, 4 * BLOCK, ("b",)), Region(4 * BLOCK, SIZE, ("a", "b"))]
    assert in_blocks(await planner.of_regions(source, regions)) == [
        (3, 4, How.COPY),
        (4, 5, How.COPY),
    ]
    whole = [Region(0, SIZE, ("a", "b"))]
    assert in_blocks(await planner.of_regions(source, whole)) == [
        (1, 2, How.COPY),
        (3, 5, How.COPY),
    ]


async def test_dirty_blocks_and_regions_are_rounded_to_larger_blocks() -> None:
    source = BitmapDevice(SIZE, block_size=512)
    await source.add("a")
    await source.fill(9, b"x")
    planner = Planner(source, Shaped(), BLOCK)
    regions = [Region(0, 512, ("a",)), Region(512, SIZE, ("a",))]
    assert in_blocks(await planner.of_regions(source, regions)) == [(1, 2, How.COPY)]
    unknown = [Region(0, 512, (UNKNOWN,))]
    assert in_blocks(await planner.of_regions(source, unknown)) == [(0, 1, How.COMPARE)]


async def test_bitmap_that_answers_nothing_is_an_error() -> None:
    class Silent(BitmapDevice):
        async def dirty_extents(self, name: str, offset: int, length: int) -> list[DirtyExtent]:
            return []

    source = Silent(SIZE)
    await source.add("a")
    with pytest.raises(ValueError, match="'a' returned none"):
        await Planner(source, Shaped(), BLOCK).of_regions(source, [Region(0, SIZE, ("a",))])


def test_ranges_are_merged() -> None:
    assert merge([(5, 7), (0, 2), (2, 3), (6, 9), (11, 12)]) == [(0, 3), (5, 9), (11, 12)]
    assert merge([]) == []
