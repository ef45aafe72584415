"""Track dirty blocks: written to the cache, and not yet to the inner device."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from ..bitset import runs
from .lines import CacheStats, Line, Lines, Piece


class Dirty:
    """The dirty blocks of all lines. They are in memory.

    A block that is dirty becomes held while the inner device is changed there: it is written back,
    or overwritten. A write to the cache meanwhile is newer, and makes the block dirty again.
    Invariant: a block is held by one change at a time, since changes of the inner device do not
    overlap.

    Args:
        lines: all cached lines.
        limit: bytes that may be dirty. At most half of the lines may be dirty too, so that slots
            remain for others.
        stats: counts dirty bytes.

    """

    def __init__(self, lines: Lines, limit: int, stats: CacheStats) -> None:
        self._lines = lines
        self._limit = limit
        self._stats = stats
        self._by_number: dict[int, Line] = {}

    @property
    def over_limit(self) -> bool:
        """Whether half of what may be dirty is, so that write-back should run in the background."""
        return (
            2 * self._stats.dirty_bytes > self._limit
            or 4 * len(self._by_number) > self._lines.slots
        )

    def accept(self, memory: mmap.mmap, offset: int, data: memoryview) -> bool:
        """Write to the cache, if there is room. Never waits.

        Returns:
            Whether there was room: ``limit`` is not exceeded, and each line got a slot.

        """
        pieces = list(self._lines.pieces(offset, offset + len(data)))
        if (
            self._stats.dirty_bytes + len(data) > self._limit
            or 2 * (len(self._by_number) + len(pieces)) > self._lines.slots
        ):
            return False
        lines = self._claim(pieces)
        if lines is None:
            return False
        done = 0
        for line, piece in zip(lines, pieces, strict=True):
            length = piece.end - piece.begin
            begin = line.base + piece.begin
            memory[begin : begin + length] = data[done : done + length]
            done += length
            line.valid |= piece.blocks
            self._set(line, line.dirty | piece.blocks, line.held)
        return True

    @contextmanager
    def superseding(self, begin: int, end: int) -> Iterator[None]:
        """Hold the dirty blocks between these bytes while the body changes the inner device there.

        They are clean afterwards. If the body fails or is cancelled they are dirty again, since the
        inner device may not have them.
        """
        held = self._hold(begin, end)
        try:
            yield
        except BaseException:
            for line, blocks in held:
                self._set(line, line.dirty | blocks, line.held & ~blocks)
            raise
        for line, blocks in held:
            self._set(line, line.dirty, line.held & ~blocks)

    def ranges(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Return the dirty or held ranges between these bytes of the device, coalesced.

        Returns:
            Begin and end of each range in bytes, ascending. Adjacent blocks are one range.

        """
        line_size, block_size = self._lines.line_size, self._lines.block_size
        numbers = range(begin // line_size, -(-end // line_size))
        found: list[tuple[int, int]] = []
        for number in sorted(_common(self._by_number, numbers)):
            line = self._by_number[number]
            blocks = (line.dirty | line.held) & self._lines.blocks(number, begin, end)
            for first, last in runs(blocks):
                start = number * line_size + first * block_size
                stop = number * line_size + last * block_size
                if found and found[-1][1] == start:
                    start = found.pop()[0]
                found.append((start, stop))
        return found

    def data(self, memory: mmap.mmap, begin: int, end: int) -> bytes:
        """Copy the contents between these bytes of the device, all of which are dirty or held."""
        view = memoryview(memory)
        return b"".join(
            view[line.base + piece.begin : line.base + piece.end]
            for piece in self._lines.pieces(begin, end)
            for line in [self._by_number[piece.number]]
        )

    def _hold(self, begin: int, end: int) -> list[tuple[Line, int]]:
        """Turn dirty blocks between these bytes into held ones; return them by line."""
        held = []
        if self._by_number:
            for line, blocks in self._lines.within(begin, end):
                if blocks := blocks & line.dirty:
                    self._set(line, line.dirty & ~blocks, line.held | blocks)
                    held.append((line, blocks))
        return held

    def _claim(self, pieces: list[Piece]) -> list[Line] | None:
        """Return a line with a slot for each piece; None if there are not enough slots."""
        lines: list[Line] = []
        for piece in pieces:
            line = self._lines.claim(piece.number)
            if line is None:
                break
            line.pins += 1  # or the next claim could evict it
            lines.append(line)
        for line in lines:
            line.pins -= 1
        return lines if len(lines) == len(pieces) else None

    def _set(self, line: Line, dirty: int, held: int) -> None:
        """Set the dirty and the held blocks of a line, and count the difference."""
        before, after = line.dirty | line.held, dirty | held
        line.dirty, line.held = dirty, held
        count = after.bit_count() - before.bit_count()
        self._stats.dirty_bytes += count * self._lines.block_size
        if after:
            self._by_number[line.number] = line
        else:
            self._by_number.pop(line.number, None)


def _common(lines: dict[int, Line], numbers: range) -> list[int]:
    """Intersect, by iterating over the smaller of the two."""
    if len(lines) < len(numbers):
        return [number for number in lines if number in numbers]
    return [number for number in numbers if number in lines]
