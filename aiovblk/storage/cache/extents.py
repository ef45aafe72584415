"""Extents of a device, some parts of which were written over."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

from ...device import Extent


def with_data(
    extents: Iterable[Extent], begin: int, end: int, data: Sequence[tuple[int, int]]
) -> list[Extent]:
    """Extents as they are when there is data in some places.

    Args:
        extents: of what lies below, the first at ``begin``.
        begin: bytes.
        end: what lies beyond is left out.
        data: where data begins and ends; ascending and apart.

    """
    found = []
    for extent in extents:
        stop = min(begin + extent.length, end)
        for first, last in _cut(data, begin, stop):
            if begin < first:
                found.append(extent._replace(length=first - begin))
            found.append(Extent(last - first))
            begin = last
        if begin < stop:
            found.append(extent._replace(length=stop - begin))
        begin = stop
    return found


def _cut(ranges: Sequence[tuple[int, int]], begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Those parts of ranges that lie between two bytes."""
    at = bisect_right(ranges, begin, key=itemgetter(1))
    while at < len(ranges) and ranges[at][0] < end:
        yield max(ranges[at][0], begin), min(ranges[at][1], end)
        at += 1
