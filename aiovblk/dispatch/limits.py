"""The limits of the handlers of one device, as a mount, a server and their workers take them."""

from __future__ import annotations

from dataclasses import dataclass

from ..arguments import check_count, check_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerLimits:
    """How many handlers may run at once, and for how long.

    Can be pickled: a worker is given the limits of its parent.

    Attributes:
        concurrency: how many handlers may run at once.
        handler_timeout: seconds after which a handler is cancelled and its request fails with EIO;
            None for no limit.
        slow_request: seconds after which a handler that still runs is reported as slow; None for
            never.

    Raises:
        TypeError, ValueError: a limit is not a number, or out of range.

    """

    concurrency: int
    handler_timeout: float | None
    slow_request: float | None

    def __post_init__(self) -> None:
        check_count("concurrency", self.concurrency)
        check_seconds("handler_timeout", self.handler_timeout)
        check_seconds("slow_request", self.slow_request)
