"""A disk in memory with dirty bitmaps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from aiovblk.bitmaps import DirtyExtent
from aiovblk.storage import MemoryDevice

BLOCK = 512


class BitmapDisk(MemoryDevice):
    """A disk in memory that records, for each of its bitmaps, which blocks were written.

    Attributes:
        bitmaps: the dirty blocks of each bitmap, by its name.
        queries: the arguments of each call of ``dirty_extents``.

    """

    def __init__(self, size: int, *names: str, block_size: int = BLOCK) -> None:
        super().__init__(size, block_size=block_size)
        self.bitmaps: dict[str, set[int]] = {name: set() for name in names}
        self.queries: list[tuple[str, int, int]] = []

    def mark(self, name: str, offset: int, length: int) -> None:
        """Mark a range as dirty in one bitmap, without a write."""
        self.bitmaps[name].update(range(offset // BLOCK, (offset + length) // BLOCK))

    async def write(self, offset: int, data: memoryview) -> None:
        await super().write(offset, data)
        for name in self.bitmaps:
            self.mark(name, offset, len(data))

    async def dirty_bitmaps(self) -> Sequence[str]:
        return sorted(self.bitmaps)

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        self.queries.append((name, offset, length))
        dirty = self.bitmaps[name]
        blocks = range(offset // BLOCK, (offset + length) // BLOCK)
        runs = groupby(blocks, lambda block: block in dirty)
        return [DirtyExtent(len(list(run)) * BLOCK, state) for state, run in runs]


def dirty_ranges(extents: Sequence[DirtyExtent], offset: int = 0) -> list[tuple[int, int]]:
    """Offset and length of what is dirty, neighbours together."""
    found: list[tuple[int, int]] = []
    for length, dirty in extents:
        if dirty and found and sum(found[-1]) == offset:
            found[-1] = found[-1][0], found[-1][1] + length
        elif dirty:
            found.append((offset, length))
        offset += length
    return found
