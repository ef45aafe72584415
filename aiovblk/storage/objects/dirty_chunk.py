"""Hold the dirty blocks of one chunk: what was written and is not stored yet."""

from __future__ import annotations

from collections.abc import Iterator

from ..bitset import runs
from .client import Buffer
from .frames import Contents

_SPARSE = 4  # a chunk whose dirty blocks are at most this part of it has no buffer of its size


def block_mask(first: int, count: int) -> int:
    """Return a bit mask of ``count`` blocks from block ``first`` on."""
    return ((1 << count) - 1) << first


class DirtyChunk:
    """The blocks of one chunk that were written: a bit mask, and their data.

    A few blocks are kept one by one, many in a buffer of the chunk's size.

    Args:
        size: bytes of the chunk.
        block_size: bytes.

    """

    __slots__ = ("_all_blocks", "_block_size", "_blocks", "_buffer", "_size", "mask")

    def __init__(self, size: int, block_size: int) -> None:
        self._size = size
        self._block_size = block_size
        self._all_blocks = block_mask(0, size // block_size)
        self._blocks: dict[int, bytes] = {}  # without a buffer; dirty ones not in it are zeroes
        self._buffer: bytearray | None = None
        self.mask = 0
        """The dirty blocks, one bit each."""

    @property
    def is_complete(self) -> bool:
        """Whether every block is dirty, so that it can be stored without reading the old chunk."""
        return self.mask == self._all_blocks

    @property
    def is_zero(self) -> bool:
        """Whether the dirty blocks are known to be zeroes; then they take no memory."""
        return self._buffer is None and not self._blocks

    @property
    def contents(self) -> bytearray | None:
        """All bytes; those of clean blocks are undefined. None for zeroes."""
        return None if self.is_zero else self._full_buffer()

    @property
    def memory(self) -> int:
        """Bytes of memory that the data takes."""
        if self._buffer is not None:
            return self._size
        return len(self._blocks) * self._block_size

    @property
    def length(self) -> int:
        """Bytes that are dirty, but for those that are known to be zeroes."""
        return min(self.memory, self.mask.bit_count() * self._block_size)

    def write(self, start: int, data: Buffer) -> None:
        """Write whole blocks."""
        size = self._block_size
        if self._buffer is None and self.memory + len(data) > self._size // _SPARSE:
            self._full_buffer()
        if self._buffer is not None:
            self._buffer[start : start + len(data)] = data
        else:
            view = memoryview(data)
            for at in range(0, len(data), size):
                self._blocks[(start + at) // size] = bytes(view[at : at + size])
        self.mask |= self._mask_of(start, len(data))

    def _full_buffer(self) -> bytearray:
        if self._buffer is None:
            self._buffer = bytearray(self._size)
            for block, data in self._blocks.items():
                at = block * self._block_size
                self._buffer[at : at + len(data)] = data
            self._blocks = {}
        return self._buffer

    def zero(self, start: int, length: int) -> None:
        """Write zeroes to whole blocks."""
        blocks = self._mask_of(start, length)
        if blocks == self._all_blocks:
            self._buffer, self._blocks = None, {}
        elif self._buffer is not None:
            self._buffer[start : start + length] = bytes(length)
        elif self._blocks:
            first, last = start // self._block_size, (start + length) // self._block_size
            self._blocks = {
                block: data for block, data in self._blocks.items() if not first <= block < last
            }
        self.mask |= blocks

    def covers(self, start: int, length: int) -> bool:
        """Whether all these bytes are dirty, so that :meth:`read` alone can return them."""
        return not self._mask_of(start, length) & ~self.mask

    def read(self, start: int, length: int) -> bytes:
        """Return bytes that are dirty."""
        if self._buffer is not None:
            return bytes(memoryview(self._buffer)[start : start + length])
        if not self._blocks:
            return bytes(length)
        size = self._block_size
        first, count = start // size, length // size
        zeroes = bytes(size)
        return b"".join(self._blocks.get(block, zeroes) for block in range(first, first + count))

    def pieces(self) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield the dirty blocks as runs: first block, blocks, and data; None for zeroes."""
        size = self._block_size
        zeroes = bytes(size)
        for first, last in runs(self.mask):
            data = self.read(first * size, (last - first) * size)
            begin, was_zero = 0, None
            for at in range(0, len(data), size):
                zero = data.startswith(zeroes, at)
                if was_zero not in (None, zero):
                    yield first + begin // size, (at - begin) // size, _piece(data, begin, at, zero)
                    begin = at
                was_zero = zero
            is_data = not was_zero
            yield (
                first + begin // size,
                (len(data) - begin) // size,
                _piece(data, begin, len(data), is_data),
            )

    def apply_to(self, below: bytearray, start: int) -> None:
        """Copy the dirty bytes over ``below``, which holds the chunk's bytes from ``start`` on."""
        within = self.mask & self._mask_of(start, len(below))
        for first, last in runs(within):
            at, length = first * self._block_size, (last - first) * self._block_size
            below[at - start : at - start + length] = self.read(at, length)

    def complete(self, below: Contents) -> None:
        """Fill the clean blocks from ``below``, the chunk as it is stored."""
        for first, last in runs(self._all_blocks & ~self.mask):
            at, length = first * self._block_size, (last - first) * self._block_size
            self.write(at, below[at : at + length])

    def merge(self, below: DirtyChunk) -> None:
        """Fill the clean blocks from the dirty ones of an older :class:`DirtyChunk`."""
        for first, last in runs(below.mask & ~self.mask):
            at, length = first * self._block_size, (last - first) * self._block_size
            if below.is_zero:
                self.zero(at, length)
            else:
                self.write(at, below.read(at, length))

    def _mask_of(self, start: int, length: int) -> int:
        return block_mask(start // self._block_size, length // self._block_size)


def _piece(data: bytes, begin: int, end: int, is_data: bool) -> bytes | None:
    return data[begin:end] if is_data else None
