"""Requests that are made side by side, and end together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")


async def together(requests: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
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


async def drain(requests: Iterator[Callable[[], Awaitable[object]]], *, most: int = 32) -> None:
    """Make each of these requests, at most ``most`` at a time; none after the first that fails.

    Raises:
        BaseException: what the first of them raised, when those in flight have ended.

    Cancellation: as for :func:`together`.

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

    first = list(islice(requests, most))
    if len(first) == 1:
        await first[0]()  # needs no task
    else:
        await together(work(request) for request in first)
