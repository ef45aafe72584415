"""Say which parts of an open disk differ from its snapshots: a dirty bitmap for each of them.

What differs is found by :mod:`.comparing`, from the maps of the open state and of the snapshot. The
maps of the snapshots that were asked for last are kept, so that only the first call about one of
them makes a request.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping

from ...bitmaps import DirtyExtent
from ..bitset import runs as runs_of
from ..extents import MAX_EXTENTS
from .comparing import Comparison, Places
from .dirty_layers import DirtyLayers
from .disk import StoredDisk
from .extents import Run, Runs, lay_over
from .state import DiskState, Snapshot
from .view import DiskView

_MAX_STATES = 8  # snapshots whose maps are kept
_MAX_STEPS = 4096  # ranges that are compared for one reply
_MAX_CHUNKS = 1 << 17  # chunks that are looked up for one reply

_UNSTORED = -1  # the source of blocks that are in memory only: no entry has this value


class SnapshotBitmaps:
    """Compare an open disk with its snapshots.

    Concurrency: any number of calls.

    Args:
        disk: the disk.

    """

    def __init__(self, disk: StoredDisk) -> None:
        self._disk = disk
        self._chunk_size = disk.manifest.chunk_size
        self._block_size = disk.manifest.block_size
        self._states: OrderedDict[int, DiskState] = OrderedDict()  # by record, oldest use first
        self._loading = asyncio.Lock()

    async def extents(
        self,
        snapshots: Mapping[str, Snapshot],
        name: str,
        current: Callable[[], Places],
        offset: int,
        length: int,
    ) -> list[DirtyExtent]:
        """Return what differs from a snapshot; see :meth:`.SupportsDirtyBitmaps.dirty_extents`.

        Args:
            snapshots: of the disk.
            name: one of them.
            current: returns where the blocks of the open disk are now.
            offset: bytes.
            length: bytes.

        """
        state = await self._state(snapshots[name].sequence, name)
        before = Places(state.chunks, state.extents, state.size // self._block_size)
        comparison = Comparison(before, current(), self._block_size, self._chunk_size)
        found: list[DirtyExtent] = []
        end = min(offset + length, offset + _MAX_CHUNKS * self._chunk_size)
        for step, each in enumerate(comparison.walk(offset, end), 1):
            if found and found[-1].dirty == each.changed:
                found[-1] = DirtyExtent(found[-1].length + each.length, each.changed)
            elif len(found) == MAX_EXTENTS:
                break
            else:
                found.append(DirtyExtent(each.length, each.changed))
            if step == _MAX_STEPS:
                break
        return found

    async def _state(self, sequence: int, name: str) -> DiskState:
        """Return the state of a snapshot: from memory, or by a request.

        Raises:
            KeyError: it was dropped meanwhile.

        """
        async with self._loading:
            state = self._states.get(sequence) or await self._load(sequence, name)
            self._states[sequence] = state
            self._states.move_to_end(sequence)
            if len(self._states) > _MAX_STATES:
                self._states.popitem(last=False)
        return state

    async def _load(self, sequence: int, name: str) -> DiskState:
        try:
            return await self._disk.checkpoint(sequence)
        except FileNotFoundError:
            # It was dropped, or taken by a process that died before it had stored the state.
            journal = await self._disk.journal(writes=False)
            there = journal.state.snapshots.get(name)
            if there is None or there.sequence != sequence:
                raise KeyError(name) from None
            return await self._disk.state_in(journal, name)


class LivePlaces(Places):
    """Where the blocks of an open disk are at this moment, those that are not flushed too.

    Args:
        view: of the disk as it is stored.
        layers: what is dirty over it.
        blocks: of the disk.

    """

    def __init__(self, view: DiskView, layers: DirtyLayers, blocks: int) -> None:
        super().__init__(view.entries, view.extents, blocks)
        self._layers = layers

    def with_runs(self, indices: range) -> Iterable[int]:
        """See :class:`.Places`."""
        found = {*super().with_runs(indices)}
        for layer in (self._layers.dirty, self._layers.frozen, self._layers.storing):
            found.update(filter(layer.__contains__, indices))
        return found

    def runs(self, index: int) -> Runs:
        """See :class:`.Places`; blocks that are not flushed are in a place that no state has."""
        mask = 0
        for layer in self._layers.over(index):
            mask |= layer.mask
        dirty = [Run(first, end - first, _UNSTORED, 0) for first, end in runs_of(mask)]
        stored = super().runs(index)
        return tuple(lay_over(stored, dirty)) if dirty else stored
