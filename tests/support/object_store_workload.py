"""Random requests to a disk in an object store, and a model of what a crash may leave of it."""

from __future__ import annotations

import asyncio
from random import Random

from aiovblk.storage.objects import Limits, ObjectStoreDevice

from .object_store import BLOCK, CHUNK

BLOCKS = 48
LIMITS = Limits(memory=2 * CHUNK, unstored=4 * CHUNK)


class Model:
    """What each block may hold after a crash."""

    def __init__(self) -> None:
        self.now = [0] * BLOCKS
        self.allowed = [{0} for _ in range(BLOCKS)]

    def written(self, block: int, stamp: int) -> None:
        self.now[block] = stamp
        self.allowed[block].add(stamp)

    def flushed(self) -> None:
        self.allowed = [{stamp} for stamp in self.now]

    async def verify(self, device: ObjectStoreDevice) -> None:
        data = bytes(await device.read(0, BLOCKS * BLOCK))
        for block in range(BLOCKS):
            found = data[block * BLOCK : (block + 1) * BLOCK]
            stamp = int.from_bytes(found[:8], "little")
            assert found == block_of(stamp), f"block {block} is torn"
            assert stamp in self.allowed[block], f"block {block} has {stamp}"
            self.now[block] = stamp
            self.allowed[block] = {stamp}


def block_of(stamp: int) -> bytes:
    """Return a block that is full of a stamp."""
    return stamp.to_bytes(8, "little") * (BLOCK // 8)


class Workload:
    """Random writes, flushes and trims of one process, until it crashes."""

    def __init__(self, device: ObjectStoreDevice, model: Model, random: Random, first: int) -> None:
        self.device = device
        self.model = model
        self.random = random
        self.stamp = first

    async def run(self) -> None:
        """Write and flush until a request fails."""
        while True:
            # Never two requests for one block at a time: either could be the last.
            chunks = self.random.sample(range(BLOCKS // 4), self.random.randint(1, 4))
            await asyncio.gather(*(self.request(chunk) for chunk in chunks))
            if self.random.random() < 0.4:
                await self.device.flush()
                self.model.flushed()

    async def request(self, chunk: int) -> None:
        """Write a block of a chunk, or zero the whole chunk."""
        self.stamp += 1
        stamp = self.stamp
        if self.random.random() < 0.75:
            block = chunk * 4 + self.random.randrange(4)
            self.model.written(block, stamp)
            await self.device.write(block * BLOCK, memoryview(block_of(stamp)))
        else:
            for each in range(chunk * 4, chunk * 4 + 4):
                self.model.written(each, 0)
            await self.device.write_zeroes(chunk * CHUNK, CHUNK, may_trim=True)
