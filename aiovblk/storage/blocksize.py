"""Change the block size of a device: larger, or smaller by read-modify-write."""

from __future__ import annotations

from collections.abc import Sequence

from ..arguments import check_block_size
from ..bitmaps import DirtyExtent, find_dirty
from ..device import BlockDevice, Extent
from ..unaligned import UnalignedAdapter
from .extents import in_whole_blocks
from .layer import Layer


class BlockSize(Layer):
    """Gives a device blocks of another size: for instance 512-byte sectors on one of 4096.

    Larger blocks cost one call for each request. Smaller ones are served by read-modify-write of
    the blocks of ``inner``; requests that are aligned to those pass unchanged.

    Durability: that of ``inner``. A write of a part of an inner block writes the whole block again.
    A crash may leave a larger block written in part, as it may with several blocks of ``inner``.

    Concurrency: any number of requests. While a part of a block is changed, no other write of that
    block is in flight. This lock exists in this process only, so a writable device with smaller
    blocks does not set :attr:`BlockDevice.multi_conn`.

    Args:
        inner: the device below.
        block_size: bytes, a power of two that divides the device's size.

    Raises:
        TypeError, ValueError: ``block_size`` is no such number.

    """

    passes_bitmaps = True

    def __init__(self, inner: BlockDevice, block_size: int) -> None:
        check_block_size(block_size)
        if inner.size % block_size:
            raise ValueError(
                f"the device has {inner.size} bytes, no multiple of a block_size of {block_size}"
            )
        super().__init__(inner)
        self.block_size = block_size
        self._parts: BlockDevice = inner
        if block_size < inner.block_size:
            self._parts = UnalignedAdapter(inner)
            self.multi_conn = inner.multi_conn and inner.read_only

    @property
    def blocks(self) -> int:
        """The size of ``inner`` in these blocks; setting it resizes ``inner``."""
        blocks: int = self.inner.size // self.block_size
        return blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        size = value * self.block_size
        if size % self.inner.block_size:
            raise ValueError(
                f"{size} bytes are no multiple of the inner device's {self.inner.block_size}"
            )
        self.inner.blocks = size // self.inner.block_size

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read from ``inner``."""
        return await self._parts.read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to ``inner``."""
        await self._parts.write(offset, data)

    async def trim(self, offset: int, length: int) -> None:
        """Trim whole blocks of ``inner``."""
        await self._parts.trim(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes to ``inner``."""
        await self._parts.write_zeroes(offset, length, may_trim=may_trim)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return the extents of ``inner``; a block that is a hole or zero only in part is data."""
        found = await self._parts.extents(offset, length)
        is_larger = self.block_size > self.inner.block_size
        return in_whole_blocks(found, offset, self.block_size) if is_larger else found

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        """Return what is dirty in ``inner``; a block that is dirty only in part is dirty."""
        found = await find_dirty(self._parts, name, offset, length)
        if self.block_size <= self.inner.block_size:
            return found
        clean = in_whole_blocks(
            [Extent(length, zero=not dirty) for length, dirty in found], offset, self.block_size
        )
        return [DirtyExtent(extent.length, not extent.zero) for extent in clean]

    async def cache(self, offset: int, length: int) -> None:
        """Forward the hint to ``inner``."""
        await self._parts.cache(offset, length)
