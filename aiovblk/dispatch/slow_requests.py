"""Monitor running handlers, and report slow requests (``slow_request``)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..protocol import Request, parse_request

DEFAULT_SLOW_REQUEST = 30.0
"""Default of ``slow_request``: seconds after which a handler that still runs is reported."""


Source = Request | tuple[bytearray, int]
"""What a request is made of: itself, or its header and when it arrived."""


def as_request(source: Source) -> Request:
    """Return the request that is made of this."""
    if isinstance(source, Request):
        return source
    header, arrival = source
    return parse_request(header, 0, arrival)


class SlowRequestMonitor:
    """Track the handlers of one connection that had to wait, and report each slow one once.

    Args:
        limit: seconds after which a running handler is reported; None for never.
        on_slow: called once for each that runs longer, with its request and its seconds so far.

    Attributes:
        tasks: for each running task, oldest first: when (in the loop's time) it began to wait, and
            what its request is made of. A task removes itself when it ends.

    """

    def __init__(self, limit: float | None, on_slow: Callable[[Request, float], None]) -> None:
        self._limit = limit
        self._on_slow = on_slow
        self._loop = asyncio.get_running_loop()
        self.tasks: dict[asyncio.Task[None], tuple[float, Source]] = {}
        # One timer for all tasks: starting one for each request would cost far more.
        self._timer: asyncio.TimerHandle | None = None
        self._reported_until = 0.0  # tasks that began until then have been reported

    @property
    def oldest_start(self) -> float | None:
        """When (in the loop's time) the longest-running task began; None if none runs."""
        return next((start for start, _ in self.tasks.values()), None)

    def add(self, task: asyncio.Task[None], source: Source) -> None:
        """Track a task that runs the handler of this request."""
        self.tasks[task] = self._loop.time(), source
        if self._timer is None and self._limit is not None:
            self._timer = self._loop.call_later(self._limit, self._check, self._limit)

    def stop_monitoring(self) -> None:
        """Stop reporting."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, limit: float) -> None:
        now = self._loop.time()
        self._timer = None
        unreported = [each for each in self.tasks.values() if each[0] > self._reported_until]
        for start, source in unreported:
            if start + limit > now:
                self._timer = self._loop.call_at(start + limit, self._check, limit)
                break
            self._reported_until = start
            self._on_slow(as_request(source), now - start)
