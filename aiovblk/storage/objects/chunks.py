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

from ...errors import StorageError
from ..together import drain
from .description import Description
from .limits import Limits
from .pending import Pending
from .store import Buffer
from .stored import Stored

_LEFT_BEHIND = 4  # full chunks that are kept, since a stream may come back to them


class Chunks:
    """The chunks of an open disk.

    Concurrency: all methods may be called at the same time, for any chunks.

    Cancellation: safe; requests to the store go on, for whoever comes next.

    Args:
        stored: what is below; closed with this.
        description: of the disk.
        limits: of what is used.

    """

    def __init__(self, stored: Stored, description: Description, limits: Limits) -> None:
        self.stored = stored
        """What is below."""
        self._chunk_size = description.chunk_size
        self._block_size = description.block_size
        self._written: dict[int, Pending] = {}
        self._storing: dict[int, Pending] = {}
        self._store_tasks: dict[int, asyncio.Task[None]] = {}
        self._full: deque[int] = deque()
        self._most_written = max(2, limits.unstored // description.chunk_size)
        self._at_once = 2 * limits.requests  # that are stored: some read first what lies below
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
            return (await self.stored.get(index))[start : start + length]
        return await self._assembled(index, start, length)

    async def _assembled(self, index: int, start: int, length: int) -> Buffer:
        storing = self._storing.get(index)
        if storing is not None and storing.knows(start, length):
            assembled = bytearray(length)  # so nothing is read that is not needed
        else:
            assembled = bytearray((await self.stored.get(index))[start : start + length])
        # From here on nothing waits, so all layers are of one moment.
        for layer in (self._storing.get(index), self._written.get(index)):
            if layer is not None:
                layer.lay_over(assembled, start)
        return memoryview(assembled).toreadonly()

    # Writing

    async def write(self, index: int, start: int, data: Buffer) -> None:
        """Write whole blocks to a chunk; wait if too much is unstored.

        Raises:
            OSError: there is no room, because nothing can be stored.

        """
        pending = await self._pending(index)
        was_complete = pending.is_complete
        pending.write(start, data)
        if pending.is_complete and not was_complete:
            self._store_in_passing(index)

    async def zero(self, index: int, start: int, length: int) -> None:
        """Write zeroes to a chunk."""
        if length == self._chunk_size:
            self.drop(index)
        elif not self.is_zero(index):
            (await self._pending(index)).zero(start, length)

    def drop(self, index: int) -> None:
        """Make a whole chunk zeroes, which takes no room and nothing to store."""
        self._written.pop(index, None)
        if index in self._storing:  # which comes first, then
            pending = self._written[index] = Pending(self._chunk_size, self._block_size)
            pending.zero(0, self._chunk_size)
        else:
            self.stored.set(index, 0)

    def is_zero(self, index: int) -> bool:
        """Whether a chunk is known to be zeroes."""
        for layer in (self._written.get(index), self._storing.get(index)):
            if layer is not None and layer.mask:
                return layer.is_complete and layer.contents is None
        return not self.stored.entry(index)

    async def _pending(self, index: int) -> Pending:
        while (pending := self._written.get(index)) is None:
            if len(self._written) + len(self._storing) < self._most_written:
                pending = self._written[index] = Pending(self._chunk_size, self._block_size)
                break
            await self._make_room()
        return pending

    async def _make_room(self) -> None:
        for index in list(islice(self._written, self._at_once)):
            self._start_storing(index)
        # One for all who wait: there may be many tasks.
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        failure = await asyncio.shield(self._ended)
        if failure is not None:
            number = failure.errno if isinstance(failure, OSError) else None
            raise StorageError(number or errno.EIO, f"too much is not stored yet: {failure}")

    def _store_in_passing(self, index: int) -> None:
        """Store a full chunk as soon as some more are, so that a flush has little left to do."""
        self._full.append(index)
        while len(self._full) > _LEFT_BEHIND:
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
        await drain((partial(self._store_one, each) for each in indices), most=self._at_once)

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
                below = await self.stored.get(index)
                pending.complete(None if below is self.stored.zeroes else below)
            entry = await self.stored.put(index, pending.contents)
        except BaseException:
            self._take_back(index, pending)
            raise
        finally:
            del self._storing[index], self._store_tasks[index]
        self.stored.set(index, entry)
        if entry and pending.contents is not None:
            self.stored.remember(index, entry, memoryview(pending.contents).toreadonly())

    def _take_back(self, index: int, pending: Pending) -> None:
        above = self._written.get(index)
        if above is None:
            self._written[index] = pending
        else:
            above.take(pending)

    def resize(self, before: int, size: int) -> None:
        """Go from so many bytes to so many; those that are added are zeroes."""
        index, start = divmod(min(before, size), self._chunk_size)
        if start and not self.is_zero(index):
            pending = self._written.setdefault(index, Pending(self._chunk_size, self._block_size))
            pending.zero(start, self._chunk_size - start)
        count = -(-size // self._chunk_size)
        for index in range(count, len(self.stored.entries)):
            self.drop(index)  # which comes into the history: they may be back before the next flush
        self.stored.resize(count)

    async def close(self) -> None:
        """End what is going on, and let go of everything. What is not stored is lost."""
        tasks = list(self._store_tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._written.clear()
        await self.stored.close()
