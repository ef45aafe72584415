"""Hold the dirty blocks of one chunk: what was written and is not stored yet."""

from __future__ import annotations

from ..bitset import runs
from .client import Buffer


def block_mask(first: int, count: int) -> int:
    """Return a bit mask of ``count`` blocks from block ``first`` on."""
    return ((1 << count) - 1) << first


class DirtyChunk:
    """The blocks of one chunk that were written: a bit mask, and their data.

    Args:
        size: bytes of the chunk.
        block_size: bytes.

    """

    __slots__ = ("_all_blocks", "_block_size", "_buffer", "_size", "mask")

    def __init__(self, size: int, block_size: int) -> None:
        self._size = size
        self._block_size = block_size
        self._all_blocks = block_mask(0, size // block_size)
        self._buffer: bytearray | None = None  # None while all dirty blocks are zeroes
        self.mask = 0
        """The dirty blocks, one bit each."""

    @property
    def is_complete(self) -> bool:
        """Whether every block is dirty, so that it can be stored without reading the old chunk."""
        return self.mask == self._all_blocks

    @property
    def contents(self) -> bytearray | None:
        """All bytes; those of clean blocks are undefined. None for zeroes."""
        return self._buffer

    def write(self, start: int, data: Buffer) -> None:
        """Write whole blocks."""
        if self._buffer is None:
            self._buffer = bytearray(self._size)
        self._buffer[start : start + len(data)] = data
        self.mask |= self._blocks(start, len(data))

    def zero(self, start: int, length: int) -> None:
        """Write zeroes to whole blocks."""
        blocks = self._blocks(start, length)
        if blocks == self._all_blocks:
            self._buffer = None
        elif self._buffer is not None:
            self._buffer[start : start + length] = bytes(length)
        self.mask |= blocks

    def covers(self, start: int, length: int) -> bool:
        """Whether all these bytes are dirty, so that :meth:`read` alone can return them."""
        return not self._blocks(start, length) & ~self.mask

    def read(self, start: int, length: int) -> bytes:
        """Return bytes that are dirty."""
        if self._buffer is None:
            return bytes(length)
        return bytes(memoryview(self._buffer)[start : start + length])

    def apply_to(self, below: bytearray, start: int) -> None:
        """Copy the dirty bytes over ``below``, which holds the chunk's bytes from ``start`` on."""
        within = self.mask & self._blocks(start, len(below))
        for first, last in runs(within):
            at, length = first * self._block_size, (last - first) * self._block_size
            below[at - start : at - start + length] = self.read(at, length)

    def complete(self, below: memoryview | None) -> None:
        """Fill the clean blocks from ``below``, the chunk as it is stored; None for zeroes."""
        if below is not None:
            for first, last in runs(self._all_blocks & ~self.mask):
                at, length = first * self._block_size, (last - first) * self._block_size
                self.write(at, below[at : at + length])
        self.mask = self._all_blocks

    def merge(self, below: DirtyChunk) -> None:
        """Fill the clean blocks from the dirty ones of an older :class:`DirtyChunk`."""
        for first, last in runs(below.mask & ~self.mask):
            at, length = first * self._block_size, (last - first) * self._block_size
            if below._buffer is None:
                self.zero(at, length)
            else:
                self.write(at, below.read(at, length))

    def _blocks(self, start: int, length: int) -> int:
        return block_mask(start // self._block_size, length // self._block_size)
