"""Handlers that are running, and who is told of those that run for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..protocol import Request

DEFAULT_SLOW_REQUEST = 30.0
"""Seconds after which a handler that still runs is told of, unless somebody chooses otherwise."""


class SlowRequestMonitor:
    """The handlers of one connection that did not end at once, oldest first.

    Args:
        limit: seconds for which a handler may run before somebody is told; None for ever.
        on_slow: called once for each that runs longer, with its request and for how many seconds.

    Attributes:
        tasks: when (in the loop's time) each began, and for which request. Whoever ends takes
            himself out.

    """

    def __init__(self, limit: float | None, on_slow: Callable[[Request, float], None]) -> None:
        self._limit = limit
        self._on_slow = on_slow
        self._loop = asyncio.get_running_loop()
        self.tasks: dict[asyncio.Task[None], tuple[float, Request]] = {}
        # One timer for all of them: requests come and go far more often than one is slow.
        self._timer: asyncio.TimerHandle | None = None
        self._reported_until = 0.0  # those that began until then have been told of

    @property
    def oldest_start(self) -> float | None:
        """When the one began that has run longest; None if there is none."""
        return next((start for start, _ in self.tasks.values()), None)

    def add(self, task: asyncio.Task[None], request: Request) -> None:
        """One has begun."""
        self.tasks[task] = self._loop.time(), request
        if self._timer is None and self._limit is not None:
            self._timer = self._loop.call_later(self._limit, self._check, self._limit)

    def stop_monitoring(self) -> None:
        """Tell nobody any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, limit: float) -> None:
        now = self._loop.time()
        self._timer = None
        untold = [each for each in self.tasks.values() if each[0] > self._reported_until]
        for start, request in untold:
            if start + limit > now:
                self._timer = self._loop.call_at(start + limit, self._check, limit)
                break
            self._reported_until = start
            self._on_slow(request, now - start)
