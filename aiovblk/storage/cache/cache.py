"""The cache layer: read, write-through or write-back, in memory or on a store that persists."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import islice
from typing import Literal, get_args

from ...aio.rangelock import RangeLock
from ...arguments import check_count
from ...contract import check_inner
from ...device import BlockDevice, Extent
from ...errors import STOP_EXCEPTIONS
from ..extents import with_data
from ..layer import Layer
from .device_slots import CacheHeader, DeviceSlots
from .dirty import Dirty
from .lines import CacheStats, Lines
from .memory import MemorySlots
from .reader import CacheReader
from .writeback import WriteBack

logger = logging.getLogger("aiovblk")

Policy = Literal["read", "write-through", "write-back"]

_FETCH_CONCURRENCY = 4 << 20
"""Bytes in flight for one CACHE hint."""

_RESTORE_CONCURRENCY = 10_000
"""Lines to restore from the store before other tasks run."""


class Cache(Layer):
    """Caches reads of a slow device, and perhaps writes, in memory or on a fast device (the store).

    Reads fetch whole lines; concurrent reads of one line share one fetch. Sequential reads are
    detected, and the next lines are read ahead. Lines that are read repeatedly stay in the cache
    while others, of a scan for example, come and go (S3-FIFO).

    The policies:

    * ``read``: a write goes to ``inner``; what is cached of these blocks is dropped.
    * ``write-through``: a write goes to ``inner``, and then into the cache.
    * ``write-back``: a write returns when it is in memory; its blocks are dirty. :meth:`flush`
      writes them back to ``inner``, coalesced, many at a time; so does a task in the background,
      when half of ``dirty_limit`` is used. A write that finds no room goes to ``inner`` at once.

    Durability: :meth:`flush` covers every write that had returned, under all policies: dirty blocks
    are written back to ``inner``, then ``inner`` is flushed. Dirty blocks that were not flushed are
    lost if the process ends without :meth:`unmount`, and never come back later. A flush that
    cannot write something back raises the error; that data stays dirty, and the next flush retries.
    Errors of the background are only logged, since the next flush retries too.

    The store: without one, the cache is in memory. A store is a block device, usually a
    :class:`~aiovblk.storage.FileDevice` on a fast disk. It holds the cached lines instead, and
    keeps them until the next mount, for the same ``inner`` and options, if the cache was unmounted
    cleanly. After anything else (a crash, a failure of the store or of the last flush) the cache
    starts empty. If ``inner`` may be changed by others in the meantime, ``identity`` must show it.
    The first request opens the store, and fails if that fails: without the store the cache would
    change ``inner``, and the store would be stale unnoticed. The exception is a blank store that is
    full: it holds nothing that could become stale. If the store fails later, caching stops, with a
    warning in the log; no request fails because of it. Dirty blocks are always in memory: under
    ``write-back`` there is a cache in memory, of ``2 * dirty_limit`` bytes, whose ``inner`` is the
    cache on the store.

    Errors: if a fetch fails, all reads that wait for it fail, perhaps because of a block that they
    did not request. The error is not cached. Errors of read-ahead and hints are ignored.
    Concurrency: any number of requests; overlapping writes reach ``inner`` one after the other.

    Cancellation: a fetch continues as long as another reader waits for it. Blocks whose change was
    cancelled are dropped from the cache.

    Args:
        inner: the slow device.
        store: the device to keep the cached lines on; None for memory. The cache owns it from now
            on. A new store is all zeroes; one that holds something other than a cache is refused.
        size: bytes that the cache may take, and 300 for each line besides; None: all of ``store``.
        policy: see above.
        line_size: bytes that are fetched and evicted as one, a multiple of the block size.
        read_ahead: bytes that are read ahead at most for one sequential reader; 0 for no
            read-ahead. At most an eighth of the cache is used for it.
        dirty_limit: bytes that may be dirty.
        identity: the name of ``inner``, for instance its URI; or a function that returns the
            version of its contents, such as ``lambda: disk.identity``, if others may change it
            while it is not mounted here. It is called when the store is opened, and after the last
            flush. A store with another identity (size, block size) is emptied.

    Raises:
        TypeError, ValueError: there is neither a size nor a store, not a single line would fit, the
            sizes do not fit each other, the store is read-only, or there is no such policy.

    Attributes:
        stats: the counters. Under ``write-back`` with a store, those of the cache in memory; those
            of the store are ``inner.stats``.

    """

    provides = frozenset({"flush", "cache"})

    def __init__(
        self,
        inner: BlockDevice,
        store: BlockDevice | None = None,
        *,
        size: int | None = None,
        policy: Policy = "write-through",
        line_size: int = 64 * 1024,
        read_ahead: int = 16 << 20,
        dirty_limit: int = 64 << 20,
        identity: str | Callable[[], str] = "",
    ) -> None:
        _check_options(inner, store, size, policy, line_size, dirty_limit, read_ahead)
        if store is not None and policy == "write-back":
            inner = Cache(
                inner,
                store,
                size=size,
                line_size=line_size,
                read_ahead=read_ahead,
                identity=identity,
            )
            store, size, read_ahead = None, 2 * max(dirty_limit, line_size), 0
        super().__init__(inner)
        self.multi_conn = inner.multi_conn and inner.read_only and store is None
        # What waits to be written back is not in the bitmaps of ``inner`` yet.
        self.passes_bitmaps = policy != "write-back"
        self.stats = CacheStats()
        self._policy = policy
        self._identity = identity
        self._line_size = line_size
        self._store = DeviceSlots(store, size or store.size, line_size) if store else None
        slots = self._store.slots if self._store else (size or 0) // line_size
        if not slots:
            raise ValueError(f"no line of {line_size} bytes fits into the cache")
        contents = self._store or MemorySlots(slots * line_size)
        self._memory = contents.memory if isinstance(contents, MemorySlots) else None
        self._lines = Lines(slots, line_size, inner.block_size, self.stats)
        # Overlapping changes of the inner device, made at once, would take effect in an unknown
        # order: what is cached could differ from what the device holds.
        self._changes = RangeLock()
        window = min(read_ahead // line_size, slots // 8)
        self._reader = CacheReader(inner, contents, self._lines, self._changes, window, self.stats)
        self._dirty = Dirty(self._lines, dirty_limit, self.stats)
        self._write_back = WriteBack(self._dirty, self._clean)
        self._ready = store is None
        self._opening = asyncio.Lock()

    @property
    def blocks(self) -> int:
        """The number of blocks of ``inner``; setting it resizes ``inner``.

        What is cached, or dirty, beyond a smaller size is dropped.
        """
        blocks: int = self.inner.blocks
        return blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        old, self.inner.blocks = self.inner.size, value
        if self.size < old:
            self._reader.fetches.invalidate(self.size, old)
            with self._dirty.superseding(self.size, old):
                pass  # dirty blocks there have no place to be written back to
            self._lines.drop(self.size, old)

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read from the cache; fetch what is missing.

        A hit within one line in memory is served here, without a task or a list of pieces: the rest
        of the path is :class:`CacheReader`.
        """
        number = offset // self._line_size
        line = self._lines.by_number.get(number)
        if line is not None and self._memory is not None:
            begin = offset - number * self._line_size
            end = begin + length
            blocks = (1 << end // self.block_size) - (1 << begin // self.block_size)
            if line.valid & blocks == blocks:  # never across lines: a line has no further bits
                if line.seen & blocks:
                    line.hot = True
                line.seen |= blocks
                self.stats.hits += 1
                if number in self._reader.ahead.awaited:
                    self._reader.run_ahead(range(number, number + 1), missed=False)
                return self._memory[line.base + begin : line.base + end]
        if not self._ready:
            await self._open()
        return await self._reader.read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to ``inner``, or, under ``write-back``, into the cache."""
        if "write" in self._unsupported:  # refused now, not when it is written back
            await super().write(offset, data)
            return
        if self._policy == "write-back":
            assert self._memory is not None
            accepted = self._dirty.accept(self._memory, offset, data)
            self._write_back.start_if_needed()
            if accepted:
                return
        end = offset + len(data)
        async with self._exclusive(offset, end):
            with self._superseding(offset, end):
                await self.inner.write(offset, data)
            if self._policy == "write-through":
                await self._reader.put(offset, data)

    async def flush(self) -> None:
        """Write back all dirty blocks, then flush ``inner``."""
        await self._write_back.clean(self.size)
        await self.inner.flush()

    async def trim(self, offset: int, length: int) -> None:
        """Forward the hint to ``inner``, and drop what is cached."""
        end = offset + length
        async with self._exclusive(offset, end):
            with self._superseding(offset, end):
                await self.inner.trim(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes to ``inner``, and drop what is cached."""
        end = offset + length
        async with self._exclusive(offset, end):
            with self._superseding(offset, end):
                await self.inner.write_zeroes(offset, length, may_trim=may_trim)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return the extents of ``inner``, with dirty blocks as data."""
        if not self.stats.dirty_bytes:
            return await self.inner.extents(offset, length)
        # Before inner.extents(): what is dirty now may have been written back when that returns.
        dirty = self._dirty.ranges(offset, offset + length)
        found = await self.inner.extents(offset, length)
        return with_data(found, offset, offset + length, dirty)

    async def cache(self, offset: int, length: int) -> None:
        """Fetch what is missing, at most half of the cache's size (prefetch)."""
        if not self._ready:
            await self._open()
        begin, end = offset // self._line_size, -(-(offset + length) // self._line_size)
        end = min(end, begin + self._lines.slots // 2)
        step = max(_FETCH_CONCURRENCY // self._line_size, 1)
        for first in range(begin, end, step):
            fetches = self._reader.prefetch(range(first, min(first + step, end)))
            if fetches:
                await self._reader.fetches.wait(fetches)

    async def unmount(self) -> None:
        """Write back and flush, close the store, and unmount the store and ``inner``.

        Raises:
            OSError: dirty blocks could not be written back, and are lost, or the flush has failed.
                Store and ``inner`` were unmounted all the same.

        """
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.inner.unmount)
            if self._store:
                stack.push_async_callback(self._store.device.unmount)
            await self._reader.fetches.close()
            await self._write_back.close()
            try:
                await self.flush()
            finally:
                if lost := self.stats.dirty_bytes:
                    logger.error("%d dirty bytes could not be written back and are lost", lost)
            await self._save()

    @asynccontextmanager
    async def _exclusive(self, begin: int, end: int) -> AsyncIterator[None]:
        """Wait until no other change of these bytes is in progress; the body changes ``inner``."""
        if not self._ready:
            await self._open()  # marks the store as in use before ``inner`` changes
        async with self._changes.hold(begin, end):
            self._reader.fetches.invalidate(begin, end)
            yield

    @contextmanager
    def _superseding(self, begin: int, end: int) -> Iterator[None]:
        """Drop what is cached between these bytes, except what is written while the body runs."""
        try:
            with self._dirty.superseding(begin, end):
                yield
        finally:
            self._lines.drop(begin, end)

    async def _clean(self, begin: int, end: int) -> None:
        """Write back the dirty blocks between these bytes."""
        assert self._memory is not None
        async with self._exclusive(begin, end):
            with self._dirty.superseding(begin, end):
                for first, last in self._dirty.ranges(begin, end):
                    # A copy: the data of a write in flight must not change.
                    data = self._dirty.data(self._memory, first, last)
                    await self.inner.write(first, memoryview(data))

    def _header(self) -> CacheHeader:
        """Make the header that the store must have for this ``inner`` and these options."""
        identity = self._identity if isinstance(self._identity, str) else self._identity()
        return CacheHeader.of(self.inner, identity, self._line_size, self._lines.slots)

    async def _open(self) -> None:
        """Open the store and restore the lines that it holds. Idempotent."""
        async with self._opening:
            if self._ready or self._store is None:
                return
            try:
                lines = iter(await self._store.open(self._header()))
            except OSError as exc:
                # A blank store on a full disk is no error: it holds nothing that could be stale.
                if not (self._store.is_blank and exc.errno in (errno.ENOSPC, errno.EDQUOT)):
                    raise
                self._reader.stop_caching(exc)
                self._ready = True
                return
            while batch := list(islice(lines, _RESTORE_CONCURRENCY)):
                self._lines.restore(batch, self.size)
                await asyncio.sleep(0)
            self._lines.free_others()
            self._ready = True

    async def _save(self) -> None:
        """Write the table of the store, and mark it as closed cleanly, unless it has failed."""
        if self._store and self._ready and not self._reader.failed:
            try:
                await self._store.close(self._header(), self._lines.whole(self.size))
            except STOP_EXCEPTIONS:
                raise
            except BaseException as exc:
                logger.warning(
                    "the cache will start empty next time, its store could not be closed: %s", exc
                )


def _check_options(
    inner: BlockDevice,
    store: BlockDevice | None,
    size: int | None,
    policy: str,
    line_size: int,
    dirty_limit: int,
    read_ahead: int,
) -> None:
    check_inner(inner)
    if store is not None:
        check_inner(store, "store")
    check_count("size", size)
    check_count("line_size", line_size)
    check_count("dirty_limit", dirty_limit)
    check_count("read_ahead", read_ahead, minimum=0)
    if policy not in get_args(Policy):
        raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}, not {policy!r}")
    if line_size % inner.block_size:
        raise ValueError(f"line_size must be a multiple of {inner.block_size}, not {line_size}")
    if store is None:
        if size is None:
            raise ValueError("a cache in memory needs a size: add size=")
        return
    if store.read_only:
        raise ValueError("the store is read-only")
    if inner.block_size % store.block_size:
        raise ValueError(
            f"the store's blocks of {store.block_size} bytes are too large:"
            f" those of the inner device have {inner.block_size}"
        )
    if size is not None and size > store.size:
        raise ValueError(f"the store has {store.size} bytes, fewer than {size}")
