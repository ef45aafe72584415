"""The write-back buffer of an open disk: dirty blocks, above the disk as it is stored.

Each chunk is seen through up to three layers of what is dirty, frozen or being stored
(:mod:`.dirty_layers`), over the disk in the store (:class:`.ChunkStore`).

A chunk is stored in the background soon after every block of it is dirty. All other blocks wait for
a flush, which puts them into its record, or into segments if they are many. When the buffer is
full, writes wait, and a flush is made for them (backpressure).
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import suppress
from functools import partial

from ...aio.gather import gather_all, run_bounded
from ...aio.tasks import wait_shielded
from ...errors import StorageError
from .chunk_store import ChunkStore
from .client import Buffer
from .dirty_chunk import DirtyChunk
from .dirty_layers import DirtyLayers
from .extents import ZEROES, Placed, Run
from .limits import FOLD_SHARE, Limits
from .manifest import Manifest
from .segments import SegmentPart, divide
from .snapshot_bitmaps import LivePlaces

_BACKGROUND_STORE_AT = 4  # complete chunks that are kept: sequential writes may come back to them


async def _no_flush() -> None:
    """Stand for the flush of a disk that is not written to."""


class ChunkBuffer:
    """Read and write the chunks of an open disk, with write-back caching.

    Concurrency: all methods may be called at the same time, for any chunks; :meth:`store` and
    :meth:`commit` by one flush at a time.

    Cancellation: safe; requests to the store go on, and their results are used.

    Attributes:
        flush: makes room by a flush; set by the writer.

    Args:
        chunk_store: the layer below; closed with this.
        manifest: of the disk.
        limits: of memory and requests.

    """

    def __init__(self, chunk_store: ChunkStore, manifest: Manifest, limits: Limits) -> None:
        self.chunk_store = chunk_store
        """The layer below."""
        self.flush: Callable[[], Awaitable[None]] = _no_flush
        self._view = chunk_store.view
        self._layers = DirtyLayers(manifest)
        self._chunk_size = manifest.chunk_size
        self._block_size = manifest.block_size
        self._store_tasks: dict[int, asyncio.Task[None]] = {}
        self._completed: deque[int] = deque()  # indices, oldest first
        self._max_held = max(2 * manifest.chunk_size, limits.unstored)
        self._segment_size = max(limits.segment_size, manifest.block_size)
        self._concurrency = limits.requests
        self._next_store_end: asyncio.Future[BaseException | None] | None = None

    # Reading

    async def read(self, index: int, start: int, length: int) -> Buffer:
        """Return bytes of a chunk, in a buffer that later writes do not change.

        Raises:
            OSError: the chunk cannot be read from the store, or is damaged.

        """
        layers = self._layers
        if layers.is_clean(index):
            below = await self.chunk_store.read(index, start, length)
            # It may have been written to, and perhaps flushed, while this read waited.
            return below if layers.is_clean(index) else layers.lay_over(index, start, below)
        for layer in layers.over(index):
            if layer.covers(start, length):
                return layer.read(start, length)
            if layer.mask:
                break
        return await self._assemble(index, start, length)

    async def _assemble(self, index: int, start: int, length: int) -> Buffer:
        """Read a range of which some blocks are dirty, from all layers."""
        if any(layer.covers(start, length) for layer in self._layers.over(index)):
            below: Buffer = bytes(length)  # what is stored is not needed, so it is not read
        else:
            below = await self.chunk_store.read(index, start, length)
        # Nothing is awaited from here on, so all layers are of the same moment.
        return self._layers.lay_over(index, start, below)

    # Writing

    async def write(self, index: int, start: int, data: Buffer) -> None:
        """Write whole blocks to a chunk; wait while the buffer is full (backpressure).

        What is cut off while the write waits is not written.

        Raises:
            OSError: the buffer is full, and storing it fails.

        """
        await self._wait_for_room()
        inside = self._end_of(index) - start
        if inside > 0 and self._layers.write(index, start, data[:inside]):
            self._store_in_background(index)

    async def zero(self, index: int, start: int, length: int) -> None:
        """Write zeroes to a chunk; wait while the buffer is full, unless it is the whole chunk."""
        if length == self._chunk_size:
            self.drop(index)
        elif not self.is_zero(index):
            await self._wait_for_room()
            self._layers.zero(index, start, length)  # which changes nothing of what was cut off

    def drop(self, index: int) -> None:
        """Make a whole chunk zeroes, which takes no memory and stores nothing."""
        self._layers.drop(index)
        if index not in self._layers.storing:  # otherwise it is replaced by zeroes after that
            self._view.set_entry(index, 0)

    def is_zero(self, index: int) -> bool:
        """Whether a chunk is known to be zeroes, without reading it."""
        for layer in self._layers.over(index):
            if layer.mask:
                return layer.is_complete and layer.is_zero
        return self._view.is_zero(index)

    def places(self, blocks: int) -> LivePlaces:
        """Return where the blocks of the disk, so many, are now: in memory or in the store."""
        return LivePlaces(self._view, self._layers, blocks)

    def _end_of(self, index: int) -> int:
        """Return how many bytes of a chunk are within the disk."""
        return self._view.blocks_of(index) * self._block_size

    async def _wait_for_room(self) -> None:
        """Wait while the buffer is full: for a chunk that is being stored, or for a flush."""
        while self._layers.held >= self._max_held:
            failure: BaseException | None
            if self._store_tasks:
                # One future for all writes that wait: there may be many store tasks.
                if self._next_store_end is None:
                    self._next_store_end = asyncio.get_running_loop().create_future()
                failure = await wait_shielded(self._next_store_end)
            else:
                failure = await self._make_room()
            if failure is not None:
                number = failure.errno if isinstance(failure, OSError) else None
                reason = f"the write buffer is full, and its data is not stored yet: {failure}"
                raise StorageError(number or errno.EIO, reason)

    async def _make_room(self) -> OSError | None:
        try:
            await self.flush()
        except OSError as exc:
            return exc
        return None

    def _store_in_background(self, index: int) -> None:
        """Store the oldest complete chunk once there are some, so that a flush has little to do."""
        self._completed.append(index)
        while len(self._completed) > _BACKGROUND_STORE_AT:
            oldest = self._completed.popleft()
            dirty = self._layers.dirty.get(oldest)
            if dirty is not None and dirty.is_complete:
                self._start_storing(oldest)

    # Storing

    async def store(self, inline: int) -> None:
        """Store everything that was written before the call, but for what a record may hold.

        That stays frozen until :meth:`commit`.

        Args:
            inline: bytes of blocks that a record may hold.

        Raises:
            OSError: something could not be stored; it is dirty again.

        """
        self._layers.freeze()
        frozen = self._layers.frozen
        try:
            # What was begun before is older than what is frozen, so it becomes current first.
            tasks = list(self._store_tasks.values())
            await gather_all(wait_shielded(task) for task in tasks)
            # Nothing is begun after a failure: while the store is down, each request takes as long
            # as the retry timeout.
            parts = {index: each for index, each in frozen.items() if not each.is_complete}
            if sum(dirty.length for dirty in parts.values()) <= inline:
                parts = {}
            for index in [index for index, dirty in parts.items() if self._complete(index, dirty)]:
                del parts[index]
            whole = {index: each for index, each in frozen.items() if each.is_complete}
            await run_bounded(self._to_store(whole, parts), limit=self._concurrency)
        except BaseException:
            self._layers.thaw()
            raise
        for index, dirty in parts.items():
            self._layers.unfreeze(index, dirty)

    def _complete(self, index: int, dirty: DirtyChunk) -> bool:
        """Complete a frozen chunk, if it would be folded soon and what is stored is in memory.

        That stays the same until the chunk is stored, since what is frozen is over it. Not so of a
        chunk that ends beyond the disk: a grow makes zeroes of what is stored there.
        """
        if self._end_of(index) < self._chunk_size:
            return False
        if dirty.mask.bit_count() * FOLD_SHARE * self._block_size < self._chunk_size:
            return False
        below = self.chunk_store.peek(index)
        if below is not None:
            self._layers.complete(dirty, below)
        return below is not None

    def _to_store(
        self, whole: dict[int, DirtyChunk], parts: dict[int, DirtyChunk]
    ) -> Iterator[Callable[[], Awaitable[None]]]:
        """Yield the jobs that store whole chunks, and segments with parts of others."""
        for index, dirty in whole.items():
            yield partial(self._store_frozen, index, dirty)
        pieces = (
            (index, piece) for index, dirty in sorted(parts.items()) for piece in dirty.pieces()
        )
        size = self._segment_size // self._block_size
        blocks = sum(dirty.mask.bit_count() for dirty in parts.values())
        segments, taking = divide(pieces, size), asyncio.Lock()
        for _ in range(min(self._concurrency, -(-blocks // size))):
            yield partial(_store_each, segments, taking, partial(self._store_segment, parts))

    async def _store_frozen(self, index: int, dirty: DirtyChunk) -> None:
        entry = await self.chunk_store.put(index, dirty.contents)
        self._make_current(index, entry, dirty, is_current=self._layers.frozen.get(index) is dirty)
        self._layers.unfreeze(index, dirty)

    def _make_current(
        self, index: int, entry: int, dirty: DirtyChunk, *, is_current: bool = True
    ) -> None:
        if not is_current:  # it was dropped meanwhile
            self._view.discard(index, entry)
            return
        self._view.set_entry(index, entry)
        if self._end_of(index) < self._chunk_size:  # part of it was cut off while it was stored
            self._view.clear_from(index, self._view.blocks_of(index))
        contents = dirty.contents
        if entry and contents is not None:
            self.chunk_store.cache(index, entry, memoryview(contents).toreadonly())

    def commit(self) -> None:
        """Make what is frozen part of the view, as data for the record that is added next."""
        placed: list[Placed] = []
        for index, dirty in self._layers.take_frozen().items():
            for first, count, data in dirty.pieces():
                placed.append((index, Run(first, count, ZEROES if data is None else data, 0)))
        if placed:
            self._view.lay(placed, {})

    async def _store_segment(self, frozen: dict[int, DirtyChunk], part: SegmentPart) -> None:
        blocks = 0
        entry = ZEROES
        if part.pieces:
            data = b"".join(part.pieces)
            blocks = len(data) // self._block_size
            entry = await self.chunk_store.put_segment(data)
        # Chunks that were dropped meanwhile stay so.
        placed = [
            (index, run if run.source == ZEROES else run._replace(source=entry))
            for index, run in part.runs
            if self._layers.frozen.get(index) is frozen[index]
        ]
        self._view.lay(placed, {entry: blocks} if entry else {})

    def _start_storing(self, index: int) -> None:
        # What is frozen is older, and would be laid over this chunk if it were stored first.
        layers = self._layers
        if index in self._store_tasks or index in layers.frozen or index not in layers.dirty:
            return
        layers.begin_storing(index)
        task = self._store_tasks[index] = asyncio.create_task(self._store_chunk(index))
        task.add_done_callback(self._on_store_end)

    def _on_store_end(self, task: asyncio.Task[None]) -> None:
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        waiting, self._next_store_end = self._next_store_end, None
        if waiting is not None:
            waiting.set_result(failure)

    async def _store_chunk(self, index: int) -> None:
        await asyncio.sleep(0)  # an eager task would run before it is in _store_tasks
        dirty = self._layers.storing[index]
        stored = False
        try:
            entry = await self.chunk_store.put(index, dirty.contents)
            stored = True
        finally:
            self._layers.end_storing(index, stored=stored)
            del self._store_tasks[index]
        self._make_current(index, entry, dirty)

    def resize(self, before: int, size: int) -> None:
        """Change the disk's size from ``before`` to ``size`` bytes; bytes added are zeroes.

        A record with the new size may be made at once, without what is dirty. So it is the view
        that gets zeroes; they are dirty too where a layer would be laid over these.
        """
        index, start = divmod(min(before, size), self._chunk_size)
        if start and not self._layers.is_clean(index):
            self._layers.zero(index, start, self._chunk_size - start)
        self._layers.cut_off(-(-size // self._chunk_size))
        self._view.resize(size // self._block_size)

    async def close(self) -> None:
        """Cancel what is being stored, and free all memory. Dirty chunks are lost."""
        tasks = list(self._store_tasks.values())
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        self._layers.dirty.clear()
        await self.chunk_store.close()


async def _store_each(
    segments: Generator[SegmentPart, None, None],
    taking: asyncio.Lock,
    store: Callable[[SegmentPart], Awaitable[None]],
) -> None:
    """Store segments, of which one is made at a time, and others run in between."""
    while True:
        async with taking:
            part = next(segments, None)
            await asyncio.sleep(0)
        if part is None:
            return
        try:
            await store(part)
        except BaseException:
            segments.close()
            raise
