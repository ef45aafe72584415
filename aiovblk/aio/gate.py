"""Changes side by side, and pauses without any."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PausableGate:
    """A gate that changes pass, any number at a time, unless there is a pause.

    ``async with changes:`` around a change; it waits until there is no pause. ``async with
    changes.pause():`` waits until all changes are done, and holds others off until it is left.
    """

    def __init__(self) -> None:
        self._running = 0
        self._pause = asyncio.Lock()
        self._idle: asyncio.Future[None] | None = None

    async def __aenter__(self) -> None:
        if self._pause.locked():
            async with self._pause:
                self._running += 1  # within, or the next pause might begin in between
        else:
            self._running += 1

    async def __aexit__(self, *failure: object) -> None:
        self._running -= 1
        if self._idle and not self._idle.done() and not self._running:
            self._idle.set_result(None)

    @asynccontextmanager
    async def pause(self) -> AsyncIterator[None]:
        """Be alone; one pause at a time."""
        async with self._pause:
            while self._running:
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
            yield
