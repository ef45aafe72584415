"""A gate that changes pass, and that a pause closes."""

from __future__ import annotations

import asyncio

import pytest

from aiovblk.aio.gate import PausableGate


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_pause_waits_for_changes_and_keeps_new_ones_out() -> None:
    gate, order = PausableGate(), list[str]()

    async def change(name: str) -> None:
        async with gate:
            order.append(name)
            await turns()

    async def pause() -> None:
        async with gate.pause():
            order.append("pause")
            await turns()
            order.append("resume")

    first = [asyncio.create_task(change(name)) for name in "ab"]
    await turns(1)
    pausing = asyncio.create_task(pause())
    await turns(1)
    await asyncio.gather(*first, pausing, change("c"))
    assert order == ["a", "b", "pause", "resume", "c"]


async def test_pause_that_is_cancelled_while_it_waits_lets_changes_pass() -> None:
    gate = PausableGate()
    async with gate:
        pausing = asyncio.ensure_future(gate.pause().__aenter__())
        await turns()
        pausing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pausing
        async with asyncio.timeout(1), gate:
            pass
    async with asyncio.timeout(1), gate.pause():
        pass
