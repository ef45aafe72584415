"""Read through the cache: serve valid blocks from slots, fetch the others, and store them.

Invariant: a block is valid only if its slot holds what the inner device, or a newer write, holds.
So a block that is stored becomes valid after the slot was written, and only if no change has
invalidated the data meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from ...aio.rangelock import RangeLock
from ...device import BlockDevice
from ...errors import STOP_EXCEPTIONS
from ..bitset import runs
from .fetch import Fetch, Fetches
from .lines import CacheStats, Line, Lines, Piece
from .memory import MemorySlots
from .readahead import ReadAhead

logger = logging.getLogger("aiovblk")

Data = bytes | bytearray | memoryview

_WINDOWS_AHEAD = 4
"""Full read-ahead windows that may be in flight for all streams together."""


class Slots(Protocol):
    """Where the contents of lines are; offsets are bytes from the first slot."""

    async def read(self, begin: int, length: int) -> Data:
        """Read from a slot. The result needs to be valid only until another task runs."""

    async def write(self, begin: int, data: memoryview) -> None:
        """Write to a slot."""


class _Want(NamedTuple):
    """What a read needs of one line."""

    piece: Piece
    line: Line | None
    """The cached line, which may hold some of the blocks."""
    missing: int
    """The blocks that were not valid."""
    fetch: Fetch | None
    """The fetch of these."""


class CacheReader:
    """The cached contents of a device.

    Errors of the slots are never raised to a request: after the first, caching stops.

    Args:
        inner: the device.
        slots: hold the contents of the lines.
        lines: which lines are cached, and where.
        changes: the changes of ``inner`` in progress.
        window: lines of one read-ahead at most.
        stats: the counters.

    Attributes:
        fetches: the reads of ``inner`` in flight.
        ahead: detects sequential readers.
        failed: whether the slots have failed, so that nothing is cached any more.

    """

    def __init__(
        self,
        inner: BlockDevice,
        slots: Slots,
        lines: Lines,
        changes: RangeLock,
        window: int,
        stats: CacheStats,
    ) -> None:
        self._inner = inner
        self._slots = slots
        self._lines = lines
        self._stats = stats
        self._max_ahead = _WINDOWS_AHEAD * window
        self.fetches = Fetches(inner, lines, changes, self._store_fetched, stats)
        self.ahead = ReadAhead(window)
        self.failed = False

    async def read(self, offset: int, length: int) -> bytes:
        """Read from the slots, and fetch what is missing."""
        pieces = list(self._lines.pieces(offset, offset + length))
        first = True
        while True:
            with self._request(pieces) as wants:
                if first:
                    self._count(wants)
                    first = False
                await self._wait_arrived(wants)
                parts = await self._collect(wants)
            whole = [part for part in parts if part is not None]
            if len(whole) == len(parts):
                self._touch(pieces)
                return b"".join(whole)  # a copy, unless it is one part, of bytes
            # A line was dropped meanwhile, or a fetch failed that was read-ahead: read again.

    async def put(self, offset: int, data: memoryview) -> None:
        """Cache what ``inner`` holds; to be called while no other change there is possible."""
        for piece in self._lines.pieces(offset, offset + len(data)):
            line = self._lines.claim(piece.number)
            if line is not None:
                start = piece.number * self._lines.line_size - offset
                stored = await self._store(line, piece.blocks, data, start)
                line.valid |= stored

    def stop_caching(self, exc: BaseException) -> None:
        """Drop all lines and cache nothing any more, because the slots have failed."""
        if not self.failed:
            logger.warning("caching has stopped, because the store has failed: %s", exc)
            self.failed = True
            self._lines.close()

    def run_ahead(self, lines: range, *, missed: bool) -> None:
        """Record a read of these lines, and start read-ahead if it is sequential."""
        ahead = self.ahead.demand(lines, missed=missed)
        if ahead and not self.failed and self.fetches.lines_ahead < self._max_ahead:
            self.prefetch(ahead)

    def prefetch(self, numbers: range) -> set[Fetch]:
        """Start to fetch those of these lines that are neither valid nor in flight.

        Returns:
            The fetches that were started.

        """
        end = -(-self._inner.size // self._lines.line_size)
        lacking = [
            number
            for number in range(numbers.start, min(numbers.stop, end))
            if number not in self.fetches and self._missing(number)
        ]
        return set(self.fetches.start(lacking, ahead=True).values())

    def _missing(self, number: int) -> int:
        """Return the blocks of a line that are not valid."""
        line = self._lines.by_number.get(number)
        return self._lines.blocks(number, 0, self._inner.size) & ~(line.valid if line else 0)

    def _count(self, wants: list[_Want]) -> None:
        """Count a read as hit or miss, and start read-ahead behind it if it is sequential."""
        missing = [want for want in wants if want.missing]
        if missing:
            self._stats.misses += 1
        else:
            self._stats.hits += 1
        # A miss that waits for read-ahead in flight belongs to a stream, and begins no new one.
        unforeseen = any(not want.fetch or not want.fetch.ahead for want in missing)
        self.run_ahead(range(wants[0].piece.number, wants[-1].piece.number + 1), missed=unforeseen)

    def _touch(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            line = self._lines.by_number.get(piece.number)
            if line is not None:
                line.touch(piece.blocks)

    @contextmanager
    def _request(self, pieces: list[Piece]) -> Iterator[list[_Want]]:
        """Start to fetch what is missing; pin the lines that are cached while the body runs."""
        lines = [self._lines.by_number.get(piece.number) for piece in pieces]
        missing = [
            piece.blocks & ~(line.valid if line else 0)
            for piece, line in zip(pieces, lines, strict=True)
        ]
        pinned = [line for line in lines if line]
        for line in pinned:
            line.pins += 1
        try:
            fetches = self._fetch(pieces, missing)
            yield [
                _Want(piece, line, blocks, fetches.get(piece.number))
                for piece, line, blocks in zip(pieces, lines, missing, strict=True)
            ]
        finally:
            for line in pinned:
                line.pins -= 1

    def _fetch(self, pieces: list[Piece], missing: list[int]) -> dict[int, Fetch]:
        """Join or start the fetches of missing blocks; return them by the line's number."""
        found = {
            piece.number: self.fetches.joinable(piece.number, blocks)
            for piece, blocks in zip(pieces, missing, strict=True)
            if blocks
        }
        started = self.fetches.start(number for number, fetch in found.items() if not fetch)
        return {number: fetch or started[number] for number, fetch in found.items()}

    async def _wait_arrived(self, wants: list[_Want]) -> None:
        """Wait for the fetches; raise the error of one that was started for a reader."""
        fetches = {want.fetch for want in wants if want.fetch}
        if fetches:
            await self.fetches.wait(fetches)
            for fetch in fetches:
                if not fetch.ahead:
                    fetch.arrived.result()

    async def _collect(self, wants: list[_Want]) -> Sequence[Data | None]:
        """Return each line's part of a read; None for those that must be requested again."""
        if len(wants) == 1:
            return [await self._part(wants[0])]
        if isinstance(self._slots, MemorySlots):
            return [await self._part(want) for want in wants]
        return await asyncio.gather(*map(self._part, wants))

    async def _part(self, want: _Want) -> Data | None:
        """Return one line's part of a read; None if it must be requested again."""
        piece, line, missing, fetch = want
        there = line.valid & piece.blocks if line else 0
        if piece.blocks & ~there & ~missing:
            return None
        if line and there == piece.blocks:
            return await self._load(line, piece.begin, piece.end)
        if fetch is None or fetch.arrived.exception():
            return None
        start = piece.number * self._lines.line_size
        view = fetch.view(start + piece.begin, start + piece.end)
        return await self._merge(line, there, piece.begin, view) if line and there else view

    async def _merge(self, line: Line, blocks: int, begin: int, view: memoryview) -> Data | None:
        """Return fetched data, overwritten by these blocks of the line, which may be newer."""
        merged = bytearray(view)
        for first, last in runs(blocks):
            start, stop = first * self._lines.block_size, last * self._lines.block_size
            part = await self._load(line, start, stop)
            if part is None:
                return None
            merged[start - begin : stop - begin] = part
        return merged

    async def _load(self, line: Line, begin: int, end: int) -> Data | None:
        """Read from a line's slot; return None if the slots have failed."""
        try:
            return await self._slots.read(line.base + begin, end - begin)
        except STOP_EXCEPTIONS:
            raise
        except BaseException as exc:
            self.stop_caching(exc)
            return None

    async def _store_fetched(self, fetch: Fetch) -> None:
        """Store fetched blocks, except those that are valid already or were invalidated."""
        for number in fetch.numbers:
            wanted = self._missing(number) & ~self.fetches.invalidated(fetch, number)
            line = self._lines.claim(number) if wanted else None
            if line is not None:
                start = number * self._lines.line_size - fetch.begin
                stored = await self._store(line, wanted, fetch.arrived.result(), start)
                line.valid |= stored & ~self.fetches.invalidated(fetch, number)

    async def _store(self, line: Line, blocks: int, data: memoryview, start: int) -> int:
        """Write blocks to a line's slot; the caller marks them valid.

        Args:
            line: the line.
            blocks: which of its blocks.
            data: contains them.
            start: offset of the line's begin in ``data``; may be negative.

        Returns:
            The blocks that were stored: not those that another task is storing.

        """
        blocks &= ~line.filling
        line.valid &= ~blocks
        line.filling |= blocks
        line.pins += 1
        try:
            for first, last in runs(blocks):
                begin, end = first * self._lines.block_size, last * self._lines.block_size
                await self._slots.write(line.base + begin, data[start + begin : start + end])
        except STOP_EXCEPTIONS:
            raise
        except BaseException as exc:
            self.stop_caching(exc)
            return 0
        finally:
            line.filling &= ~blocks
            line.pins -= 1
        return blocks
