"""Devices that keep the contract pass the check."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import FileDevice, Layer, MemoryDevice
from aiovblk.testing import CrashableDisk, check_block_device

from ...support.sizes import by_size

pytestmark = [pytest.mark.slow, pytest.mark.either_loop]

KIB = 1024


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("size", "block"), [(256 * KIB, 512), (64 * KIB, 4096), (1 << 40, 4096)])
async def test_medium_passes(size: int, block: int, seed: int) -> None:
    medium = CrashableDisk(size, block, seed)
    await check_block_device(
        medium.open, crash=lambda device: medium.crash(), seed=seed, rounds=by_size(40, 80)
    )


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("size", "block"), [(1, 1), (40, 8), (7 * 4096, 4096), (16 << 20, 512), (1 << 40, 65536)]
)
async def test_memory_passes(size: int, block: int, seed: int) -> None:
    device = MemoryDevice(size, block_size=block)
    await check_block_device(lambda: device, seed=seed, rounds=by_size(30, 60))


async def test_file_passes_and_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(300 * KIB))
    await check_block_device(lambda: FileDevice(path), rounds=by_size(30, 60))
    await FileDevice(path).unmount()  # it would be locked


@pytest.mark.parametrize("size", [64 * KIB, 1 << 30])
async def test_file_passes_with_all_that_was_not_flushed(tmp_path: Path, size: int) -> None:
    """The page cache outlives the device, and its threads what they were about to do."""

    async def crash(device: BlockDevice) -> None:
        await device.unmount()

    await FileDevice.create(tmp_path / "disk", size).unmount()
    await check_block_device(
        lambda: FileDevice(tmp_path / "disk"), crash=crash, rounds=by_size(30, 60)
    )


async def test_read_only_device_is_only_read(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(before := os.urandom(300 * KIB))

    async def open_file() -> BlockDevice:
        return FileDevice(path, read_only=True)

    await check_block_device(open_file, rounds=by_size(20, 40))
    assert path.read_bytes() == before


class Pattern(BlockDevice):
    """As in the README: reads are made up, and writes come through and fail."""

    block_size = 1024
    blocks = 4096
    read_only = False

    async def read(self, offset: int, length: int) -> bytes:
        pattern = b"\xde\xad\xbe\xef" * (length // 4 + 2)
        return pattern[offset % 4 : offset % 4 + length]


async def test_device_that_has_no_write_is_only_read() -> None:
    await check_block_device(Pattern, rounds=by_size(20, 40))


class Moody(Layer):
    """Fails one request of ten, before it is done or after."""

    def __init__(self, inner: BlockDevice, random: Random) -> None:
        super().__init__(inner)
        self.random = random

    async def either(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        mood = self.random.random()
        if mood < 0.05:
            raise OSError(errno.EIO, "not now")
        result = await call(*args, **options)
        if mood < 0.1:
            raise TimeoutError("too late")
        return result

    async def read(self, offset: int, length: int) -> Any:
        return await self.either(super().read, offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        await self.either(super().write, offset, data)

    async def flush(self) -> None:
        await self.either(super().flush)

    async def trim(self, offset: int, length: int) -> None:
        await self.either(super().trim, offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        await self.either(super().write_zeroes, offset, length, may_trim=may_trim)

    async def extents(self, offset: int, length: int) -> Any:
        return await self.either(super().extents, offset, length)


@pytest.mark.parametrize("seed", range(3))
async def test_requests_may_fail(seed: int) -> None:
    medium = CrashableDisk(256 * KIB, seed=seed)
    random = Random(seed)
    await check_block_device(
        lambda: Moody(medium.open(), random),
        crash=lambda device: medium.crash(),
        seed=seed,
        rounds=by_size(40, 80),
    )


class Serial(Layer):
    """A read-modify-write cycle in large pieces, for a mount with concurrency=1."""

    running = 0

    async def write(self, offset: int, data: memoryview) -> None:
        begin, end = offset // 65536 * 65536, -(-(offset + len(data)) // 65536) * 65536
        piece = bytearray(await self.inner.read(begin, end - begin))
        await asyncio.sleep(0)
        piece[offset - begin : offset - begin + len(data)] = data
        await self.inner.write(begin, memoryview(piece))

    async def read(self, offset: int, length: int) -> Any:
        assert not self.running
        self.running += 1
        try:
            return await super().read(offset, length)
        finally:
            self.running -= 1


async def test_device_for_one_request_at_a_time_passes_with_one_at_a_time() -> None:
    medium = CrashableDisk(256 * KIB)
    await check_block_device(lambda: Serial(medium.open()), concurrency=1, rounds=by_size(30, 60))


async def requests_of(seed: int) -> list[Any]:
    asked: list[Any] = []

    class Recorded(MemoryDevice):
        async def read(self, offset: int, length: int) -> Any:
            asked.append(("read", offset, length))
            return await super().read(offset, length)

        async def write(self, offset: int, data: memoryview) -> None:
            asked.append(("write", offset, bytes(data)))
            await super().write(offset, data)

    device = Recorded(1 << 30)
    await check_block_device(lambda: device, seed=seed, rounds=10)
    return asked


async def test_same_seed_makes_the_same_requests() -> None:
    first = await requests_of(1)
    assert first == await requests_of(1) != await requests_of(2)
