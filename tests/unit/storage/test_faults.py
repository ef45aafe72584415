"""Fault injection: which requests are hit, when, and how."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from aiovblk.storage import Fault, Faults, MemoryDevice

BLOCK = 4096
DATA = memoryview(b"x" * BLOCK)


async def outcomes(device: Faults, count: int) -> str:
    """``.`` for each read that succeeds, ``x`` for each that fails."""
    outcome = ""
    for _ in range(count):
        try:
            await device.read(0, BLOCK)
            outcome += "."
        except OSError:
            outcome += "x"
    return outcome


def disk(*several: Fault, seed: int = 0) -> Faults:
    return Faults(MemoryDevice(8 * BLOCK), *several, seed=seed)


async def test_nth_request_fails() -> None:
    device = disk(Fault("read", error=errno.EIO, skip=3, times=2))
    assert await outcomes(device, 8) == "...xx..."
    assert device.injected == 2


async def test_rate_is_random_with_a_seed() -> None:
    first = await outcomes(disk(Fault(error=errno.EIO, rate=0.3), seed=1), 100)
    assert first == await outcomes(disk(Fault(error=errno.EIO, rate=0.3), seed=1), 100)
    assert first != await outcomes(disk(Fault(error=errno.EIO, rate=0.3), seed=2), 100)
    assert 15 < first.count("x") < 45


async def test_fault_of_one_command_hits_no_other() -> None:
    device = disk(Fault("write", error=errno.ENOSPC))
    assert await outcomes(device, 1) == "."
    with pytest.raises(OSError, match="No space left") as caught:
        await device.write(0, DATA)
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    ("offset", "length", "fails"),
    [(0, 2, False), (0, 3, True), (2, 1, True), (3, 5, True), (4, 4, False)],
)
async def test_fault_of_a_range_hits_requests_that_overlap(
    offset: int, length: int, fails: bool
) -> None:
    device = disk(Fault(error=errno.EIO, begin=2 * BLOCK, end=4 * BLOCK))
    reading = device.read(offset * BLOCK, length * BLOCK)
    if fails:
        with pytest.raises(OSError, match="on purpose"):
            await reading
    else:
        await reading


async def test_flush_is_in_no_range() -> None:
    await disk(Fault(error=errno.EIO, begin=BLOCK)).flush()
    with pytest.raises(OSError, match="on purpose"):
        await Faults.flush(disk(Fault(error=errno.EIO)))


async def test_late_fault_fails_a_request_that_was_done() -> None:
    device = disk(Fault("write", error=errno.EIO, late=True, times=1), Fault("trim", delay=1e-9))
    with pytest.raises(OSError, match="on purpose"):
        await device.write(0, DATA)
    assert await device.inner.read(0, BLOCK) == DATA


async def test_delays_add_up_before_the_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(delay: float) -> None:
        slept.append(delay)

    monkeypatch.setattr("aiovblk.storage.faults.sleep", sleep)
    device = disk(Fault(delay=2), Fault(error=errno.ENOSPC, delay=1), Fault(error=errno.EIO))
    with pytest.raises(OSError, match="No space left"):
        await device.read(0, BLOCK)
    assert slept == [3]


async def test_faults_are_added_and_cleared() -> None:
    device = disk()
    assert await outcomes(device, 1) == "."
    device.add(Fault(error=errno.EIO))
    assert await outcomes(device, 1) == "x"
    device.clear()
    assert await outcomes(device, 1) == "."


async def test_delayed_request_can_be_cancelled() -> None:
    reading = asyncio.ensure_future(disk(Fault(delay=1000)).read(0, BLOCK))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"command": "wirte", "error": 5}, "no command 'wirte'"),
        ({}, "needs an error or a delay"),
        ({"error": 5, "rate": 1.5}, "from 0 to 1, not 1.5"),
        ({"error": 5, "skip": -1}, "skip must be at least 0, not -1"),
    ],
)
def test_invalid_fault_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fault(**arguments)
