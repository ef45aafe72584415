"""Plan a run: which ranges are copied, which are compared first, and which are zeroed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

from ...bitmaps import SupportsDirtyBitmaps
from ...contract import check_extents
from ...device import BlockDevice
from ..copying import PIECE
from ..ranges import round_down, round_up
from .states import NOTHING, Point, Region

Range = tuple[int, int]
"""Begin and end, in bytes."""


class How(Enum):
    """What is done with a span."""

    COPY = "copy"
    """It is read from the source, and written to the target."""
    COMPARE = "compare"
    """It is read from both, and what differs is written."""
    ZERO = "zero"
    """Zeroes are written, without reading."""


class Span(NamedTuple):
    """A range of bytes that a run deals with."""

    begin: int
    end: int
    how: How


class Differences(NamedTuple):
    """What can tell how a device differs from earlier states, by their points."""

    bitmaps: SupportsDirtyBitmaps
    points: tuple[Point, ...]


class Planner:
    """Finds out what has to be copied from a source to a target.

    Args:
        source: the device to read.
        target: the device to write.
        block: bytes, a multiple of the block sizes of both; the size of the source as well is a
            multiple of it.

    """

    def __init__(self, source: BlockDevice, target: BlockDevice, block: int) -> None:
        self._source = source
        self._target = target
        self._block = block

    async def of_regions(
        self, bitmaps: SupportsDirtyBitmaps | None, regions: Iterable[Region]
    ) -> list[Span]:
        """Return the spans that differ, or may differ, from what the regions hold.

        Args:
            bitmaps: of the source; None if it has none, or they are about another disk.
            regions: of the target, ascending.

        """
        known = set() if bitmaps is None else set(await bitmaps.dirty_bitmaps())
        spans: list[Span] = []
        for first, last, points in regions:
            # An earlier run may have had smaller blocks.
            begin, end = round_down(first, self._block), round_up(last, self._block)
            dirty = None
            if bitmaps is not None and known.issuperset(points):
                with suppress(KeyError):  # it was dropped meanwhile
                    dirty = await self.dirty(Differences(bitmaps, points), begin, end)
            if dirty is not None:
                spans += [each for part in dirty async for each in self._split(*part, How.COPY)]
            else:
                # Where the target may hold anything, comparing would only cost reads of it.
                how = How.COPY if points[0] == NOTHING else How.COMPARE
                spans += [each async for each in self._split(begin, end, how)]
        return spans

    async def of_ranges(self, ranges: Iterable[Range], how: How) -> list[Span]:
        """Return the spans of these ranges of the source."""
        return [each for part in ranges async for each in self._split(*part, how)]

    async def dirty(self, differences: Differences, begin: int, end: int) -> list[Range]:
        """Return what differs from any of several states, in whole blocks, ascending."""
        found: list[Range] = []
        for point in differences.points:
            assert point is not None  # the caller has looked for it among the names
            position = begin
            while position < end:
                answer = await differences.bitmaps.dirty_extents(point, position, end - position)
                for length, is_dirty in _checked(answer, point):
                    if is_dirty:
                        last = round_up(min(position + length, end), self._block)
                        found.append((round_down(position, self._block), last))
                    position += length
        return merge(found)

    async def _split(self, begin: int, end: int, how: How) -> AsyncIterator[Span]:
        """Yield what is data in a range of the source, and what is zeroes there only."""
        if end - begin <= PIECE:
            # To read so little costs no more than to ask; zeroes are found in what was read.
            yield Span(begin, end, how)
            return
        for first, last, zero in await _known_zeroes(self._source, begin, end, self._block):
            if not zero and how is How.COPY:
                yield Span(first, last, how)
                continue
            for start, stop, is_zero in await _known_zeroes(self._target, first, last, self._block):
                if not zero:  # what the target has not is copied without reading the target
                    yield Span(start, stop, How.COPY if is_zero else how)
                elif not is_zero:
                    yield Span(start, stop, How.ZERO)


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Return the union of ranges, ascending, without those that touch."""
    merged: list[Range] = []
    for begin, end in sorted(ranges):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def total_of(spans: Sequence[Span], how: How) -> int:
    """Return the bytes of the spans that are dealt with so."""
    return sum(each.end - each.begin for each in spans if each.how is how)


def _checked(answer: Sequence[tuple[int, bool]], point: str) -> Sequence[tuple[int, bool]]:
    """Validate what a device answers, so that a loop over a range terminates."""
    if not answer or any(length < 1 for length, _ in answer):
        raise ValueError(f"dirty_extents() of {point!r} returned none, or one of no bytes")
    return answer


async def _known_zeroes(
    device: BlockDevice, begin: int, end: int, block: int
) -> list[tuple[int, int, bool]]:
    """Return the parts of a range, and whether each is known to be zeroes, in whole blocks."""
    parts: list[tuple[int, int, bool]] = []
    covered = position = begin  # covered: the end of the last part
    while position < end:
        for length, _, zero in check_extents(await device.extents(position, end - position)):
            first = round_up(position, block)
            position = min(position + length, end)
            last = round_down(position, block)
            if zero and first < last:
                if covered < first:
                    parts.append((covered, first, False))
                if parts and parts[-1][2] and parts[-1][1] == first:
                    first = parts.pop()[0]
                parts.append((first, last, True))
                covered = last
            if position >= end:
                break
    if covered < end:
        parts.append((covered, end, False))
    return parts
