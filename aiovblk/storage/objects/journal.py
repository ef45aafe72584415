"""The history of a disk: read, added to, summed up."""

from __future__ import annotations

import asyncio
import errno
import secrets
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

from ...errors import StorageBusyError, StorageError
from ..together import drain
from .description import Description
from .names import LOG, MAP, log_name, map_name, numbers_in
from .records import Kind, Record, read_record
from .sealing import Sealing
from .state import State, read_state
from .store import Objects

Check = Callable[[State], object]

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
        sealing: how its objects are sealed.
        description: of the disk.
        writes: whether it may store anything: what a writer, or whoever adds a record, must.

    """

    def __init__(
        self, objects: Objects, sealing: Sealing, description: Description, *, writes: bool
    ) -> None:
        self._objects = objects
        self._sealing = sealing
        self._description = description
        self._writes = writes
        self.state: State
        """After the last record that is known."""
        self.summed_up = 0
        """The record up to which a state is stored."""
        self._passed: dict[int, State] = {}

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
            left = left - 1 if self.summed_up == before else _ATTEMPTS
            before = self.summed_up
        if missing == map_name(0):  # only a clone begins with one
            raise StorageError(errno.EIO, "this clone was not finished; delete its folder")
        raise StorageError(errno.EIO, f"the history of the disk is damaged: {missing} is missing")

    async def _load(self) -> None:
        self.summed_up = max(numbers_in(await self._objects.find(MAP)), default=0)
        try:
            self.state = await self.state_at(self.summed_up)
        except FileNotFoundError:
            raise _OvertakenError(map_name(self.summed_up)) from None
        # Should a writer sum up meanwhile and delete what it summed up, the record of its new state
        # is there still, and so a gap is seen.
        after = log_name(self.summed_up)
        numbers = numbers_in(await self._objects.find(LOG, after=after))
        for following, there in enumerate(numbers, self.summed_up + 1):
            if there != following:
                raise _OvertakenError(log_name(following))
        records = await self._records([log_name(each) for each in numbers])
        # In the place of one that was deleted there may be one that does not count: see _went_on.
        if records and await self._newer_states(self.summed_up):
            raise _OvertakenError(log_name(numbers[0]))
        for each in records:
            await self._follow(each)

    async def _records(self, paths: list[str]) -> list[Record]:
        """Read records that a list has."""
        found: dict[str, Record] = {}

        async def read(path: str) -> None:
            try:
                found[path] = await self._record(path)
            except FileNotFoundError:
                raise _OvertakenError(path) from None

        await drain((partial(read, path) for path in paths), most=_READS)
        return [found[path] for path in paths]

    async def state_at(self, sequence: int) -> State:
        """Read a state.

        Raises:
            FileNotFoundError: it is not stored.
            StorageError: it is damaged.

        """
        if sequence in self._passed:
            return self._passed[sequence]
        path = map_name(sequence)
        try:
            data = await self._objects.get(path)
        except FileNotFoundError:
            if sequence or self._description.origins:
                raise
            return self._beginning()
        return await asyncio.to_thread(lambda: read_state(self._sealing.open(path, data), path))

    def _beginning(self) -> State:
        size = self._description.size
        return State(size, array("Q", bytes(8 * -(-size // self._description.chunk_size))))

    async def catch_up(self) -> None:
        """Read the records that were added since."""
        while True:
            try:
                following = await self._record(log_name(self.state.sequence + 1))
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
            if there is None or (new.kind not in _FENCED and await self._went_on()):
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
        path = log_name(self.state.sequence + 1)
        try:
            await self._objects.create(path, self._sealing.seal(path, new.encode()))
        except FileExistsError:
            try:
                return await self._record(path)
            except FileNotFoundError:
                if new.kind in _FENCED:
                    raise  # cannot be, see _went_on
                return None
        return new

    async def _went_on(self) -> bool:
        """Whether the next record may be none that counts, because there was one in its place.

        It may have been summed up and deleted since the history was read. Not those that a writer
        finds where it adds its own: they stay, see :attr:`.State.fences`. A list tells: the state
        is always there before a record is deleted. That states of snapshots are there too, whose
        records go on from this one, does no harm.
        """
        return bool(await self._newer_states(self.state.sequence + 1))

    async def _newer_states(self, sequence: int) -> list[int]:
        return numbers_in(await self._objects.find(MAP, after=map_name(sequence)))

    async def _is_part_of_history(self, new: Record, there: Record | None) -> bool:
        """Read the history again, and whether it has a record, which may be summed up by now."""
        sequence, epoch = self.state.sequence + 1, self.state.epoch
        await self.load()
        may_be_ours = there is None or there.nonce == new.nonce
        if may_be_ours and self.state.shows(new, sequence):
            return True
        if new.kind is Kind.OPEN and self.state.epoch != epoch:
            reason = "another has opened the disk meanwhile; see who writes to it, and try again"
            raise StorageBusyError(errno.EAGAIN, reason)
        return False

    async def sum_up(self) -> None:
        """Store the state, and delete the records, and the last state, that it makes superfluous.

        Raises:
            OSError: the store fails. Nothing is lost by that.

        """
        state = self.state.copy()
        if state.sequence == self.summed_up:
            return
        await self._store(state)
        before, self.summed_up = self.summed_up, state.sequence
        if before not in {each.sequence for each in state.snapshots.values()}:
            await self._objects.delete([map_name(before)])
        numbers = numbers_in(await self._objects.find(LOG))
        await self._objects.delete([log_name(each) for each in numbers if superfluous(each, state)])

    async def _store(self, state: State) -> None:
        path = map_name(state.sequence)
        seal = partial(self._sealing.seal, path)
        await self._objects.put(path, await asyncio.to_thread(lambda: seal(state.encode())))

    async def _record(self, path: str) -> Record:
        return read_record(self._sealing.open(path, await self._objects.get(path)), path)

    async def _follow(self, following: Record) -> None:
        if following.kind is Kind.SNAPSHOT:
            state = self.state.copy()
            state.apply(following, self._description.chunk_size)
            # Whoever took it may have died before this. If it fails the record is met again.
            if self._writes:
                await self._store(state)
            else:
                self._passed[state.sequence] = state
        self.state.apply(following, self._description.chunk_size)


def superfluous(number: int, state: State) -> bool:
    """Whether a record is needed no more once a state is stored.

    The state's own record is: its being there tells a reader, who has found an older state, that
    this one exists.
    """
    return number < state.sequence and not any(
        first <= number <= last for first, last in state.fences
    )
