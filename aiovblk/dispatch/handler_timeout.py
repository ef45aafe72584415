"""Timeout of a handler (``handler_timeout``): it is cancelled, and its request fails."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from .failures import HandlerTimeoutError

P = ParamSpec("P")
T = TypeVar("T")


def with_timeout(
    handler: Callable[P, Awaitable[T]], seconds: float | None
) -> Callable[P, Awaitable[T]]:
    """Return the handler with a timeout; None for the handler as it is."""
    if seconds is None:
        return handler

    async def call_in_time(*args: P.args, **kwargs: P.kwargs) -> T:
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                return await handler(*args, **kwargs)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            reason = f"not done in {seconds} s (handler_timeout)"
            raise HandlerTimeoutError(errno.ETIMEDOUT, reason) from exc

    return call_in_time
