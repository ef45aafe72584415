"""A disk in memory."""

from __future__ import annotations

import errno
import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from ..arguments import check_block_size, check_count
from ..device import BlockDevice, Extent

_PAGE = mmap.PAGESIZE
_MAP_NORESERVE = 0x4000  # include/uapi/asm-generic/mman-common.h; Python names it since 3.13

# What was written is remembered in units of this size: a multiple of every page and block size.
# Coarse, so that the list of what was written stays short: inserting takes time in proportion.
_GRANULARITY = 256 * 1024

# Bytes from which on a copy costs more than a view and what the transport does to keep it.
_VIEWED = 32 * 1024

_MAX_EXTENTS = 1024  # of one answer; whoever wants more asks again


class MemoryDevice(BlockDevice):
    """A disk in memory, all zeroes at first.

    Takes memory only for what was written: a device of terabytes costs nothing until it is filled.
    What is trimmed or zeroed is given back. The contents end with the object; :meth:`flush` has
    nothing to do.

    Args:
        size: bytes, a multiple of ``block_size``.
        block_size: bytes, a power of two.

    Raises:
        TypeError, ValueError: a number is impossible, or the size no multiple of the block size.
        OSError: more than this machine's address space (128 TiB on most) was asked for.

    """

    def __init__(self, size: int, *, block_size: int = 4096) -> None:
        check_block_size(block_size)
        check_count("size", size)
        if size < block_size or size % block_size:
            raise ValueError(f"the size must be a multiple of {block_size} bytes, not {size}")
        self.block_size = block_size
        self.blocks = size // block_size
        # Pages that were never written exist only as a promise, which NORESERVE keeps the kernel
        # from counting.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._memory = mmap.mmap(-1, size, flags=flags)
        except (OverflowError, OSError) as exc:
            reason = f"no memory disk of {size} bytes: a process cannot address as much"
            raise OSError(errno.ENOMEM, reason) from exc
        self._view = memoryview(self._memory).toreadonly()
        # Where data begins, where it ends, where it begins again, and so on: ascending, and each a
        # multiple of _GRAIN. What lies outside is zeroes. (The kernel knows too, but mincore()
        # takes what was swapped out for absent, and pagemap has 8 bytes to read for each page.)
        self._edges: list[int] = []

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Copy out of memory; a large result is a view of it.

        A view shows what is written before it has been sent. But then the write came before the
        reader had its answer, who may see either.
        """
        if length < _VIEWED:
            return self._memory[offset : offset + length]
        return self._view[offset : offset + length]

    async def write(self, offset: int, data: memoryview) -> None:
        """Copy into memory."""
        end = offset + len(data)
        at = bisect_right(self._edges, offset)
        if not _is_data(at) or self._edges[at] < end:
            self._mark(_round_down(offset, _GRANULARITY), _round_up(end, _GRANULARITY), data=True)
        self._memory[offset:end] = data

    async def trim(self, offset: int, length: int) -> None:
        """Give whole pages back; they read as zeroes from now on."""
        begin = _round_up(offset, _PAGE)
        end = _round_down(offset + length, _PAGE)
        if begin < end:
            self._memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)
            self._mark_zeroes(begin, end)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Give whole pages back, which makes them zeroes, and clear the rest by hand."""
        end = offset + length
        first = min(_round_up(offset, _PAGE), end)
        last = max(_round_down(end, _PAGE), first)
        await self.trim(first, last - first)
        self._memory[offset:first] = bytes(first - offset)
        self._memory[last:end] = bytes(end - last)
        self._mark_zeroes(offset, end)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Tell what was never written, or has been given back, in units of 256 KiB."""
        end = offset + length
        edges = self._edges
        at = bisect_right(edges, offset)
        if at == len(edges) or edges[at] >= end:  # the usual case, at a read's expense
            hole = not _is_data(at)
            return [Extent(length, hole, hole)]
        data = _is_data(at)
        found = []
        for edge in [*edges[at : bisect_left(edges, end)], end][:_MAX_EXTENTS]:
            found.append(Extent(edge - offset, hole=not data, zero=not data))
            offset, data = edge, not data
        return found

    def _mark_zeroes(self, begin: int, end: int) -> None:
        """Take note of zeroes. A grain that has other bytes too stays data."""
        begin = _round_up(begin, _GRANULARITY)
        if end < self.size:  # nothing lies behind the end that could differ
            end = _round_down(end, _GRANULARITY)
        if begin < end:
            self._mark(begin, _round_up(end, _GRANULARITY), data=False)

    def _mark(self, begin: int, end: int, *, data: bool) -> None:
        first, last = bisect_left(self._edges, begin), bisect_right(self._edges, end)
        # All edges between go. An end of the range becomes one if it is of the other kind outside.
        self._edges[first:last] = [
            edge for edge, at in ((begin, first), (end, last)) if _is_data(at) != data
        ]


def _is_data(at: int) -> bool:
    """Of which kind the bytes are before which ``at`` edges lie."""
    return at % 2 == 1


def _round_down(offset: int, unit: int) -> int:
    return offset // unit * unit


def _round_up(offset: int, unit: int) -> int:
    return -(-offset // unit) * unit
