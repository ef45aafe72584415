"""How mount and serve run handlers: concurrency, handler_timeout, slow_request, busy_poll."""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import MAX_BUSY_POLL, check_count, check_seconds
from .concurrency import MAX_CONCURRENCY
from .slow_requests import DEFAULT_SLOW_REQUEST


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerLimits:
    """How many handlers of one device run at once, how long one may run, and what is done between.

    Raises:
        TypeError: a value is not a number, or ``concurrency`` is not an int.
        ValueError: a value is out of range.

    """

    concurrency: int = MAX_CONCURRENCY
    """Handlers that run at once; further requests wait in arrival order."""
    handler_timeout: float | None = None
    """Seconds after which a handler is cancelled and its request fails with EIO; None for no limit.
    """
    slow_request: float | None = DEFAULT_SLOW_REQUEST
    """Seconds after which a handler that still runs is reported as slow; None for never."""
    busy_poll: int | None = None
    """Microseconds for which the event loop polls for the next request before it sleeps; None for
    none. For where a processor is to spare."""

    def __post_init__(self) -> None:
        """Validate the values."""
        check_count("concurrency", self.concurrency)
        check_seconds("handler_timeout", self.handler_timeout)
        check_seconds("slow_request", self.slow_request)
        check_count("busy_poll", self.busy_poll, maximum=MAX_BUSY_POLL)
