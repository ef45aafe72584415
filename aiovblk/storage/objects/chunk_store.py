"""Read and store the chunks of an open disk as objects: cache, shared fetches, concurrency limits.

What holds here:

* A chunk object is immutable: a changed chunk is a new object with a higher version.
* :attr:`ChunkStore.entries` says which version of each chunk is current. An entry that changes is
  also collected in :attr:`ChunkStore.changes`, for the next record of the disk's history.
* An object that was replaced is deleted only when the record that replaces it is durable.

This layer knows neither partial writes nor flushes; see :mod:`.write_buffer` and :mod:`.writer`.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from ...arguments import check_count
from .client import ObjectStore
from .codec import ObjectCodec, damaged_error
from .keys import chunk_key, entry_parts, first_version
from .manifest import Manifest
from .state import resize

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 4  # that compress, encrypt and decode objects


@dataclass(frozen=True, slots=True)
class Limits:
    """Limit the memory and the concurrent requests of one open disk."""

    memory: int = 64 << 20
    """Read cache: bytes of chunks that are kept after they were read or stored."""
    unstored: int = 256 << 20
    """Write buffer: bytes of dirty chunks, after which writes wait until some are stored."""
    requests: int = 32
    """Concurrency: chunks that are read, and as many again that are stored, at the same time."""

    def __post_init__(self) -> None:
        """Refuse limits with which a request would never end."""
        check_count("memory", self.memory, minimum=0)
        check_count("unstored", self.unstored, minimum=0)
        check_count("requests", self.requests)


@dataclass(frozen=True, slots=True)
class ChunkSource:
    """Say where the chunks of one disk lie, and how they are decoded."""

    objects: ObjectStore
    codec: ObjectCodec


class ChunkStore:
    """Read, cache, store and delete the chunk objects of an open disk.

    Concurrency: all methods may be called at the same time, for any chunks; of those that store,
    one at a time for the same chunk. Concurrent reads of the same chunk share one request.

    Cancellation: safe; a fetch goes on, for the next reader of the chunk.

    Args:
        sources: the disk's own, and those of its ancestors, by the number of origin.
        manifest: of the disk.
        entries: of the disk's state; copied.
        limits: of memory and requests.

    """

    def __init__(
        self,
        sources: list[ChunkSource],
        manifest: Manifest,
        entries: array[int],
        limits: Limits,
    ) -> None:
        self._sources = sources
        self._chunk_size = manifest.chunk_size
        self.entries = entries[:]
        """The current entry of each chunk; see :mod:`.keys`."""
        self.changes: dict[int, int] = {}
        """The entries that have changed since :meth:`take_changes`."""
        self.zeroes = memoryview(bytes(manifest.chunk_size))
        """The contents of a chunk that was never stored."""
        self._superseded: list[tuple[int, int]] = []
        self._cache: OrderedDict[int, tuple[int, memoryview]] = OrderedDict()  # least recent first
        self._max_cached = max(1, limits.memory // manifest.chunk_size)
        self._fetches: dict[int, asyncio.Task[memoryview]] = {}
        self._reads = asyncio.Semaphore(limits.requests)
        self._stores = asyncio.Semaphore(limits.requests)
        self._version = 0
        self._in_flight: set[int] = set()
        self._threads = ThreadPoolExecutor(_THREADS, "aiovblk objects")

    def start_epoch(self, epoch: int) -> None:
        """Become the writer of this epoch: chunks that are stored get their versions from it."""
        self._version = first_version(epoch)

    # Reading

    async def get(self, index: int) -> memoryview:
        """Return what is stored of a chunk at the moment of the return.

        Raises:
            OSError: the store fails, or the chunk is damaged.

        """
        while True:
            entry = self.entry(index)
            if not entry:
                return self.zeroes
            cached = self._cache.get(index)
            if cached is not None and cached[0] == entry:
                self._cache.move_to_end(index)
                return cached[1]
            try:
                contents = await self._fetch(index, entry)
            except FileNotFoundError:
                if self.entry(index) == entry:
                    raise self._missing_error(index, entry) from None
                continue
            # What was written before this read began may have been stored while it waited.
            if self.entry(index) == entry:
                return contents

    def entry(self, index: int) -> int:
        """Return the current entry of a chunk (see :mod:`.keys`); 0 if it was cut off."""
        return self.entries[index] if index < len(self.entries) else 0

    def _missing_error(self, index: int, entry: int) -> OSError:
        origin, version = entry_parts(entry)
        name = self._sources[origin].codec.display_name(chunk_key(index, version))
        return damaged_error(name, "it is missing")

    async def _fetch(self, index: int, entry: int) -> memoryview:
        """Read a chunk object; coalesced with a read of it that is in flight."""
        task = self._fetches.get(entry)
        if task is None:
            task = self._fetches[entry] = asyncio.create_task(self._read(index, entry))
            task.add_done_callback(lambda done: self._end_fetch(entry, done))
        return await asyncio.shield(task)

    def _end_fetch(self, entry: int, task: asyncio.Task[memoryview]) -> None:
        del self._fetches[entry]
        if not task.cancelled():
            task.exception()  # each waiter has it; there may be none left to retrieve it

    async def _read(self, index: int, entry: int) -> memoryview:
        origin, version = entry_parts(entry)
        name = chunk_key(index, version)
        if origin >= len(self._sources):
            shown = self._sources[0].codec.display_name(name)
            raise damaged_error(shown, f"it is of ancestor {origin}, which disk.json does not have")
        source = self._sources[origin]
        async with self._reads:
            data = await source.objects.get(name)
            contents = await self._in_thread(
                source.codec.open, name, data, longest=self._chunk_size
            )
        if len(contents) != self._chunk_size:
            shown = source.codec.display_name(name)
            raise damaged_error(
                shown, f"it has {len(contents)} bytes instead of {self._chunk_size}"
            )
        if self.entry(index) == entry:
            self.cache(index, entry, contents)
        return contents

    def cache(self, index: int, entry: int, contents: memoryview) -> None:
        """Keep a stored chunk in memory; evict the least recently used one if there is no room."""
        self._cache[index] = entry, contents
        self._cache.move_to_end(index)
        if len(self._cache) > self._max_cached:
            self._cache.popitem(last=False)

    # Storing

    async def put(self, index: int, contents: bytearray | None) -> int:
        """Store a chunk as a new object; None for zeroes, which need no object.

        Returns:
            Its entry. The caller passes it to :meth:`set_entry` before it awaits anything:
            :attr:`floor` relies on that.

        Raises:
            OSError: the store fails.

        """
        if contents is None or contents == self.zeroes:
            return 0
        self._version += 1
        version = self._version
        self._in_flight.add(version)
        source, name = self._sources[0], chunk_key(index, version)
        try:
            async with self._stores:
                sealed = await self._in_thread(source.codec.seal, name, contents)
                await source.objects.put(name, sealed)
        finally:
            self._in_flight.discard(version)
        return version

    def set_entry(self, index: int, entry: int) -> None:
        """Make this the current entry of a chunk; the previous one is superseded."""
        before = self.entry(index)
        if entry == before:
            return
        if index >= len(self.entries):  # the chunk was cut off while it was stored
            self._superseded.append((index, entry))
        else:
            self._superseded.append((index, before))
            self.entries[index] = self.changes[index] = entry
            self._cache.pop(index, None)

    @property
    def floor(self) -> int:
        """The lowest version in flight: lower ones are stored and in the entries, or never will be.

        Garbage collection leaves everything from this version on alone.
        """
        return min(self._in_flight, default=self._version + 1)

    @property
    def next_version(self) -> int:
        """The next version to be used: every lower one was stored, or begun, before now."""
        return self._version + 1

    def take_changes(self) -> tuple[dict[int, int], list[tuple[int, int]]]:
        """Return the entries that have changed since the last call, and those they supersede.

        The superseded objects may be deleted as soon as the changes are in the disk's history.
        """
        changes, superseded = self.changes, self._superseded
        self.changes, self._superseded = {}, []
        return changes, superseded

    def restore_changes(self, changes: dict[int, int], superseded: list[tuple[int, int]]) -> None:
        """Put back changes that could not be committed to the history; newer ones win."""
        self.changes = {**changes, **self.changes}
        self._superseded = superseded + self._superseded

    async def delete(self, superseded: Iterable[tuple[int, int]], from_version: int) -> None:
        """Delete superseded chunks of this disk, if their version is at least ``from_version``."""
        keys = []
        for index, entry in superseded:
            origin, version = entry_parts(entry)
            if entry and not origin and version >= from_version:
                keys.append(chunk_key(index, version))
        if keys:
            await self._sources[0].objects.delete(keys)

    def resize(self, count: int) -> None:
        """Cut chunks off, or add chunks that are zeroes, so that there are ``count``."""
        resize(self.entries, count)

    async def close(self) -> None:
        """Cancel the fetches in flight, drop the cache, and end the threads."""
        tasks = list(self._fetches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._cache.clear()
        self._threads.shutdown(wait=False)

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        job = self._threads.submit(call, *args, **kwargs)
        return await asyncio.wrap_future(job)
