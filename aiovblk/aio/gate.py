"""A gate for concurrent changes, which a pause closes: a shared/exclusive lock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PausableGate:
    """Admit any number of changes concurrently, except during a pause.

    A change is ``async with gate:`` (the shared side): it waits until there is no pause. A pause is
    ``async with gate.pause():`` (the exclusive side): it waits until all changes are done, and
    keeps new ones waiting until its body ends.

    Invariants:

    * During a pause no change runs.
    * A pause that waits keeps new changes out, so that changes cannot starve it.
    * There is one pause at a time.

    Cancellation: safe while waiting, on either side.
    """

    def __init__(self) -> None:
        self._running = 0
        self._pause = asyncio.Lock()
        self._idle: asyncio.Future[None] | None = None

    async def __aenter__(self) -> None:
        if self._pause.locked():
            async with self._pause:
                # Counted while the lock is held, or the next pause might begin in between.
                self._running += 1
        else:
            self._running += 1

    async def __aexit__(self, *failure: object) -> None:
        self._running -= 1
        if self._idle and not self._idle.done() and not self._running:
            self._idle.set_result(None)

    @asynccontextmanager
    async def pause(self) -> AsyncIterator[None]:
        """Wait until no change runs, and keep changes out during the body."""
        async with self._pause:
            while self._running:
                self._idle = asyncio.get_running_loop().create_future()
                await self._idle
            yield
