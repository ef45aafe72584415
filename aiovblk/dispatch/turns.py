"""How many handlers of one device run at once, and who is next."""

from __future__ import annotations

from typing import Protocol

MAX_CONCURRENCY = 128
"""Handlers at once: as many requests as the kernel has in flight on one connection."""


class Starter(Protocol):
    """Who starts handlers: those of one connection."""

    def go_on(self) -> None:
        """Start handlers."""


class Turns:
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
        self.waiting: dict[Starter, None] = {}
        self._called: Starter | None = None  # whose turn it is
        self._calling = False

    def take(self, starter: Starter) -> bool:
        """Take a turn; without one, the starter goes on when there is one for it."""
        if self.running < self._limit and (not self.waiting or starter is self._called):
            self._called = None  # for another turn it waits like the others
            self.running += 1
            return True
        self.waiting[starter] = None
        return False

    def end(self) -> None:
        """A handler has ended: it is the turn of whoever has waited longest for one."""
        self.running -= 1
        # Not re-entered: a handler that is done at once comes here again.
        if self.waiting and not self._calling:
            self._call()

    def withdraw(self, starter: Starter) -> None:
        """One does not wait any more."""
        self.waiting.pop(starter, None)

    def _call(self) -> None:
        self._calling = True
        try:
            while self.waiting and self.running < self._limit:
                self._called = next(iter(self.waiting))
                del self.waiting[self._called]
                self._called.go_on()
        finally:
            self._calling, self._called = False, None
