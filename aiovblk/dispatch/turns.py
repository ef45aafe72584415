"""How many handlers of one device run at once, and who is next."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ..protocol import Request

MAX_CONCURRENCY = 128
"""Handlers at once: as many requests as the kernel has in flight on one connection."""


class Starter(Protocol):
    """Who a request came by, and who starts its handler: a dispatcher."""

    def start(self, request: Request, payload: memoryview | None) -> None:
        """Run the request's handler."""


class Turns:
    """Handlers that run, and requests that wait for one of them to end.

    Args:
        limit: how many may run at once.

    Attributes:
        running: how many do.

    """

    def __init__(self, limit: int = MAX_CONCURRENCY) -> None:
        self.running = 0
        self._limit = limit
        self._waiting: deque[tuple[Starter, Request, memoryview | None]] = deque()
        self._starting = False

    def free(self) -> bool:
        """Whether the next request need not wait."""
        return self.running < self._limit and not self._waiting

    def queue(self, starter: Starter, request: Request, payload: memoryview | None) -> None:
        """Let a request wait; it is started when its turn comes, after all that came before."""
        self._waiting.append((starter, request, payload))

    def end(self) -> None:
        """A handler has ended: it is somebody else's turn."""
        self.running -= 1
        # Not re-entered: a handler that is done at once comes here again.
        if not self._waiting or self._starting:
            return
        self._starting = True
        try:
            while self._waiting and self.running < self._limit:
                starter, request, payload = self._waiting.popleft()
                starter.start(request, payload)
        finally:
            self._starting = False

    def withdraw(self, starter: Starter) -> list[Request]:
        """Take back what one has queued."""
        theirs = [request for queued, request, _ in self._waiting if queued is starter]
        others = [each for each in self._waiting if each[0] is not starter]
        self._waiting = deque(others)
        return theirs
