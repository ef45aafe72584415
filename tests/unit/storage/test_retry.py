"""Which requests are retried, how often, and with which backoff."""

from __future__ import annotations

import asyncio
import errno
from random import Random
from typing import Any

import pytest

from aiovblk.storage import Fault, Faults, MemoryDevice, Retry
from aiovblk.testing import CrashableDisk

BLOCK = 4096
DATA = memoryview(b"x" * BLOCK)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which take no time."""
    pauses: list[float] = []

    async def sleep(delay: float) -> None:
        pauses.append(delay)

    monkeypatch.setattr("aiovblk.storage.retry.sleep", sleep)
    return pauses


def disk(fault: Fault, **options: Any) -> tuple[Retry, Faults]:
    faults = Faults(MemoryDevice(8 * BLOCK), fault)
    return Retry(faults, **options), faults


async def test_transient_error_is_retried(slept: list[float]) -> None:
    device, faults = disk(Fault("write", error=errno.EIO, times=4))
    await device.write(0, DATA)
    assert await device.read(0, BLOCK) == DATA
    assert (faults.injected, len(slept)) == (4, 4)


async def test_error_of_the_last_attempt_is_raised(slept: list[float]) -> None:
    device, faults = disk(Fault("read", error=errno.ETIMEDOUT), attempts=3)
    with pytest.raises(TimeoutError):
        await device.read(0, BLOCK)
    assert (faults.injected, len(slept)) == (3, 2)


@pytest.mark.parametrize("error", [errno.EPERM, errno.EINVAL, errno.ENOSPC, errno.EROFS])
async def test_permanent_error_is_raised_at_once(error: int, slept: list[float]) -> None:
    device, faults = disk(Fault("write", error=error))
    with pytest.raises(OSError, match="on purpose"):
        await device.write(0, DATA)
    assert (faults.injected, slept) == (1, [])


async def test_classification_of_errors_is_an_option(slept: list[float]) -> None:
    device, faults = disk(
        Fault("write", error=errno.ENOSPC, times=2),
        is_transient=lambda error: error.errno == errno.ENOSPC,
    )
    await device.write(0, DATA)
    assert faults.injected == 2


async def test_failed_flush_is_not_retried(slept: list[float]) -> None:
    device = Retry(
        Faults(CrashableDisk(8 * BLOCK).open(), Fault("flush", error=errno.EIO, times=1))
    )
    with pytest.raises(OSError, match="on purpose"):
        await device.flush()
    await device.flush()
    assert slept == []


async def test_exception_that_is_no_oserror_is_not_retried(slept: list[float]) -> None:
    class Bug(MemoryDevice):
        async def read(self, offset: int, length: int) -> bytes:
            raise LookupError("no such key")

    with pytest.raises(LookupError):
        await Retry(Bug(BLOCK)).read(0, BLOCK)
    assert slept == []


async def test_error_without_a_number_is_transient(slept: list[float]) -> None:
    class Once(MemoryDevice):
        failed = False

        async def read(self, offset: int, length: int) -> bytes | memoryview:
            if not self.failed:
                self.failed = True
                raise ConnectionResetError("no number")
            return await super().read(offset, length)

    assert await Retry(Once(BLOCK)).read(0, BLOCK) == bytes(BLOCK)


async def test_pauses_double_and_have_jitter(slept: list[float]) -> None:
    device, _ = disk(
        Fault("read", error=errno.EIO), attempts=7, delay=1, longest_delay=6, random=Random(5)
    )
    with pytest.raises(OSError, match="on purpose"):
        await device.read(0, BLOCK)
    longest = [1, 2, 4, 6, 6, 6]
    assert all(top / 2 <= pause <= top for top, pause in zip(longest, slept, strict=True))
    chance = Random(5)
    assert slept == [top * chance.uniform(0.5, 1) for top in longest]


async def test_cancelled_request_is_not_retried() -> None:
    device, faults = disk(Fault("read", error=errno.EIO), delay=1000, longest_delay=1000)
    reading = asyncio.ensure_future(device.read(0, BLOCK))
    for _ in range(3):
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert faults.injected == 1


@pytest.mark.parametrize("options", [{"attempts": 0}, {"delay": -1}, {"delay": 20}])
def test_invalid_numbers_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Retry(MemoryDevice(BLOCK), **options)
