"""The history of a disk: read, added to, summed up."""

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
from .records import Kind, Record, read_record
from .state import DiskState, read_state

logger = logging.getLogger(__name__)

Check = Callable[[DiskState], object]

_FENCED = frozenset({Kind.COMMIT, Kind.CLOSE})
_WRITERS = _FENCED | {Kind.OPEN}

_READS = 32  # records that are read at the same time
_ATTEMPTS = 10  # to read a history that is not summed up meanwhile


class FencedError(StorageBusyError):
    """Another writer has opened the disk since; nothing of ours gets into it any more."""


class _OvertakenError(Exception):
    """What was to be read has been summed up and deleted meanwhile, or is lost."""


def record(kind: Kind, **fields: Any) -> Record:
    """Return a new record."""
    return Record(kind, secrets.token_hex(8), **fields)


class Journal:
    """The history of one disk, as far as it is known here.

    Concurrency: one coroutine at a time may use it.

    Args:
        objects: the disk's folder.
        codec: how its objects are sealed.
        manifest: of the disk.
        writes: whether it may store anything: what a writer, or whoever adds a record, must.

    """

    def __init__(
        self, objects: ObjectStore, codec: ObjectCodec, manifest: Manifest, *, writes: bool
    ) -> None:
        self._objects = objects
        self._codec = codec
        self._manifest = manifest
        self._writes = writes
        self.state: DiskState
        """After the last record that is known."""
        self.checkpointed = 0
        """The record up to which a state is stored."""
        self._passed: dict[int, DiskState] = {}
        self._torn = 0  # the first of the last records that are torn, if they are
        self._torn_states: set[int] = set()

    async def load(self) -> None:
        """Read the newest state, and the records after it.

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
            # Whoever was overtaken finds a newer state the next time; else it is damage.
            left = left - 1 if self.checkpointed == before else _ATTEMPTS
            before = self.checkpointed
        if missing == checkpoint_key(0) and self._torn_states <= {
            0
        }:  # only a clone begins with one
            raise StorageError(errno.EIO, "this clone was not finished; delete its folder")
        if self._torn_states:
            missing = f"{checkpoint_key(max(self._torn_states))} is torn, and {missing}"
        raise StorageError(errno.EIO, f"the history of the disk is damaged: {missing} is missing")

    async def _load(self) -> None:
        await self._load_state()
        # Should a writer sum up meanwhile and delete what it summed up, the record of its new state
        # is there still, and so a gap is seen.
        after = record_key(self.checkpointed)
        numbers = sequences_of(await self._objects.list_objects(LOG, after=after))
        for following, there in enumerate(numbers, self.checkpointed + 1):
            if there != following:
                raise _OvertakenError(record_key(following))
        records = await self._records([record_key(each) for each in numbers])
        # In the place of one that was deleted there may be one that does not count: see _went_on.
        if records and await self._newer_states(self.checkpointed):
            raise _OvertakenError(record_key(numbers[0]))
        self._torn = 0
        for each in records:
            if each is None:
                self.state.sequence += 1
                self._torn = self._torn or self.state.sequence
            else:
                await self._follow(each)
        if self._torn:
            name = record_key(self._torn)
            logger.warning("%s was being written in a crash, and does not count", name)

    async def _load_state(self) -> None:
        """Read the newest state that is whole."""
        self._torn_states = set()
        numbers = sorted(sequences_of(await self._objects.list_objects(MAP)), reverse=True) or [0]
        for number in numbers if numbers[-1] == 0 else [*numbers, 0]:
            self.checkpointed = number
            try:
                self.state = await self.state_at(number)
                return
            except FileNotFoundError:
                raise _OvertakenError(checkpoint_key(number)) from None
            except TornError:
                # Nothing is deleted that a state sums up before that is durable.
                self._torn_states.add(number)
        raise _OvertakenError(checkpoint_key(0))

    async def _records(self, paths: list[str]) -> list[Record | None]:
        """Read records that a list has; None for one that is torn."""
        found: dict[str, Record | None] = {}

        async def read(path: str) -> None:
            try:
                found[path] = await self._record(path)
            except FileNotFoundError:
                raise _OvertakenError(path) from None
            except TornError:
                found[path] = None

        await run_bounded((partial(read, path) for path in paths), limit=_READS)
        return [found[path] for path in paths]

    async def state_at(self, sequence: int) -> DiskState:
        """Read a state.

        Raises:
            FileNotFoundError: it is not stored.
            StorageError: it is damaged.

        """
        if sequence in self._passed:
            return self._passed[sequence]
        path = checkpoint_key(sequence)
        try:
            data = await self._objects.get(path)
        except FileNotFoundError:
            if sequence or self._manifest.origins:
                raise
            return self._initial_state()
        state = await asyncio.to_thread(lambda: read_state(self._codec.open(path, data), path))
        if len(state.chunks) != -(-state.size // self._manifest.chunk_size):
            # What says how large chunks are may not be authenticated, see description.py.
            raise damaged_error(path, f"it has {len(state.chunks)} chunks for {state.size} bytes")
        return state

    def _initial_state(self) -> DiskState:
        size = self._manifest.size
        return DiskState(size, array("Q", bytes(8 * -(-size // self._manifest.chunk_size))))

    async def catch_up(self) -> None:
        """Read the records that were added since."""
        while True:
            try:
                following = await self._record(record_key(self.state.sequence + 1))
            except FileNotFoundError:
                return
            await self._follow(following)

    async def add(self, new: Record, check: Check = lambda state: None) -> None:
        """Add a record after all others, which are those of snapshots, and a fenced writer's.

        When this returns it is durable. When it fails it may still have been added; the next call
        finds that out.

        Args:
            new: the record.
            check: called with the state that it would follow; what it raises comes out.

        Raises:
            FencedError: a writer's record: another has opened the disk since the last one that was
                known.
            StorageBusyError: a writer's first one: another has opened the disk since the history
                was read, and summed it up. Whether that one lives has to be seen anew.
            OSError: the store fails.

        """
        while True:
            check(self.state)
            there = await self._create_next(new)
            if there is None or (new.kind not in _FENCED and await self._has_newer_records()):
                if await self._is_part_of_history(new, there):
                    return
                continue
            await self._follow(there)
            if there.nonce == new.nonce:
                return
            if there.kind is Kind.OPEN and new.kind in _WRITERS:
                raise FencedError(errno.EBUSY, f"taken over by {there.holder}")

    async def _create_next(self, new: Record) -> Record | None:
        """Return the record that is the next one now; None if there was one that is gone again.

        It is the new one, too, if an earlier attempt has made it, whose answer was lost.
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
                    raise  # cannot be, see _went_on
                return None
        return replace(new, torn=self._torn)

    async def _has_newer_records(self) -> bool:
        """Whether the next record may be none that counts, because there was one in its place.

        It may have been summed up and deleted since the history was read. Not those that a writer
        finds where it adds its own: they stay, see :attr:`.DiskState.fences`. A list tells: the state
        is always there before a record is deleted. That states of snapshots are there too, whose
        records go on from this one, does no harm.
        """
        return bool(await self._newer_states(self.state.sequence + 1))

    async def _newer_states(self, sequence: int) -> list[int]:
        found = sequences_of(await self._objects.list_objects(MAP, after=checkpoint_key(sequence)))
        return [number for number in found if number not in self._torn_states]

    async def _is_part_of_history(self, new: Record, there: Record | None) -> bool:
        """Read the history again, and whether it has a record, which may be summed up by now."""
        sequence, epoch = self.state.sequence + 1, self.state.epoch
        await self.load()
        may_be_ours = there is None or there.nonce == new.nonce
        if may_be_ours and self.state.reflects(new, sequence):
            return True
        if new.kind is Kind.OPEN and self.state.epoch != epoch:
            reason = "another has opened the disk meanwhile; see who writes to it, and try again"
            raise StorageBusyError(errno.EAGAIN, reason)
        return False

    async def checkpoint(self) -> None:
        """Store the state, and delete the records, and the last state, that it makes superfluous.

        Raises:
            OSError: the store fails. Nothing is lost by that.

        """
        state = self.state.copy()
        if state.sequence == self.checkpointed:
            return
        await self._store(state)
        before, self.checkpointed = self.checkpointed, state.sequence
        kept = {each.sequence for each in state.snapshots.values()}
        superseded = {before, *self._torn_states} - kept - {state.sequence}
        await self._objects.delete([checkpoint_key(each) for each in superseded])
        self._torn_states = set()
        numbers = sequences_of(await self._objects.list_objects(LOG))
        await self._objects.delete(
            [record_key(each) for each in numbers if superfluous(each, state)]
        )

    async def _store(self, state: DiskState) -> None:
        path = checkpoint_key(state.sequence)
        seal = partial(self._codec.seal, path)
        await self._objects.put(path, await asyncio.to_thread(lambda: seal(state.encode())))

    async def _record(self, path: str) -> Record:
        return read_record(self._codec.open(path, await self._objects.get(path)), path)

    async def _follow(self, following: Record) -> None:
        if following.torn != self._torn:
            reason = "it is torn, or was; a later one rests on what was there"
            raise damaged_error(record_key(self._torn or following.torn), reason)
        self._torn = 0
        if following.kind is Kind.SNAPSHOT:
            state = self.state.copy()
            state.apply(following, self._manifest.chunk_size)
            # Whoever took it may have died before this. If it fails the record is met again.
            if self._writes:
                await self._store(state)
            else:
                self._passed[state.sequence] = state
        self.state.apply(following, self._manifest.chunk_size)


def superfluous(number: int, state: DiskState) -> bool:
    """Whether a record is needed no more once a state is stored.

    The state's own record is: its being there tells a reader, who has found an older state, that
    this one exists.
    """
    return number < state.sequence and not any(
        first <= number <= last for first, last in state.fences
    )
