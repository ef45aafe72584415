"""Concurrent requests that end together, with a limit."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from aiovblk.aio.gather import gather_all, run_bounded


async def test_results_come_in_order() -> None:
    async def one(number: int) -> int:
        await asyncio.sleep(0)
        return number

    assert await gather_all(one(number) for number in range(5)) == [0, 1, 2, 3, 4]
    assert await gather_all([]) == []


@pytest.mark.parametrize("limit", [1, 3])
async def test_limit_of_concurrent_requests_is_kept_and_all_run(limit: int) -> None:
    running, highest, done = 0, 0, []

    async def work(number: int) -> None:
        nonlocal running, highest
        running += 1
        highest = max(highest, running)
        await asyncio.sleep(0)
        running -= 1
        done.append(number)

    await run_bounded((partial(work, number) for number in range(20)), limit=limit)
    assert (highest, sorted(done)) == (limit, list(range(20)))
    await run_bounded(iter([]))


async def test_no_request_starts_after_an_error_and_running_ones_end() -> None:
    begun, ended = [], []

    async def work(number: int) -> None:
        begun.append(number)
        if number == 1:
            raise OSError("number 1")
        await asyncio.sleep(0)
        ended.append(number)

    with pytest.raises(OSError, match="number 1"):
        await run_bounded((partial(work, number) for number in range(9)), limit=3)
    assert begun == [0, 1, 2]
    assert ended == [0, 2]


async def test_cancellation_waits_until_all_have_ended() -> None:
    started, ended = asyncio.Event(), []

    async def work(number: int) -> None:
        try:
            started.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    task = asyncio.create_task(run_bounded(partial(work, number) for number in range(9)))
    await started.wait()
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == list(range(9))
