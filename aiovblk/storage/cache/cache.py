"""A fast device in front of a slow one."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import islice
from typing import Literal, get_args

from ...arguments import check_count
from ...contract import check_inner
from ...device import BlockDevice, Extent
from ...errors import STOP_EXCEPTIONS
from ..layer import Layer
from .changes import ChangeLock
from .device_slots import CacheHeader, DeviceSlots
from .dirty import Dirty
from .extents import with_data
from .lines import CacheStats, Lines
from .memory import MemorySlots
from .reader import CacheReader
from .writeback import WriteBack

logger = logging.getLogger("aiovblk")

Policy = Literal["read", "write-through", "write-back"]

_FETCH_CONCURRENCY = 4 << 20
"""Bytes to fetch at a time for a hint."""

_RESTORE_CONCURRENCY = 10_000
"""Lines to take over before others have a turn."""


class Cache(Layer):
    """Keeps what was read of a slow device, and perhaps what is written, where it is at hand.

    What is read is fetched in whole lines, once for all who want it at the same time. Who reads one
    line after the other is noticed, and what he will want next is fetched before he asks. Lines
    that are read again stay in the cache while others, of a scan for example, come and go.

    The policies:

    * ``read``: a write goes to ``inner``, and what was cached of it is dropped.
    * ``write-through``: a write goes to ``inner``, and then into the cache.
    * ``write-back``: a write is done when it is in memory. :meth:`flush` brings it to ``inner``,
      in large pieces, many at a time; so does the background, when half of ``dirty_limit`` is used.
      What finds no room goes to ``inner`` at once.

    Durability: :meth:`flush` covers every write that had returned, under all policies: what is
    dirty is written to ``inner``, then ``inner`` is flushed. What was not flushed is lost when the
    process ends otherwise than by :meth:`unmount`, under ``write-back`` always, and never comes
    back later. A flush that cannot write something back raises the error; that data stays dirty,
    and the next one tries again. Errors of the background are only logged, for the next flush tries
    again too.

    The store: without one, the cache is in memory. A block device, usually a
    :class:`~aiovblk.storage.FileDevice` on a fast disk, is filled instead and keeps what is cached
    until the next time, if the cache was unmounted in order, for the same ``inner`` and options.
    After anything else (a crash, a failure of the store or of the last flush) the cache begins
    empty. If anybody else may change ``inner`` in the meantime, its identity has to tell.
    The first request opens the store, and fails if it cannot: to go on without it would let it fall
    behind unnoticed, unless it is a new one for which there is no room. When it fails later it is
    given up with a warning in the log, and no request fails for it. What is dirty is always in
    memory: under ``write-back`` there is a cache in memory on top of the one in the store (which is
    the ``inner`` of that one), with ``2 * dirty_limit`` bytes.

    Errors: a read that fails on ``inner`` fails for all who wait for the same fetch, though perhaps
    for a block that they did not ask for. It is not remembered. Errors of what nobody asked for are
    not told.

    Concurrency: any. Writes that overlap are passed to ``inner`` one after the other.

    Cancellation: a fetch goes on while anybody waits for it. What a cancelled change was to change
    is dropped.

    Args:
        inner: the slow device.
        store: where to keep what is cached; None for memory. It belongs to the cache from now on.
            A new one is all zeroes; one that holds anything else than a cache is refused.
        size: bytes that the cache may take; by default all of ``store``. Each line takes about 300
            bytes of memory besides.
        policy: see above.
        line_size: bytes of what is fetched and evicted, a multiple of ``inner``'s ``block_size``.
        read_ahead: bytes that are fetched ahead at most for one reader; 0 for no read-ahead. At
            most an eighth of the cache is.
        dirty_limit: bytes that may wait to be written back.
        identity: what ``inner`` is called, for instance its URI; or a function that tells what it
            holds, such as ``lambda: disk.identity``, if others may change it while it is not
            mounted here. It is called when the store is opened, and when all is flushed at the end.
            A store that was left with another identity (size, block size) is emptied.

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
        _check(inner, store, size, policy, line_size, dirty_limit, read_ahead)
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
        self.stats = CacheStats()
        self._policy = policy
        self._identity = identity
        self._line_size = line_size
        self._store = DeviceSlots(store, size or store.size, line_size) if store else None
        slots = self._store.slots if self._store else (size or 0) // line_size
        if not slots:
            raise ValueError(f"no line of {line_size} bytes fits into the cache")
        where = self._store or MemorySlots(slots * line_size)
        self._memory = where.memory if isinstance(where, MemorySlots) else None
        self._lines = Lines(slots, line_size, inner.block_size, self.stats)
        self._changes = ChangeLock()
        window = min(read_ahead // line_size, slots // 8)
        self._reader = CacheReader(inner, where, self._lines, self._changes, window, self.stats)
        self._dirty = Dirty(self._lines, dirty_limit, self.stats)
        self._write_back = WriteBack(self._dirty, self._clean)
        self._ready = store is None
        self._opening = asyncio.Lock()

    @property
    def blocks(self) -> int:
        """As many as ``inner`` has. What is cached of those that are taken away is dropped."""
        blocks: int = self.inner.blocks
        return blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        old, self.inner.blocks = self.inner.size, value
        if self.size < old:
            self._reader.fetches.invalidate(self.size, old)
            with self._dirty.superseding(self.size, old):
                pass  # it has nowhere to go any more
            self._lines.drop(self.size, old)

    async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
        """Read from the cache; fetch what is not there."""
        number = offset // self._line_size
        line = self._lines.by_number.get(number)
        if line is not None and self._memory is not None:
            begin = offset - number * self._line_size
            end = begin + length
            blocks = (1 << end // self.block_size) - (1 << begin // self.block_size)
            if line.valid & blocks == blocks:  # no other line's, for a line has no further bits
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
        async with self._alone(offset, end):
            with self._superseding(offset, end):
                await self.inner.write(offset, data)
            if self._policy == "write-through":
                await self._reader.put(offset, data)

    async def flush(self) -> None:
        """Write back what is dirty, and flush ``inner``."""
        await self._write_back.clean(self.size)
        await self.inner.flush()

    async def trim(self, offset: int, length: int) -> None:
        """Pass the hint on, and drop what is cached."""
        end = offset + length
        async with self._alone(offset, end):
            with self._superseding(offset, end):
                await self.inner.trim(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Have ``inner`` write zeroes, and drop what is cached."""
        end = offset + length
        async with self._alone(offset, end):
            with self._superseding(offset, end):
                await self.inner.write_zeroes(offset, length, may_trim=may_trim)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Tell what ``inner`` tells, and that what is dirty is data."""
        if not self.stats.dirty_bytes:
            return await self.inner.extents(offset, length)
        # Asked for first: what is dirty now may be the inner device's when that answers.
        dirty = self._dirty.ranges(offset, offset + length)
        found = await self.inner.extents(offset, length)
        return with_data(found, offset, offset + length, dirty)

    async def cache(self, offset: int, length: int) -> None:
        """Fetch what is not there, as much as half of the cache takes."""
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
        """Write back and flush, close the store, and let go of ``inner``.

        Raises:
            OSError: what was dirty could not be written back, and is lost, or not be flushed. All
                the same everything was let go of.

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
                    logger.error("%s bytes could not be written back, and are lost", lost)
            await self._save()

    @asynccontextmanager
    async def _alone(self, begin: int, end: int) -> AsyncIterator[None]:
        """Change ``inner`` between these bytes, by the body, when nobody else does so."""
        if not self._ready:
            await self._open()  # which first has the store say that it may fall behind
        async with self._changes.exclusive(begin, end):
            self._reader.fetches.invalidate(begin, end)
            yield

    @contextmanager
    def _superseding(self, begin: int, end: int) -> Iterator[None]:
        """Drop what is cached between these bytes, but what is written while the body runs."""
        try:
            with self._dirty.superseding(begin, end):
                yield
        finally:
            self._lines.drop(begin, end)

    async def _clean(self, begin: int, end: int) -> None:
        """Write to ``inner`` what is dirty between these bytes."""
        assert self._memory is not None
        async with self._alone(begin, end):
            with self._dirty.superseding(begin, end):
                for first, last in self._dirty.ranges(begin, end):
                    # A copy, for what is being written must not change.
                    data = self._dirty.data(self._memory, first, last)
                    await self.inner.write(first, memoryview(data))

    def _header(self) -> CacheHeader:
        identity = self._identity if isinstance(self._identity, str) else self._identity()
        return CacheHeader.of(self.inner, identity, self._line_size, self._lines.slots)

    async def _open(self) -> None:
        """Take over what the store holds, once."""
        async with self._opening:
            if self._ready or self._store is None:
                return
            try:
                lines = iter(await self._store.open(self._header()))
            except OSError as exc:
                # What holds no cache cannot fall behind.
                if not (self._store.is_blank and exc.errno in (errno.ENOSPC, errno.EDQUOT)):
                    raise
                self._reader.fail_all(exc)
                self._ready = True
                return
            while batch := list(islice(lines, _RESTORE_CONCURRENCY)):
                self._lines.restore(batch, self.size)
                await asyncio.sleep(0)
            self._lines.free_others()
            self._ready = True

    async def _save(self) -> None:
        """Have the store say what it holds, if it holds what ``inner`` does."""
        if self._store and self._ready and not self._reader.failed:
            try:
                await self._store.close(self._header(), self._lines.whole(self.size))
            except STOP_EXCEPTIONS:
                raise
            except BaseException as exc:
                logger.warning("what is cached will not be there the next time: %s", exc)


def _check(
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
        raise ValueError(f"the policy is one of {', '.join(get_args(Policy))}, not {policy!r}")
    if line_size % inner.block_size:
        raise ValueError(f"line_size must be a multiple of {inner.block_size}, not {line_size}")
    if store is None:
        if size is None:
            raise ValueError("a cache in memory needs a size")
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
