"""Waiting for a future that is not cancelled with the caller."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aiovblk.aio.tasks import wait_shielded


@contextmanager
def nothing_is_logged() -> Iterator[None]:
    contexts: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    yield
    gc.collect()  # a future whose exception was not retrieved says so when it is freed
    assert contexts == []


async def test_result_and_exception_are_those_of_the_future() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait_shielded(future))
    await asyncio.sleep(0)
    future.set_result(1)
    assert await waiting == 1
    assert await wait_shielded(future) == 1
    failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    failed.set_exception(OSError("away"))
    with pytest.raises(OSError, match="away"):
        await wait_shielded(failed)


async def test_cancelled_caller_leaves_the_future_and_logs_nothing_of_its_exception() -> None:
    with nothing_is_logged():
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        first, second = (asyncio.create_task(wait_shielded(future)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not future.done()
        future.set_exception(OSError("away"))
        with pytest.raises(OSError, match="away"):
            await second
        del future, first, second


async def test_exception_that_has_no_caller_any_more_is_not_logged() -> None:
    with nothing_is_logged():
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = asyncio.create_task(wait_shielded(future))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        future.set_exception(OSError("away"))
        await asyncio.sleep(0)
        del future, waiting


async def test_future_that_is_cancelled_cancels_the_caller() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(wait_shielded(future))
    await asyncio.sleep(0)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
