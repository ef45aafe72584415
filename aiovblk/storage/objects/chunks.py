"""The bytes of a disk: what was written or read lately is in memory, the rest in the store.

Each chunk is seen through up to three layers: what was written since it was last stored, what is
being stored now (frozen: a write to it begins anew above it), and what is stored.
"""

from __future__ import annotations

import asyncio
import errno
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import ParamSpec, TypeVar

from ...errors import StorageError
from ..together import drain
from .description import Description
from .names import chunk_name, entry_parts, first_version
from .pending import Pending
from .sealing import Sealing, damaged
from .store import Buffer, Objects

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 4  # that seal and open objects
_LEFT_BEHIND = 4  # full chunks that are kept, since a stream may come back to them


@dataclass(frozen=True, slots=True)
class Source:
    """Where the chunks of one disk lie."""

    objects: Objects
    sealing: Sealing


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be used at once."""

    memory: int = 64 << 20
    """Bytes of chunks that are kept after they were read or stored."""
    unstored: int = 256 << 20
    """Bytes of chunks that were written to and are not stored."""
    requests: int = 32
    """Chunks that are read, and as many again that are stored, at the same time."""

    def __post_init__(self) -> None:
        """Refuse what would never come to an end."""
        if self.requests < 1:
            raise ValueError(f"requests must be at least 1, not {self.requests}")


class Chunks:
    """The chunks of an open disk.

    Concurrency: all methods may be called at the same time, for any chunks.

    Cancellation: safe; requests to the store go on, for whoever comes next.

    Args:
        sources: the disk's own, and those of its ancestors, by the number of origin.
        description: of the disk.
        entries: of the disk's state; copied.
        limits: of what is used.

    """

    def __init__(
        self,
        sources: list[Source],
        description: Description,
        entries: array[int],
        limits: Limits,
    ) -> None:
        self._sources = sources
        self._chunk_size = description.chunk_size
        self._block_size = description.block_size
        self.entries = entries[:]
        """What is stored of each chunk."""
        self.changes: dict[int, int] = {}
        """The entries that have changed since :meth:`take_changes`."""
        self._superseded: list[tuple[int, int]] = []
        self._written: dict[int, Pending] = {}
        self._storing: dict[int, Pending] = {}
        self._store_tasks: dict[int, asyncio.Task[None]] = {}
        self._full: deque[int] = deque()
        self._known: OrderedDict[int, tuple[int, memoryview]] = OrderedDict()
        self._most_known = max(1, limits.memory // description.chunk_size)
        self._most_written = max(2, limits.unstored // description.chunk_size)
        self._reading: dict[int, asyncio.Task[memoryview]] = {}
        self._reads = asyncio.Semaphore(limits.requests)
        self._stores = asyncio.Semaphore(limits.requests)
        self._at_once = 2 * limits.requests  # that are stored: some read first what lies below
        self._ended: asyncio.Future[BaseException | None] | None = None
        self._zeroes = memoryview(bytes(description.chunk_size))
        self._version = 0
        self._in_flight: set[int] = set()
        self._threads = ThreadPoolExecutor(_THREADS, "aiovblk objects")

    def begin(self, epoch: int) -> None:
        """Be the writer of this epoch, which chunks that are stored get their names from."""
        self._version = first_version(epoch)

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
            return (await self._stored(index))[start : start + length]
        return await self._assembled(index, start, length)

    async def _assembled(self, index: int, start: int, length: int) -> Buffer:
        storing = self._storing.get(index)
        if storing is not None and storing.knows(start, length):
            assembled = bytearray(length)  # so nothing is read that is not needed
        else:
            assembled = bytearray((await self._stored(index))[start : start + length])
        # From here on nothing waits, so all layers are of one moment.
        for layer in (self._storing.get(index), self._written.get(index)):
            if layer is not None:
                layer.lay_over(assembled, start)
        return memoryview(assembled).toreadonly()

    async def _stored(self, index: int) -> memoryview:
        """Return what is stored of a chunk at the moment of the return."""
        while True:
            entry = self._entry(index)
            if not entry:
                return self._zeroes
            known = self._known.get(index)
            if known is not None and known[0] == entry:
                self._known.move_to_end(index)
                return known[1]
            try:
                contents = await self._fetch(index, entry)
            except FileNotFoundError:
                if self._entry(index) == entry:
                    _, version = entry_parts(entry)
                    raise damaged(chunk_name(index, version), "it is missing") from None
                continue
            # What was written before this read began may have been stored while it waited.
            if self._entry(index) == entry:
                return contents

    def _entry(self, index: int) -> int:
        return self.entries[index] if index < len(self.entries) else 0  # it was cut off

    async def _fetch(self, index: int, entry: int) -> memoryview:
        task = self._reading.get(entry)
        if task is None:
            task = self._reading[entry] = asyncio.create_task(self._get(index, entry))
            task.add_done_callback(lambda done: self._fetched(entry, done))
        return await asyncio.shield(task)

    def _fetched(self, entry: int, task: asyncio.Task[memoryview]) -> None:
        del self._reading[entry]
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may be left

    async def _get(self, index: int, entry: int) -> memoryview:
        origin, version = entry_parts(entry)
        source, name = self._sources[origin], chunk_name(index, version)
        async with self._reads:
            data = await source.objects.get(name)
            contents = await self._in_thread(
                source.sealing.open, name, data, longest=self._chunk_size
            )
        if len(contents) != self._chunk_size:
            raise damaged(name, f"it has {len(contents)} bytes")
        if self._entry(index) == entry:
            self._remember(index, entry, contents)
        return contents

    def _remember(self, index: int, entry: int, contents: memoryview) -> None:
        self._known[index] = entry, contents
        self._known.move_to_end(index)
        if len(self._known) > self._most_known:
            self._known.popitem(last=False)

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
            self._set(index, 0)

    def is_zero(self, index: int) -> bool:
        """Whether a chunk is known to be zeroes."""
        for layer in (self._written.get(index), self._storing.get(index)):
            if layer is not None and layer.mask:
                return layer.is_complete and layer.contents is None
        return not self._entry(index)

    def is_written(self, index: int) -> bool:
        """Whether a chunk has something that is not stored."""
        return index in self._written or index in self._storing

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
            raise StorageError(errno.EIO, f"too much is not stored yet: {failure}")

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
                below = await self._stored(index)
                pending.complete(None if below is self._zeroes else below)
            entry = await self._put(index, pending.contents)
        except BaseException:
            self._take_back(index, pending)
            raise
        finally:
            del self._storing[index], self._store_tasks[index]
        self._set(index, entry)
        if entry and pending.contents is not None:
            self._remember(index, entry, memoryview(pending.contents).toreadonly())

    def _set(self, index: int, entry: int) -> None:
        before = self._entry(index)
        if entry == before:
            return
        if index >= len(self.entries):  # it was cut off while it was stored
            self._superseded.append((index, entry))
        else:
            self._superseded.append((index, before))
            self.entries[index] = self.changes[index] = entry
            self._known.pop(index, None)

    def _take_back(self, index: int, pending: Pending) -> None:
        above = self._written.get(index)
        if above is None:
            self._written[index] = pending
        else:
            above.take(pending)

    async def _put(self, index: int, contents: bytearray | None) -> int:
        if contents is None or contents == self._zeroes:
            return 0
        self._version += 1
        version = self._version
        self._in_flight.add(version)
        source, name = self._sources[0], chunk_name(index, version)
        try:
            async with self._stores:
                sealed = await self._in_thread(source.sealing.seal, name, contents)
                await source.objects.put(name, sealed)
        finally:
            self._in_flight.discard(version)
        return version

    @property
    def floor(self) -> int:
        """Versions below are stored, and in the entries, or will never be."""
        return min(self._in_flight, default=self._version + 1)

    @property
    def next_version(self) -> int:
        """What has a version below was stored before now."""
        return self._version + 1

    def take_changes(self) -> tuple[dict[int, int], list[tuple[int, int]]]:
        """Return the entries that have changed since the last call, and the entries that they were.

        The latter are free as soon as the former are in the disk's history.
        """
        changes, superseded = self.changes, self._superseded
        self.changes, self._superseded = {}, []
        return changes, superseded

    def give_back(self, changes: dict[int, int], superseded: list[tuple[int, int]]) -> None:
        """Take changes that have not come into the history."""
        self.changes = {**changes, **self.changes}
        self._superseded = superseded + self._superseded

    async def delete(self, superseded: Iterable[tuple[int, int]], from_version: int) -> None:
        """Delete chunks that were superseded, if their version is at least this one."""
        names = []
        for index, entry in superseded:
            origin, version = entry_parts(entry)
            if entry and not origin and version >= from_version:
                names.append(chunk_name(index, version))
        if names:
            await self._sources[0].objects.delete(names)

    def resize(self, before: int, size: int) -> None:
        """Go from so many bytes to so many; those that are added are zeroes."""
        index, start = divmod(min(before, size), self._chunk_size)
        if start and not self.is_zero(index):
            pending = self._written.setdefault(index, Pending(self._chunk_size, self._block_size))
            pending.zero(start, self._chunk_size - start)
        count = -(-size // self._chunk_size)
        for index in range(count, len(self.entries)):
            self.drop(index)  # which comes into the history: they may be back before the next flush
        del self.entries[count:]
        self.entries.frombytes(bytes(8 * (count - len(self.entries))))

    async def close(self) -> None:
        """End what is going on, and let go of everything. What is not stored is lost."""
        tasks = [*self._reading.values(), *self._store_tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._written.clear()
        self._known.clear()
        self._threads.shutdown(wait=False)

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        job = self._threads.submit(call, *args, **kwargs)
        return await asyncio.wrap_future(job)
