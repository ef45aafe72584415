"""Requests over a network, made again for as long as patience lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for which a request is repeated that nobody answers, or that cannot be served now."""

_PAUSES = (0.1, 5.0)  # seconds before the first repetition, and at most before a later one

_random = Random()


async def repeat(
    request: Callable[[], Awaitable[T]],
    explain: Callable[[Exception], tuple[OSError, bool]],
    *,
    patience: float = PATIENCE,
) -> T:
    """Make a request until it succeeds, fails for good, or patience has run out.

    Args:
        request: makes it.
        explain: tells what an exception means, and whether that may pass by itself.
        patience: seconds after which it is not made again.

    Raises:
        OSError: what ``explain`` has made of the last failure; not chained to it, since what
            libraries say fills a page, and may hold secrets.

    Cancellation: safe, as far as ``request`` is.

    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + patience
    pause, longest = _PAUSES
    while True:
        try:
            return await request()
        except Exception as exc:
            failure, passes = explain(exc)
            if not passes or clock() + pause > deadline:
                raise failure from None
        # With jitter, so that many who were refused together do not come back together.
        await asyncio.sleep(pause * _random.uniform(0.5, 1))
        pause = min(2 * pause, longest)
