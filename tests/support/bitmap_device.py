"""A disk in memory that knows exactly what differs from what it was at named points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from aiovblk.bitmaps import DirtyExtent
from aiovblk.storage import MemoryDevice

BLOCK = 4096


class BitmapDevice(MemoryDevice):
    """A :class:`MemoryDevice` with dirty bitmaps: no block is dirty that is equal.

    Attributes:
        points: what the disk held, by the names of the bitmaps.
        asked: the name of each bitmap that was asked for.

    """

    def __init__(self, size: int, *, block_size: int = BLOCK) -> None:
        super().__init__(size, block_size=block_size)
        self.points: dict[str, bytes] = {}
        self.asked: list[str] = []

    async def contents(self) -> bytes:
        return bytes(await self.read(0, self.size))

    async def add(self, name: str) -> str:
        """Begin a bitmap now; return its name."""
        self.points[name] = await self.contents()
        return name

    async def fill(self, block: int, letter: bytes, count: int = 1) -> None:
        """Fill blocks with a letter."""
        await self.write(block * self.block_size, memoryview(letter * self.block_size * count))

    async def dirty_bitmaps(self) -> Sequence[str]:
        return sorted(self.points)

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        self.asked.append(name)
        before, now = self.points[name], await self.contents()
        unit = self.block_size

        def differs(at: int) -> bool:
            return before[at : at + unit] != now[at : at + unit]

        blocks = range(offset, offset + length, unit)
        runs = [(dirty, len(list(run)) * unit) for dirty, run in groupby(blocks, differs)]
        # A device need not answer all at once.
        return [DirtyExtent(size, dirty) for dirty, size in runs[:2]]
