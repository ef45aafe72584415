"""A device whose passing failures nobody notices."""

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
"""What will be no different in a minute."""


def is_transient(error: OSError) -> bool:
    """Whether it may be gone the next time; so it is with all that is not known to last."""
    return error.errno not in PERMANENT_ERRNOS


class Retry(Intercept):
    """Makes requests again that have failed, after a while.

    A flush is never made again. Who fails one may have lost what it should have made durable; a
    second one, which has nothing left to do and succeeds, would hide that.

    The pauses double from ``delay`` to ``longest_delay``; chance makes each up to a half shorter,
    so that requests that failed together do not come again together.

    Durability: that of ``inner``.

    Concurrency: a write that is made again may come after one of the same blocks that was asked for
    later and has succeeded meanwhile. That does no harm: until it is answered it is in flight,
    beside the other, and of two writes in flight either may be the last. A program that cares waits
    for the first before it makes the second. What ``inner`` must see to is that a write which it
    has failed does not take effect later: it could then undo one that came after its success.

    Cancellation: safe, at any time; nothing is made again.

    Args:
        inner: what the requests go to.
        attempts: how often each is made at most.
        delay: seconds before it is made again.
        longest_delay: seconds that a pause may grow to.
        is_transient: tells which errors to try again after; by default all but those in
            :data:`PERMANENT_ERRNOS`. What is no OSError never is one of them.
        random: shortens the pauses.

    Raises:
        TypeError, ValueError: a number makes no sense.

    """

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
        """Make one, until it succeeds or that is enough."""
        for pause in self._pauses() if command != "flush" else ():
            try:
                return await call()
            except OSError as exc:
                if not self._is_transient(exc):
                    raise
                logger.info(
                    "%s at %d failed, and is made again in %.3g s: %s", command, offset, pause, exc
                )
            await sleep(pause)
        return await call()

    def _pauses(self) -> Iterator[float]:
        longest = self._delay
        for _ in range(self._attempts - 1):
            yield longest * self._random.uniform(0.5, 1)
            longest = min(2 * longest, self._longest_delay)
