"""Copy from one device to another."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from typing import Any

import pytest

from aiovblk import BlockDevice, Extent
from aiovblk.storage import MemoryDevice, copy
from aiovblk.storage.copying import PIECE, ZERO_UNIT

MIB = 1 << 20


class Recorded(MemoryDevice):
    """A disk that records its requests."""

    def __init__(self, size: int, **options: Any) -> None:
        super().__init__(size, **options)
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.flushes = 0
        self.running = 0
        self.most_running = 0

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        assert offset % self.block_size == length % self.block_size == 0
        self.reads.append((offset, length))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return await super().read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        assert offset % self.block_size == len(data) % self.block_size == 0
        self.writes.append((offset, len(data)))
        await super().write(offset, data)

    async def flush(self) -> None:
        self.flushes += 1


async def filled(device: MemoryDevice, *ranges: tuple[int, int]) -> MemoryDevice:
    for offset, length in ranges:
        await MemoryDevice.write(device, offset, memoryview(os.urandom(length)))
    return device


async def contents(device: MemoryDevice) -> bytes:
    return bytes(await MemoryDevice.read(device, 0, device.size))


async def test_what_is_known_to_be_zero_is_not_read() -> None:
    source, target = Recorded(8 * MIB), Recorded(8 * MIB)
    await filled(source, (0, MIB), (5 * MIB, MIB))
    await copy(source, target)
    assert await contents(target) == await contents(source)
    assert sum(length for _, length in source.reads) == 2 * MIB
    assert target.flushes == 1


async def test_zeroes_that_are_read_are_not_written() -> None:
    source, target = Recorded(MIB), Recorded(MIB)
    await filled(source, (0, 4096))
    source.extents = BlockDevice.extents.__get__(source)  # type: ignore[method-assign]  # knows none
    await copy(source, target)
    assert await contents(target) == await contents(source)
    assert target.writes == [(0, ZERO_UNIT)]


@pytest.mark.parametrize("last", [ZERO_UNIT, 4096], ids=["whole", "short"])
async def test_runs_of_data_and_zeroes_that_are_read_are_written_as_such(last: int) -> None:
    size = PIECE + 4 * ZERO_UNIT + last
    source, target = Recorded(size), Recorded(size)
    await filled(source, (ZERO_UNIT + 4096, ZERO_UNIT), (PIECE + 4 * ZERO_UNIT, last))
    await filled(target, (0, size))
    source.extents = BlockDevice.extents.__get__(source)  # type: ignore[method-assign]  # knows none
    await copy(source, target)
    assert await contents(target) == await contents(source)
    runs = [(ZERO_UNIT, 2 * ZERO_UNIT), (PIECE + 4 * ZERO_UNIT, last)]
    assert sorted(target.writes) == runs


@pytest.mark.parametrize("knows", [True, False], ids=["extents", "no_extents"])
async def test_what_is_zero_in_the_target_is_not_zeroed_again(knows: bool) -> None:
    class Zeroing(MemoryDevice):
        """Its extents end within blocks, as a server's may."""

        def __init__(self) -> None:
            super().__init__(8 * MIB)
            self.zeroed: list[tuple[int, int]] = []

        async def write_zeroes(self, offset: int, length: int, *, may_trim: bool = True) -> None:
            self.zeroed.append((offset, length))
            await super().write_zeroes(offset, length, may_trim=may_trim)

        async def extents(self, offset: int, length: int) -> list[Extent]:
            if not knows:
                return [Extent(length)]
            ends = [(MIB - 512, False), (3 * MIB + 512, True), (8 * MIB, False)]
            found = []
            for end, zero in ends:
                if offset < end:
                    found.append(Extent(end - offset, hole=zero, zero=zero))
                    offset = end
            return found

    source, target = MemoryDevice(8 * MIB), Zeroing()
    await filled(target, (0, MIB), (3 * MIB, 5 * MIB))
    await filled(source, (4 * MIB, MIB))
    await copy(source, target)
    assert await contents(target) == await contents(source)
    blocks = {at for begin, count in target.zeroed for at in range(begin, begin + count, 4096)}
    known = set(range(MIB, 3 * MIB, 4096)) if knows else set()
    assert blocks == {*range(0, 4 * MIB, 4096), *range(5 * MIB, 8 * MIB, 4096)} - known


async def test_old_contents_become_zeroes_and_stay_beyond_the_end() -> None:
    source, target = MemoryDevice(MIB), MemoryDevice(2 * MIB)
    await filled(source, (MIB // 2, MIB // 2))
    await filled(target, (0, 2 * MIB))
    behind = (await contents(target))[MIB:]
    await copy(source, target)
    assert await contents(target) == await contents(source) + behind


@pytest.mark.parametrize(("source_block", "target_block"), [(512, 4096), (4096, 512), (8, 4096)])
async def test_block_sizes_may_differ(source_block: int, target_block: int) -> None:
    size = MIB + 4096 + source_block
    source = Recorded(size, block_size=source_block)
    target = Recorded(2 * MIB, block_size=target_block)
    await filled(source, (size - 300 * 1024, 300 * 1024))
    await filled(target, (0, 2 * MIB))
    behind = (await contents(target))[size:]
    await copy(source, target)
    assert await contents(target) == await contents(source) + behind


async def test_extents_need_not_fit_the_blocks_of_the_target() -> None:
    class Ragged(Recorded):
        async def extents(self, offset: int, length: int) -> Sequence[Extent]:
            runs = [Extent(512 * 3), Extent(512 * 1000, zero=True), Extent(512), Extent(length)]
            return runs if offset == 0 else [Extent(length)]

    source, target = Ragged(2 * MIB, block_size=512), Recorded(2 * MIB, block_size=4096)
    await filled(source, (0, 512 * 3), (512 * 1003, 2 * MIB - 512 * 1003))
    await copy(source, target)
    assert await contents(target) == await contents(source)


async def test_number_of_requests_in_flight_is_the_option() -> None:
    source, target = Recorded(16 * MIB), Recorded(16 * MIB)
    await filled(source, (0, 16 * MIB))
    done: list[int] = []
    await copy(source, target, requests=5, advance=done.append)
    assert source.most_running == 5
    assert sum(done) == 16 * MIB


async def test_first_error_ends_the_copy_and_is_raised_itself() -> None:
    class Broken(MemoryDevice):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            if offset >= MIB:
                raise OSError(errno.EIO, "medium error")
            return await super().read(offset, length)

    target = Recorded(4 * MIB)
    with pytest.raises(OSError, match="medium error"):
        await copy(await filled(Broken(4 * MIB), (0, 4 * MIB)), target)
    assert target.flushes == 0


@pytest.mark.parametrize(("found", "why"), [([], "none"), ([Extent(0)], "one of 0 bytes")])
async def test_source_without_progress_in_extents_is_refused(found: list[Extent], why: str) -> None:
    class Silent(MemoryDevice):
        async def extents(self, offset: int, length: int) -> Sequence[Extent]:
            return found

    with pytest.raises(ValueError, match=why):
        await copy(Silent(MIB), MemoryDevice(MIB))


async def test_read_only_target_is_refused() -> None:
    target = MemoryDevice(MIB)
    target.read_only = True
    with pytest.raises(ValueError, match="the target is read-only"):
        await copy(MemoryDevice(MIB), target)
