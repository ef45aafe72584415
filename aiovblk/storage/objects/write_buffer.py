"""The bytes of a disk: what was written and waits, above what is stored.

Each chunk is seen through up to three layers: what was written since it was last stored, what is
being stored now (frozen: a write to it begins anew above it), and what is stored.
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

_BACKGROUND_STORE_AT = 4  # full chunks that are kept, since a stream may come back to them


class ChunkBuffer:
    """The chunks of an open disk.

    Concurrency: all methods may be called at the same time, for any chunks.

    Cancellation: safe; requests to the store go on, for whoever comes next.

    Args:
        chunk_store: what is below; closed with this.
        manifest: of the disk.
        limits: of what is used.

    """

    def __init__(self, chunk_store: ChunkStore, manifest: Manifest, limits: Limits) -> None:
        self.chunk_store = chunk_store
        """What is below."""
        self._chunk_size = manifest.chunk_size
        self._block_size = manifest.block_size
        self._written: dict[int, DirtyChunk] = {}
        self._storing: dict[int, DirtyChunk] = {}
        self._store_tasks: dict[int, asyncio.Task[None]] = {}
        self._full: deque[int] = deque()
        self._max_written = max(2, limits.unstored // manifest.chunk_size)
        self._concurrency = 2 * limits.requests  # that are stored: some read first what lies below
        self._ended: asyncio.Future[BaseException | None] | None = None

    # Reading

    async def read(self, index: int, start: int, length: int) -> Buffer:
        """Return bytes of a chunk, as something that does not change any more.

        Raises:
            OSError: the chunk cannot be had from the store, or is damaged.

        """
        for layer in (self._written.get(index), self._storing.get(index)):
            if layer is None:
                continue
            if layer.knows(start, length):
                return layer.read(start, length)
            if layer.mask:
                break
        else:
            return (await self.chunk_store.get(index))[start : start + length]
        return await self._assembled(index, start, length)

    async def _assembled(self, index: int, start: int, length: int) -> Buffer:
        storing = self._storing.get(index)
        if storing is not None and storing.knows(start, length):
            assembled = bytearray(length)  # so nothing is read that is not needed
        else:
            assembled = bytearray((await self.chunk_store.get(index))[start : start + length])
        # From here on nothing waits, so all layers are of one moment.
        for layer in (self._storing.get(index), self._written.get(index)):
            if layer is not None:
                layer.apply_to(assembled, start)
        return memoryview(assembled).toreadonly()

    # Writing

    async def write(self, index: int, start: int, data: Buffer) -> None:
        """Write whole blocks to a chunk; wait if too much is unstored.

        Raises:
            OSError: there is no room, because nothing can be stored.

        """
        pending = await self._dirty_chunk(index)
        was_complete = pending.is_complete
        pending.write(start, data)
        if pending.is_complete and not was_complete:
            self._store_in_background(index)

    async def zero(self, index: int, start: int, length: int) -> None:
        """Write zeroes to a chunk."""
        if length == self._chunk_size:
            self.drop(index)
        elif not self.is_zero(index):
            (await self._dirty_chunk(index)).zero(start, length)

    def drop(self, index: int) -> None:
        """Make a whole chunk zeroes, which takes no room and nothing to store."""
        self._written.pop(index, None)
        if index in self._storing:  # which comes first, then
            pending = self._written[index] = DirtyChunk(self._chunk_size, self._block_size)
            pending.zero(0, self._chunk_size)
        else:
            self.chunk_store.set(index, 0)

    def is_zero(self, index: int) -> bool:
        """Whether a chunk is known to be zeroes."""
        for layer in (self._written.get(index), self._storing.get(index)):
            if layer is not None and layer.mask:
                return layer.is_complete and layer.contents is None
        return not self.chunk_store.entry(index)

    async def _dirty_chunk(self, index: int) -> DirtyChunk:
        while (pending := self._written.get(index)) is None:
            if len(self._written) + len(self._storing) < self._max_written:
                pending = self._written[index] = DirtyChunk(self._chunk_size, self._block_size)
                break
            await self._make_room()
        return pending

    async def _make_room(self) -> None:
        for index in list(islice(self._written, self._concurrency)):
            self._start_storing(index)
        # One for all who wait: there may be many tasks.
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        failure = await asyncio.shield(self._ended)
        if failure is not None:
            number = failure.errno if isinstance(failure, OSError) else None
            raise StorageError(number or errno.EIO, f"too much is not stored yet: {failure}")

    def _store_in_background(self, index: int) -> None:
        """Store a full chunk as soon as some more are, so that a flush has little left to do."""
        self._full.append(index)
        while len(self._full) > _BACKGROUND_STORE_AT:
            oldest = self._full.popleft()
            pending = self._written.get(oldest)
            if pending is not None and pending.is_complete:
                self._start_storing(oldest)

    # Storing

    async def store(self) -> None:
        """Store all that was written before.

        Raises:
            OSError: something could not be stored; it is kept.

        """
        indices = [*self._storing, *(each for each in self._written if each not in self._storing)]
        # None after a failure: a store that is away costs each of them a minute.
        await run_bounded(
            (partial(self._store_one, each) for each in indices), limit=self._concurrency
        )

    async def _store_one(self, index: int) -> None:
        task = self._store_tasks.get(index)
        if task is not None:
            await asyncio.wait([task])
        # After a failure it is here again; what was written since goes with it.
        self._start_storing(index)
        task = self._store_tasks.get(index)
        if task is not None:
            await asyncio.shield(task)

    def _start_storing(self, index: int) -> None:
        if index in self._store_tasks or index not in self._written:
            return
        self._storing[index] = self._written.pop(index)
        task = self._store_tasks[index] = asyncio.create_task(self._store_chunk(index))
        task.add_done_callback(self._store_ended)

    def _store_ended(self, task: asyncio.Task[None]) -> None:
        failure = asyncio.CancelledError() if task.cancelled() else task.exception()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended.set_result(failure)

    async def _store_chunk(self, index: int) -> None:
        await asyncio.sleep(0)  # a loop may start tasks at once, before they are known
        pending = self._storing[index]
        try:
            if not pending.is_complete:
                below = await self.chunk_store.get(index)
                pending.complete(None if below is self.chunk_store.zeroes else below)
            entry = await self.chunk_store.put(index, pending.contents)
        except BaseException:
            self._restore(index, pending)
            raise
        finally:
            del self._storing[index], self._store_tasks[index]
        self.chunk_store.set(index, entry)
        if entry and pending.contents is not None:
            self.chunk_store.remember(index, entry, memoryview(pending.contents).toreadonly())

    def _restore(self, index: int, pending: DirtyChunk) -> None:
        above = self._written.get(index)
        if above is None:
            self._written[index] = pending
        else:
            above.merge(pending)

    def resize(self, before: int, size: int) -> None:
        """Go from so many bytes to so many; those that are added are zeroes."""
        index, start = divmod(min(before, size), self._chunk_size)
        if start and not self.is_zero(index):
            pending = self._written.setdefault(
                index, DirtyChunk(self._chunk_size, self._block_size)
            )
            pending.zero(start, self._chunk_size - start)
        count = -(-size // self._chunk_size)
        for index in range(count, len(self.chunk_store.entries)):
            self.drop(index)  # which comes into the history: they may be back before the next flush
        self.chunk_store.resize(count)

    async def close(self) -> None:
        """End what is going on, and let go of everything. What is not stored is lost."""
        tasks = list(self._store_tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._written.clear()
        await self.chunk_store.close()
