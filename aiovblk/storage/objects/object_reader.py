"""Read chunks and segments, whole or in part: cache, shared fetches, ranged GETs.

What holds here:

* A stored object never changes, so what was read of it is valid for ever.
* What is in memory is bounded by :attr:`.Limits.memory`: whole objects, and frames of others, the
  least recently used ones of which go first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

from ...aio.gather import gather_all
from ...aio.tasks import wait_shielded
from .client import Buffer, ObjectStore
from .codec import ObjectCodec, damaged_error, torn_error
from .frames import FRAME, Contents, FrameTable, open_frame, open_frames, uncompressed_span
from .keys import chunk_key, entry_parts, has_frames, segment_key

T = TypeVar("T")

_THREADS = 4  # that compress, encrypt and decode objects
_WHOLE = -1  # in place of a frame's number
_MAX_FRAMES = 2  # that are read by themselves: 128 KiB; for more the whole object is read
_MAX_TABLES = 1024  # of objects whose frames are compressed
_FIRST_READ = FRAME  # bytes that are read of such an object for its table


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """Say where the chunks and segments of one disk lie, and how they are decoded."""

    objects: ObjectStore
    codec: ObjectCodec


class StoredObject(NamedTuple):
    """A chunk or a segment in the store."""

    entry: int
    """Its entry, see :mod:`.keys`; not 0."""
    chunk: int
    """The index of the chunk; -1 for a segment."""
    size: int
    """Bytes of its contents."""

    @property
    def origin(self) -> int:
        """The disk that it belongs to: 0 this one, others its ancestors."""
        return entry_parts(self.entry)[0]

    @property
    def is_segment(self) -> bool:
        """Whether it is a segment."""
        return self.chunk < 0

    @property
    def framed(self) -> bool:
        """Whether it consists of frames; objects of earlier formats do not."""
        return has_frames(self.entry)

    @property
    def key(self) -> str:
        """Its name in the disk's folder."""
        version = entry_parts(self.entry)[1]
        return segment_key(version) if self.is_segment else chunk_key(self.chunk, version)


class ObjectReader:
    """Read stored objects, and keep what was read.

    Concurrency: all methods may be called at the same time. Concurrent reads of the same frame, or
    object, share one request.

    Cancellation: safe; a fetch goes on, for the next reader.

    Args:
        sources: the disk's own, and those of its ancestors, by the number of origin.
        compress: whether the frames of objects are compressed, so that a table says where they are.
        memory: bytes that are kept.
        requests: concurrent ones.

    """

    def __init__(
        self, sources: list[ObjectSource], *, compress: bool, memory: int, requests: int
    ) -> None:
        self._sources = sources
        self._compress = compress
        self._memory = memory
        self._cache: OrderedDict[tuple[StoredObject, int], Contents] = OrderedDict()
        self._cached = 0
        self._tables: OrderedDict[StoredObject, FrameTable] = OrderedDict()
        self._fetches: dict[tuple[StoredObject, int], asyncio.Task[Contents]] = {}
        self._requests = asyncio.Semaphore(requests)
        self._threads = ThreadPoolExecutor(_THREADS, "aiovblk objects")

    def cached(self, stored: StoredObject) -> Contents | None:
        """Return an object's contents, if all of them are in memory."""
        return self._lookup(stored, _WHOLE)

    def display_name(self, stored: StoredObject) -> str:
        """Return an object's name with its disk's folder before it, for messages."""
        return self._sources[stored.origin].codec.display_name(stored.key)

    async def read(
        self, stored: StoredObject, start: int, length: int, *, whole: bool = False
    ) -> Buffer:
        """Return some bytes of an object's contents.

        Args:
            stored: the object.
            start: bytes from the beginning of its contents.
            length: bytes; the contents have as many from ``start`` on.
            whole: whether to read all of it, since more will be asked for.

        Raises:
            FileNotFoundError: the object does not exist.
            OSError: the store fails, or the object is damaged.

        """
        contents = self._lookup(stored, _WHOLE)
        if contents is not None:
            return contents[start : start + length]
        frames = range(start // FRAME, -(-(start + length) // FRAME))
        if len(frames) > _MAX_FRAMES or self._needs_whole(stored, whole=whole, frames=frames):
            return (await self._fetch(stored, _WHOLE))[start : start + length]
        if len(frames) == 1:
            begin = frames[0] * FRAME
            frame = await self._frame(stored, frames[0])
            return frame[start - begin : start - begin + length]
        parts = await gather_all(self._frame(stored, frame) for frame in frames)
        begin = start - frames[0] * FRAME
        return memoryview(b"".join(part[:] for part in parts))[begin : begin + length]

    def _needs_whole(self, stored: StoredObject, *, whole: bool, frames: range) -> bool:
        if not stored.framed or stored.size <= FRAME or (stored, _WHOLE) in self._fetches:
            return True
        return whole and any((stored, frame) not in self._cache for frame in frames)

    def _lookup(self, stored: StoredObject, frame: int) -> Contents | None:
        found = self._cache.get((stored, frame))
        if found is not None:
            self._cache.move_to_end((stored, frame))
        return found

    async def _frame(self, stored: StoredObject, frame: int) -> Contents:
        found = self._lookup(stored, frame)
        return await self._fetch(stored, frame) if found is None else found

    async def _fetch(self, stored: StoredObject, frame: int) -> Contents:
        """Read an object or a frame; coalesced with a read of it that is in flight."""
        wanted = stored, frame
        task = self._fetches.get(wanted)
        if task is None:
            task = self._fetches[wanted] = asyncio.create_task(self._get(stored, frame))
            task.add_done_callback(lambda _: self._fetches.pop(wanted))
        return await wait_shielded(task)

    async def _get(self, stored: StoredObject, frame: int) -> Contents:
        if stored.origin >= len(self._sources):
            shown = self._sources[0].codec.display_name(stored.key)
            reason = f"it is of ancestor {stored.origin}, which disk.json does not have"
            raise damaged_error(shown, reason)
        source = self._sources[stored.origin]
        async with self._requests:
            if frame == _WHOLE:
                data = await source.objects.get(stored.key)
                decode = partial(open_stored, source.codec, stored, data)
                contents: Contents = await self.run(decode, stored.size)
            else:
                data = await self._get_frame(source, stored, frame)
                contents = open_frame(source.codec, stored.key, data, frame, stored.size)
        self.remember(stored, contents, frame)
        return contents

    async def _get_frame(
        self, source: ObjectSource, stored: StoredObject, frame: int
    ) -> memoryview:
        shown = source.codec.display_name(stored.key)
        data = memoryview(b"")
        if self._compress:
            table, head = await self._table(source, stored)
            begin, length = table.span(frame)
            data = head[begin : begin + length]
        else:
            begin, length = uncompressed_span(source.codec, stored.size, frame)
        if len(data) < length:
            data = await source.objects.get_range(stored.key, begin, length)
        if len(data) < length:
            raise torn_error(shown, f"frame {frame} is cut off")
        return data

    async def _table(
        self, source: ObjectSource, stored: StoredObject
    ) -> tuple[FrameTable, memoryview]:
        """Return where the frames of an object are, and its beginning, if that was read now."""
        found = self._tables.get(stored)
        if found is not None:
            return found, memoryview(b"")
        head = await source.objects.get_range(stored.key, 0, _FIRST_READ)
        shown = source.codec.display_name(stored.key)
        table = self._tables[stored] = FrameTable.parse(head, stored.key, shown, stored.size)
        if len(self._tables) > _MAX_TABLES:
            self._tables.popitem(last=False)
        return table, head

    def remember(self, stored: StoredObject, contents: Contents, frame: int = _WHOLE) -> None:
        """Keep an object, or a frame of it; evict what was not used for longest."""
        before = self._cache.pop((stored, frame), None)
        self._cache[stored, frame] = contents
        self._cached += len(contents) - (0 if before is None else len(before))
        while self._cached > self._memory and len(self._cache) > 1:
            _, evicted = self._cache.popitem(last=False)
            self._cached -= len(evicted)

    def forget(self, stored: StoredObject) -> None:
        """Free the memory of an object that is no longer part of the disk."""
        found = self._cache.pop((stored, _WHOLE), None)
        if found is not None:
            self._cached -= len(found)

    async def run(self, job: Callable[[], T], size: int) -> T:
        """Encode or decode ``size`` bytes; in a thread, if that takes longer than to switch."""
        if size <= FRAME:
            return job()
        return await asyncio.get_running_loop().run_in_executor(self._threads, job)

    async def close(self) -> None:
        """Cancel the fetches in flight, drop the cache, and end the threads."""
        tasks = list(self._fetches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._cache.clear()
        self._threads.shutdown(wait=False)


def open_stored(codec: ObjectCodec, stored: StoredObject, data: Buffer) -> Contents:
    """Decode a whole chunk or segment.

    Raises:
        StorageError: it is damaged.

    """
    if stored.framed:
        return open_frames(codec, stored.key, data, stored.size)
    contents = codec.open(stored.key, data, longest=stored.size)
    if len(contents) != stored.size:
        reason = f"it has {len(contents)} bytes instead of {stored.size}"
        raise damaged_error(codec.display_name(stored.key), reason)
    return contents
