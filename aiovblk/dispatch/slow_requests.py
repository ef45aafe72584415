"""Monitor running handlers, and report slow requests (``slow_request``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from ..protocol import Request, parse_request

DEFAULT_SLOW_REQUEST = 30.0
"""Default of ``slow_request``: seconds after which a handler that still runs is reported."""


class WaitingRequest(NamedTuple):
    """A request whose handler has had to wait."""

    start: float
    """When (in the loop's time) that began."""
    source: Request | bytes
    """The request, or its header if it is served directly."""

    def request(self) -> Request:
        """Return the request."""
        return parse_request(self.source) if isinstance(self.source, bytes) else self.source


class SlowRequestMonitor:
    """Track the handlers of one connection that had to wait, and report each slow one once.

    Args:
        limit: seconds after which a running handler is reported; None for never.
        on_slow: called once for each that runs longer, with its request and its seconds so far.

    Attributes:
        tasks: the running tasks, oldest first. A task removes itself when it ends.

    """

    def __init__(self, limit: float | None, on_slow: Callable[[Request, float], None]) -> None:
        self._limit = limit
        self._on_slow = on_slow
        self._loop = asyncio.get_running_loop()
        self.tasks: dict[asyncio.Task[None], WaitingRequest] = {}
        # One timer for all tasks: starting one for each request would cost far more.
        self._timer: asyncio.TimerHandle | None = None
        self._reported_until = 0.0  # tasks that began until then have been reported

    @property
    def oldest_start(self) -> float | None:
        """When (in the loop's time) the longest-running task began; None if none runs."""
        return next((each.start for each in self.tasks.values()), None)

    def add(self, task: asyncio.Task[None], source: Request | bytes) -> None:
        """Track a task that runs the handler of this request, or of one with this header."""
        self.tasks[task] = WaitingRequest(self._loop.time(), source)
        if self._timer is None and self._limit is not None:
            self._timer = self._loop.call_later(self._limit, self._check, self._limit)

    def remove(self, task: asyncio.Task[None]) -> None:
        """Forget a task whose handler has ended."""
        self.tasks.pop(task, None)

    def stop_monitoring(self) -> None:
        """Stop reporting."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, limit: float) -> None:
        now = self._loop.time()
        self._timer = None
        unreported = [each for each in self.tasks.values() if each.start > self._reported_until]
        for waiting in unreported:
            if waiting.start + limit > now:
                self._timer = self._loop.call_at(waiting.start + limit, self._check, limit)
                break
            self._reported_until = waiting.start
            self._on_slow(waiting.request(), now - waiting.start)
