"""The small layers: ReadOnly, Partition, Metered."""

from __future__ import annotations

import asyncio
import errno

import pytest

from aiovblk.device import can
from aiovblk.dispatch import transmission_flags
from aiovblk.protocol import TransmissionFlag
from aiovblk.storage import Fault, Faults, MemoryDevice, Metered, Partition, ReadOnly, metered
from aiovblk.testing import CrashableDisk

from .test_layer import Everything

BLOCK = 4096


def filled(size: int) -> MemoryDevice:
    device = MemoryDevice(size)
    device._memory[:] = b"".join(bytes([block]) * BLOCK for block in range(size // BLOCK))
    return device


# ReadOnly


async def test_read_only_forwards_reads_and_refuses_the_rest() -> None:
    device = ReadOnly(filled(4 * BLOCK))
    assert await device.read(BLOCK, BLOCK) == b"\1" * BLOCK
    with pytest.raises(PermissionError):
        await device.write(0, memoryview(bytes(BLOCK)))
    with pytest.raises(PermissionError):
        await device.write_zeroes(0, BLOCK, may_trim=True)
    await device.trim(0, 4 * BLOCK)
    assert await device.read(BLOCK, BLOCK) == b"\1" * BLOCK


def test_read_only_is_announced_to_the_kernel() -> None:
    flags = transmission_flags(ReadOnly(Everything()))
    assert TransmissionFlag.READ_ONLY in flags
    assert not flags & (TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES)


# Partition


async def test_partition_is_a_range_of_the_inner_device() -> None:
    inner = filled(8 * BLOCK)
    device = Partition(inner, 2 * BLOCK, 4 * BLOCK)
    assert device.blocks == 4
    assert (await device.read(0, 4 * BLOCK))[::BLOCK] == b"\2\3\4\5"
    await device.write(3 * BLOCK, memoryview(b"x" * BLOCK))
    await device.write_zeroes(0, BLOCK, may_trim=False)
    assert (await inner.read(0, 8 * BLOCK))[::BLOCK] == b"\0\1\0\3\4x\6\7"


async def test_partition_adds_its_offset_to_all_requests() -> None:
    inner = Everything()
    device = Partition(inner, 512, 1024)
    await device.trim(512, 512)
    await device.extents(0, 512)
    await device.cache(0, 1024)
    assert inner.calls == [("trim", 1024, 512), ("extents", 512, 512), ("cache", 512, 1024)]


@pytest.mark.parametrize(
    ("offset", "size", "message"),
    [
        (100, BLOCK, "the offset must be a multiple of 4096 bytes, not 100"),
        (0, 100, "the size must be a multiple of 4096 bytes, not 100"),
        (-BLOCK, BLOCK, "offset must be at least 0, not -4096"),
        (0, 0, "0 bytes at 0 are no part of a device of 32768 bytes"),
        (4 * BLOCK, 5 * BLOCK, "20480 bytes at 16384 are no part"),
    ],
)
def test_partition_outside_of_the_device_is_refused(offset: int, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Partition(filled(8 * BLOCK), offset, size)


def test_partition_grows_up_to_the_end_of_the_inner_device() -> None:
    device = Partition(filled(8 * BLOCK), 2 * BLOCK, BLOCK)
    device.blocks = 6
    with pytest.raises(ValueError, match="no part"):
        device.blocks = 7
    assert device.size == 6 * BLOCK


# Metered


async def test_metered_counts_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100, 350, 1000, 1100])
    monkeypatch.setattr(metered, "monotonic_ns", lambda: next(times))
    device = Metered(Faults(filled(4 * BLOCK), Fault(error=errno.EIO, skip=1)))
    await device.read(0, 2 * BLOCK)
    with pytest.raises(OSError, match="on purpose"):
        await device.read(0, BLOCK)
    counts = device.counts["read"]
    assert (counts.requests, counts.errors, counts.bytes, counts.in_flight) == (2, 1, 8192, 0)
    assert (counts.latency.count, counts.latency.total) == (2, 350)
    assert device.counts["write"] == metered.CommandStats()


async def test_metered_counts_requests_in_flight_and_cancelled() -> None:
    device = Metered(Faults(CrashableDisk(4 * BLOCK).open(), Fault(delay=1000)))
    flush = asyncio.ensure_future(device.flush())
    await asyncio.sleep(0)
    assert device.counts["flush"].in_flight == 1
    flush.cancel()
    await asyncio.gather(flush, return_exceptions=True)
    counts = device.counts["flush"]
    assert (counts.requests, counts.errors, counts.in_flight) == (1, 1, 0)


async def test_metered_has_every_command() -> None:
    inner = Everything()
    device = Metered(inner)
    await device.read(0, 512)
    await device.write(0, memoryview(bytes(512)))
    await device.flush()
    await device.trim(0, 512)
    await device.write_zeroes(0, 512, may_trim=True)
    await device.extents(0, 512)
    await device.cache(0, 512)
    assert [(name, counts.requests) for name, counts in device.counts.items()] == [
        (call[0], 1) for call in inner.calls
    ]


def test_intercepting_layers_have_no_handler_that_the_inner_device_lacks() -> None:
    device = Metered(MemoryDevice(4 * BLOCK))
    assert not can(device, "flush")
    assert can(device, "trim")
