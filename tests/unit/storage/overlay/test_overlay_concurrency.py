"""Overlapping requests, and concurrent flushes."""

from __future__ import annotations

import asyncio
import errno
from itertools import chain, repeat

import pytest

from aiovblk.storage import Overlay

from ....support.overlays import (
    OnlyReads,
    Stepped,
    contents,
    make_overlay,
    make_stepped_overlay,
    read,
    write,
)
from ....support.power_failure import BLOCK, survival


async def test_block_written_during_a_flush_is_that_of_the_base_after_a_crash() -> None:
    overlay, diff = await make_stepped_overlay()
    await write(overlay, 0, 1)
    steps: asyncio.Queue[None] = asyncio.Queue()
    diff.steps = steps
    flushing = asyncio.create_task(overlay.flush())
    assert await diff.arrived.get() == "flush"
    diff.steps = None
    await write(overlay, 1, 2)
    diff.steps = steps
    for following in ("write", "flush"):  # of the map
        steps.put_nowait(None)
        assert await diff.arrived.get() == following
    # Of the disk's write cache, block 1 is lost, and the map survives.
    found = diff.after_crash(chain([False], repeat(True)).__next__)
    steps.put_nowait(None)
    await flushing
    after_crash = await Overlay.open(OnlyReads(), found)
    assert await read(after_crash, 0, 3) == contents(0, 1, 1) + contents(1, 3)


async def test_concurrent_flushes_are_coalesced() -> None:
    overlay, diff = await make_stepped_overlay()
    diff.steps = asyncio.Queue()
    first = asyncio.create_task(overlay.flush())
    await diff.arrived.get()
    others = [asyncio.create_task(overlay.flush()) for _ in range(10)]
    await asyncio.sleep(0)
    diff.requests.clear()
    diff.steps.put_nowait(None)
    await first
    assert await diff.arrived.get() == "flush"
    assert not any(other.done() for other in others)  # the first began before they were called
    diff.steps.put_nowait(None)
    await asyncio.gather(*others)
    assert diff.requests == [("flush", 0, 0)] * 2


async def test_flush_whose_caller_is_cancelled_is_finished() -> None:
    overlay, diff = await make_stepped_overlay()
    await write(overlay, 0, 1)
    diff.steps = asyncio.Queue()
    flushing = asyncio.create_task(overlay.flush())
    await diff.arrived.get()
    flushing.cancel()
    await asyncio.wait([flushing])
    assert flushing.cancelled()
    diff.requests.clear()
    for _ in range(4):
        diff.steps.put_nowait(None)
    await overlay.flush()
    assert [name for name, _, _ in diff.requests] == ["flush", "write", "flush", "flush"]


async def test_error_of_a_flush_is_raised_to_all_callers_and_the_next_retries() -> None:
    overlay, diff = await make_overlay()
    await write(overlay, 0, 1)
    diff.power.requests = diff.power.used + 1
    results = await asyncio.gather(overlay.flush(), overlay.flush(), return_exceptions=True)
    assert [str(result) for result in results] == ["[Errno 5] there is no power"] * 2
    diff.power.requests += 1000
    await overlay.flush()
    found = await Overlay.open(OnlyReads(), diff.after_crash(survival(0)))
    assert await read(found, 0, 1) == contents(0, 1, 1)


async def test_error_of_a_flush_without_callers_is_raised_by_the_next() -> None:
    class FailsOnce(Stepped):
        fails = False

        async def flush(self) -> None:
            await super().flush()
            if self.fails:
                self.fails = False
                raise OSError(errno.EIO, "some data was lost")

    diff = FailsOnce(Overlay.diff_size(OnlyReads()))
    overlay = await Overlay.create(OnlyReads(), diff)
    diff.steps, diff.fails = asyncio.Queue(), True
    flushing = asyncio.create_task(overlay.flush())
    await diff.arrived.get()
    flushing.cancel()
    await asyncio.wait([flushing])
    diff.steps.put_nowait(None)
    with pytest.raises(OSError, match="some data was lost"):
        await overlay.flush()
    assert not diff.fails
    diff.steps.put_nowait(None)
    await overlay.flush()


@pytest.mark.parametrize("trim_is_first", [True, False])
async def test_concurrent_write_and_trim_leave_the_result_of_one(trim_is_first: bool) -> None:
    overlay, diff = await make_stepped_overlay()
    await write(overlay, 0, 2)
    steps: asyncio.Queue[None] = asyncio.Queue()
    diff.steps = steps
    requests = [overlay.trim(0, 2 * BLOCK), write(overlay, 1, 3, 2)]
    tasks = [asyncio.create_task(request) for request in requests[:: 1 if trim_is_first else -1]]
    for _ in tasks:
        await diff.arrived.get()
        steps.put_nowait(None)
    await asyncio.gather(*tasks)
    found = await read(overlay, 0, 3)
    assert found in (
        bytes(2 * BLOCK) + contents(2, 3, 2),
        bytes(BLOCK) + contents(1, 3, 2),
    )
    diff.steps = None
    await overlay.flush()
    assert await read(overlay, 0, 3) == found
    assert await read(await Overlay.open(OnlyReads(), diff), 0, 3) == found


async def test_cancelled_write_leaves_the_contents_of_the_base() -> None:
    overlay, diff = await make_stepped_overlay()
    diff.steps = asyncio.Queue()
    writing = asyncio.create_task(write(overlay, 0, 1))
    await diff.arrived.get()
    writing.cancel()
    await asyncio.wait([writing])
    assert await read(overlay, 0, 1) == contents(0, 1)
