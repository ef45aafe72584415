"""A layer that gives a device another block size."""

from __future__ import annotations

from collections.abc import Sequence

from ..arguments import check_block_size
from ..device import BlockDevice, Extent, overrides
from ..unaligned import UnalignedAdapter
from .layer import Layer


class BlockSize(Layer):
    """Shows a device with blocks of another size: sectors of 512 bytes, say, on one of 4096.

    Larger blocks cost nothing. Smaller ones are served by read-modify-write of the inner device's
    own; requests that fit those pass as they are.

    Durability: that of ``inner``. A write of a part of an inner block writes the whole block again.
    A crash may leave a larger block written in part, as it may with several blocks of ``inner``.

    Concurrency: any. While a part of a block is changed, no other write of that block is in flight.
    Only this process knows of that, so a device with smaller blocks that can be written does not
    say :attr:`BlockDevice.multi_conn`.

    Args:
        inner: the device.
        block_size: bytes, a power of two that divides the device's size.

    Raises:
        TypeError, ValueError: it cannot have such blocks.

    """

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
        else:
            self._pass_by()

    @property
    def blocks(self) -> int:
        """As many as the inner device has bytes for; it is resized when this is set."""
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
        """Have ``inner`` write zeroes."""
        await self._parts.write_zeroes(offset, length, may_trim=may_trim)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Tell what ``inner`` tells; a block that is a hole, or zero, only in part is data."""
        found = await self._parts.extents(offset, length)
        is_larger = self.block_size > self.inner.block_size
        return _in_whole_blocks(found, offset, self.block_size) if is_larger else found

    async def cache(self, offset: int, length: int) -> None:
        """Pass the hint on."""
        await self._parts.cache(offset, length)

    def _pass_by(self) -> None:
        """Have requests go straight to ``inner``'s handlers: none of theirs is misaligned."""
        for method in (BlockDevice.read, *_HANDLERS):
            if overrides(self.inner, method):
                setattr(self, method.__name__, getattr(self.inner, method.__name__))


_HANDLERS = (
    BlockDevice.write,
    BlockDevice.flush,
    BlockDevice.trim,
    BlockDevice.write_zeroes,
    BlockDevice.cache,
)


def _in_whole_blocks(found: Sequence[Extent], offset: int, block: int) -> list[Extent]:
    extents: list[Extent] = []
    begin = position = offset  # of what is not told yet, and of what was looked at
    for length, hole, zero in found:
        first, last = -(-position // block) * block, (position + length) // block * block
        position += length
        if (hole or zero) and first < last:
            if begin < first:
                extents.append(Extent(first - begin))
            extents.append(Extent(last - first, hole, zero))
            begin = last
    # Of a block at the end of which only a part was told the client asks again.
    last = position // block * block
    if begin < last:
        extents.append(Extent(last - begin))
    return extents or [Extent(block)]
