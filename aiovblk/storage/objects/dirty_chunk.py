"""A chunk that was written to and is not stored yet."""

from __future__ import annotations

from ..bitset import runs
from .client import Buffer


def block_mask(first: int, count: int) -> int:
    """A mask of ``count`` blocks from block ``first`` on."""
    return ((1 << count) - 1) << first


class DirtyChunk:
    """What is known of such a chunk: the blocks that were written.

    Args:
        size: bytes of the chunk.
        block_size: bytes.

    """

    __slots__ = ("_block_size", "_buffer", "_every", "_size", "mask")

    def __init__(self, size: int, block_size: int) -> None:
        self._size = size
        self._block_size = block_size
        self._every = block_mask(0, size // block_size)
        self._buffer: bytearray | None = None  # all that is known is zeroes
        self.mask = 0
        """The blocks that are known."""

    @property
    def is_complete(self) -> bool:
        """Whether every block is known."""
        return self.mask == self._every

    @property
    def contents(self) -> bytearray | None:
        """All bytes, those of unknown blocks anything; None for zeroes."""
        return self._buffer

    def write(self, start: int, data: Buffer) -> None:
        """Write whole blocks."""
        if self._buffer is None:
            self._buffer = bytearray(self._size)
        self._buffer[start : start + len(data)] = data
        self.mask |= self._blocks(start, len(data))

    def zero(self, start: int, length: int) -> None:
        """Write zeroes."""
        blocks = self._blocks(start, length)
        if blocks == self._every:
            self._buffer = None
        elif self._buffer is not None:
            self._buffer[start : start + length] = bytes(length)
        self.mask |= blocks

    def knows(self, start: int, length: int) -> bool:
        """Whether all these bytes are known."""
        return not self._blocks(start, length) & ~self.mask

    def read(self, start: int, length: int) -> bytes:
        """Return bytes that are known."""
        if self._buffer is None:
            return bytes(length)
        return bytes(memoryview(self._buffer)[start : start + length])

    def apply_to(self, below: bytearray, start: int) -> None:
        """Put what is known of the bytes from ``start`` on into ``below``."""
        within = self.mask & self._blocks(start, len(below))
        for first, last in runs(within):
            at, length = first * self._block_size, (last - first) * self._block_size
            below[at - start : at - start + length] = self.read(at, length)

    def complete(self, below: memoryview | None) -> None:
        """Take what is not known from ``below``, a whole chunk; None for zeroes."""
        if below is not None:
            for first, last in runs(self._every & ~self.mask):
                at, length = first * self._block_size, (last - first) * self._block_size
                self.write(at, below[at : at + length])
        self.mask = self._every

    def merge(self, below: DirtyChunk) -> None:
        """Take what is not known here from another of the same chunk that is older."""
        for first, last in runs(below.mask & ~self.mask):
            at, length = first * self._block_size, (last - first) * self._block_size
            if below._buffer is None:
                self.zero(at, length)
            else:
                self.write(at, below.read(at, length))

    def _blocks(self, start: int, length: int) -> int:
        return block_mask(start // self._block_size, length // self._block_size)
