"""Which lines of a device are cached, in which slot, which blocks of them are valid; eviction.

A line is a part of the device of ``line_size`` bytes (the last one may be shorter). While it is
cached it has a slot: room for its contents in memory or on the store. Its valid blocks are the bits
of an int: bit 0 is the first block.

Invariant: a line with a slot is in exactly one of the two queues of :class:`Lines`, from
:meth:`Lines.claim` until it is evicted, even if none of its blocks is valid any more.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

_PROBATION_SHARE = 8
"""The part of all lines that the queue of new ones may always keep, as a divisor."""


@dataclass(slots=True)
class CacheStats:
    """Counters of a cache, which only grow, and two gauges of what it holds now."""

    hits: int = 0
    """Reads that were answered without the inner device."""
    misses: int = 0
    """Reads that had to wait for the inner device."""
    fetched_bytes: int = 0
    """Bytes that were read from the inner device."""
    read_ahead_bytes: int = 0
    """Bytes of it that were, or are being, read before they were requested."""
    evictions: int = 0
    """Lines that were evicted to make room for others."""
    cached_bytes: int = 0
    """Gauge: bytes of all lines with a slot, invalid blocks included; at most the cache's size."""
    dirty_bytes: int = 0
    """Gauge: bytes that were written, and are not on the inner device yet (write-back)."""


class Line:
    """A cached line. All sets of blocks are bits of an int.

    Attributes:
        number: of the line; it begins at the device's byte ``number * line_size``.
        base: offset in bytes of its slot.
        valid: the blocks whose contents are in the slot.
        dirty: the valid blocks that the inner device does not have yet.
        held: the valid blocks that are being written back, or are being overwritten on the inner
            device. They may be dirty again.
        filling: the blocks that are being written to the slot, each by one writer. None is valid.
        pins: how many users rely on the slot's belonging to this line.
        seen: the blocks that were read.
        hot: whether a block was read a second time. (A scan reads one block after the other, and so
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
        """Record a read of these blocks."""
        if self.seen & blocks:
            self.hot = True
        self.seen |= blocks


class Piece(NamedTuple):
    """The part of a request that lies in one line."""

    number: int
    begin: int
    """Bytes from the begin of the line."""
    end: int
    """Bytes from the begin of the line."""
    blocks: int
    """The blocks of the line that it covers, as bits."""


class Lines:
    """The cached lines, and which one to evict (S3-FIFO).

    A line starts in the queue of new lines. If it is hot at the end of that queue it moves to the
    queue of hot lines, and stays there as long as it gets hot again; otherwise it is evicted. So a
    scan displaces new lines only. A line that comes back soon after it was evicted was evicted
    wrongly, and starts in the queue of hot lines.

    Args:
        slots: the number of slots, and so of lines at most.
        line_size: bytes, a multiple of ``block_size``.
        block_size: bytes.
        stats: counts evictions.

    Attributes:
        by_number: the cached lines by their number.

    """

    def __init__(self, slots: int, line_size: int, block_size: int, stats: CacheStats) -> None:
        self.line_size = line_size
        self.block_size = block_size
        self.by_number: dict[int, Line] = {}
        self.slots = slots
        self._free: Iterator[int] = iter(range(slots))
        self._new: deque[Line] = deque()
        self._hot: deque[Line] = deque()
        self._evicted: OrderedDict[int, None] = OrderedDict()  # from the new queue, oldest first
        self._stats = stats

    def claim(self, number: int) -> Line | None:
        """Return a line, with a slot; None if the lines in all slots are busy."""
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
        """Add lines whose slots are filled already, from the table of a store.

        Args:
            lines: slot and number of some of them; :meth:`free_others` must follow the last.
            size: bytes of the device.

        """
        for slot, number in lines:
            line = self.by_number[number] = Line(number, slot * self.line_size)
            line.valid = self.blocks(number, 0, size)
            self._hot.append(line)
        self._count()

    def free_others(self) -> None:
        """Make the slots available that no restored line has."""
        taken = {line.base // self.line_size for line in self.by_number.values()}
        self._free = (slot for slot in range(self.slots) if slot not in taken)

    def whole(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield slot and number of each line that is valid as a whole.

        Args:
            size: bytes of the device.

        """
        for number, line in self.by_number.items():
            if line.valid == self.blocks(number, 0, size):
                yield line.base // self.line_size, number

    def close(self) -> None:
        """Drop all lines, and refuse new ones from now on."""
        for line in self.by_number.values():
            line.valid = 0
        self.by_number.clear()
        self._new.clear()
        self._hot.clear()
        self._free = iter(())
        self._count()

    def drop(self, begin: int, end: int) -> None:
        """Invalidate the blocks between these bytes of the device, except dirty and held ones."""
        for line, blocks in self.within(begin, end):
            line.valid &= ~blocks | line.dirty | line.held

    def within(self, begin: int, end: int) -> Iterator[tuple[Line, int]]:
        """Yield the cached lines that overlap these bytes of the device, with the blocks inside."""
        numbers: Iterable[int] = range(begin // self.line_size, -(-end // self.line_size))
        if -(-end // self.line_size) - begin // self.line_size > len(self.by_number):
            numbers = [number for number in self.by_number if number in numbers]
        for number in numbers:
            line = self.by_number.get(number)
            if line is not None:
                yield line, self.blocks(number, begin, end)

    def pieces(self, begin: int, end: int) -> Iterator[Piece]:
        """Split a range of bytes of the device at the borders of lines."""
        while begin < end:
            number, start = divmod(begin, self.line_size)
            stop = min(start + end - begin, self.line_size)
            yield Piece(number, start, stop, self.blocks(number, begin, end))
            begin += stop - start

    def blocks(self, number: int, begin: int, end: int) -> int:
        """Return the blocks of a line that lie between these bytes of the device."""
        start = number * self.line_size
        first = max(begin - start, 0) // self.block_size
        last = min(end - start, self.line_size) // self.block_size
        return (1 << last) - (1 << first) if first < last else 0

    def _count(self) -> None:
        self._stats.cached_bytes = len(self.by_number) * self.line_size

    def _evict(self) -> int | None:
        """Evict a line that is not busy; return the base of its slot, None if there is none."""
        # Each line is visited once in the new queue and, as a hot one may be, twice in the other.
        for _ in range(3 * len(self.by_number)):
            few = len(self._new) <= self.slots // _PROBATION_SHARE
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
        """Record that a new line was evicted; as many are remembered as there are slots."""
        self._evicted[number] = None
        if len(self._evicted) > self.slots:
            self._evicted.popitem(last=False)


def spans(numbers: Iterable[int], limit: int) -> Iterator[range]:
    """Coalesce ascending numbers into ranges of consecutive ones, cut at multiples of ``limit``.

    The cut makes reads fit a device below that is made of chunks of that size, or of a divisor of
    it: each chunk is requested once.
    """
    span = range(0)
    for number in chain(numbers, [-1]):
        if span and (number != span.stop or number % limit == 0):
            yield span
            span = range(0)
        span = range(span.start if span else number, number + 1)
