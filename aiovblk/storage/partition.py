"""A part of a device."""

from __future__ import annotations

from collections.abc import Sequence

from ..arguments import check_count
from ..device import BlockDevice, Extent
from .layer import Layer


class Partition(Layer):
    """A part of a device, as a device.

    Durability: that of ``inner``; a flush makes durable what was written to all of it.

    Args:
        inner: what it is a part of.
        offset: bytes from the beginning, a multiple of its ``block_size``.
        size: bytes, a multiple of its ``block_size``.

    Raises:
        TypeError, ValueError: these are not whole blocks inside of ``inner``.

    """

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
        """How many there are; may be set to as many as ``inner`` has there."""
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
        """Read from the part."""
        return await self.inner.read(self.offset + offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to the part."""
        await self.inner.write(self.offset + offset, data)

    async def trim(self, offset: int, length: int) -> None:
        """Trim in the part."""
        await self.inner.trim(self.offset + offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes to the part."""
        await self.inner.write_zeroes(self.offset + offset, length, may_trim=may_trim)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Tell the extents of the part; the last may be longer than it."""
        return await self.inner.extents(self.offset + offset, length)

    async def cache(self, offset: int, length: int) -> None:
        """Pass the hint on."""
        await self.inner.cache(self.offset + offset, length)
