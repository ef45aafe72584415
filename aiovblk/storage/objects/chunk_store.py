"""Read and store the chunks and segments of an open disk as objects, and delete them.

What holds here:

* A chunk object is immutable: a changed chunk is a new object with a higher version. So is a
  segment.
* :attr:`ChunkStore.view` says where each block is.
* An object that was replaced is deleted only when the record that replaces it is durable.

This layer knows neither partial writes nor flushes; see :mod:`.write_buffer` and :mod:`.writer`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from functools import partial

from ...aio.gather import gather_all
from ...errors import StorageError
from .client import Buffer
from .codec import damaged_error
from .extents import ZEROES, Run, Runs, clip
from .frames import Contents, seal_frames
from .keys import chunk_key, first_framed_version, first_version, segment_key
from .limits import Limits
from .manifest import Manifest
from .object_reader import ObjectReader, ObjectSource, StoredObject
from .state import DiskState
from .view import DiskView

_STREAMS = 64  # sequential readers that are recognised


class ChunkStore:
    """Read and store the chunks and segments of an open disk.

    Concurrency: all methods may be called at the same time, for any chunks; of those that store,
    one at a time for the same chunk.

    Cancellation: safe.

    Args:
        sources: the disk's own, and those of its ancestors, by the number of origin.
        manifest: of the disk.
        state: of the disk; copied.
        limits: of memory and requests.

    """

    def __init__(
        self,
        sources: list[ObjectSource],
        manifest: Manifest,
        state: DiskState,
        limits: Limits,
    ) -> None:
        self.view = DiskView(manifest, state)
        """Where each block is."""
        self.zeroes = memoryview(bytes(manifest.chunk_size))
        """The contents of a chunk that was never stored."""
        self._reader = ObjectReader(
            sources, compress=manifest.compress, memory=limits.memory, requests=limits.requests
        )
        self._own = sources[0]
        self._chunk_size = manifest.chunk_size
        self._block_size = manifest.block_size
        self._stores = asyncio.Semaphore(limits.requests)
        self._version = self._last_version = 0
        self._in_flight: set[int] = set()
        self._streams: dict[int, None] = {}  # where sequential readers go on, oldest first

    def start_epoch(self, epoch: int) -> None:
        """Become the writer of this epoch: objects that are stored get their versions from it."""
        self._version = first_framed_version(epoch)
        self._last_version = first_version(epoch + 1) - 1

    # Reading

    async def read(self, index: int, start: int, length: int) -> Buffer:
        """Return what is stored of a chunk at the moment of the return.

        Args:
            index: of the chunk.
            start: bytes from its beginning, a multiple of the block size.
            length: bytes, likewise.

        Raises:
            OSError: the store fails, or an object is damaged.

        """
        cached = self.peek(index)
        if cached is not None:
            if start + length == self._chunk_size:
                self._note_end((index + 1) * self._chunk_size)
            return cached[start : start + length]
        whole = self._continues_stream(index * self._chunk_size + start, length)
        while True:
            entry, runs = self.view.entry(index), self.view.extents.runs(index)
            try:
                contents = await self._assemble(index, entry, runs, start, length, whole=whole)
            except FileNotFoundError as exc:
                if self._is_current(index, entry, runs):
                    raise damaged_error(str(exc.strerror), "it is missing") from None
                continue
            # What was written before this read began may have been stored while it waited.
            if self._is_current(index, entry, runs):
                return contents

    def peek(self, index: int) -> Contents | None:
        """Return a chunk as it is stored, if all of it is in memory and it has no runs."""
        entry = self.view.entry(index)
        if self.view.extents.runs(index):
            return None
        return self._reader.cached(self.view.chunk(index, entry)) if entry else self.zeroes

    def _continues_stream(self, offset: int, length: int) -> bool:
        """Whether a read begins where another one has ended."""
        continues = offset in self._streams
        self._streams.pop(offset, None)
        self._note_end(offset + length)
        return continues

    def _note_end(self, offset: int) -> None:
        self._streams[offset] = None
        if len(self._streams) > _STREAMS:
            self._streams.pop(next(iter(self._streams)))

    async def contents(self, index: int, entry: int, runs: Runs) -> Buffer:
        """Return a whole chunk as it was with that entry and these runs.

        Raises:
            FileNotFoundError: an object of it was replaced since, and deleted.
            DamagedError: an object is damaged.
            OSError: the store fails.

        """
        try:
            return await self._assemble(index, entry, runs, 0, self._chunk_size, whole=True)
        except FileNotFoundError as exc:
            if self._is_current(index, entry, runs):
                raise damaged_error(str(exc.strerror), "it is missing") from None
            raise

    def _is_current(self, index: int, entry: int, runs: Runs) -> bool:
        return self.view.entry(index) == entry and self.view.extents.runs(index) is runs

    async def _assemble(
        self, index: int, entry: int, runs: Runs, start: int, length: int, *, whole: bool
    ) -> Buffer:
        """Read a range of a chunk: its runs, and the chunk itself where these do not cover it."""
        size = self._block_size
        first = start // size
        over = clip(runs, first, first + length // size) if runs else []
        if not over:
            return await self._read_chunk(index, entry, start, length, whole=whole)
        covered = sum(run.blocks for run in over) * size == length
        # The sizes of segments are looked up before anything is awaited: they may be gone after it.
        segments = [
            (run, self.view.segment(run.source))
            for run in over
            if isinstance(run.source, int) and run.source != ZEROES
        ]
        reads = [
            self._read(stored, run.position * size, run.blocks * size) for run, stored in segments
        ]
        if not covered:
            reads.append(self._read_chunk(index, entry, start, length, whole=whole))
        found = await gather_all(reads) if len(reads) > 1 else [await each for each in reads]
        assembled = bytearray(length) if covered else bytearray(found[-1])
        pieces: list[tuple[Run, Buffer]] = [
            (run, data) for (run, _), data in zip(segments, found, strict=False)
        ]
        for run in over:
            if run.source == ZEROES:
                pieces.append((run, bytes(run.blocks * size)))
            elif not isinstance(run.source, int):
                begin = run.position * size
                pieces.append((run, memoryview(run.source)[begin : begin + run.blocks * size]))
        for run, data in pieces:
            at = run.first * size - start
            assembled[at : at + len(data)] = data
        return memoryview(assembled).toreadonly()

    async def _read_chunk(
        self, index: int, entry: int, start: int, length: int, *, whole: bool
    ) -> Buffer:
        if not entry:
            return self.zeroes[start : start + length]
        return await self._read(self.view.chunk(index, entry), start, length, whole=whole)

    async def _read(
        self, stored: StoredObject, start: int, length: int, *, whole: bool = False
    ) -> Buffer:
        try:
            return await self._reader.read(stored, start, length, whole=whole)
        except FileNotFoundError:
            shown = self._reader.display_name(stored)
            raise FileNotFoundError(errno.ENOENT, shown) from None

    async def read_segment(self, stored: StoredObject) -> Buffer:
        """Return all of a segment.

        Raises:
            FileNotFoundError: it was replaced since, and deleted.
            DamagedError: it is damaged.
            OSError: the store fails.

        """
        try:
            return await self._read(stored, 0, stored.size, whole=True)
        except FileNotFoundError as exc:
            if stored.entry in self.view.extents.sizes:
                raise damaged_error(str(exc.strerror), "it is missing") from None
            raise

    # Storing

    async def put(self, index: int, contents: Buffer | None) -> int:
        """Store a chunk as a new object; None for zeroes, which need no object.

        Returns:
            Its entry. The caller passes it on before it awaits anything: :attr:`floor` relies on
            that.

        Raises:
            OSError: the store fails.

        """
        if contents is None or contents == self.zeroes:
            return 0
        version = self._next_version()
        await self._put(version, chunk_key(index, version), contents)
        return version

    async def put_segment(self, contents: Buffer) -> int:
        """Store a segment; returns its entry, see :meth:`put`."""
        version = self._next_version()
        await self._put(version, segment_key(version), contents)
        stored = StoredObject(version, -1, len(contents))
        self._reader.remember(stored, memoryview(contents).toreadonly())
        return version

    def _next_version(self) -> int:
        if self._version >= self._last_version:
            reason = "the disk was open for so long that its versions are used up; open it anew"
            raise StorageError(errno.EOVERFLOW, reason)
        self._version += 1
        return self._version

    async def _put(self, version: int, key: str, contents: Buffer) -> None:
        self._in_flight.add(version)
        try:
            async with self._stores:
                seal = partial(seal_frames, self._own.codec, key, contents)
                await self._own.objects.put(key, await self._reader.run(seal, len(contents)))
        finally:
            self._in_flight.discard(version)

    def cache(self, index: int, entry: int, contents: memoryview) -> None:
        """Keep a chunk in memory that was just stored."""
        self._reader.remember(self.view.chunk(index, entry), contents)

    @property
    def floor(self) -> int:
        """The lowest version in flight: what is lower and not in the view now never will be.

        Garbage collection leaves everything from this version on alone.
        """
        return min(self._in_flight, default=self._version + 1)

    @property
    def next_version(self) -> int:
        """The next version to be used: every lower one was stored, or begun, before now."""
        return self._version + 1

    async def delete(
        self, superseded: Iterable[tuple[int, StoredObject]], from_version: int
    ) -> None:
        """Delete superseded objects of this disk, if their version is at least ``from_version``."""
        keys = []
        for version, stored in superseded:
            self._reader.forget(stored)
            if version >= from_version:
                keys.append(stored.key)
        if keys:
            await self._own.objects.delete(keys)

    async def close(self) -> None:
        """Cancel the fetches in flight, and free all memory."""
        await self._reader.close()
