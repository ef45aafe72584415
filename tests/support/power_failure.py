"""Disks with a volatile write cache, and a power supply that fails at a chosen request."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from random import Random

from aiovblk.device import BlockDevice

BLOCK = 512

Blocks = dict[int, bytes]
Survives = Callable[[], bool]


def pattern(number: int, version: int = 0) -> bytes:
    """Return the contents of a block, which no other block and version has."""
    return (number.to_bytes(4, "little") + version.to_bytes(4, "little")) * (BLOCK // 8)


class Power:
    """The power supply of several disks, which lasts for a number of changing requests."""

    def __init__(self, requests: int = 1 << 30) -> None:
        self.requests = requests
        self.used = 0

    def use(self) -> None:
        if self.used == self.requests:
            raise OSError(errno.EIO, "there is no power")
        self.used += 1


class VolatileDisk(BlockDevice):
    """A disk whose writes are durable when they were flushed; trimmed blocks become garbage."""

    block_size = BLOCK

    def __init__(
        self, size: int, power: Power | None = None, contents: Blocks | None = None
    ) -> None:
        self.blocks = size // BLOCK
        self.power = power or Power()
        self.durable = dict(contents or {})
        self.contents = dict(self.durable)
        self.cached: list[tuple[int, bytes]] = []
        self.requests: list[tuple[str, int, int]] = []

    async def read(self, offset: int, length: int) -> bytes:
        await asyncio.sleep(0)
        self.requests.append(("read", offset, length))
        return b"".join(self.contents.get(at, bytes(BLOCK)) for at in self._blocks(offset, length))

    async def write(self, offset: int, data: memoryview) -> None:
        await self._change("write", offset, len(data))
        for at in self._blocks(offset, len(data)):
            self._put(at, bytes(data[at * BLOCK - offset :][:BLOCK]))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        await self._change("write_zeroes" if may_trim else "allocate", offset, length)
        for at in self._blocks(offset, length):
            self._put(at, bytes(BLOCK))

    async def trim(self, offset: int, length: int) -> None:
        await self._change("trim", offset, length)
        for at in self._blocks(offset, length):
            self._put(at, b"garbage!" * (BLOCK // 8))

    async def flush(self) -> None:
        cached = len(self.cached)
        await self._change("flush", 0, 0)
        for at, block in self.cached[:cached]:
            self.durable[at] = block
        del self.cached[:cached]

    def after_crash(self, survives: Survives, power: Power | None = None) -> VolatileDisk:
        """Return the disk after a power failure.

        Args:
            survives: called for each write in the cache: whether it is on the disk.
            power: the supply of the new disk.

        """
        contents = self.durable | {at: block for at, block in self.cached if survives()}
        return VolatileDisk(self.size, power, contents)

    async def _change(self, name: str, offset: int, length: int) -> None:
        await asyncio.sleep(0)
        self.power.use()
        self.requests.append((name, offset, length))

    def _put(self, at: int, block: bytes) -> None:
        if self.contents.get(at) != block:
            self.contents[at] = block
            self.cached.append((at, block))

    def _blocks(self, offset: int, length: int) -> range:
        assert offset % BLOCK == length % BLOCK == 0 < length
        assert 0 <= offset <= offset + length <= self.size
        return range(offset // BLOCK, (offset + length) // BLOCK)


def survival(seed: int) -> Survives:
    """Choose which cached writes survive: none (seed 0), all (seed 1), or random ones."""
    random = Random(seed)
    return {0: lambda: False, 1: lambda: True}.get(seed, lambda: random.random() < 0.5)
