"""How much of the server's memory requests in flight may take.

The kernel limits itself, and must never be kept waiting. A client from the network may be anybody.

What holds here:

* A request is counted before memory is taken for it: for its payload, although that is still to be
  received, and for its reply, although that is still to be made.
* However many connections there are, they take no more than the limit, the request that passes it,
  and :data:`ALWAYS_ALLOWED` for each.
* Connections that wait for memory get it in the order in which they came.
"""

from __future__ import annotations

import asyncio

from ..protocol import MAX_PAYLOAD, Command, Request
from .handler_call import MAX_EXTENTS

REQUEST_COST = 4096
"""Bytes that a request is taken to cost beside its payload."""

EXTENT_COST = 128
"""Bytes that an extent takes while the reply to a BLOCK_STATUS is made: as a tuple, with its
number, and packed. (On the wire there are 8 of them, or 16.)"""

MIN_EXTENT = 512
"""Bytes of an extent, for the estimate of how many there will be."""

ALWAYS_ALLOWED = 256 * 1024 + REQUEST_COST
"""Bytes that the only request in flight of a connection may cost, whatever the others take."""

_WITH_PAYLOAD = int(Command.READ), int(Command.WRITE)
_BLOCK_STATUS = int(Command.BLOCK_STATUS)


def request_cost(request: Request) -> int:
    """Bytes that a request may take from its arrival until its reply is sent."""
    if request.type in _WITH_PAYLOAD:
        return REQUEST_COST + min(request.length, MAX_PAYLOAD)
    if request.type == _BLOCK_STATUS:
        extents = min(request.length // MIN_EXTENT + 1, MAX_EXTENTS)
        return REQUEST_COST + extents * EXTENT_COST
    return REQUEST_COST


class MemoryBudget:
    """Bytes that the requests in flight on several connections may take together.

    Args:
        limit: bytes; requests are taken until it is reached, so that the last one may pass it.

    Attributes:
        used: bytes that are taken.
        waiting: connections for which there is nothing left, in their order.

    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.waiting: dict[ConnectionQuota, None] = {}

    def is_low(self) -> bool:
        """Whether a connection waits for what others have taken."""
        return bool(self.waiting)

    def grant(self) -> None:
        """Let those who wait have what there is."""
        while self.waiting and self.used < self.limit:
            share = next(iter(self.waiting))
            del self.waiting[share]
            share.grant()


class ConnectionQuota:
    """What one connection takes of a budget.

    Args:
        budget: what is shared.
        limit: bytes for this connection alone; its last request may pass it.

    Attributes:
        reserved: bytes that are taken for the next request.

    """

    def __init__(self, budget: MemoryBudget, limit: int) -> None:
        self._budget = budget
        self._limit = limit
        self._used = 0
        self._wanted = 0
        self._granted: asyncio.Future[None] | None = None
        self.reserved = 0

    def available(self) -> int:
        """Bytes that may still be taken; the last request may pass it. 0 or less: none."""
        budget = self._budget
        if budget.waiting:  # those come first
            return 0
        return min(self._limit - self._used, budget.limit - budget.used)

    def may_charge(self, count: int) -> bool:
        """Whether a request that costs so many bytes need not wait."""
        return self.available() > 0 or (not self._used and count <= ALWAYS_ALLOWED)

    async def reserve(self, count: int) -> None:
        """Wait until the next request may be taken, which costs so many bytes, and take them.

        Concurrency: one at a time.
        Cancellation: nothing is reserved.

        """
        if self.may_charge(count):
            self._reserve(count)
            return
        self._wanted = count
        self._granted = asyncio.get_running_loop().create_future()
        self.grant()
        try:
            await self._granted
        except asyncio.CancelledError:
            self._budget.waiting.pop(self, None)
            if self.reserved:
                self.refund(self.reserved)
                self.reserved = 0
            raise
        finally:
            self._granted = None

    def grant(self) -> None:
        """Reserve what is waited for, or queue for it."""
        if self._granted is None or self._granted.done():
            return
        if self._used >= self._limit:
            return  # it asks again when it gives back something itself
        if self._budget.used < self._budget.limit or self.may_charge(self._wanted):
            self._budget.waiting.pop(self, None)
            self._reserve(self._wanted)
            self._granted.set_result(None)
        else:
            self._budget.waiting[self] = None

    def begin_batch(self) -> tuple[int, int]:
        """Begin to take several requests at once, the first of which may have been paid for.

        Returns:
            How much may be taken, and how much has been: what is reserved, as a negative number.
            Whoever adds the costs of requests to that has to tell :meth:`end_batch` of the sum.

        """
        room = self.available()
        return (max(room, 1 - self.reserved), -self.reserved) if self.reserved else (room, 0)

    def end_batch(self, taken: int) -> None:
        """Count the requests of a batch."""
        if self.reserved:
            if taken == -self.reserved:
                return  # not used yet
            self.reserved = 0
        if taken >= 0:
            self.charge(taken)
        else:
            self.refund(-taken)

    def _reserve(self, count: int) -> None:
        self.reserved = count
        self.charge(count)

    def charge(self, count: int) -> None:
        """Count what is in flight from now on."""
        self._used += count
        self._budget.used += count

    def refund(self, count: int) -> None:
        """Count what is no longer in flight."""
        # Nothing is left after the end of the connection, whose last replies may leave, or be
        # lost, later.
        count = min(count, self._used)
        self._used -= count
        self._budget.used -= count
        self._budget.grant()
        self.grant()

    def close(self) -> None:
        """Give all back, with the connection."""
        self.refund(self._used)
