"""The write-back buffer of an open disk: dirty chunks, above the chunks as they are stored.

Each chunk is seen through up to three layers:

1. dirty: what was written since the chunk was last stored;
2. storing: what is being stored now. It is frozen: a write to it begins a new dirty chunk above;
3. stored: the chunk in the store (:class:`.ChunkStore`).

A chunk is stored in the background soon after every block of it is dirty; by a flush; or when the
buffer is full: then writes wait (backpressure).
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from functools import partial
from itertools import islice

from ...aio.gather import run_bounded
from ...errors import StorageError
from .chunk_store import ChunkStore, Limits
from .client import Buffer
from .dirty_chunk import DirtyChunk
from .manifest import Manifest

_BACKGROUND_STORE_AT = 4  # complete chunks that are kept: sequential writes may come back to them


class ChunkBuffer:
    """Read and write the chunks of an open disk, with write-back caching.

    Concurrency: all methods may be called at the same time, for any chunks.

    Cancellation: safe; requests to the store go on, and their results are used.

    Args:
        chunk_store: the layer below; closed with this.
        manifest: of the disk.
        limits: of memory and requests.

    """

    def __init__(self, chunk_store: ChunkStore, manifest: Manifest, limits: Limits) -> None:
        self.chunk_store = chunk_store
        """The layer below."""
        self._chunk_size = manifest.chunk_size
        self._block_size = manifest.block_size
        self._dirty: dict[int, DirtyChunk] = {}
        self._storing: dict[int, DirtyChunk] = {}
        self._store_tasks: dict[int, asyncio.Task[None]] = {}
        self._complete: deque[int] = deque()  # indices, oldest first
        self._max_dirty = max(2, limits.unstored // manifest.chunk_size)
        self._concurrency = 2 * limits.requests  # stores; some first read the chunk they complete
        self._next_store_end: asyncio.Future[BaseException | None] | None = None

    # Reading

    async def read(self, index: int, start: int, length: int) -> Buffer:
        """Return bytes of a chunk, in a buffer that later writes do not change.

        Raises:
            OSError: the chunk cannot be read from the store, or is damaged.

        """
        for layer in (self._dirty.get(index), self._storing.get(index)):
            if layer is None:
                continue
            if layer.covers(start, length):
                return layer.read(start, length)
            if layer.mask:
                break
        else:
            return (await self.chunk_store.get(index))[start : start + length]
        return await self._assemble(index, start, length)

    async def _assemble(self, index: int, start: int, length: int) -> Buffer:
        """Read a range of which some blocks are dirty, from all layers."""
        storing = self._storing.get(index)
        if storing is not None and storing.covers(start, length):
            assembled = bytearray(length)  # the stored chunk is not needed, so it is not read
        else:
            assembled = bytearray((await self.chunk_store.get(index))[start : start + length])
        # Nothing is awaited from here on, so all layers are of the same moment.
        for layer in (self._storing.get(index), self._dirty.get(index)):
            if layer is not None:
                layer.apply_to(assembled, start)
        return memoryview(assembled).toreadonly()

    # Writing

    async def write(self, index: int, start: int, data: Buffer) -> None:
        """Write whole blocks to a chunk; wait while the buffer is full (backpressure).

        Raises:
            OSError: the buffer is full, and storing a chunk fails.

        """
        dirty = await self._dirty_chunk(index)
        was_complete = dirty.is_complete
        dirty.write(start, data)
        if dirty.is_complete and not was_complete:
            self._store_in_background(index)

    async def zero(self, index: int, start: int, length: int) -> None:
        """Write zeroes to a chunk; wait while the buffer is full, unless it is the whole chunk."""
        if length == self._chunk_size:
            self.drop(index)
        elif not self.is_zero(index):
            (await self._dirty_chunk(index)).zero(start, length)

    def drop(self, index: int) -> None:
        """Make a whole chunk zeroes, which takes no memory and stores nothing."""
        self._dirty.pop(index, None)
        if index in self._storing:  # that is stored first, and replaced by zeroes then
            dirty = self._dirty[index] = DirtyChunk(self._chunk_size, self._block_size)
            dirty.zero(0, self._chunk_size)
        else:
            self.chunk_store.set_entry(index, 0)

    def is_zero(self, index: int) -> bool:
        """Whether a chunk is known to be zeroes, without reading it."""
        for layer in (self._dirty.get(index), self._storing.get(index)):
            if layer is not None and layer.mask:
                return layer.is_complete and layer.contents is None
        return not self.chunk_store.entry(index)

    async def _dirty_chunk(self, index: int) -> DirtyChunk:
        """Return the dirty chunk of that index; make one, once there is room for it."""
        while (dirty := self._dirty.get(index)) is None:
            if len(self._dirty) + len(self._storing) < self._max_dirty:
                dirty = self._dirty[index] = DirtyChunk(self._chunk_size, self._block_size)
                break
            await self._wait_for_room()
        return dirty

    async def _wait_for_room(self) -> None:
        """Store the oldest dirty chunks, and wait until one of all stores ends."""
        for index in list(islice(self._dirty, self._concurrency)):
            self._start_storing(index)
        # One future for all writes that wait: there may be many store tasks.
        if self._next_store_end is None:
            self._next_store_end = asyncio.get_running_loop().create_future()
        failure = await asyncio.shield(self._next_store_end)
        if failure is not None:
            number = failure.errno if isinstance(failure, OSError) else None
            reason = f"the write buffer is full, and its data is not stored yet: {failure}"
            raise StorageError(number or errno.EIO, reason)

    def _store_in_background(self, index: int) -> None:
        """Store the oldest complete chunk once there are some, so that a flush has little to do."""
        self._complete.append(index)
        while len(self._complete) > _BACKGROUND_STORE_AT:
            oldest = self._complete.popleft()
            dirty = self._dirty.get(oldest)
            if dirty is not None and dirty.is_complete:
                self._start_storing(oldest)

    # Storing

    async def store(self) -> None:
        """Store everything that was written before the call.

        Raises:
            OSError: a chunk could not be stored; it stays dirty.

        """
        indices = [*self._storing, *(each for each in self._dirty if each not in self._storing)]
        # No further one is begun after a failure: while the store is down, each would take as long
        # as the retry timeout.
        await run_bounded(
            (partial(self._store_one, each) for each in indices), limit=self._concurrency
        )

    async def _store_one(self, index: int) -> None:
        task = self._store_tasks.get(index)
        if task is not None:
            await asyncio.wait([task])
        # If that has failed the chunk is dirty again; what was written since is stored with it.
        self._start_storing(index)
        task = self._store_tasks.get(index)
        if task is not None:
            await asyncio.shield(task)

    def _start_storing(self, index: int) -> None:
        if index in self._store_tasks or index not in self._dirty:
            return
        self._storing[index] = self._dirty.pop(index)
        task = self._store_tasks[index] = asyncio.create_task(self._store_chunk(index))
        task.add_done_callback(self._on_store_end)

    def _on_store_end(self, task: asyncio.Task[None]) -> None:
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        waiting, self._next_store_end = self._next_store_end, None
        if waiting is not None:
            waiting.set_result(failure)

    async def _store_chunk(self, index: int) -> None:
        await asyncio.sleep(0)  # an eager task would run before it is in _store_tasks
        dirty = self._storing[index]
        try:
            if not dirty.is_complete:
                below = await self.chunk_store.get(index)
                dirty.complete(None if below is self.chunk_store.zeroes else below)
            entry = await self.chunk_store.put(index, dirty.contents)
        except BaseException:
            self._restore(index, dirty)
            raise
        finally:
            del self._storing[index], self._store_tasks[index]
        self.chunk_store.set_entry(index, entry)
        if entry and dirty.contents is not None:
            self.chunk_store.cache(index, entry, memoryview(dirty.contents).toreadonly())

    def _restore(self, index: int, dirty: DirtyChunk) -> None:
        """Make a chunk dirty again that could not be stored; what was written since stays."""
        newer = self._dirty.get(index)
        if newer is None:
            self._dirty[index] = dirty
        else:
            newer.merge(dirty)

    def resize(self, before: int, size: int) -> None:
        """Change the disk's size from ``before`` to ``size`` bytes; bytes added are zeroes."""
        index, start = divmod(min(before, size), self._chunk_size)
        if start and not self.is_zero(index):
            dirty = self._dirty.setdefault(index, DirtyChunk(self._chunk_size, self._block_size))
            dirty.zero(start, self._chunk_size - start)
        count = -(-size // self._chunk_size)
        for index in range(count, len(self.chunk_store.entries)):
            # This is recorded in the history: they may be added again before the next flush.
            self.drop(index)
        self.chunk_store.resize(count)

    async def close(self) -> None:
        """Cancel what is being stored, and free all memory. Dirty chunks are lost."""
        tasks = list(self._store_tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._dirty.clear()
        await self.chunk_store.close()
