"""Requests that are made side by side, and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")


async def gather_all(requests: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Wait for all of them, whatever becomes of some, then raise the first of their errors.

    Returns:
        The results, in order.

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
    """Make each of these requests, at most ``limit`` at a time; none after the first that fails.

    Raises:
        BaseException: what the first of them raised, when those in flight have ended.

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
    if len(first) == 1:
        await first[0]()  # needs no task
    else:
        await gather_all(work(request) for request in first)
