"""What is stored of the chunks of a disk, read and added to."""

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

_THREADS = 4  # that seal and open objects


@dataclass(frozen=True, slots=True)
class ChunkSource:
    """Where the chunks of one disk lie."""

    objects: ObjectStore
    codec: ObjectCodec


class ChunkStore:
    """The chunks of an open disk, as they are in the store.

    Concurrency: all methods may be called at the same time, for any chunks; of those that store,
    one at a time for the same chunk.

    Cancellation: safe; a read goes on, for whoever comes next.

    Args:
        sources: the disk's own, and those of its ancestors, by the number of origin.
        manifest: of the disk.
        entries: of the disk's state; copied.
        limits: of what is used.

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
        """What each chunk is."""
        self.changes: dict[int, int] = {}
        """The entries that have changed since :meth:`take_changes`."""
        self.zeroes = memoryview(bytes(manifest.chunk_size))
        """What a chunk is that was never stored."""
        self._superseded: list[tuple[int, int]] = []
        self._known: OrderedDict[int, tuple[int, memoryview]] = OrderedDict()
        self._max_known = max(1, limits.memory // manifest.chunk_size)
        self._reading: dict[int, asyncio.Task[memoryview]] = {}
        self._reads = asyncio.Semaphore(limits.requests)
        self._stores = asyncio.Semaphore(limits.requests)
        self._version = 0
        self._in_flight: set[int] = set()
        self._threads = ThreadPoolExecutor(_THREADS, "aiovblk objects")

    def start_epoch(self, epoch: int) -> None:
        """Be the writer of this epoch, which chunks that are stored get their names from."""
        self._version = first_version(epoch)

    async def get(self, index: int) -> memoryview:
        """Return what is stored of a chunk at the moment of the return.

        Raises:
            OSError: it cannot be had from the store, or is damaged.

        """
        while True:
            entry = self.entry(index)
            if not entry:
                return self.zeroes
            known = self._known.get(index)
            if known is not None and known[0] == entry:
                self._known.move_to_end(index)
                return known[1]
            try:
                contents = await self._fetch(index, entry)
            except FileNotFoundError:
                if self.entry(index) == entry:
                    _, version = entry_parts(entry)
                    raise damaged_error(chunk_key(index, version), "it is missing") from None
                continue
            # What was written before this read began may have been stored while it waited.
            if self.entry(index) == entry:
                return contents

    def entry(self, index: int) -> int:
        """Return what a chunk is known by now; see :mod:`.names`."""
        return self.entries[index] if index < len(self.entries) else 0  # it was cut off

    async def _fetch(self, index: int, entry: int) -> memoryview:
        task = self._reading.get(entry)
        if task is None:
            task = self._reading[entry] = asyncio.create_task(self._read(index, entry))
            task.add_done_callback(lambda done: self._fetched(entry, done))
        return await asyncio.shield(task)

    def _fetched(self, entry: int, task: asyncio.Task[memoryview]) -> None:
        del self._reading[entry]
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody may be left

    async def _read(self, index: int, entry: int) -> memoryview:
        origin, version = entry_parts(entry)
        name = chunk_key(index, version)
        if origin >= len(self._sources):
            raise damaged_error(name, f"it is of ancestor {origin}, which disk.json does not have")
        source = self._sources[origin]
        async with self._reads:
            data = await source.objects.get(name)
            contents = await self._in_thread(
                source.codec.open, name, data, longest=self._chunk_size
            )
        if len(contents) != self._chunk_size:
            raise damaged_error(name, f"it has {len(contents)} bytes")
        if self.entry(index) == entry:
            self.remember(index, entry, contents)
        return contents

    def remember(self, index: int, entry: int, contents: memoryview) -> None:
        """Keep what is stored of a chunk in memory, as long as there is room."""
        self._known[index] = entry, contents
        self._known.move_to_end(index)
        if len(self._known) > self._max_known:
            self._known.popitem(last=False)

    async def put(self, index: int, contents: bytearray | None) -> int:
        """Store a chunk; None for zeroes, which need no object.

        Returns:
            Its entry, for :meth:`set`, before anything is waited for: :attr:`floor` counts on it.

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

    def set(self, index: int, entry: int) -> None:
        """Let this be what a chunk is from now on."""
        before = self.entry(index)
        if entry == before:
            return
        if index >= len(self.entries):  # it was cut off while it was stored
            self._superseded.append((index, entry))
        else:
            self._superseded.append((index, before))
            self.entries[index] = self.changes[index] = entry
            self._known.pop(index, None)

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

    def restore_changes(self, changes: dict[int, int], superseded: list[tuple[int, int]]) -> None:
        """Take changes that have not come into the history."""
        self.changes = {**changes, **self.changes}
        self._superseded = superseded + self._superseded

    async def delete(self, superseded: Iterable[tuple[int, int]], from_version: int) -> None:
        """Delete chunks that were superseded, if their version is at least this one."""
        names = []
        for index, entry in superseded:
            origin, version = entry_parts(entry)
            if entry and not origin and version >= from_version:
                names.append(chunk_key(index, version))
        if names:
            await self._sources[0].objects.delete(names)

    def resize(self, count: int) -> None:
        """Have so many chunks; those that are added are zeroes."""
        resize(self.entries, count)

    async def close(self) -> None:
        """End what is going on, and let go of everything."""
        tasks = list(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._known.clear()
        self._threads.shutdown(wait=False)

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        job = self._threads.submit(call, *args, **kwargs)
        return await asyncio.wrap_future(job)


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
        check_count("memory", self.memory, minimum=0)
        check_count("unstored", self.unstored, minimum=0)
        check_count("requests", self.requests)
