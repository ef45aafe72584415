"""A range lock: overlapping ranges of bytes exclude each other, others do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class _QueuedRange:
    begin: int
    end: int
    released: asyncio.Future[None]
    acquired: bool = False

    def overlaps(self, begin: int, end: int) -> bool:
        return begin < self.end and self.begin < end


class RangeLock:
    """An exclusive lock for ranges of bytes; overlapping ranges are locked one after the other.

    Invariants:

    * FIFO: a range waits for every overlapping one that was requested before it, whether that is
      held or still waits itself. So a large range is not starved by small ones.
    * Ranges that do not overlap never wait for each other.

    Concurrency: of one event loop. Not reentrant: a task that requests a range overlapping one
    that it holds waits forever.
    """

    def __init__(self) -> None:
        self._ranges: list[_QueuedRange] = []  # held and waiting, in the order of their requests

    @asynccontextmanager
    async def hold(self, begin: int, end: int) -> AsyncIterator[None]:
        """Lock the bytes from ``begin`` up to ``end`` for the body of an ``async with``.

        Acquires at once, without a turn of the event loop, if nothing overlaps.

        Cancellation: safe; a request that is cancelled while it waits is withdrawn.

        """
        before = [each.released for each in self._ranges if each.overlaps(begin, end)]
        mine = _QueuedRange(begin, end, asyncio.get_running_loop().create_future())
        self._ranges.append(mine)
        try:
            if before:
                await asyncio.wait(before)
            mine.acquired = True
            yield
        finally:
            self._ranges.remove(mine)
            mine.released.set_result(None)

    def held(self, begin: int, end: int) -> list[tuple[int, int]]:
        """List the ranges that are held now and overlap these bytes; not those that still wait."""
        return [
            (each.begin, each.end)
            for each in self._ranges
            if each.acquired and each.overlaps(begin, end)
        ]
