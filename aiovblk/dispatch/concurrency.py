"""How many handlers of one device run at once, and who is next."""

from __future__ import annotations

from typing import Protocol

MAX_CONCURRENCY = 128
"""Handlers at once: as many requests as the kernel has in flight on one connection."""


class Waiter(Protocol):
    """Who starts handlers: those of one connection."""

    def start_ready(self) -> None:
        """Start handlers."""


class ConcurrencyLimiter:
    """Handlers that run, and requests that wait for one of them to end.

    Args:
        limit: how many may run at once.

    Attributes:
        running: how many do.
        waiting: who waits for a turn, in their order.

    """

    def __init__(self, limit: int = MAX_CONCURRENCY) -> None:
        self.running = 0
        self._limit = limit
        self.waiting: dict[Waiter, None] = {}
        self._notified: Waiter | None = None  # whose turn it is
        self._notifying = False

    def acquire(self, waiter: Waiter) -> bool:
        """Take a turn; without one, the starter goes on when there is one for it."""
        if self.running < self._limit and (not self.waiting or waiter is self._notified):
            self._notified = None  # for another turn it waits like the others
            self.running += 1
            return True
        self.waiting[waiter] = None
        return False

    def release(self) -> None:
        """A handler has ended: it is the turn of whoever has waited longest for one."""
        self.running -= 1
        # Not re-entered: a handler that is done at once comes here again.
        if self.waiting and not self._notifying:
            self._start_next()

    def cancel_wait(self, waiter: Waiter) -> None:
        """One does not wait any more."""
        self.waiting.pop(waiter, None)

    def _start_next(self) -> None:
        self._notifying = True
        try:
            while self.waiting and self.running < self._limit:
                self._notified = next(iter(self.waiting))
                del self.waiting[self._notified]
                self._notified.start_ready()
        finally:
            self._notifying, self._notified = False, None
