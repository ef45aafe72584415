"""Serve unaligned requests on a device of whole blocks: read-modify-write with range locks.

Most clients do not ask for block sizes, and some that receive them ignore them (nbd-client):
refusing unaligned requests would make the export useless to them.

What holds here:

* Whole blocks go to the device unchanged. Partial blocks are read, modified and written back.
* Nothing else writes to a block during its read-modify-write cycle: neither a part of it, nor all
  of it, on any connection. Otherwise a write that was already answered could be undone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from .bitmaps import DirtyExtent, cut_extents, find_dirty, list_bitmaps
from .device import BlockDevice, Extent, missing_operations


class UnalignedAdapter(BlockDevice):
    """Make a device byte-addressable: a view with ``block_size`` 1. It does not unmount ``inner``.

    It can do what ``inner`` can (:func:`aiovblk.device.can`). WRITE_ZEROES is its own in any case:
    by default it would arrive here as pieces of 1 MiB, each of them unaligned.

    Args:
        inner: the device of whole blocks.

    """

    block_size = 1

    def __init__(self, inner: BlockDevice) -> None:
        self._inner = inner
        self._block: int = inner.block_size
        self._mask = self._block - 1
        self._ranges = _BlockLocks()
        self._unsupported = missing_operations(inner) - {"read", "write_zeroes"}

    @property
    def size(self) -> int:
        """Total size in bytes."""
        return self._inner.size

    def read(self, offset: int, length: int) -> Coroutine[Any, Any, bytes | bytearray | memoryview]:
        """As in the base class."""
        if not (offset | length) & self._mask:
            return self._inner.read(offset, length)
        return self._read_parts(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """As in the base class."""
        length = len(data)
        if (offset | length) & self._mask or self._ranges.exclusive:
            await self._write_parts(offset, data)
            return
        # The common case: whole blocks, and no read-modify-write cycle that could conflict.
        self._ranges.untracked += 1
        try:
            await self._inner.write(offset, data)
        finally:
            self._ranges.release_untracked()

    async def flush(self) -> None:
        """As in the base class."""
        await self._inner.flush()

    async def trim(self, offset: int, length: int) -> None:
        """As in the base class; blocks that the range covers only in part keep their data."""
        first, last = self._up(offset), self._down(offset + length)
        if first < last:
            async with self._lock_range(first, last - first):
                await self._inner.trim(first, last - first)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """As in the base class."""
        async with self._lock_range(offset, length):
            for begin, end in self._parts(offset, length):
                if self._is_aligned(begin, end - begin):
                    await self._inner.write_zeroes(begin, end - begin, may_trim=may_trim)
                else:
                    await self._write_part(begin, memoryview(bytes(end - begin)))

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """As in the base class."""
        first = self._down(offset)
        extents = await self._inner.extents(first, self._up(offset + length) - first)
        return extents if first == offset else list(_without_head(extents, offset - first))

    async def cache(self, offset: int, length: int) -> None:
        """As in the base class."""
        first = self._down(offset)
        await self._inner.cache(first, self._up(offset + length) - first)

    async def dirty_bitmaps(self) -> Sequence[str]:
        """Return the names of the dirty bitmaps of ``inner``."""
        return await list_bitmaps(self._inner)

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        """Return what is dirty, from what ``inner`` says of whole blocks."""
        first = self._down(offset)
        found = await find_dirty(self._inner, name, first, self._up(offset + length) - first)
        cut = cut_extents(found, offset - first, length)
        # Less than a block is known: then all of it may be dirty.
        return cut or [DirtyExtent(min(length, first + self._block - offset), True)]

    async def _read_parts(self, offset: int, length: int) -> bytes:
        pieces: list[memoryview] = []
        for begin, end in self._parts(offset, length):
            first, last = self._down(begin), self._up(end)
            data = memoryview(await self._inner.read(first, last - first)).cast("B")
            if len(data) != last - first:
                raise ValueError(
                    f"read returned {len(data)} bytes where {last - first} were asked for"
                )
            pieces.append(data[begin - first : end - first])
        return b"".join(pieces)

    async def _write_parts(self, offset: int, data: memoryview) -> None:
        async with self._lock_range(offset, len(data)):
            for begin, end in self._parts(offset, len(data)):
                await self._write_part(begin, data[begin - offset : end - offset])

    async def _write_part(self, offset: int, data: memoryview) -> None:
        """Write whole blocks, or a part of one."""
        if self._is_aligned(offset, len(data)):
            await self._inner.write(offset, data)
            return
        first = self._down(offset)
        block = bytearray(await self._inner.read(first, self._block))
        block[offset - first : offset - first + len(data)] = data
        if len(block) != self._block:
            raise ValueError(f"read returned a block of {len(block)} bytes")
        await self._inner.write(first, memoryview(block))

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield begin and end of the partial block at the head, the whole blocks, and the tail."""
        end = offset + length
        first, last = self._up(offset), self._down(end)
        if offset < first:
            yield offset, min(first, end)
        if first < last:
            yield first, last
        if first <= last < end:
            yield last, end

    def _lock_range(self, offset: int, length: int) -> _LockedBlocks:
        """Lock these blocks: exclusively for a partial block, else only against such locks."""
        begin, end = self._down(offset), self._up(offset + length)
        return _LockedBlocks(self._ranges, begin, end, not self._is_aligned(offset, length))

    def _is_aligned(self, offset: int, length: int) -> bool:
        return not (offset | length) & self._mask

    def _down(self, offset: int) -> int:
        return offset & -self._block

    def _up(self, offset: int) -> int:
        return -(-offset & -self._block)


class _BlockLocks:
    """The byte ranges that are being written on one device.

    Attributes:
        held: the locked ranges whose position is recorded.
        untracked: how many more writes run, all of whole blocks, whose position is not recorded.
            It is hardly ever needed, and recording it costs as much as a small write in memory.
        exclusive: how many exclusive locks are held or waited for. While there is one, each new
            write is recorded in ``held``.

    """

    def __init__(self) -> None:
        self.held: set[_LockedBlocks] = set()
        self.untracked = 0
        self.exclusive = 0
        self._all_tracked: asyncio.Future[None] | None = None

    def release_untracked(self) -> None:
        """End an untracked write; wake the lock that waits for the last of them."""
        self.untracked -= 1
        if self._all_tracked is not None and not self.untracked:
            self._all_tracked.set_result(None)
            self._all_tracked = None

    async def wait_all_tracked(self) -> None:
        """Wait until no untracked write runs."""
        if self.untracked:
            if self._all_tracked is None:
                self._all_tracked = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._all_tracked])


class _LockedBlocks:
    """Hold the lock of a byte range during an ``async with`` block.

    Writes of whole blocks are compatible with each other; an exclusive lock (a partial block)
    conflicts with every overlapping range.
    """

    __slots__ = ("_begin", "_end", "_exclusive", "_ranges", "_released")

    def __init__(self, ranges: _BlockLocks, begin: int, end: int, exclusive: bool) -> None:
        self._ranges = ranges
        self._begin = begin
        self._end = end
        self._exclusive = exclusive
        self._released: asyncio.Future[None] | None = None

    async def __aenter__(self) -> None:
        ranges = self._ranges
        ranges.exclusive += self._exclusive
        try:
            if self._exclusive:
                await ranges.wait_all_tracked()
            while ranges.exclusive:
                conflicting = [each for each in ranges.held if self._conflicts_with(each)]
                if not conflicting:
                    break
                await asyncio.wait([each.released() for each in conflicting])
        except BaseException:
            ranges.exclusive -= self._exclusive
            raise
        ranges.held.add(self)

    async def __aexit__(self, *_: object) -> None:
        self._ranges.held.discard(self)
        self._ranges.exclusive -= self._exclusive
        if self._released is not None:
            self._released.set_result(None)

    def released(self) -> asyncio.Future[None]:
        """Return a future that is done once the lock is released."""
        if self._released is None:
            self._released = asyncio.get_running_loop().create_future()
        return self._released

    def _conflicts_with(self, other: _LockedBlocks) -> bool:
        overlap = self._begin < other._end and other._begin < self._end
        return overlap and (self._exclusive or other._exclusive)


def _without_head(extents: Sequence[Extent], length: int) -> Iterator[Extent]:
    """Yield extents without their first ``length`` bytes."""
    for extent in extents:
        cut = min(length, extent.length)
        length -= cut
        if cut < extent.length:
            yield extent._replace(length=extent.length - cut)
