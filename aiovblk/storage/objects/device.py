"""The block device on top of a disk in an object store: split requests into chunks, handle them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Self

from ...aio.gather import gather_all
from ...bitmaps import DirtyExtent
from ...device import BlockDevice, Extent
from ...errors import StorageError
from . import lease as leases
from .chunk_store import ChunkStore
from .client import AnyStore, Buffer
from .disk import StoredDisk
from .limits import Limits
from .snapshot_bitmaps import SnapshotBitmaps
from .state import DiskState, Snapshot
from .write_buffer import ChunkBuffer
from .writer import Writer

_MAX_EXTENTS = 1024  # in one reply; a caller that wants more calls again
_MAX_LOOKUPS = 16384  # chunks that are looked up for one reply; more than extents, for long runs
_CHUNKS_PER_SLICE = 1024  # dropped before other tasks run; a disk has up to 16 million


class ObjectStoreDevice(BlockDevice):
    """A disk in an object store: S3, GCS, Azure, Ceph's gateway, or a local folder.

    It is divided into chunks of a fixed size, each an object; one that does not exist is zeroes.
    An object is never changed: what a flush is about is in a record of the disk's history, or in
    segments, and a compactor puts it into new chunks in the background. So a disk is always in the
    state of one of its flushes or later, a snapshot costs one record, and a clone shares all
    objects with its snapshot.

    Made by :meth:`open`; see also :func:`create`.

    Durability: writes are kept in memory (write-back); :meth:`flush` returns when all of them are
    in the store, and in the history; a small one is one request. Chunks that were written in full
    are stored before. Flushes that are requested while one runs are combined into one (group
    commit).

    Backpressure: writes wait while :attr:`.Limits.unstored` bytes are not stored.

    One writer: a second one is refused while the first lives (a lease). A writer that has lost the
    disk to another, after it was silent for too long, cannot change it any more (fencing): its
    requests fail, and what it stores late is never part of the disk. See :mod:`.records`.

    Retries: requests to the store that fail for a while are retried with backoff; see
    :mod:`.client`.

    Concurrency: any number of requests.

    Trim and write_zeroes delete whole chunks. :meth:`trim` leaves parts of chunks as they are.
    """

    rotational = False

    def __init__(self, disk: StoredDisk, state: DiskState, limits: Limits) -> None:
        """See :meth:`open`."""
        self.block_size = disk.manifest.block_size
        self._chunk_size = disk.manifest.chunk_size
        self._size = state.size
        self._disk = disk.manifest.disk
        self._where = disk.where
        self._contents = state.contents
        chunk_store = ChunkStore(disk.sources, disk.manifest, state, limits)
        self._buffer = ChunkBuffer(chunk_store, disk.manifest, limits)
        self._writer: Writer | None = None
        self._snapshots: Mapping[str, Snapshot] = {}  # of a disk that is only read
        self._bitmaps = SnapshotBitmaps(disk)

    @classmethod
    async def open(
        cls,
        store: AnyStore,
        path: str = "",
        *,
        snapshot: str | None = None,
        read_only: bool = False,
        key: bytes | None = None,
        limits: Limits = Limits(),  # noqa: B008  # immutable
        lease: float = leases.DEFAULT_LEASE,
    ) -> Self:
        """Open a disk.

        Args:
            store: the store, one of the package ``obstore`` or anything with the methods of
                :class:`.ObjectStore`; or a URL, see :func:`.opening.from_url`.
            path: the disk's folder in it.
            snapshot: the state to read, instead of the disk's present one; read-only.
            read_only: whether to write nothing. The state is that of this moment, and the writer,
                if there is one, may delete what it replaces after that: then reads fail. Snapshots
                are safe.
            key: 32 bytes, if the disk is encrypted.
            limits: of memory and requests.
            lease: seconds, a day at most, after which another process may take the disk over from
                a writer that has not renewed its lease.

        Raises:
            FileNotFoundError: there is no disk, or no such snapshot.
            StorageBusyError: another process writes to it. That is known after a third of its
                lease. After a crash on another machine, opening takes as long as the lease.
            StorageError: it is damaged, of a later version, or the key is wrong.
            ValueError, OSError: the store cannot be used.

        """
        if not 0 < lease <= leases.MAX_LEASE:
            raise ValueError(f"a lease has at most {leases.MAX_LEASE:.0f} seconds, not {lease}")
        disk = await StoredDisk.open(store, path, key=key)
        if snapshot is not None or read_only:
            journal = await disk.journal(writes=False)
            device = cls(disk, await disk.state_in(journal, snapshot), limits)
            device._snapshots = journal.state.snapshots
            device.read_only = True
            return device
        return await cls._open_for_writing(disk, limits, lease)

    @classmethod
    async def _open_for_writing(cls, disk: StoredDisk, limits: Limits, lease: float) -> Self:
        """Become the disk's writer: wait for the lease, add an OPEN record, take the lease."""
        # The history is read before the lease: a process that opens the disk after the lease was
        # looked at is found when the OPEN record is appended.
        journal = await disk.journal(writes=True)
        await leases.wait_until_free(disk.objects, disk.where)
        await Writer.open(journal)
        device = cls(disk, journal.state, limits)
        device._writer = Writer(device._buffer, journal, disk, limits, lease)
        try:
            await device._writer.start()
        except BaseException:
            await device._buffer.close()
            raise
        return device

    @property
    def identity(self) -> str:
        """Identifies the data that was flushed, among all disks and times; for a cache.

        Another writer's flushes, of which this one does not know, are not included.
        """
        contents = self._writer.contents if self._writer is not None else self._contents
        return f"{self._disk} {contents}"

    @property
    def chunk_size(self) -> int:
        """Bytes of a chunk."""
        return self._chunk_size

    @property
    def blocks(self) -> int:
        """The size in blocks. A new value is stored by the next flush."""
        blocks: int = self._size // self.block_size
        return blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        before, self._size = self._size, value * self.block_size
        self._buffer.resize(before, self._size)
        if self._writer is not None:
            self._writer.size = self._size

    async def read(self, offset: int, length: int) -> Buffer:
        """Read from memory (dirty or cached chunks), or from the store."""
        if self._writer is not None:
            self._writer.check()
        index, start = divmod(offset, self._chunk_size)
        try:
            if start + length <= self._chunk_size:
                return await self._buffer.read(index, start, length)
            data = bytearray(length)
            parts = self._parts(offset, length)
            await gather_all(self._read_into(data, offset, *part) for part in parts)
        except StorageError:
            await self._check_fenced()
            raise
        return memoryview(data).toreadonly()

    async def _read_into(
        self, data: bytearray, offset: int, index: int, start: int, length: int
    ) -> None:
        at = index * self._chunk_size + start - offset
        data[at : at + length] = await self._buffer.read(index, start, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to memory; wait while too much is not stored."""
        self._check()
        try:
            for index, start, length in self._parts(offset, len(data)):
                at = index * self._chunk_size + start - offset
                await self._buffer.write(index, start, data[at : at + length])
        except StorageError:
            await self._check_fenced()
            raise

    async def flush(self) -> None:
        """Store everything that was written, and commit it to the disk's history."""
        if self._writer is not None:
            await self._writer.flush()

    async def trim(self, offset: int, length: int) -> None:
        """Delete whole chunks; no-op for parts of chunks."""
        self._check()
        async for index, _, part in self._many_parts(offset, length):
            if part == self._chunk_size:
                self._buffer.drop(index)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Delete whole chunks, and write zeroes to parts."""
        self._check()
        async for index, start, part in self._many_parts(offset, length):
            await self._buffer.zero(index, start, part)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Return which chunks are zeroes, as holes; without requests to the store."""
        extents: list[Extent] = []
        for index, _, part in islice(self._parts(offset, length), _MAX_LOOKUPS):
            zero = self._buffer.is_zero(index)
            if extents and extents[-1].zero == zero:
                extents[-1] = Extent(extents[-1].length + part, hole=zero, zero=zero)
            elif len(extents) == _MAX_EXTENTS:
                break
            else:
                extents.append(Extent(part, hole=zero, zero=zero))
        return extents

    async def dirty_bitmaps(self) -> Sequence[str]:
        """Return the names of the disk's snapshots.

        Of a disk that is only read, of those at the moment when it was opened. For its writer it is
        a request, since other processes take snapshots.

        Raises:
            OSError: the store fails.

        """
        return sorted(await self.snapshot_numbers())

    async def snapshot_numbers(self) -> Mapping[str, int]:
        """Return the disk's snapshots, and for each the number of the record that took it.

        That number tells apart two snapshots of which the second was given the name of the first
        after that was dropped. See :meth:`dirty_bitmaps`, also for what is raised.
        """
        if self._writer is not None:
            await self._writer.check_fenced()
        return {name: each.sequence for name, each in self._known_snapshots.items()}

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        """Return which parts differ from a snapshot, which may be later than this state.

        See :class:`~aiovblk.bitmaps.SupportsDirtyBitmaps`. What was written is dirty before it is
        flushed; so is what the compactor has moved since. The first call about a snapshot
        reads its map; those of the last eight are kept in memory, 8 bytes for each chunk.

        Raises:
            KeyError: there is no such snapshot, or it was dropped meanwhile.
            OSError: the store fails.

        """
        if self._writer is not None:
            self._writer.check()
            if name not in self._writer.snapshots:
                await self._writer.check_fenced()  # which finds those of other processes
        return await self._bitmaps.extents(
            self._known_snapshots, name, lambda: self._buffer.places(self.blocks), offset, length
        )

    @property
    def _known_snapshots(self) -> Mapping[str, Snapshot]:
        return self._snapshots if self._writer is None else self._writer.snapshots

    async def unmount(self) -> None:
        """Flush, release the lease, and free all memory."""
        try:
            if self._writer is not None:
                await self._writer.close()
        finally:
            await self._buffer.close()

    def _parts(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Split a range by chunks: index, start in the chunk, and bytes of each part."""
        end = offset + length
        while offset < end:
            index, start = divmod(offset, self._chunk_size)
            part = min(self._chunk_size - start, end - offset)
            yield index, start, part
            offset += part

    async def _many_parts(self, offset: int, length: int) -> AsyncIterator[tuple[int, int, int]]:
        """Split a range by chunks, and let other tasks run from time to time."""
        for number, part in enumerate(self._parts(offset, length), 1):
            yield part
            if not number % _CHUNKS_PER_SLICE:
                await asyncio.sleep(0)
                self._check()

    async def _check_fenced(self) -> None:
        """Raise FencedError if a chunk is missing because another writer has replaced it."""
        if self._writer is not None:
            await self._writer.check_fenced()

    def _check(self) -> None:
        if self._writer is None:
            raise PermissionError(errno.EPERM, f"{self._where}: the disk was opened read-only")
        self._writer.check()
