"""Memory quotas of network clients: backpressure when requests in flight use too much memory.

A network client is untrusted. The kernel has no quota: it limits itself to 128 requests for each
connection, and must never be kept waiting.

What holds here:

* A request is charged before its memory is allocated: for its payload, although that is still to be
  received, and for its reply, although that is still to be made.
* However many connections there are, they use no more than the limit, the one request that exceeds
  it, and :data:`ALWAYS_ALLOWED` for each.
* Connections that wait for memory get it in FIFO order.
"""

from __future__ import annotations

import asyncio

from ..protocol import MAX_PAYLOAD, Command, Request
from ..stream import BUFFER_SIZE
from .holes import MAX_SENT_EXTENTS

REQUEST_COST = 4096
"""Estimated bytes of a request, beside its payload."""

EXTENT_COST = 128
"""Bytes of an extent while the reply to a BLOCK_STATUS is made: the tuple, its length as an int,
and its packed form. (On the wire it has 8 bytes, or 16.)"""

MIN_EXTENT = 512
"""Bytes of the shortest extent, for the estimate of how many a reply will have."""

ALWAYS_ALLOWED = 256 * 1024 + REQUEST_COST
"""Cost in bytes up to which the only request in flight of a connection never has to wait."""

UNRESERVED = 64 * 1024
"""Bytes up to which a request may always be received before memory is reserved for it: they fit
into the buffer that each connection has."""

_WITH_PAYLOAD = int(Command.READ), int(Command.WRITE)
_BLOCK_STATUS, _DISC = int(Command.BLOCK_STATUS), int(Command.DISC)


def request_cost(request: Request) -> int:
    """Return the bytes of memory that a request is charged from its arrival until its reply."""
    if request.type in _WITH_PAYLOAD:
        return REQUEST_COST + min(request.length, MAX_PAYLOAD)
    if request.type == _BLOCK_STATUS:
        extents = min(request.length // MIN_EXTENT + 1, MAX_SENT_EXTENTS)
        return REQUEST_COST + extents * EXTENT_COST
    return REQUEST_COST


class MemoryBudget:
    """The memory that the requests in flight on all connections of a server may use together.

    Args:
        limit: bytes; requests are accepted until it is reached, so the last one may exceed it.

    Attributes:
        used: bytes that are charged.
        waiting: connections that wait for memory, in FIFO order.

    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.waiting: dict[ConnectionQuota, None] = {}

    def is_low(self) -> bool:
        """Return whether a connection waits for memory that others use."""
        return bool(self.waiting)

    def grant(self) -> None:
        """Give free memory to the connections that wait, in FIFO order."""
        while self.waiting and self.used < self.limit:
            quota = next(iter(self.waiting))
            del self.waiting[quota]
            quota.grant()


class ConnectionQuota:
    """The memory quota of one connection within a shared budget.

    Args:
        budget: the budget of the server.
        limit: bytes for this connection alone; its last request may exceed it.

    Attributes:
        reserved: bytes that are charged in advance for the next request.

    """

    def __init__(self, budget: MemoryBudget, limit: int) -> None:
        self._budget = budget
        self._limit = limit
        self._used = 0
        self._wanted = 0
        self._granted: asyncio.Future[None] | None = None
        self.reserved = 0

    def available(self) -> int:
        """Return how many bytes may be charged (the last request may exceed it); none if <= 0."""
        budget = self._budget
        if budget.waiting:  # those connections come first
            return 0
        own, shared = self._limit - self._used, budget.limit - budget.used
        return own if own < shared else shared

    def may_charge(self, count: int) -> bool:
        """Return whether a request of this cost in bytes may be accepted without waiting."""
        return self.available() > 0 or (not self._used and count <= ALWAYS_ALLOWED)

    async def reserve(self, count: int) -> None:
        """Wait until the next request, of ``count`` bytes, may be accepted, and charge it.

        Concurrency: one call at a time.
        Cancellation: safe; nothing is reserved.

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
            self._cancel_reservation()
            raise
        finally:
            self._granted = None

    def grant(self) -> None:
        """Let :meth:`reserve` return if there is memory for it; else queue in the budget."""
        if self._granted is None or self._granted.done():
            return
        if self._used >= self._limit:
            return  # its own next refund calls this again
        if self._budget.used < self._budget.limit or self.may_charge(self._wanted):
            self._budget.waiting.pop(self, None)
            self._reserve(self._wanted)
            self._granted.set_result(None)
        else:
            self._budget.waiting[self] = None

    def reserve_now(self, count: int) -> bool:
        """Charge the next request, of ``count`` bytes, in advance, if it need not wait.

        Returns:
            Whether it is charged; True also if it was before.

        """
        if self.reserved < count:
            self._cancel_reservation()  # it was for a smaller one
            if self.may_charge(count):
                self._reserve(count)
        return self.reserved > 0

    def charge_next(self, count: int) -> bool:
        """Charge the next request: out of the reservation, if there is one for it.

        Without one it is charged only if it need not wait.

        Returns:
            Whether it is charged.

        """
        if self.reserved:
            # At least what it costs was reserved.
            unneeded, self.reserved = self.reserved - count, 0
            self.refund(unneeded)
            return True
        if not self.may_charge(count):
            return False
        self.charge(count)
        return True

    def admit(self, request: Request, length: int, *, is_whole: bool, buffered: int) -> int:
        """Charge a request that has begun to arrive, if it need not wait.

        Args:
            request: its header.
            length: bytes of header and payload.
            is_whole: whether all of them have arrived.
            buffered: bytes of the connection's receive buffer.

        Returns:
            Bytes of memory that it has to wait for; 0 if it may be received, or accepted.

        """
        cost = request_cost(request)
        if is_whole:
            has_memory = request.type == _DISC or self.charge_next(cost)
        elif length > max(UNRESERVED, min(buffered, BUFFER_SIZE)):
            # Reserved before it is received: it does not fit into what the connection has.
            has_memory = self.reserve_now(max(cost, length))
        else:
            has_memory = True
        return 0 if has_memory else max(cost, length)

    def _reserve(self, count: int) -> None:
        self.reserved = count
        self.charge(count)

    def _cancel_reservation(self) -> None:
        if self.reserved:
            unused, self.reserved = self.reserved, 0
            self.refund(unused)

    def charge(self, count: int) -> None:
        """Count bytes that are in flight from now on."""
        self._used += count
        self._budget.used += count

    def refund(self, count: int) -> None:
        """Return bytes that are no longer in flight, and wake connections that wait for memory."""
        # close() has refunded everything; the last replies may be sent, or lost, after that.
        count = min(count, self._used)
        self._used -= count
        self._budget.used -= count
        self._budget.grant()
        self.grant()

    def close(self) -> None:
        """Refund everything, at the end of the connection."""
        self.refund(self._used)
