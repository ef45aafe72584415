"""What is being changed in a device."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ChangeLock:
    """The changes of a device that are under way.

    None overlaps another: two that do would be made in an order that nobody knows, and what is
    cached could differ from what the device holds.
    """

    def __init__(self) -> None:
        self._under_way: dict[asyncio.Future[None], tuple[int, int]] = {}

    @asynccontextmanager
    async def exclusive(self, begin: int, end: int) -> AsyncIterator[None]:
        """Wait until nothing else is changed between these bytes, and keep others waiting."""
        while others := [
            done for done, (first, last) in self._under_way.items() if first < end and begin < last
        ]:
            await asyncio.wait(others)
        done = asyncio.get_running_loop().create_future()
        self._under_way[done] = begin, end
        try:
            yield
        finally:
            del self._under_way[done]
            done.set_result(None)

    def shared(self, begin: int, end: int) -> list[tuple[int, int]]:
        """Those that have a part between these bytes."""
        return [
            (first, last)
            for first, last in self._under_way.values()
            if first < end and begin < last
        ]
