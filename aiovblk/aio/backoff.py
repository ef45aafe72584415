"""Retry a request with exponential backoff and jitter until a timeout, and log outages once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

T = TypeVar("T")

logger = logging.getLogger("aiovblk")

RETRY_TIMEOUT = 60.0
"""Seconds during which a request is retried that gets no answer, or that the server cannot serve
now."""

NOTICE_DELAY = 3.0
"""Seconds for which a request has to fail before that is logged."""

NOTICE_INTERVAL = 30.0
"""Minimum seconds between two such log lines: in an outage all requests fail for one reason."""

_FIRST_PAUSE = 0.1  # seconds before the first retry; doubled for each one after it
_MAX_PAUSE = 5.0  # seconds before any retry, at most

_random = Random()


class RetryLog:
    """Log that requests are retried: which, why, and for how much longer.

    Shared by all requests to one server, so that an outage is one line, not one per request.
    """

    def __init__(self) -> None:
        self._last: float | None = None

    def retrying(self, failure: OSError, now: float, deadline: float) -> bool:
        """Log that a request is retried, unless another line was logged a short time ago.

        Args:
            failure: of its last attempt.
            now: seconds, by the loop's clock.
            deadline: when retrying ends, by the same clock.

        Returns:
            Whether it was logged. It is not within :data:`NOTICE_INTERVAL` of another line.

        """
        if self._last is not None and now - self._last < NOTICE_INTERVAL:
            return False
        self._last = now
        remaining = max(deadline - now, 0)
        logger.warning(
            "retrying, for up to %.0f s more: %s", remaining, failure.strerror or failure
        )
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
    """Retry a request with backoff until it succeeds, fails permanently, or the timeout is over.

    One that has been failing for :data:`NOTICE_DELAY` seconds is logged.

    Args:
        request: called for each attempt.
        classify: returns the error that an exception stands for, and whether it is transient.
        timeout: seconds after which no further attempt is made.
        notices: the log that all requests to the same server share.

    Raises:
        OSError: what ``classify`` has returned for the last failure. It is not chained to the
            failure, since the text of client libraries fills a page, and may hold secrets.

    Cancellation: safe, as far as ``request`` is.

    """
    attempts = _Attempts(notices or RetryLog(), timeout)
    pause = _FIRST_PAUSE
    try:
        while True:
            try:
                result = await request()
            except Exception as exc:
                failure, transient = classify(exc)
                if not transient or attempts.is_last(pause):
                    raise failure from None
                attempts.failed(failure)
            else:
                attempts.succeeded()
                return result
            # With jitter, so that many who were refused together do not come back together.
            await asyncio.sleep(pause * _random.uniform(0.5, 1))
            pause = min(2 * pause, _MAX_PAUSE)
    finally:
        attempts.stop()


class _Attempts:
    """The attempts of one request, and what is logged about them.

    A timer logs, not the next failure: the pause before that may be long.
    """

    def __init__(self, notices: RetryLog, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._notices = notices
        self._began = self._loop.time()
        self._deadline = self._began + timeout
        self._timer: asyncio.TimerHandle | None = None
        self._failure: OSError | None = None
        self._reported = False

    def is_last(self, pause: float) -> bool:
        """Whether the next attempt, after ``pause`` seconds, would come after the deadline."""
        return self._loop.time() + pause > self._deadline

    def failed(self, failure: OSError) -> None:
        self._failure = failure
        if self._timer is None:
            self._timer = self._loop.call_at(self._began + NOTICE_DELAY, self._report)

    def _report(self) -> None:
        assert self._failure is not None  # failed() set the timer
        logged = self._notices.retrying(self._failure, self._loop.time(), self._deadline)
        self._reported = self._reported or logged

    def succeeded(self) -> None:
        if self._reported and self._failure is not None:
            self._notices.succeeded(self._failure, self._loop.time() - self._began)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
