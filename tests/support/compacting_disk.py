"""A disk in an object store that is compacted step by step."""

from __future__ import annotations

import asyncio
from typing import Any

from aiovblk.storage.objects import Limits, ObjectStoreDevice
from aiovblk.storage.objects.compactor import Compactor

from .object_store import BLOCK, SIZE, Bucket, Client, contents, open_disk, write

LITTLE = Limits(segment_size=4 * BLOCK, inline_size=16 * BLOCK)


class Disk:
    """A disk whose compactor only works when it is told to."""

    def __init__(self, device: ObjectStoreDevice) -> None:
        self.device = device
        self.expected = bytearray(SIZE)
        assert device._writer is not None
        self.compactor: Compactor = device._writer._compactor

    @classmethod
    async def open(cls, client: Client, limits: Limits = LITTLE, **options: Any) -> Disk:
        device = await open_disk(client, limits=limits, **options)
        assert device._writer is not None
        assert device._writer._compaction is not None
        device._writer._compaction.cancel()
        await asyncio.sleep(0)
        return cls(device)

    async def write(self, block: int, letter: bytes, count: int = 1) -> None:
        data = letter * BLOCK * count
        self.expected[block * BLOCK : (block + count) * BLOCK] = data
        await write(self.device, block * BLOCK, data)

    async def flush(self, *blocks: int, letter: bytes = b"a") -> None:
        """Write some blocks, and flush."""
        for block in blocks:
            await self.write(block, letter)
        await self.device.flush()

    async def compact(self) -> None:
        while await self.compactor.step():
            pass

    async def verify(self, bucket: Bucket) -> None:
        """See that all that was flushed is there, here and for others."""
        assert bytes(await self.device.read(0, SIZE)) == self.expected
        assert await contents(bucket) == self.expected
