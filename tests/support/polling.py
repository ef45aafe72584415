"""Waiting for what has no event: a state of the kernel, of another process, of an object."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


async def until(holds: Callable[[], object], *, interval: float = 0.0) -> None:
    """Poll until a condition holds; the test's deadline ends it.

    Args:
        holds: the condition.
        interval: seconds between two looks, for what is not done by this loop; by default each
            turn of the loop has one.

    """
    while not holds():  # noqa: ASYNC110 (that is what this is for)
        await asyncio.sleep(interval)


def holds_within(seconds: float, holds: Callable[[], object], *, interval: float = 0.02) -> bool:
    """Poll, in this thread, until a condition holds.

    Args:
        seconds: how long to poll at the most.
        holds: the condition.
        interval: seconds between two looks.

    Returns:
        Whether it held in time.

    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


async def cancel_until_done(task: asyncio.Task[Any]) -> None:
    """Cancel a task again and again, until it has ended."""
    while not task.done():
        task.cancel()
        # What it waits for may be in threads, which get the interpreter while this loop waits.
        await asyncio.wait([task], timeout=0.001)
