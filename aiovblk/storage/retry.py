"""Retry requests that failed with a transient error, with exponential backoff and jitter."""

from __future__ import annotations

import errno
import logging
from asyncio import sleep
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import TypeVar

from ..arguments import check_count, check_seconds
from ..device import BlockDevice
from .intercept import Intercept

T = TypeVar("T")

logger = logging.getLogger("aiovblk")

PERMANENT_ERRNOS = frozenset(
    {
        errno.EPERM,
        errno.EACCES,
        errno.ENOENT,
        errno.EBADF,
        errno.EINVAL,
        errno.EFBIG,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.ENXIO,
        errno.ENODEV,
        errno.ENOMEDIUM,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
        errno.EOVERFLOW,
    }
)
"""Errors that a retry does not cure: permissions, a full disk, what is not supported."""


def is_transient(error: OSError) -> bool:
    """Return whether a retry may succeed: true for every error not known to be permanent."""
    return error.errno not in PERMANENT_ERRNOS


class Retry(Intercept):
    """Retries requests that failed with a transient error, with exponential backoff and jitter.

    A flush is never retried. A device that fails one may have lost what the flush should have made
    durable; the second one, with nothing left to do, would succeed and hide that.

    The pause between two attempts doubles from ``delay`` to ``longest_delay``. Jitter shortens each
    by up to a half, so that requests that failed together do not come back together.

    Durability: that of ``inner``.

    Concurrency: a retried write may reach ``inner`` after a later write of the same blocks that has
    already succeeded. That is correct: the first is still in flight, beside the second, and of two
    writes in flight either may be the last. A program that depends on the order waits for the first
    before it makes the second. ``inner`` must make sure that a write it has failed does not take
    effect later: it could then undo one that was made after the retry's success.

    Cancellation: safe at any time; there is no further attempt.

    Args:
        inner: the device below.
        attempts: how often each request is tried at most.
        delay: seconds before the first retry.
        longest_delay: seconds that the pause may grow to.
        is_transient: returns whether to retry after this error; by default after all but
            :data:`PERMANENT_ERRNOS`. An exception that is no OSError is never retried.
        random: makes the jitter.

    Raises:
        TypeError, ValueError: a number is out of range.

    """

    passes_bitmaps = True

    def __init__(
        self,
        inner: BlockDevice,
        *,
        attempts: int = 5,
        delay: float = 0.1,
        longest_delay: float = 10.0,
        is_transient: Callable[[OSError], bool] = is_transient,
        random: Random | None = None,
    ) -> None:
        super().__init__(inner)
        check_count("attempts", attempts)
        check_seconds("delay", delay, zero=True)
        check_seconds("longest_delay", longest_delay, zero=True)
        if not 0 <= delay <= longest_delay:
            raise ValueError(f"delay must be from 0 to {longest_delay}, not {delay}")
        self._attempts = attempts
        self._delay = delay
        self._longest_delay = longest_delay
        self._is_transient = is_transient
        self._random = random or Random()

    async def intercept(
        self, command: str, offset: int, length: int, call: Callable[[], Awaitable[T]]
    ) -> T:
        """Try a request until it succeeds, fails for good, or ``attempts`` are used up."""
        for pause in self._pauses() if command != "flush" else ():
            try:
                return await call()
            except OSError as exc:
                if not self._is_transient(exc):
                    raise
                logger.info("%s at %d failed, retrying in %.3g s: %s", command, offset, pause, exc)
            await sleep(pause)
        return await call()

    def _pauses(self) -> Iterator[float]:
        """Yield the seconds to wait before each retry."""
        longest = self._delay
        for _ in range(self._attempts - 1):
            yield longest * self._random.uniform(0.5, 1)
            longest = min(2 * longest, self._longest_delay)
