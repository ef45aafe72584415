"""The journal of a disk: load its history, append records, write checkpoints, detect fencing.

The history is a sequence of numbered records (:mod:`.records`). A checkpoint stores the state after
one of them (:mod:`.state`); then the records before it are deleted. So a process that reads the
history, or appends to it, may be overtaken by another one's checkpoint at any time.

What holds here:

* A checkpoint is durable before anything that it replaces is deleted.
* The record of the newest checkpoint stays: its presence tells a reader that has found an older
  checkpoint that there is a newer one.
* Records that fence an unclosed writer stay (:attr:`.DiskState.fences`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ...aio.gather import run_bounded
from ...errors import StorageBusyError, StorageError
from .client import ObjectStore
from .codec import ObjectCodec, TornError, damaged_error
from .keys import LOG, MAP, checkpoint_key, record_key, sequences_of
from .manifest import Manifest
from .records import Record, RecordKind, read_record
from .state import DiskState, read_state

logger = logging.getLogger("aiovblk")

Check = Callable[[DiskState], object]

_FENCED = frozenset({RecordKind.COMMIT, RecordKind.CLOSE, RecordKind.CONVERT})
_WRITERS = _FENCED | {RecordKind.OPEN}

_READS = 32  # concurrent requests for records
_ATTEMPTS = 10  # to read a history while others write checkpoints; more if they make progress


class FencedError(StorageBusyError):
    """Another writer has taken the disk over: this one cannot change it any more."""


class _OvertakenError(Exception):
    """An object was deleted meanwhile, after a checkpoint; or it is lost."""


def record(kind: RecordKind, **fields: Any) -> Record:
    """Return a new record."""
    return Record(kind, secrets.token_hex(8), **fields)


class Journal:
    """Load and extend the history of one disk.

    Concurrency: one coroutine at a time may use it.

    Args:
        objects: the disk's folder.
        codec: of the disk.
        manifest: of the disk.
        writes: whether it may store anything: needed for a writer, and to append records.
        where: the disk's folder, for messages.

    """

    def __init__(
        self,
        objects: ObjectStore,
        codec: ObjectCodec,
        manifest: Manifest,
        *,
        writes: bool,
        where: str,
    ) -> None:
        self._objects = objects
        self._codec = codec
        self._manifest = manifest
        self._writes = writes
        self.where = where
        self.state: DiskState
        """After the last record that is known."""
        self.checkpointed = 0
        """The record of the newest checkpoint."""
        self._snapshot_states: dict[int, DiskState] = {}  # if not allowed to store them
        self._torn = 0  # the first of the torn records at the end, if any
        self._torn_checkpoints: set[int] = set()

    async def load(self) -> None:
        """Read the newest checkpoint, and the records after it.

        Raises:
            StorageError: an object is damaged, or one is missing.

        """
        left, before = _ATTEMPTS, -1
        while left:
            try:
                await self._load()
                return
            except _OvertakenError as exc:
                missing = str(exc)
            # If another process wrote a checkpoint, the next attempt finds it, and all attempts
            # begin anew. Otherwise it is damage.
            left = left - 1 if self.checkpointed == before else _ATTEMPTS
            before = self.checkpointed
        # Only a clone begins with a checkpoint, number 0.
        if missing == checkpoint_key(0) and self._torn_checkpoints <= {0}:
            reason = f"{self.where}: this clone was not finished; delete its folder"
            raise StorageError(errno.EIO, reason)
        if self._torn_checkpoints:
            missing = f"{checkpoint_key(max(self._torn_checkpoints))} is torn, and {missing}"
        reason = f"{self.where}: the history of the disk is damaged: {missing} is missing"
        raise StorageError(errno.EIO, reason)

    async def _load(self) -> None:
        await self._load_checkpoint()
        # Should a writer write a checkpoint meanwhile, and delete the records before it, the
        # record of that checkpoint stays, so that a gap is seen.
        after = record_key(self.checkpointed)
        numbers = sequences_of(await self._objects.list_objects(LOG, after=after))
        for expected, number in enumerate(numbers, self.checkpointed + 1):
            if number != expected:
                raise _OvertakenError(record_key(expected))
        records = await self._records([record_key(each) for each in numbers])
        # In place of a record that was deleted there may be one that does not count: see
        # _has_newer_records.
        if records and await self._newer_checkpoints(self.checkpointed):
            raise _OvertakenError(record_key(numbers[0]))
        self._torn = 0
        for each in records:
            if each is None:
                self.state.sequence += 1
                self._torn = self._torn or self.state.sequence
            else:
                await self._apply(each)
        if self._torn:
            name = self._codec.display_name(record_key(self._torn))
            logger.warning("%s was being written in a crash, and does not count", name)

    async def _load_checkpoint(self) -> None:
        """Read the newest checkpoint that is not torn."""
        self._torn_checkpoints = set()
        numbers = sorted(sequences_of(await self._objects.list_objects(MAP)), reverse=True) or [0]
        for number in numbers if numbers[-1] == 0 else [*numbers, 0]:
            self.checkpointed = number
            try:
                self.state = await self.state_at(number)
                return
            except FileNotFoundError:
                raise _OvertakenError(checkpoint_key(number)) from None
            except TornError:
                # What it replaces is still there: it is deleted only once this is durable.
                self._torn_checkpoints.add(number)
        raise _OvertakenError(checkpoint_key(0))

    async def _records(self, paths: list[str]) -> list[Record | None]:
        """Read records that a list has; None for one that is torn."""
        records: dict[str, Record | None] = {}

        async def read(path: str) -> None:
            try:
                records[path] = await self._record(path)
            except FileNotFoundError:
                raise _OvertakenError(path) from None
            except TornError:
                records[path] = None

        await run_bounded((partial(read, path) for path in paths), limit=_READS)
        return [records[path] for path in paths]

    async def state_at(self, sequence: int) -> DiskState:
        """Read a checkpoint, such as a snapshot's.

        Raises:
            FileNotFoundError: there is none of that number.
            StorageError: it is damaged.

        """
        if sequence in self._snapshot_states:
            return self._snapshot_states[sequence]
        path = checkpoint_key(sequence)
        try:
            data = await self._objects.get(path)
        except FileNotFoundError:
            if sequence or self._manifest.origins:
                raise
            return self._initial_state()
        shown = self._codec.display_name(path)
        block_size = self._manifest.block_size
        state = await asyncio.to_thread(
            lambda: read_state(self._codec.open(path, data), shown, block_size)
        )
        if len(state.chunks) != -(-state.size // self._manifest.chunk_size):
            # chunk_size may not be authenticated, see manifest.py.
            reason = f"it has {len(state.chunks)} chunks for {state.size} bytes"
            raise damaged_error(shown, reason)
        return state

    def _initial_state(self) -> DiskState:
        size = self._manifest.size
        return DiskState(size, array("Q", bytes(8 * -(-size // self._manifest.chunk_size))))

    async def catch_up(self) -> None:
        """Read the records that other processes have appended since."""
        while True:
            try:
                following = await self._record(record_key(self.state.sequence + 1))
            except FileNotFoundError:
                return
            await self._apply(following)

    async def add(self, new: Record, check: Check = lambda state: None) -> None:
        """Append a record, after all others: those of snapshots, and a fenced writer's.

        When this returns the record is durable. When it fails the record may have been appended all
        the same; the next call finds out.

        Args:
            new: the record.
            check: called with the state that it would follow; what it raises is passed on.

        Raises:
            FencedError: for a writer's record: another writer has opened the disk since the last
                record that was known.
            StorageBusyError: for a writer's first record: another writer has opened the disk since
                the history was read, and has written a checkpoint. Its lease has to be looked at.
            OSError: the store fails.

        """
        while True:
            check(self.state)
            there = await self._create_next(new)
            if there is None or (new.kind not in _FENCED and await self._has_newer_records()):
                if await self._is_part_of_history(new, there):
                    return
                continue
            await self._apply(there)
            if there.nonce == new.nonce:
                return
            if there.kind is RecordKind.OPEN and new.kind in _WRITERS:
                raise self.fenced_error(there.holder)

    def fenced_error(self, holder: object) -> FencedError:
        """Return the error of a writer that has lost the disk to ``holder``."""
        return FencedError(errno.EBUSY, f"{self.where}: taken over by {holder}")

    async def _create_next(self, new: Record) -> Record | None:
        """Create the next record by a conditional put, and return the one that is there now.

        That is the new one, another process's, or our own of an earlier attempt whose response was
        lost. None if there was one that has been deleted again.
        """
        path = record_key(self.state.sequence + 1)
        data = replace(new, torn=self._torn).encode()
        try:
            await self._objects.create(path, self._codec.seal(path, data))
        except FileExistsError:
            try:
                return await self._record(path)
            except FileNotFoundError:
                if new.kind in _FENCED:
                    raise  # impossible, see _has_newer_records
                return None
        return replace(new, torn=self._torn)

    async def _has_newer_records(self) -> bool:
        """Whether the record just created may not count, because there was one in its place before.

        That one may have been deleted after a checkpoint, since the history was read. Not so the
        records that a writer finds where it appends its own: they stay, see
        :attr:`.DiskState.fences`. A list shows it: a checkpoint is always there before a record is
        deleted. It does no harm that the list also has snapshots' states of later records.
        """
        return bool(await self._newer_checkpoints(self.state.sequence + 1))

    async def _newer_checkpoints(self, sequence: int) -> list[int]:
        listed = await self._objects.list_objects(MAP, after=checkpoint_key(sequence))
        numbers = sequences_of(listed)
        return [number for number in numbers if number not in self._torn_checkpoints]

    async def _is_part_of_history(self, new: Record, there: Record | None) -> bool:
        """Load the history again; return whether it has a record, or a checkpoint reflects it."""
        sequence, epoch = self.state.sequence + 1, self.state.epoch
        await self.load()
        may_be_ours = there is None or there.nonce == new.nonce
        if may_be_ours and self.state.reflects(new, sequence):
            return True
        if new.kind is RecordKind.OPEN and self.state.epoch != epoch:
            reason = (
                f"{self.where}: another has opened the disk meanwhile, {self.state.holder};"
                " see whether it still writes, and try again"
            )
            raise StorageBusyError(errno.EAGAIN, reason)
        return False

    async def checkpoint(self) -> int:
        """Store the state as a checkpoint; delete the records, and the checkpoint, before it.

        Returns:
            Bytes of the checkpoint; 0 if there is one of this state already.

        Raises:
            OSError: the store fails. Nothing is lost by that.

        Concurrency: a writer's records may be added meanwhile, which follow the checkpoint.

        """
        state = self.state.copy()
        if state.sequence == self.checkpointed:
            return 0
        size = await self._store(state)
        before, self.checkpointed = self.checkpointed, state.sequence
        kept = {each.sequence for each in state.snapshots.values()}
        superseded = {before, *self._torn_checkpoints} - kept - {state.sequence}
        await self._objects.delete([checkpoint_key(each) for each in superseded])
        self._torn_checkpoints = set()
        numbers = sequences_of(await self._objects.list_objects(LOG))
        await self._objects.delete(
            [record_key(each) for each in numbers if is_superseded(each, state)]
        )
        return size

    async def _store(self, state: DiskState) -> int:
        path = checkpoint_key(state.sequence)
        seal = partial(self._codec.seal, path)
        encode = partial(state.encode, self._manifest.block_size)
        sealed = await asyncio.to_thread(lambda: seal(encode()))
        await self._objects.put(path, sealed)
        return len(sealed)

    async def _record(self, path: str) -> Record:
        contents = self._codec.open(path, await self._objects.get(path))
        return read_record(contents, self._codec.display_name(path), self._manifest.block_size)

    async def _apply(self, following: Record) -> None:
        if following.torn != self._torn:
            name = self._codec.display_name(record_key(self._torn or following.torn))
            raise damaged_error(name, "it is torn, or was; a later one rests on what was there")
        self._torn = 0
        if following.kind is RecordKind.SNAPSHOT:
            state = self.state.copy()
            state.apply(following, self._manifest.chunk_size)
            # The process that took the snapshot may have died before it stored the state. If this
            # fails, the record is read again.
            if self._writes:
                await self._store(state)
            else:
                self._snapshot_states[state.sequence] = state
        self.state.apply(following, self._manifest.chunk_size)


def is_superseded(number: int, state: DiskState) -> bool:
    """Whether a record is no longer needed once a checkpoint of this state is stored.

    The checkpoint's own record is needed: its presence tells a reader that has found an older
    checkpoint that this one exists.
    """
    return number < state.sequence and not any(
        first <= number <= last for first, last in state.fences
    )
