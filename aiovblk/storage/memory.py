"""A disk in memory, which takes memory only for what is written (thin provisioning)."""

from __future__ import annotations

import errno
import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from ..arguments import check_block_size, check_count
from ..device import BlockDevice, Extent
from .extents import MAX_EXTENTS
from .ranges import round_down, round_up
from .sparse_memory import map_sparse

_PAGE = mmap.PAGESIZE

_GRANULARITY = 256 * 1024
"""Bytes of the units in which written data is tracked: a multiple of every page and block size.

Coarse, so that the list of edges stays short: an insertion takes time in proportion to it.
"""

_MIN_VIEW = 32 * 1024
"""Bytes of a read from which on a copy costs more than a view that the transport has to keep."""


class MemoryDevice(BlockDevice):
    """A disk in memory, all zeroes at first.

    Takes memory only for what is written: a device of terabytes costs nothing until it is filled.
    Memory that is trimmed or zeroed is given back. The contents are lost with the object;
    :meth:`flush` is a no-op.

    Args:
        size: bytes, a multiple of ``block_size``.
        block_size: bytes, a power of two.

    Raises:
        TypeError, ValueError: a number is out of range, or ``size`` no multiple of ``block_size``.
        OSError: ``size`` exceeds the address space of a process (128 TiB on most machines).

    """

    def __init__(self, size: int, *, block_size: int = 4096) -> None:
        check_block_size(block_size)
        check_count("size", size)
        if size < block_size or size % block_size:
            raise ValueError(f"the size must be a multiple of {block_size} bytes, not {size}")
        self.block_size = block_size
        self.blocks = size // block_size
        try:
            self._memory = map_sparse(size)
        except (OverflowError, OSError) as exc:
            reason = f"no memory disk of {size} bytes: a process cannot address as much"
            raise OSError(errno.ENOMEM, reason) from exc
        self._view = memoryview(self._memory).toreadonly()
        # Where data begins, where it ends, where it begins again, and so on: ascending, and each a
        # multiple of _GRANULARITY. Outside of that are zeroes. (The kernel knows too, but mincore()
        # reports swapped pages as absent, and of pagemap 8 bytes must be read for each page.)
        self._edges: list[int] = []

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return a copy of the contents, or a view of them if they are large (zero-copy).

        A view also shows what is written before the reply is sent. That is correct: such a write is
        in flight together with the read, which may return the old or the new contents.
        """
        if length < _MIN_VIEW:
            return self._memory[offset : offset + length]
        return self._view[offset : offset + length]

    async def write(self, offset: int, data: memoryview) -> None:
        """Copy the data into memory."""
        end = offset + len(data)
        at = bisect_right(self._edges, offset)
        if not _is_data(at) or self._edges[at] < end:
            self._mark(round_down(offset, _GRANULARITY), round_up(end, _GRANULARITY), data=True)
        self._memory[offset:end] = data

    async def trim(self, offset: int, length: int) -> None:
        """Give whole pages back to the kernel; they read as zeroes from now on."""
        begin = round_up(offset, _PAGE)
        end = round_down(offset + length, _PAGE)
        if begin < end:
            self._memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)
            self._mark_zeroes(begin, end)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Give whole pages back to the kernel, which makes them zeroes; overwrite the rest."""
        end = offset + length
        first = min(round_up(offset, _PAGE), end)
        last = max(round_down(end, _PAGE), first)
        await self.trim(first, last - first)
        self._memory[offset:first] = bytes(first - offset)
        self._memory[last:end] = bytes(end - last)
        self._mark_zeroes(offset, end)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return what is data, and what was never written or given back, in units of 256 KiB."""
        end = offset + length
        edges = self._edges
        at = bisect_right(edges, offset)
        if at == len(edges) or edges[at] >= end:  # the usual case, on every structured read
            hole = not _is_data(at)
            return [Extent(length, hole, hole)]
        data = _is_data(at)
        found = []
        for edge in [*edges[at : bisect_left(edges, end)], end][:MAX_EXTENTS]:
            found.append(Extent(edge - offset, hole=not data, zero=not data))
            offset, data = edge, not data
        return found

    def _mark_zeroes(self, begin: int, end: int) -> None:
        """Record a range of zeroes. A unit that is zeroed only in part stays data."""
        begin = round_up(begin, _GRANULARITY)
        if end < self.size:  # the last unit of the device may be shorter than the others
            end = round_down(end, _GRANULARITY)
        if begin < end:
            self._mark(begin, round_up(end, _GRANULARITY), data=False)

    def _mark(self, begin: int, end: int, *, data: bool) -> None:
        """Record whole units as data or as zeroes."""
        first, last = bisect_left(self._edges, begin), bisect_right(self._edges, end)
        # The edges inside go. An end of the range becomes one if the other kind lies beyond it.
        self._edges[first:last] = [
            edge for edge, at in ((begin, first), (end, last)) if _is_data(at) != data
        ]


def _is_data(at: int) -> bool:
    """Return whether bytes with ``at`` edges before them are data."""
    return at % 2 == 1
