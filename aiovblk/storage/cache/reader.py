"""What is cached, and how it is read and filled."""

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

_BATCHES_AHEAD = 4
"""How many full windows may be under way ahead of all streams together."""


class Slots(Protocol):
    """Where the lines' contents are; offsets are counted from the first slot."""

    async def read(self, begin: int, length: int) -> Data:
        """Read from a slot. The result need not last any longer than until others run."""

    async def write(self, begin: int, data: memoryview) -> None:
        """Write to a slot."""


class _Want(NamedTuple):
    """What a read wants of one line."""

    piece: Piece
    line: Line | None
    """Where some of it may be."""
    missing: int
    """The blocks that were not there."""
    fetch: Fetch | None
    """What brings them."""


class CacheReader:
    """The cached contents of a device.

    Errors of the slots are nobody's: after the first nothing is cached any more.

    Args:
        inner: the device.
        slots: where its lines are cached.
        lines: which are, and where.
        changes: the changes of ``inner`` that are under way.
        window: lines that are fetched ahead at most.
        stats: the counters.

    Attributes:
        fetches: the reads of ``inner`` that are under way.
        ahead: who reads one line after the other.
        failed: whether the slots have failed.

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
        self._max_ahead = _BATCHES_AHEAD * window
        self.fetches = Fetches(inner, lines, changes, self._store_fetched, stats)
        self.ahead = ReadAhead(window)
        self.failed = False

    async def read(self, offset: int, length: int) -> bytes:
        """Read what is there, and fetch the rest."""
        pieces = list(self._lines.pieces(offset, offset + length))
        first = True
        while True:
            with self._note_demand(pieces) as wants:
                if first:
                    self._mark_filling(wants)
                    first = False
                await self._wait_arrived(wants)
                parts = await self._collect(wants)
            whole = [part for part in parts if part is not None]
            if len(whole) == len(parts):
                self._touch(pieces)
                return b"".join(whole)  # which is a copy, unless there is but one and it is bytes
            # Something was dropped meanwhile, or a fetch failed that nobody had asked for.

    async def put(self, offset: int, data: memoryview) -> None:
        """Cache what ``inner`` holds; to be called before anybody else may change that."""
        for piece in self._lines.pieces(offset, offset + len(data)):
            line = self._lines.claim(piece.number)
            if line is not None:
                start = piece.number * self._lines.line_size - offset
                stored = await self._store(line, piece.blocks, data, start)
                line.valid |= stored

    def fail_all(self, exc: Exception) -> None:
        """Cache nothing any more, since the slots cannot be used."""
        self._fail(exc)

    def run_ahead(self, lines: range, *, missed: bool) -> None:
        """Take note of a read of these lines, and fetch ahead what will be read next."""
        wanted = self.ahead.demand(lines, missed=missed)
        if wanted and not self.failed and self.fetches.lines_ahead < self._max_ahead:
            self.prefetch(wanted)

    def prefetch(self, numbers: range) -> set[Fetch]:
        """Fetch what is not there of these lines; returns what was begun."""
        end = -(-self._inner.size // self._lines.line_size)
        lacking = [
            number
            for number in range(numbers.start, min(numbers.stop, end))
            if number not in self.fetches and self._missing(number)
        ]
        return set(self.fetches.start(lacking, ahead=True).values())

    def _missing(self, number: int) -> int:
        """The blocks of a line that are not there."""
        line = self._lines.by_number.get(number)
        return self._lines.blocks(number, 0, self._inner.size) & ~(line.valid if line else 0)

    def _mark_filling(self, wants: list[_Want]) -> None:
        """Count a read, and fetch ahead of it."""
        missing = [want for want in wants if want.missing]
        if missing:
            self._stats.misses += 1
        else:
            self._stats.hits += 1
        # What is on its way ahead of a reader is no beginning of another one.
        unforeseen = any(not want.fetch or not want.fetch.ahead for want in missing)
        self.run_ahead(range(wants[0].piece.number, wants[-1].piece.number + 1), missed=unforeseen)

    def _touch(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            line = self._lines.by_number.get(piece.number)
            if line is not None:
                line.touch(piece.blocks)

    @contextmanager
    def _note_demand(self, pieces: list[Piece]) -> Iterator[list[_Want]]:
        """Have what is missing fetched, and what is there stay while the body runs."""
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
        """What brings the missing blocks: by the line's number."""
        found = {
            piece.number: self.fetches.joinable(piece.number, blocks)
            for piece, blocks in zip(pieces, missing, strict=True)
            if blocks
        }
        started = self.fetches.start(number for number, fetch in found.items() if not fetch)
        return {number: fetch or started[number] for number, fetch in found.items()}

    async def _wait_arrived(self, wants: list[_Want]) -> None:
        fetches = {want.fetch for want in wants if want.fetch}
        if fetches:
            await self.fetches.wait(fetches)
            for fetch in fetches:
                if not fetch.ahead:
                    fetch.arrived.result()

    async def _collect(self, wants: list[_Want]) -> Sequence[Data | None]:
        if len(wants) == 1:
            return [await self._wait_for(wants[0])]
        if isinstance(self._slots, MemorySlots):
            return [await self._wait_for(want) for want in wants]
        return await asyncio.gather(*map(self._wait_for, wants))

    async def _wait_for(self, want: _Want) -> Data | None:
        """One line's part of a read; None if it has to be asked for again."""
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
        """What was fetched, with these blocks of the line, which may be newer, in their places."""
        merged = bytearray(view)
        for first, last in runs(blocks):
            start, stop = first * self._lines.block_size, last * self._lines.block_size
            part = await self._load(line, start, stop)
            if part is None:
                return None
            merged[start - begin : stop - begin] = part
        return merged

    async def _load(self, line: Line, begin: int, end: int) -> Data | None:
        """What is in a slot; None if the slots fail."""
        try:
            return await self._slots.read(line.base + begin, end - begin)
        except STOP_EXCEPTIONS:
            raise
        except BaseException as exc:
            self._fail(exc)
            return None

    async def _store_fetched(self, fetch: Fetch) -> None:
        """Store what was fetched, where it is not older than what is there."""
        for number in fetch.numbers:
            wanted = self._missing(number) & ~self.fetches.is_invalid(fetch, number)
            line = self._lines.claim(number) if wanted else None
            if line is not None:
                start = number * self._lines.line_size - fetch.begin
                stored = await self._store(line, wanted, fetch.arrived.result(), start)
                line.valid |= stored & ~self.fetches.is_invalid(fetch, number)

    async def _store(self, line: Line, blocks: int, data: memoryview, start: int) -> int:
        """Write blocks to a line's slot, for the caller to call them valid.

        Args:
            line: whose.
            blocks: which.
            data: has them.
            start: where the line would begin in ``data``; may be negative.

        Returns:
            The blocks that were stored: not those that somebody else is storing.

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
            self._fail(exc)
            return 0
        finally:
            line.filling &= ~blocks
            line.pins -= 1
        return blocks

    def _fail(self, exc: BaseException) -> None:
        if not self.failed:
            logger.warning("nothing is cached any more, because the store has failed: %s", exc)
            self.failed = True
            self._lines.close()
