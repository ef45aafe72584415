"""Reading bitmaps: what is dirty since a point, and how much."""

from __future__ import annotations

from collections.abc import Sequence

from ...bitmaps import DirtyExtent
from ..extents import MAX_EXTENTS
from . import points
from .bits import count_set, merge_into, set_runs
from .header import Header, Interval, pieces
from .points import Point
from .recorder import Recorder

_WINDOW = 1 << 20  # bytes of a bitmap that are looked at for one answer


class BitmapReader:
    """Reads the bitmaps of a recorder; its intervals must not change meanwhile."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._verified: set[Interval] = set()

    async def extents(self, name: str, offset: int, length: int) -> list[DirtyExtent]:
        """Return what is dirty, see :meth:`.SupportsDirtyBitmaps.dirty_extents`.

        Raises:
            KeyError: there is no such point.
            OSError: the file cannot be read, or is damaged.

        """
        header = self._recorder.header
        record = points.point(header, name)
        if record.interval is None:
            return [DirtyExtent(length, dirty=True)]
        unit = header.granularity
        begin = offset // unit >> 3
        end = min((-(-(offset + length) // unit) + 7) >> 3, begin + _WINDOW)
        bits = await self._union(header.intervals[record.interval :], begin, end)
        return _extents_of(bits, begin * 8 * unit, unit, offset, length)

    async def points(self) -> list[Point]:
        """Return all points, the oldest first.

        Raises:
            OSError: the file cannot be read, or is damaged.

        """
        header = self._recorder.header
        await self._verify(header.intervals)
        counts = await self._recorder.run(self._count, header)
        found = [
            Point(name, each.time, header.size if each.interval is None else counts[each.interval])
            for name, each in header.points.items()
        ]
        return sorted(found, key=lambda each: (each.time, each.name))

    async def verify(self, *intervals: Interval) -> None:
        """Compare the bitmaps of frozen intervals with their checksums."""
        await self._verify(intervals)

    async def _union(self, intervals: Sequence[Interval], begin: int, end: int) -> bytearray:
        """Return some bytes of the union of the last intervals."""
        live = self._recorder.live
        assert live is not None  # the last of the intervals
        found = live.bits[begin:end]
        frozen = intervals[:-1]
        if frozen:
            await self._verify(frozen)
            await self._recorder.run(self._merge_frozen, found, frozen, begin)
        return found

    def _merge_frozen(self, found: bytearray, frozen: Sequence[Interval], begin: int) -> None:
        for each in frozen:
            merge_into(found, self._recorder.file.read(each.slot, begin, begin + len(found)))

    async def _verify(self, intervals: Sequence[Interval]) -> None:
        for each in intervals:
            if each.checksum is not None and each not in self._verified:
                file, length = self._recorder.file, self._recorder.header.bitmap_size
                if await self._recorder.run(file.checksum, each.slot, length) != each.checksum:
                    raise file.damaged_error("has a bitmap with a wrong checksum")
                self._verified.add(each)

    def _count(self, header: Header) -> list[int]:
        """Return how many bytes are dirty since the beginning of each interval."""
        counts = [0] * len(header.intervals)
        live = self._recorder.live
        for begin, length, _ in pieces(0, 0, header.bitmap_size if live else 0):
            assert live is not None
            union = live.bits[begin : begin + length]
            for index in reversed(range(len(counts))):
                if index < len(counts) - 1:
                    self._merge_frozen(union, header.intervals[index : index + 1], begin)
                counts[index] += count_set(_cut(union, header.bits - begin * 8))
        return [min(count * header.granularity, header.size) for count in counts]


def _cut(bits: bytearray, count: int) -> bytearray:
    """Return the first bits: a device that has shrunk leaves others behind."""
    if count >= len(bits) * 8:
        return bits
    found = bits[: (count + 7) >> 3]
    if count & 7:
        found[-1] &= (1 << (count & 7)) - 1
    return found


def _extents_of(
    bits: bytearray, base: int, unit: int, offset: int, length: int
) -> list[DirtyExtent]:
    """Return extents of the bytes from ``offset``, of bits whose first stands for ``base``."""
    found: list[DirtyExtent] = []
    at, end = offset, min(offset + length, base + len(bits) * 8 * unit)
    for first, behind in set_runs(bits):
        begin, stop = max(base + first * unit, at), min(base + behind * unit, end)
        if begin >= stop:
            continue
        if at < begin:
            found.append(DirtyExtent(begin - at, dirty=False))
        found.append(DirtyExtent(stop - begin, dirty=True))
        at = stop
        if len(found) >= MAX_EXTENTS - 1:
            return found
    if at < end:
        found.append(DirtyExtent(end - at, dirty=False))
    return found or [DirtyExtent(length, dirty=True)]  # the device has shrunk meanwhile
