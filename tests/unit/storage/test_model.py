"""Random requests to a device and to an array of bytes: both must always agree."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import FileDevice, MemoryDevice

pytestmark = pytest.mark.slow

SIZE = (1 << 20) + 1536
BLOCK = 512


class Model:
    """A device, and its expected contents."""

    def __init__(self, device: BlockDevice, random: Random) -> None:
        self.device = device
        self.random = random
        self.content = bytearray(device.size)

    def a_range(self) -> tuple[int, int]:
        begin, end = sorted(self.random.sample(range(0, SIZE + 1, BLOCK), 2))
        if self.random.random() < 0.5:
            end = min(end, begin + self.random.randint(1, 16) * BLOCK)
        return begin, end

    async def write(self) -> None:
        begin, end = self.a_range()
        data = self.random.randbytes(end - begin)
        await self.device.write(begin, memoryview(data))
        self.content[begin:end] = data

    async def write_zeroes(self) -> None:
        begin, end = self.a_range()
        await self.device.write_zeroes(
            begin, end - begin, may_trim=self.random.choice([True, False])
        )
        self.content[begin:end] = bytes(end - begin)

    async def trim(self) -> None:
        begin, end = self.a_range()
        await self.device.trim(begin, end - begin)
        # "may read back as anything", but these devices leave it or make it zeroes
        for at in range(begin, end, BLOCK):
            block = await self.device.read(at, BLOCK)
            assert block in (bytes(BLOCK), self.content[at : at + BLOCK])
            self.content[at : at + BLOCK] = block

    async def compare(self) -> None:
        assert await self.device.read(0, SIZE) == self.content

    async def compare_extents(self) -> None:
        begin, end = self.a_range()
        at = begin
        while at < end:
            extents = await self.device.extents(at, end - at)
            assert extents
            for extent in extents:
                assert extent.length > 0
                assert extent.length % BLOCK == 0
                assert extent.hole == extent.zero
                if extent.zero:
                    stop = min(at + extent.length, end)
                    assert not any(self.content[at:stop])
                at += extent.length


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_device_behaves_like_an_array_of_bytes(kind: str, seed: int, tmp_path: Path) -> None:
    device: BlockDevice
    if kind == "memory":
        device = MemoryDevice(SIZE, block_size=BLOCK)
    else:
        device = FileDevice.create(tmp_path / "disk", SIZE)
    random = Random(seed)
    model = Model(device, random)
    requests = [model.write, model.write_zeroes, model.trim, model.compare, model.compare_extents]
    for request in random.choices(requests, weights=[4, 2, 1, 2, 4], k=150):
        await request()
    await model.compare()
    await device.unmount()
