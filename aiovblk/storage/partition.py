"""Serve a byte range of a device as a device of its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..arguments import check_count
from ..bitmaps import DirtyExtent
from ..device import BlockDevice, Extent
from .layer import Layer


class Partition(Layer):
    """Serves a byte range of a device as a device of its own.

    Durability: that of ``inner``; a flush covers writes to all of it, outside of the range too.

    Args:
        inner: the device that the range is in.
        offset: bytes from the beginning, a multiple of its ``block_size``.
        size: bytes, a multiple of its ``block_size``.

    Raises:
        TypeError, ValueError: the range is not made of whole blocks inside of ``inner``.

    """

    passes_bitmaps = True

    def __init__(self, inner: BlockDevice, offset: int, size: int) -> None:
        super().__init__(inner)
        for name, value in (("offset", offset), ("size", size)):
            check_count(name, value, minimum=0)
            if value % inner.block_size:
                raise ValueError(
                    f"the {name} must be a multiple of {inner.block_size} bytes, not {value}"
                )
        self.offset = offset
        self.blocks = size // inner.block_size

    @property
    def blocks(self) -> int:
        """The size in blocks; may be set as long as the range stays inside of ``inner``."""
        return self._blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        size = value * self.block_size
        if value < 1 or self.offset + size > self.inner.size:
            raise ValueError(
                f"{size} bytes at {self.offset} are no part of a device of {self.inner.size} bytes"
            )
        self._blocks = value

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read from the range."""
        return await self.inner.read(self.offset + offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to the range."""
        await self.inner.write(self.offset + offset, data)

    async def trim(self, offset: int, length: int) -> None:
        """Trim inside of the range."""
        await self.inner.trim(self.offset + offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes to the range."""
        await self.inner.write_zeroes(self.offset + offset, length, may_trim=may_trim)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return the extents of the range; the last may reach beyond its end."""
        return await self.inner.extents(self.offset + offset, length)

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        """Return what is dirty in the range."""
        return await super().dirty_extents(name, self.offset + offset, length)

    async def cache(self, offset: int, length: int) -> None:
        """Forward the hint to ``inner``."""
        await self.inner.cache(self.offset + offset, length)
