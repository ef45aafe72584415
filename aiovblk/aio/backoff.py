"""Requests over a network, made again for as long as patience lasts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger("aiovblk")

RETRY_TIMEOUT = 60.0
"""Seconds for which a request is repeated that nobody answers, or that cannot be served now."""

NOTICE_DELAY = 3.0
"""Seconds for which a request has been failing when the log says so."""

NOTICE_INTERVAL = 30.0
"""Seconds between two such lines at least: in an outage all requests fail, for the same reason."""

_PAUSES = (0.1, 5.0)  # seconds before the first repetition, and at most before a later one

_random = Random()


class RetryLog:
    """Tells the log that requests are being repeated: which, why, and for how long yet.

    One for all requests to one server, so that an outage is one line and not one per request.
    """

    def __init__(self) -> None:
        self._last: float | None = None

    def retrying(self, failure: OSError, now: float, deadline: float) -> bool:
        """Log that a request is being repeated.

        Args:
            failure: of its last attempt.
            now: by the loop's clock.
            deadline: until when it is repeated.

        Returns:
            Whether it was logged; it is not, where another one was a short time ago.

        """
        if self._last is not None and now - self._last < NOTICE_INTERVAL:
            return False
        self._last = now
        left = max(deadline - now, 0)
        logger.warning("retrying, for up to %.0f s more: %s", left, failure.strerror or failure)
        return True

    def succeeded(self, failure: OSError, seconds: float) -> None:
        """Log that a request whose failure was logged has succeeded after all."""
        self._last = None
        logger.warning("succeeded after %.1f s: %s", seconds, failure.strerror or failure)


async def retry(
    request: Callable[[], Awaitable[T]],
    classify: Callable[[Exception], tuple[OSError, bool]],
    *,
    timeout: float = RETRY_TIMEOUT,
    notices: RetryLog | None = None,
) -> T:
    """Make a request until it succeeds, fails for good, or patience has run out.

    One that has been failing for :data:`NOTICE_DELAY` seconds is told of in the log.

    Args:
        request: makes it.
        classify: tells what an exception means, and whether that may pass by itself.
        timeout: seconds after which it is not made again.
        notices: what is shared by all requests to the same server.

    Raises:
        OSError: what ``classify`` has made of the last failure; not chained to it, since what
            libraries say fills a page, and may hold secrets.

    Cancellation: safe, as far as ``request`` is.

    """
    attempts = _Attempts(notices or RetryLog(), timeout)
    pause, longest = _PAUSES
    try:
        while True:
            try:
                result = await request()
            except Exception as exc:
                failure, passes = classify(exc)
                if not passes or attempts.is_last(pause):
                    raise failure from None
                attempts.failed(failure)
            else:
                attempts.succeeded()
                return result
            # With jitter, so that many who were refused together do not come back together.
            await asyncio.sleep(pause * _random.uniform(0.5, 1))
            pause = min(2 * pause, longest)
    finally:
        attempts.stop()


class _Attempts:
    """Those of one request, and what is told of them.

    A timer tells, and not the next failure: the pause before that may be long.
    """

    def __init__(self, notices: RetryLog, patience: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._notices = notices
        self._began = self._loop.time()
        self._deadline = self._began + patience
        self._timer: asyncio.TimerHandle | None = None
        self._failure: OSError | None = None
        self._reported = False

    def is_last(self, pause: float) -> bool:
        return self._loop.time() + pause > self._deadline

    def failed(self, failure: OSError) -> None:
        self._failure = failure
        if self._timer is None:
            self._timer = self._loop.call_at(self._began + NOTICE_DELAY, self._report)

    def _report(self) -> None:
        assert self._failure is not None  # it set the timer
        told = self._notices.retrying(self._failure, self._loop.time(), self._deadline)
        self._reported = self._reported or told

    def succeeded(self) -> None:
        if self._reported and self._failure is not None:
            self._notices.succeeded(self._failure, self._loop.time() - self._began)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
