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


async def begin(future: asyncio.Future[int]) -> asyncio.Task[int]:
    waiting = asyncio.create_task(wait_shielded(future))
    await asyncio.sleep(0)
    return waiting


async def cancel(waiting: asyncio.Task[int]) -> None:
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_result_and_exception_are_those_of_the_future() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = await begin(future)
    future.set_result(1)
    assert await waiting == await wait_shielded(future) == 1
    failed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    failed.set_exception(OSError("away"))
    with pytest.raises(OSError, match="away"):
        await wait_shielded(failed)


@pytest.mark.parametrize("has_another", [True, False])
async def test_cancelled_caller_leaves_the_future_whose_exception_is_not_logged(
    has_another: bool,
) -> None:
    with nothing_is_logged():
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        await cancel(await begin(future))
        other = await begin(future) if has_another else None
        assert not future.done()
        future.set_exception(OSError("away"))
        await asyncio.sleep(0)
        if other is not None:
            with pytest.raises(OSError, match="away"):
                await other
        del future, other


async def test_future_that_is_cancelled_cancels_the_caller() -> None:
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = await begin(future)
    future.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
