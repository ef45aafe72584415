"""How much of the server's memory requests in flight may take.

The kernel limits itself, and must never be kept waiting. A client from the network may be anybody.
"""

from __future__ import annotations

import asyncio

from ..protocol import MAX_PAYLOAD, Command, Request

REQUEST_COST = 4096
"""Bytes that a request is taken to cost beside its payload."""

_WITH_PAYLOAD = int(Command.READ), int(Command.WRITE)


def cost(request: Request) -> int:
    """Bytes that a request takes from its arrival until its reply is sent."""
    payload = min(request.length, MAX_PAYLOAD) if request.type in _WITH_PAYLOAD else 0
    return REQUEST_COST + payload


class Budget:
    """Bytes that the requests in flight on several connections may take together.

    Args:
        limit: bytes; requests are taken until it is reached, so that the last one may pass it.

    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.shares: set[Share] = set()


class Share:
    """What one connection takes of a budget.

    Whatever the others do, a connection may have one request in flight.

    Args:
        budget: what is shared.
        limit: bytes for this connection alone.

    """

    def __init__(self, budget: Budget, limit: int) -> None:
        self._budget = budget
        self._limit = limit
        self._used = 0
        self._room: asyncio.Future[None] | None = None
        budget.shares.add(self)

    def left(self) -> int:
        """Bytes that may still be taken; the last request may pass it. 0 or less: none."""
        budget = self._budget
        left = min(self._limit - self._used, budget.limit - budget.used)
        return left if self._used else max(left, 1)

    def full(self) -> bool:
        """Whether the next request has to wait."""
        return self.left() <= 0

    async def room(self) -> None:
        """Wait until the next request may be taken.  Concurrency: one at a time."""
        while self.full():
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def take(self, count: int) -> None:
        """Count what is in flight from now on."""
        self._used += count
        self._budget.used += count

    def give_back(self, count: int) -> None:
        """Count what is no longer in flight."""
        # Nothing is left after the end of the connection, whose last replies may leave, or be
        # lost, later.
        count = min(count, self._used)
        was_short = self._budget.used >= self._budget.limit
        self._used -= count
        self._budget.used -= count
        for share in self._budget.shares if was_short else (self,):
            share._tell()

    def close(self) -> None:
        """Give all back, with the connection."""
        self.give_back(self._used)
        self._budget.shares.discard(self)

    def _tell(self) -> None:
        if self._room is not None and not self._room.done() and not self.full():
            self._room.set_result(None)
