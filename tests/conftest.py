"""Every asynchronous test has a deadline, and runs on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Mapping

import pytest
import uvloop

DEADLINE = 20.0  # seconds; `@pytest.mark.deadline(60)` gives a test another


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "newest_python: need not run on the others too, and takes long"
    )
    config.addinivalue_line("markers", "one_loop: run on one loop per Python, for what takes long")
    config.addinivalue_line(
        "markers", f"deadline(seconds): how long an asynchronous test may take ({DEADLINE:.0f} s)"
    )


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.SelectorEventLoop,
        "uvloop": uvloop.new_event_loop,
    }
    if item.get_closest_marker("one_loop"):
        # Not the whole matrix, but both loops in it.
        name = "uvloop" if sys.version_info >= (3, 13) else "asyncio"
        return {name: loops[name]}
    return loops


def pytest_itemcollected(item: pytest.Item) -> None:
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        marker = item.get_closest_marker("deadline")
        item.obj = _within(marker.args[0] if marker else DEADLINE, item.obj)


def _within(
    seconds: float, function: Callable[..., Awaitable[None]]
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(function)
    async def within_deadline(*args: object, **kwargs: object) -> None:
        async with asyncio.timeout(seconds):
            await function(*args, **kwargs)

    return within_deadline
