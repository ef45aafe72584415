"""What was written to the cache and not yet to the inner device."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from ..bitset import runs
from .lines import CacheStats, Line, Lines, Piece


class Dirty:
    """The dirty blocks of all lines; they are in memory.

    Whoever changes the inner device holds the dirty blocks there: what is written to the cache
    meanwhile is newer, and dirty for itself. Blocks are held by one at a time, because changes of
    the inner device do not overlap.

    Args:
        lines: all lines.
        limit: bytes that may be dirty. Besides, at most half of the lines may, so that others find
            a place.
        stats: where dirty bytes are counted.

    """

    def __init__(self, lines: Lines, limit: int, stats: CacheStats) -> None:
        self._lines = lines
        self._limit = limit
        self._stats = stats
        self._by_number: dict[int, Line] = {}

    @property
    def over_limit(self) -> bool:
        """Whether it is time to write some back."""
        return (
            2 * self._stats.dirty_bytes > self._limit
            or 4 * len(self._by_number) > self._lines.slots
        )

    def accept(self, memory: mmap.mmap, offset: int, data: memoryview) -> bool:
        """Take a write into memory; returns whether there was room for it. Does not wait."""
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
        """Change the inner device between these bytes, by the body.

        What was dirty there is so no more, unless the body fails; then the inner device may not
        have it.
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
        """Where between these bytes of the device blocks are dirty or held, neighbours joined."""
        line_size, block_size = self._lines.line_size, self._lines.block_size
        numbers = range(begin // line_size, -(-end // line_size))
        found: list[tuple[int, int]] = []
        for number in sorted(_both(self._by_number, numbers)):
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
        """A copy of what is dirty or held between these bytes of the device: of all of it."""
        view = memoryview(memory)
        return b"".join(
            view[line.base + piece.begin : line.base + piece.end]
            for piece in self._lines.pieces(begin, end)
            for line in [self._by_number[piece.number]]
        )

    def _hold(self, begin: int, end: int) -> list[tuple[Line, int]]:
        held = []
        if self._by_number:
            for line, blocks in self._lines.within(begin, end):
                if blocks := blocks & line.dirty:
                    self._set(line, line.dirty & ~blocks, line.held | blocks)
                    held.append((line, blocks))
        return held

    def _claim(self, pieces: list[Piece]) -> list[Line] | None:
        """A line for each; None if there are not enough."""
        lines: list[Line] = []
        for piece in pieces:
            line = self._lines.claim(piece.number)
            if line is None:
                break
            line.pins += 1  # or the next one could get its slot
            lines.append(line)
        for line in lines:
            line.pins -= 1
        return lines if len(lines) == len(pieces) else None

    def _set(self, line: Line, dirty: int, held: int) -> None:
        before, after = line.dirty | line.held, dirty | held
        line.dirty, line.held = dirty, held
        count = after.bit_count() - before.bit_count()
        self._stats.dirty_bytes += count * self._lines.block_size
        if after:
            self._by_number[line.number] = line
        else:
            self._by_number.pop(line.number, None)


def _both(lines: dict[int, Line], numbers: range) -> list[int]:
    """The numbers that are in both."""
    if len(lines) < len(numbers):
        return [number for number in lines if number in numbers]
    return [number for number in numbers if number in lines]
