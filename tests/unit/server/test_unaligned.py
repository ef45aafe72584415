"""Unaligned requests: read-modify-write of blocks, range locks, trim, extents."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence

import pytest

from aiovblk import BlockDevice, Extent
from aiovblk.device import can
from aiovblk.storage import MemoryDevice
from aiovblk.unaligned import UnalignedAdapter

SIZE = 64 * 1024
BLOCK = 4096


class Slow(MemoryDevice):
    """Lets other tasks run in between, and accepts whole blocks only."""

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        assert offset % BLOCK == length % BLOCK == 0
        await asyncio.sleep(0)
        data = await super().read(offset, length)
        await asyncio.sleep(0)
        return data

    async def write(self, offset: int, data: memoryview) -> None:
        assert offset % BLOCK == len(data) % BLOCK == 0
        await asyncio.sleep(0)
        await super().write(offset, data)
        await asyncio.sleep(0)

    async def trim(self, offset: int, length: int) -> None:
        assert offset % BLOCK == length % BLOCK == 0
        await super().trim(offset, length)


class Model:
    """Writes at random in a range of its own, and knows what it must contain."""

    def __init__(self, device: BlockDevice, begin: int, end: int, seed: int) -> None:
        self._device = device
        self._begin, self._end = begin, end
        self._random = random.Random(seed)
        self.bytes = bytearray(end - begin)

    async def step(self) -> None:
        begin, end = sorted(self._random.sample(range(self._begin, self._end + 1), 2))
        mine = slice(begin - self._begin, end - self._begin)
        action = self._random.randrange(3)
        if action == 0:
            data = self._random.randbytes(end - begin)
            await self._device.write(begin, memoryview(data))
            self.bytes[mine] = data
        elif action == 1:
            await self._device.write_zeroes(begin, end - begin, may_trim=True)
            self.bytes[mine] = bytes(end - begin)
        else:
            assert await self._device.read(begin, end - begin) == self.bytes[mine]

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await self.step()


async def test_neighbours_in_one_block_do_not_undo_each_other() -> None:
    device = UnalignedAdapter(Slow(SIZE, block_size=BLOCK))
    numbers = random.Random(1)
    edges = [0, *sorted(numbers.sample(range(1, SIZE), 40)), SIZE]
    models = [
        Model(device, begin, end, seed)
        for seed, (begin, end) in enumerate(itertools.pairwise(edges))
    ]
    await asyncio.gather(*(model.run(40) for model in models))
    assert await device.read(0, SIZE) == b"".join(model.bytes for model in models)


class Gated(Slow):
    """Writes nothing until the gate is open."""

    def __init__(self) -> None:
        super().__init__(SIZE, block_size=BLOCK)
        self.gate = asyncio.Event()
        self.started = 0

    async def write(self, offset: int, data: memoryview) -> None:
        self.started += 1
        await self.gate.wait()
        await super().write(offset, data)


async def test_whole_blocks_wait_only_for_a_part_of_one() -> None:
    inner = Gated()
    device = UnalignedAdapter(inner)
    async with asyncio.TaskGroup() as group:
        for _ in range(2):  # which overlap, as whole blocks may
            group.create_task(device.write(0, memoryview(b"a" * 2 * BLOCK)))
        part = group.create_task(device.write(100, memoryview(b"b" * 100)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert inner.started == 2
        inner.gate.set()
        await part
        await device.write(0, memoryview(b"c" * BLOCK))
    assert await device.read(0, 2 * BLOCK) == b"c" * BLOCK + b"a" * BLOCK


async def test_trim_keeps_blocks_that_it_covers_in_part() -> None:
    device = UnalignedAdapter(MemoryDevice(SIZE, block_size=BLOCK))
    await device.write(0, memoryview(b"x" * SIZE))
    await device.trim(1, 3 * BLOCK)
    kept = b"x" * BLOCK
    assert await device.read(0, 4 * BLOCK) == kept + bytes(2 * BLOCK) + kept
    await device.trim(1, BLOCK)
    assert await device.read(0, BLOCK) == kept


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 1, [Extent(BLOCK)]),
        (100, 2 * BLOCK, [Extent(BLOCK - 100), Extent(BLOCK, zero=True), Extent(BLOCK)]),
        (BLOCK + 1, 1, [Extent(BLOCK - 1, zero=True)]),
    ],
)
async def test_extents_begin_where_they_are_asked_for(
    offset: int, length: int, expected: list[Extent]
) -> None:
    class Striped(BlockDevice):
        block_size, blocks = BLOCK, SIZE // BLOCK

        async def extents(self, offset: int, length: int) -> Sequence[Extent]:
            first, count = offset // BLOCK, length // BLOCK
            return [Extent(BLOCK, zero=n % 2 == 1) for n in range(first, first + count)]

    assert await UnalignedAdapter(Striped()).extents(offset, length) == expected


async def test_blocks_that_are_covered_in_part_are_cached_as_a_whole() -> None:
    class Caching(MemoryDevice):
        cached: tuple[int, int] | None = None

        async def cache(self, offset: int, length: int) -> None:
            self.cached = offset, length

    device = Caching(SIZE, block_size=BLOCK)
    await UnalignedAdapter(device).cache(BLOCK - 1, 2)
    assert device.cached == (0, 2 * BLOCK)


async def test_cancelled_writer_releases_its_lock() -> None:
    inner = Slow(SIZE, block_size=BLOCK)
    device = UnalignedAdapter(inner)
    first = asyncio.create_task(device.write(1, memoryview(b"x")))
    second = asyncio.create_task(device.write(2, memoryview(b"y")))
    await asyncio.sleep(0)
    second.cancel()
    first.cancel()
    await asyncio.wait([first, second])
    await asyncio.wait_for(device.write(3, memoryview(b"z")), 60)
    assert await device.read(3, 1) == b"z"


@pytest.mark.parametrize("whole_first", [True, False])
async def test_part_that_is_cancelled_while_it_waits_leaves_no_trace(whole_first: bool) -> None:
    inner = Gated()
    device = UnalignedAdapter(inner)
    writes = [
        asyncio.create_task(device.write(0, memoryview(b"a" * BLOCK)[: BLOCK - 1 + whole_first])),
        asyncio.create_task(device.write(100, memoryview(b"b" * 100))),
    ]
    for _ in range(10):
        await asyncio.sleep(0)
    assert inner.started == 1
    writes[1].cancel()
    await asyncio.wait([writes[1]])
    inner.gate.set()
    await writes[0]
    await device.write(100, memoryview(b"c"))
    assert await device.read(99, 3) == b"aca"
    assert (device._ranges.exclusive, device._ranges.untracked, device._ranges.held) == (
        0,
        0,
        set(),
    )


def test_a_device_without_extents_has_none_this_way_either() -> None:
    class Plain(BlockDevice):
        blocks = 1

    assert not can(UnalignedAdapter(Plain()), "extents")
    assert can(UnalignedAdapter(MemoryDevice(4096)), "extents")
