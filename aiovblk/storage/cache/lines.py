"""Which parts of a device are cached, and where.

A line is a piece of the device, as long as all others (but for the last). While it is cached it has
a slot. Which of its blocks are there is told by the bits of an int: bit 0 is its first block.

A line stays until it is evicted, even if nothing of it is valid any more, so that it is in exactly
one queue.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

_FEW = 8
"""What part of all lines the new ones may always keep, as a divisor."""


class Line:
    """A line that has a slot.

    Attributes:
        number: which one; its first byte is the device's byte ``number * line_size``.
        base: where its slot begins, in bytes.
        valid: the blocks whose contents are in the slot.
        dirty: the valid blocks that the inner device does not have yet.
        held: the valid blocks that are on their way to the inner device, or are being overwritten
            there. They may be dirty again.
        filling: the blocks that are being written to the slot, by one writer each. None is valid.
        pins: how many count on the slot's being this line's.
        seen: the blocks that were read.
        hot: whether a block was read a second time. (That a scan reads one block after the other
            makes no line hot.)

    """

    __slots__ = ("base", "dirty", "filling", "held", "hot", "number", "pins", "seen", "valid")

    def __init__(self, number: int, base: int) -> None:
        self.number = number
        self.base = base
        self.valid = self.dirty = self.held = self.filling = self.seen = 0
        self.pins = 0
        self.hot = False

    @property
    def busy(self) -> bool:
        """Whether it must not be evicted."""
        return bool(self.pins or self.dirty or self.held)

    def touch(self, blocks: int) -> None:
        """Take note that these were read."""
        if self.seen & blocks:
            self.hot = True
        self.seen |= blocks


class Piece(NamedTuple):
    """What a request is about in one line."""

    number: int
    begin: int
    """Bytes, from where the line begins."""
    end: int
    blocks: int


class Lines:
    """The lines that are cached.

    Eviction is that of S3-FIFO: a line starts in the queue of the new ones. If it is hot when it
    gets to that queue's end it goes over to the queue of the hot ones, where it stays while it gets
    hot again; if not, it is evicted. So a scan displaces new lines only. A line that comes back
    soon after it was evicted was taken for cold wrongly, and starts in the queue of the hot ones.

    Args:
        slots: how many lines there may be.
        line_size: bytes, a multiple of ``block_size``.
        block_size: bytes.
        stats: where evictions are counted.

    Attributes:
        by_number: the lines.

    """

    def __init__(self, slots: int, line_size: int, block_size: int, stats: CacheStats) -> None:
        self.line_size = line_size
        self.block_size = block_size
        self.by_number: dict[int, Line] = {}
        self.slots = slots
        self._free: Iterator[int] = iter(range(slots))
        self._new: deque[Line] = deque()
        self._hot: deque[Line] = deque()
        self._evicted: OrderedDict[int, None] = OrderedDict()  # new ones, the oldest first
        self._stats = stats

    def claim(self, number: int) -> Line | None:
        """The line of this number, with a slot; None if all slots are held by lines in use."""
        line = self.by_number.get(number)
        if line is None:
            slot = next(self._free, None)
            base = self._evict() if slot is None else slot * self.line_size
            if base is None:
                return None
            line = self.by_number[number] = Line(number, base)
            (self._hot if number in self._evicted else self._new).append(line)
            self._evicted.pop(number, None)
            self._count()
        return line

    def restore(self, lines: Iterable[tuple[int, int]], size: int) -> None:
        """Take lines that are in their slots already, given as slot and number.

        Args:
            lines: some of them; :meth:`free_others` comes after the last.
            size: bytes of the device.

        """
        for slot, number in lines:
            line = self.by_number[number] = Line(number, slot * self.line_size)
            line.valid = self.blocks(number, 0, size)
            self._hot.append(line)
        self._count()

    def free_others(self) -> None:
        """Give out the slots that no restored line has."""
        taken = {line.base // self.line_size for line in self.by_number.values()}
        self._free = (slot for slot in range(self.slots) if slot not in taken)

    def whole(self, size: int) -> Iterator[tuple[int, int]]:
        """Slot and number of each line of which all is there; ``size`` is that of the device."""
        for number, line in self.by_number.items():
            if line.valid == self.blocks(number, 0, size):
                yield line.base // self.line_size, number

    def close(self) -> None:
        """Drop all lines, and take no others."""
        for line in self.by_number.values():
            line.valid = 0
        self.by_number.clear()
        self._new.clear()
        self._hot.clear()
        self._free = iter(())
        self._count()

    def drop(self, begin: int, end: int) -> None:
        """Take what lies between these bytes of the device, and is not dirty, for invalid."""
        for line, blocks in self.within(begin, end):
            line.valid &= ~blocks | line.dirty | line.held

    def within(self, begin: int, end: int) -> Iterator[tuple[Line, int]]:
        """The lines that have a part between these bytes of the device, and its blocks."""
        numbers: Iterable[int] = range(begin // self.line_size, -(-end // self.line_size))
        if -(-end // self.line_size) - begin // self.line_size > len(self.by_number):
            numbers = [number for number in self.by_number if number in numbers]
        for number in numbers:
            line = self.by_number.get(number)
            if line is not None:
                yield line, self.blocks(number, begin, end)

    def pieces(self, begin: int, end: int) -> Iterator[Piece]:
        """What lies between these bytes of the device, line by line."""
        while begin < end:
            number, start = divmod(begin, self.line_size)
            stop = min(start + end - begin, self.line_size)
            yield Piece(number, start, stop, self.blocks(number, begin, end))
            begin += stop - start

    def blocks(self, number: int, begin: int, end: int) -> int:
        """The blocks of a line that lie between these bytes of the device."""
        start = number * self.line_size
        first = max(begin - start, 0) // self.block_size
        last = min(end - start, self.line_size) // self.block_size
        return (1 << last) - (1 << first) if first < last else 0

    def _count(self) -> None:
        self._stats.cached_bytes = len(self.by_number) * self.line_size

    def _evict(self) -> int | None:
        """Drop a line that is not in use; returns where its slot begins."""
        # Each line is seen once in the first queue and, as a hot one may be, twice in the other.
        for _ in range(3 * len(self.by_number)):
            few = len(self._new) <= self.slots // _FEW
            queue = self._hot if self._hot and few else self._new or self._hot
            line = queue.popleft()
            if not line.busy and not line.hot:
                if queue is self._new:
                    self._remember(line.number)
                line.valid = 0
                del self.by_number[line.number]
                self._stats.evictions += 1
                return line.base
            line.hot, line.seen = False, 0
            self._hot.append(line)
        return None

    def _remember(self, number: int) -> None:
        self._evicted[number] = None
        if len(self._evicted) > self.slots:
            self._evicted.popitem(last=False)


def spans(numbers: Iterable[int], limit: int) -> Iterator[range]:
    """Ascending numbers, those that follow one another together, cut at each multiple of ``limit``.

    So whatever lies below, in chunks of that size or a divisor, is asked for each of them once.
    """
    span = range(0)
    for number in chain(numbers, [-1]):
        if span and (number != span.stop or number % limit == 0):
            yield span
            span = range(0)
        span = range(span.start if span else number, number + 1)


@dataclass(slots=True)
class CacheStats:
    """Counters of a cache, which only ever grow, and what it holds now."""

    hits: int = 0
    """Reads that were answered without the inner device."""
    misses: int = 0
    """Reads that had to wait for the inner device."""
    fetched_bytes: int = 0
    """What was read of the inner device."""
    read_ahead_bytes: int = 0
    """What was read of it, or is being read, before anybody asked."""
    evictions: int = 0
    """Lines that had to make room for others."""
    cached_bytes: int = 0
    """The lines that are cached, with their gaps; never more than the cache's size."""
    dirty_bytes: int = 0
    """What was written, and the inner device does not have yet (write-back)."""
