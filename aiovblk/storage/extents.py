"""Arithmetic on lists of extents: overwrite parts, round to blocks, intersect."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from operator import itemgetter

from ..device import Extent
from .ranges import round_down, round_up

MAX_EXTENTS = 1024
"""Extents that ``extents()`` of a device in this package returns at most; the caller asks again.

It bounds how long one call computes. The dispatcher and the client accept more from a device or a
server that is not ours: their limits (``dispatch/holes.py``, ``protocol/reply_parsing.py``)
bound the memory of one reply instead.
"""


def with_data(
    extents: Iterable[Extent], begin: int, end: int, data: Sequence[tuple[int, int]]
) -> list[Extent]:
    """Overwrite parts of a list of extents with data.

    Args:
        extents: of the device below; the first begins at ``begin``.
        begin: offset in bytes.
        end: offset in bytes; what lies beyond is left out.
        data: begin and end of each range that holds data, in bytes; ascending, not overlapping.

    """
    found = []
    for extent in extents:
        stop = min(begin + extent.length, end)
        for first, last in _clip(data, begin, stop):
            if begin < first:
                found.append(extent._replace(length=first - begin))
            found.append(Extent(last - first))
            begin = last
        if begin < stop:
            found.append(extent._replace(length=stop - begin))
        begin = stop
    return found


def _clip(ranges: Sequence[tuple[int, int]], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of ``ranges`` that lie between two bytes."""
    at = bisect_right(ranges, begin, key=itemgetter(1))
    while at < len(ranges) and ranges[at][0] < end:
        yield max(ranges[at][0], begin), min(ranges[at][1], end)
        at += 1


def in_whole_blocks(extents: Sequence[Extent], offset: int, block_size: int) -> list[Extent]:
    """Round extents to larger blocks: a block that is a hole, or zero, only in part is data.

    Args:
        extents: of a device with smaller blocks; the first begins at ``offset``.
        offset: bytes, a multiple of ``block_size``.
        block_size: bytes.

    Returns:
        Whole blocks. A last block that ``extents`` cover only in part is left out, for the caller
        to ask for again, unless it would be the only one: that is data.

    """
    rounded: list[Extent] = []
    begin = position = offset  # of what is not in the result yet, and of what was looked at
    for length, hole, zero in extents:
        first = round_up(position, block_size)
        last = round_down(position + length, block_size)
        position += length
        if (hole or zero) and first < last:
            if begin < first:
                rounded.append(Extent(first - begin))
            rounded.append(Extent(last - first, hole, zero))
            begin = last
    last = round_down(position, block_size)
    if begin < last:
        rounded.append(Extent(last - begin))
    return rounded or [Extent(block_size)]


def common(answers: Sequence[Sequence[Extent]]) -> Iterator[Extent]:
    """Intersect what several devices answer for the same bytes.

    A range is a hole if it is one in all answers, and reads as zeroes if it does so in all. The
    result ends with the shortest answer.
    """
    ends = [list(accumulate(extent.length for extent in answer)) for answer in answers]
    at = 0
    for end in sorted({each for several in ends for each in several}):
        if end > min(several[-1] for several in ends):
            break
        here = [
            answer[bisect_right(several, at)] for answer, several in zip(answers, ends, strict=True)
        ]
        yield Extent(end - at, all(each.hole for each in here), all(each.zero for each in here))
        at = end
