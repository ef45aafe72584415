"""Calls that are coalesced: which run serves which call, and who gets an error."""

from __future__ import annotations

import asyncio
import sys

import pytest

from aiovblk.aio.coalesce import CoalescedCall


class Operation:
    """Runs until ``go`` is set; counts its runs, and checks that they do not overlap."""

    def __init__(self) -> None:
        self.runs = 0
        self.concurrent = 0
        self.failure: Exception | None = None
        self.go = asyncio.Event()

    async def __call__(self) -> None:
        self.runs += 1
        self.concurrent += 1
        try:
            assert self.concurrent == 1
            await self.go.wait()
            if self.failure:
                raise self.failure
        finally:
            self.concurrent -= 1


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_calls_before_a_run_begins_share_it() -> None:
    operation = Operation()
    coalesced = CoalescedCall(operation)
    operation.go.set()
    await asyncio.gather(*(coalesced() for _ in range(5)))
    assert operation.runs == 1
    assert coalesced.is_idle


async def test_calls_during_a_run_share_the_next_one() -> None:
    operation = Operation()
    coalesced = CoalescedCall(operation)
    first = asyncio.create_task(coalesced())
    await turns()
    later = [asyncio.create_task(coalesced()) for _ in range(5)]
    await turns()
    assert operation.runs == 1
    operation.go.set()
    await asyncio.gather(first, *later)
    assert operation.runs == 2


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_calls_during_a_run_share_the_next_one_with_eager_tasks() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
        await test_calls_during_a_run_share_the_next_one()

    asyncio.run(main())


async def test_error_is_raised_to_all_callers_of_the_run_and_no_others() -> None:
    operation = Operation()
    coalesced = CoalescedCall(operation)
    operation.go.set()
    operation.failure = OSError("no room")
    results = await asyncio.gather(*(coalesced() for _ in range(3)), return_exceptions=True)
    assert results == [operation.failure] * 3
    operation.failure = None
    await coalesced()


async def test_error_of_a_run_without_waiters_is_raised_to_the_next_caller() -> None:
    operation = Operation()
    coalesced = CoalescedCall(operation)
    operation.failure = OSError("no room")
    caller = asyncio.create_task(coalesced())
    await turns()
    caller.cancel()
    await turns()
    operation.go.set()
    await turns()
    assert not coalesced.is_idle
    operation.failure = None
    with pytest.raises(OSError, match="no room"):
        await coalesced()
    await coalesced()
    assert coalesced.is_idle


async def test_close_cancels_the_running_and_the_next_run() -> None:
    operation = Operation()
    coalesced = CoalescedCall(operation)
    callers = [asyncio.create_task(coalesced())]
    await turns()
    callers.append(asyncio.create_task(coalesced()))
    await turns()
    await coalesced.close()
    assert (operation.runs, operation.concurrent) == (1, 0)
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(each) for each in results] == [asyncio.CancelledError] * 2
