"""Run requests concurrently until all have ended; at most so many at a time, as by a semaphore."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")


async def gather_all(requests: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all of them concurrently, wait until all have ended, then raise the first error.

    Unlike :func:`asyncio.gather`, which raises while others still run.

    Returns:
        The results, in the order of ``requests``.

    Raises:
        BaseException: the first exception, in the order of ``requests``.

    Cancellation: cancels all of them, and waits until they have ended.

    """
    results = await asyncio.gather(*requests, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # type: ignore[return-value]  # none is an exception


async def run_bounded(
    requests: Iterator[Callable[[], Awaitable[object]]], *, limit: int = 32
) -> None:
    """Call each of ``requests``, at most ``limit`` concurrently; start none after a failure.

    Raises:
        BaseException: what the first of them raised, once those in flight have ended.

    Cancellation: as for :func:`gather_all`.

    """
    failed = False

    async def work(request: Callable[[], Awaitable[object]]) -> None:
        nonlocal failed
        try:
            await request()
            while not failed and (following := next(requests, None)):
                await following()
        except BaseException:
            failed = True
            raise

    first = list(islice(requests, limit))
    if len(first) == 1 < limit:  # there are no more
        await first[0]()  # needs no task
    else:
        await gather_all(work(request) for request in first)
