"""The one writer of a disk: flush (group commit), lease renewal, fencing, checkpoints.

A flush stores chunks of which all is dirty; the other dirty blocks go into segments if they are
many, and otherwise into the COMMIT record itself, so that a small flush is one put. Only after the
record are the objects deleted that nothing needs any more. Flushes that are requested while one
runs share the next (group commit). When another writer's OPEN record is found, this one is
*fenced*: all its requests fail from then on.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from array import array
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import Any

from ...aio.coalesce import CoalescedCall
from ...errors import STOP_EXCEPTIONS, StorageError
from .compactor import Compactor
from .disk import StoredDisk
from .journal import FencedError, Journal, record
from .keys import MAX_EPOCHS, first_version
from .lease import Holder, Lease
from .limits import Limits
from .records import RecordKind
from .state import Snapshot
from .write_buffer import ChunkBuffer

logger = logging.getLogger("aiovblk")

_CHECKPOINT_INTERVAL = 256
"""Records after which a checkpoint is written, so that opening the disk stays quick."""
_MAX_CHECKPOINT_INTERVAL = 1024
"""The same where checkpoints are large."""
_CHECKPOINT_BYTES = 1024
"""Bytes of a checkpoint for each record between two, from which on they are large."""


class Writer:
    """Make writes durable, and keep the lease.

    Concurrency: any number of calls. Only one coroutine at a time adds records to the journal.

    Attributes:
        flush: stores all that is dirty, and commits it to the disk's history. Calls during a flush
            are coalesced: they share the next one. Raises OSError if something could not be stored;
            it is kept, and the next flush tries again.

    Args:
        buffer: what is dirty.
        journal: the disk's history, after :meth:`open`.
        disk: the disk.
        limits: of the disk.
        lease: seconds; see :data:`.lease.DEFAULT_LEASE`.

    """

    def __init__(
        self,
        buffer: ChunkBuffer,
        journal: Journal,
        disk: StoredDisk,
        limits: Limits,
        lease: float,
    ) -> None:
        epoch = journal.state.epoch
        self._buffer = buffer
        self._chunk_store = buffer.chunk_store
        self._view = buffer.chunk_store.view
        self._journal = journal
        self._limits = limits
        self._epoch = epoch
        self._lease = Lease(disk.objects, epoch, lease)
        self._renewal_interval = lease / 3
        self.size = journal.state.size
        """Bytes of the disk; a change is committed by the next flush."""
        self.contents = journal.state.contents
        """Identifies the data that is committed; see :attr:`.DiskState.contents`."""
        self._journal_lock = asyncio.Lock()
        self._fenced = ""  # why, once it is
        self._commit_unknown = False  # whether a record may be there whose response was lost
        self._block_size = disk.manifest.block_size
        self._logged = 0  # bytes of data in records since the last checkpoint
        self._interval = _CHECKPOINT_INTERVAL
        # Older versions may be part of snapshots, if there are any; those are not read to find out.
        self._newest_snapshot = journal.state.newest_snapshot
        self._deletes_from = first_version(epoch) if self._newest_snapshot else 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._deletions: set[asyncio.Task[None]] = set()
        self.flush = CoalescedCall(self._flush)
        self._compactor = Compactor(self._chunk_store, self, disk.manifest, limits, disk.where)
        self._compaction: asyncio.Task[None] | None = None
        buffer.flush = self.flush
        self._chunk_store.start_epoch(epoch)

    @staticmethod
    async def open(journal: Journal) -> None:
        """Make this process the writer, by an OPEN record: earlier writers are fenced from now on.

        Raises:
            FencedError: another process has just done so.
            OSError: the store fails.

        """
        if journal.state.epoch + 1 >= MAX_EPOCHS:
            reason = (
                f"{journal.where} was opened {MAX_EPOCHS} times, the most; copy it to a new disk"
            )
            raise StorageError(errno.EOVERFLOW, reason)
        await journal.add(record(RecordKind.OPEN, holder=str(Holder.this_process())))

    async def start(self) -> None:
        """Take the lease, and renew it in the background.

        Raises:
            FencedError: another writer has taken the disk over meanwhile.
            OSError: the store fails.

        """
        holder = await self._lease.renew()
        if holder is not None:
            raise self._journal.fenced_error(holder)
        # A crash may have left records that the store itself has in memory only.
        await self.write_checkpoint()
        self._spawn(self._renew_lease())
        self._compaction = self._spawn(self._compactor.run())
        self._compactor.notify()

    def check(self) -> None:
        """Raise FencedError if another process is known to have become the writer."""
        if self._fenced:
            raise FencedError(errno.EIO, self._fenced)

    def _check_epoch(self) -> None:
        """Raise FencedError if another writer's OPEN record is part of the history that is known.

        To be called with the journal's lock, before a record is added: the journal reports that
        OPEN record only to a reader that has found it, and adds all others behind it.
        """
        if self._journal.state.epoch != self._epoch and not self._fenced:
            self._fence(self._journal.fenced_error(self._journal.state.holder).reason)
        self.check()

    @property
    def snapshots(self) -> Mapping[str, Snapshot]:
        """The disk's snapshots, as far as the history is known."""
        return self._journal.state.snapshots

    async def check_fenced(self) -> None:
        """Read the history on, to find out whether another writer is the reason of a failure.

        Another writer deletes the objects that it replaces, so this one finds them missing.

        Raises:
            FencedError: there is another writer.
            OSError: the store fails.

        """
        async with self._journal_lock:
            try:
                await self._journal.catch_up()
            finally:  # after a failure, too: the other's OPEN record may have been read
                self._check_epoch()

    async def _flush(self) -> None:
        self.check()
        try:
            await self._compactor.make_room()
            await self._buffer.store(self._limits.inline_size - self._view.unsaid)
        except OSError:
            await self.check_fenced()
            raise
        async with self._journal_lock:
            self._check_epoch()
            self._buffer.commit()
            await self._commit()

    async def commit_moved(self) -> None:
        """See :class:`.compactor.Log`."""
        async with self._journal_lock:
            self._check_epoch()
            await self._commit()

    async def _commit(self) -> None:
        """Append a COMMIT record of what has changed in the view since the last one."""
        size, floor = self.size, self._chunk_store.floor
        changes, runs, data = self._view.take_changes()
        resized = size != self._journal.state.size or self._commit_unknown
        if not changes and not resized:
            self._view.restore_changes(changes)  # what is superseded waits for the next record
            return
        sizes = self._view.extents.sizes
        sources = {run.source for _, run in runs if isinstance(run.source, int) and run.source}
        new = record(
            RecordKind.COMMIT,
            size=size,
            floor=floor,
            moved=not changes.has_data and not resized,
            indices=array("Q", changes.entries),
            entries=array("Q", changes.entries.values()),
            sources=[(source, sizes[source]) for source in sorted(sources)],
            runs=runs,
            data=data,
        )
        try:
            await self._journal.add(new)
        except FencedError as exc:
            self._fence(exc.reason)
            raise
        except BaseException:
            self._commit_unknown = True
            self._view.restore_changes(changes)
            raise
        self._commit_unknown = False
        self._logged += len(data)
        if not new.moved:
            self.contents = new.nonce
        self._retain_for_snapshots()
        deletion = self._spawn(self._chunk_store.delete(changes.superseded, self._deletes_from))
        self._deletions.add(deletion)
        deletion.add_done_callback(self._deletions.discard)
        self._compactor.notify()

    def _retain_for_snapshots(self) -> None:
        """Once a snapshot was taken, delete only chunks that were stored after it."""
        newest = self._journal.state.newest_snapshot
        if newest > self._newest_snapshot:
            self._newest_snapshot = newest
            self._deletes_from = self._chunk_store.next_version

    def checkpoint_due(self) -> bool:
        """See :class:`.compactor.Log`."""
        records = self._journal.state.sequence - self._journal.checkpointed
        return records >= self._interval or self._logged >= self._limits.segment_size

    async def write_checkpoint(self) -> None:
        """See :class:`.compactor.Log`.

        Raises:
            OSError: the store fails. Nothing is lost by that.

        """
        size = await self._journal.checkpoint()
        self._logged = self._view.extents.inline * self._block_size
        large = size // _CHECKPOINT_BYTES
        self._interval = max(_CHECKPOINT_INTERVAL, min(large, _MAX_CHECKPOINT_INTERVAL))

    async def _renew_lease(self) -> None:
        while not self._fenced:
            await asyncio.sleep(self._renewal_interval)
            try:
                holder = await self._lease.renew()
            except STOP_EXCEPTIONS:
                raise
            except BaseException as exc:  # otherwise renewal would end silently
                logger.warning(
                    "%s: renewing the lease failed, tried again in %.0f s: %r",
                    self._journal.where,
                    self._renewal_interval,
                    exc,
                )
            else:
                if holder is not None:
                    self._fence(self._journal.fenced_error(holder).reason)

    def _fence(self, reason: str) -> None:
        """Fail all requests from now on."""
        self._fenced = f"{reason}; what was not flushed is lost"
        logger.error("%s", self._fenced)

    async def close(self) -> None:
        """Flush, append a CLOSE record, and release the lease, so that others can write at once.

        Raises:
            OSError: not everything could be stored.

        """
        try:
            if self._compaction is not None:
                self._compaction.cancel()
                await asyncio.wait([self._compaction])
            if not self._fenced:
                await self.flush()
                await asyncio.gather(*self._deletions, return_exceptions=True)
                async with self._journal_lock:
                    with suppress(FencedError):  # everything of ours is committed
                        self._check_epoch()
                        await self._journal.add(record(RecordKind.CLOSE))
                await self._lease.release()
        finally:
            await self._end()

    async def _end(self) -> None:
        await self.flush.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieve it: a deletion that fails only leaves garbage
