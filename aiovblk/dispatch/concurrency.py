"""The concurrency limiter: a FIFO semaphore, which connections to one device may share."""

from __future__ import annotations

import asyncio
from typing import Protocol

MAX_CONCURRENCY = 128
"""Default limit: as many requests as the kernel has in flight on one connection."""


class Waiter(Protocol):
    """A connection that waits for the limiter: its :class:`HandlerScheduler`."""

    def start_ready(self) -> None:
        """Start queued handlers, each after :meth:`ConcurrencyLimiter.acquire`."""


class ConcurrencyLimiter:
    """Limit how many handlers run at once; connections that wait are served in FIFO order.

    Unlike :class:`asyncio.Semaphore` it calls the waiting connection back at once, which costs no
    turn of the event loop and no future for each request.

    Args:
        limit: how many handlers may run at once.

    Attributes:
        limit: as above.
        running: how many run now.
        waiting: the connections that wait, in order.

    """

    def __init__(self, limit: int = MAX_CONCURRENCY) -> None:
        self.running = 0
        self.limit = limit
        self.waiting: dict[Waiter, None] = {}
        self._notified: Waiter | None = None  # the connection whose turn it is
        self._notifying = False

    def acquire(self, waiter: Waiter) -> bool:
        """Acquire the limiter for one handler, without waiting.

        Returns:
            Whether it was acquired. If not, :meth:`Waiter.start_ready` is called when it is the
            waiter's turn.

        """
        if self.running < self.limit and (not self.waiting or waiter is self._notified):
            self._notified = None  # for a second handler it waits like the others
            self.running += 1
            return True
        self.waiting[waiter] = None
        return False

    def release(self) -> None:
        """Release the limiter after a handler; start the connection that has waited longest."""
        self.running -= 1
        # Not re-entered: a handler that ends at once releases while _start_next runs.
        if self.waiting and not self._notifying:
            self._start_next()

    def cancel_wait(self, waiter: Waiter) -> None:
        """Remove a connection from those that wait."""
        self.waiting.pop(waiter, None)

    def _start_next(self) -> None:
        self._notifying = True
        try:
            while self.waiting and self.running < self.limit:
                self._notified = next(iter(self.waiting))
                del self.waiting[self._notified]
                self._notified.start_ready()
        except BaseException:  # a handler was interrupted; the other connections go on
            asyncio.get_running_loop().call_soon(self._start_next)
            raise
        finally:
            self._notifying, self._notified = False, None
