"""What makes writes durable, and keeps others from writing."""

from __future__ import annotations

import asyncio
import errno
import logging
from array import array
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from ...aio.coalesce import CoalescedCall
from ...errors import STOP_EXCEPTIONS, StorageError
from .client import ObjectStore
from .journal import FencedError, Journal, record
from .keys import MAX_EPOCHS, first_version
from .lease import Holder, Lease
from .records import Kind
from .write_buffer import ChunkBuffer

logger = logging.getLogger(__name__)

_CHECKPOINT_INTERVAL = 256
"""After which the history is summed up, so that opening the disk stays quick."""


class Writer:
    """The one writer of a disk.

    Attributes:
        flush: stores what was written, and makes it part of the disk. Raises OSError if something
            could not be stored; it is kept, and the next flush tries again. Whoever comes while one
            is going on shares the next.

    Args:
        chunks: what is to be stored.
        journal: the disk's history, after :meth:`open`.
        objects: the disk's folder.
        lease: seconds; see :data:`.lease.DEFAULT_LEASE`.

    """

    def __init__(
        self, chunks: ChunkBuffer, journal: Journal, objects: ObjectStore, lease: float
    ) -> None:
        epoch = journal.state.epoch
        self._chunks = chunks
        self._journal = journal
        self._epoch = epoch
        self._lease = Lease(objects, epoch, lease)
        self._renewal = lease / 3
        self.size = journal.state.size
        """Bytes of the disk."""
        self.contents = journal.state.contents
        """What is stored: see :attr:`.DiskState.contents`."""
        self._journal_in_use = asyncio.Lock()
        self._fenced = ""
        self._unsure = False  # whether a record is there whose answer was lost
        # What is older may be part of a snapshot, if there are any; they are not read.
        self._newest_snapshot = journal.state.newest_snapshot
        self._deletes_from = first_version(epoch) if self._newest_snapshot else 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._deletions: set[asyncio.Task[None]] = set()
        self.flush = CoalescedCall(self._flush)
        chunks.chunk_store.start_epoch(epoch)

    @staticmethod
    async def open(journal: Journal) -> None:
        """Make this process the writer: others are fenced from now on.

        Raises:
            FencedError: another has just done so.
            OSError: the store fails.

        """
        if journal.state.epoch + 1 >= MAX_EPOCHS:
            reason = "the disk was opened a million times; copy it to a new one"
            raise StorageError(errno.EOVERFLOW, reason)
        await journal.add(record(Kind.OPEN, holder=str(Holder.this_process())))

    async def start(self) -> None:
        """Take the lease and keep it.

        Raises:
            FencedError: another has taken the disk over meanwhile.
            OSError: the store fails.

        """
        holder = await self._lease.renew()
        if holder is not None:
            raise FencedError(errno.EBUSY, f"taken over by {holder}")
        # An unclean end may have left records that are in the store's own memory only.
        await self._journal.checkpoint()
        self._spawn(self._renew_lease())

    def check(self) -> None:
        """Raise FencedError if another has become the writer."""
        if self._fenced:
            raise FencedError(errno.EIO, self._fenced)

    async def check_fenced(self) -> None:
        """Raise FencedError if another writer is why something fails: it deletes what it replaces.

        Raises:
            FencedError: so it is.
            OSError: the store fails.

        """
        async with self._journal_in_use:
            try:
                await self._journal.catch_up()
            finally:  # it may have come as far as the other's first record
                if self._journal.state.epoch != self._epoch:
                    self._fence(f"taken over by {self._journal.state.holder}")
                self.check()

    async def _flush(self) -> None:
        self.check()
        try:
            await self._chunks.store()
        except OSError:
            await self.check_fenced()
            raise
        async with self._journal_in_use:
            await self._commit()

    async def _commit(self) -> None:
        size, floor = self.size, self._chunks.chunk_store.floor
        changes, superseded = self._chunks.chunk_store.take_changes()
        if not changes and size == self._journal.state.size and not self._unsure:
            return
        new = record(
            Kind.COMMIT,
            size=size,
            floor=floor,
            indices=array("Q", changes),
            entries=array("Q", changes.values()),
        )
        try:
            await self._journal.add(new)
        except FencedError as exc:
            self._fence(exc.reason)
            raise
        except BaseException:
            self._unsure = True
            self._chunks.chunk_store.restore_changes(changes, superseded)
            raise
        self._unsure = False
        self.contents = new.nonce
        self._retain_for_snapshots()
        deletion = self._spawn(self._chunks.chunk_store.delete(superseded, self._deletes_from))
        self._deletions.add(deletion)
        deletion.add_done_callback(self._deletions.discard)
        if self._journal.state.sequence - self._journal.checkpointed >= _CHECKPOINT_INTERVAL:
            await self._checkpoint()

    def _retain_for_snapshots(self) -> None:
        newest = self._journal.state.newest_snapshot
        if newest > self._newest_snapshot:
            self._newest_snapshot, self._deletes_from = (
                newest,
                self._chunks.chunk_store.next_version,
            )

    async def _checkpoint(self) -> None:
        try:
            await self._journal.checkpoint()
        except OSError as exc:
            logger.warning("the history of the disk could not be summed up: %s", exc)

    async def _renew_lease(self) -> None:
        while not self._fenced:
            await asyncio.sleep(self._renewal)
            try:
                holder = await self._lease.renew()
            except STOP_EXCEPTIONS:
                raise
            except BaseException as exc:  # or it would not be renewed any more, and nobody told
                logger.warning("the lease on the disk could not be renewed: %r", exc)
            else:
                if holder is not None:
                    self._fence(f"taken over by {holder}")

    def _fence(self, reason: str) -> None:
        self._fenced = f"the disk was {reason}; what was not flushed is lost"
        logger.error("%s", self._fenced)

    async def close(self) -> None:
        """Flush, and let others write.

        Raises:
            OSError: not all could be stored.

        """
        try:
            if not self._fenced:
                await self.flush()
                await asyncio.gather(*self._deletions, return_exceptions=True)
                async with self._journal_in_use:
                    with suppress(FencedError):  # nothing of ours is lost by it
                        await self._journal.add(record(Kind.CLOSE))
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
            task.exception()  # whoever waited has it; nobody may be left
