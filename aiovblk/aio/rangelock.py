"""Ranges of bytes, each for one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple


class _LockedRange(NamedTuple):
    begin: int
    end: int
    released: asyncio.Future[None]


class RangeLock:
    """Lets those who work on overlapping ranges in one after the other, in the order they came."""

    def __init__(self) -> None:
        self._held: list[_LockedRange] = []

    @asynccontextmanager
    async def hold(self, begin: int, end: int) -> AsyncIterator[None]:
        """Have these bytes for the length of an ``async with`` block."""
        before = [each.released for each in self._held if begin < each.end and each.begin < end]
        mine = _LockedRange(begin, end, asyncio.get_running_loop().create_future())
        self._held.append(mine)
        try:
            if before:
                await asyncio.wait(before)
            yield
        finally:
            self._held.remove(mine)
            mine.released.set_result(None)
