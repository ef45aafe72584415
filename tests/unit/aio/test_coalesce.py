from __future__ import annotations

import asyncio
import sys

import pytest

from aiovblk.aio.coalesce import CoalescedCall


class Operation:
    """Runs until it is let go; counts, and knows whether it runs beside itself."""

    def __init__(self) -> None:
        self.begun = 0
        self.at_once = 0
        self.failure: Exception | None = None
        self.go = asyncio.Event()

    async def __call__(self) -> None:
        self.begun += 1
        self.at_once += 1
        try:
            assert self.at_once == 1
            await self.go.wait()
            if self.failure:
                raise self.failure
        finally:
            self.at_once -= 1


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_those_that_call_before_it_begins_share_a_run() -> None:
    operation = Operation()
    grouped = CoalescedCall(operation)
    operation.go.set()
    await asyncio.gather(*(grouped() for _ in range(5)))
    assert operation.begun == 1
    assert grouped.is_idle


async def test_those_that_call_while_it_runs_share_the_next_one() -> None:
    operation = Operation()
    grouped = CoalescedCall(operation)
    first = asyncio.create_task(grouped())
    await turns()
    later = [asyncio.create_task(grouped()) for _ in range(5)]
    await turns()
    assert operation.begun == 1
    operation.go.set()
    await asyncio.gather(first, *later)
    assert operation.begun == 2


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_so_it_is_where_tasks_start_at_once() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
        await test_those_that_call_while_it_runs_share_the_next_one()

    asyncio.run(main())


async def test_an_error_is_told_to_all_callers_of_the_run_and_to_no_other() -> None:
    operation = Operation()
    grouped = CoalescedCall(operation)
    operation.go.set()
    operation.failure = OSError("no room")
    results = await asyncio.gather(*(grouped() for _ in range(3)), return_exceptions=True)
    assert results == [operation.failure] * 3
    operation.failure = None
    await grouped()


async def test_an_error_that_nobody_waited_for_is_told_to_the_next_caller() -> None:
    operation = Operation()
    grouped = CoalescedCall(operation)
    operation.failure = OSError("no room")
    caller = asyncio.create_task(grouped())
    await turns()
    caller.cancel()
    await turns()
    operation.go.set()
    await turns()
    assert not grouped.is_idle
    operation.failure = None
    with pytest.raises(OSError, match="no room"):
        await grouped()
    await grouped()
    assert grouped.is_idle


async def test_to_end_it_cancels_what_runs_and_what_waits() -> None:
    operation = Operation()
    grouped = CoalescedCall(operation)
    callers = [asyncio.create_task(grouped())]
    await turns()
    callers.append(asyncio.create_task(grouped()))
    await turns()
    await grouped.close()
    assert (operation.begun, operation.at_once) == (1, 0)
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(each) for each in results] == [asyncio.CancelledError] * 2
