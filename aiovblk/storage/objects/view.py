"""A writer's view of the disk: its chunks and extents, ahead of the disk's history.

What holds here:

* What has changed in the view is collected, for the next record. When that is added, the state
  after it is this view at the moment when the changes were taken.
* The view is never put back. If a record fails, which may have been added all the same, what it
  said becomes part of the next one; so both histories end in the same state.
* The size changes together with the blocks: a record that says a new size also says that what lies
  between the end and the end of its chunk is zeroes, at a shrink as at a grow. So a crash between
  any two records brings nothing back that was cut off. What is stored later from before a shrink
  is cut off likewise.
* An object is superseded when nothing in the view needs it. It may be deleted only when a record is
  durable that was made after that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress

from ..bitset import runs as runs_of
from .dirty_chunk import block_mask
from .extents import ZEROES, Placed, Run, Runs, changed_since, clip, gather
from .keys import entry_parts
from .manifest import Manifest
from .object_reader import StoredObject
from .state import DiskState, resize


@dataclass(slots=True)
class Changes:
    """What a record has to say: how the view differs from the disk's history."""

    entries: dict[int, int] = field(default_factory=dict)
    """Chunks that have a new entry, and of which all runs have to be said."""
    blocks: dict[int, int] = field(default_factory=dict)
    """Blocks as a bit mask for each chunk, whose runs have to be said where not all have to be."""
    superseded: list[tuple[int, StoredObject]] = field(default_factory=list)
    """Versions and objects that nothing needs, once all this is durable."""
    has_data: bool = False
    """Whether the disk's contents have changed; otherwise they were only moved."""

    def __bool__(self) -> bool:
        """Whether there is anything to say."""
        return bool(self.entries or self.blocks)

    def add_older(self, older: Changes) -> None:
        """Add those of a record that may not have been added; newer ones win."""
        self.entries = {**older.entries, **self.entries}
        for index, mask in older.blocks.items():
            self.blocks[index] = self.blocks.get(index, 0) | mask
        self.superseded = older.superseded + self.superseded
        self.has_data |= older.has_data


class DiskView:
    """Where each block of an open disk is, and what has changed since the last record.

    Args:
        manifest: of the disk.
        state: of the disk; copied.

    """

    def __init__(self, manifest: Manifest, state: DiskState) -> None:
        self._chunk_size = manifest.chunk_size
        self._block_size = manifest.block_size
        self._chunk_blocks = manifest.chunk_size // manifest.block_size
        self._blocks = state.size // manifest.block_size
        self.entries = state.chunks[:]
        """The current entry of each chunk; see :mod:`.keys`."""
        self.extents = state.extents.copy()
        """The runs over them."""
        self._changes = Changes()
        self._folding: set[int] = set()

    def entry(self, index: int) -> int:
        """Return the current entry of a chunk (see :mod:`.keys`); 0 if it was cut off."""
        return self.entries[index] if index < len(self.entries) else 0

    def blocks_of(self, index: int) -> int:
        """Return how many blocks of a chunk are within the disk; 0 if it was cut off."""
        return max(0, min(self._chunk_blocks, self._blocks - index * self._chunk_blocks))

    def is_zero(self, index: int) -> bool:
        """Whether a chunk is known to be zeroes, without reading it."""
        zero = all(run.source == ZEROES for run in self.extents.runs(index))
        return zero and not self.entry(index)

    def chunk(self, index: int, entry: int) -> StoredObject:
        """Return the object of a chunk."""
        return StoredObject(entry, index, self._chunk_size)

    def segment(self, entry: int) -> StoredObject:
        """Return the object of a segment that has runs."""
        return StoredObject(entry, -1, self.extents.sizes[entry] * self._block_size)

    # Changes

    def set_entry(self, index: int, entry: int) -> None:
        """Make this the current entry of a chunk; the previous one and its runs are superseded."""
        self._folding.discard(index)
        if self._replace(index, entry, ()):
            self._changes.has_data = True

    def discard(self, index: int, entry: int) -> None:
        """Let a chunk be deleted that was stored, and was replaced before it became current."""
        self._supersede(index, entry)

    def lay(self, placed: Iterable[Placed], sizes: Mapping[int, int]) -> None:
        """Lay runs with new data over the chunks, but for what was cut off since.

        Args:
            placed: the runs.
            sizes: blocks of the segments that they are in.

        """
        inside: list[Placed] = []
        for index, run in placed:
            end = min(run.end, self.blocks_of(index))
            if run.first < end:
                inside.append((index, run.part(run.first, end)))
        self._lay(inside, sizes)
        self._changes.has_data = True

    def clear_from(self, index: int, first: int) -> None:
        """Make the last blocks of a chunk zeroes, from ``first`` on, unless they are known to be.

        They may lie beyond the end of the disk.
        """
        runs = clip(self.extents.runs(index), first, self._chunk_blocks)
        blocks = self._chunk_blocks - first
        covered = not self.entry(index) or sum(run.blocks for run in runs) == blocks
        if not (covered and all(run.source == ZEROES for run in runs)):
            self._lay([(index, Run(first, blocks, ZEROES, 0))], {})
            self._changes.has_data = True

    def resize(self, blocks: int) -> None:
        """Cut blocks off, or add blocks that are zeroes, so that there are ``blocks``.

        What is cut off is superseded, with its runs, and becomes zeroes in the next record: it may
        be added again before that. What is added becomes zeroes likewise: it may have been cut off
        by a writer that left data beyond the end.
        """
        index, first = divmod(min(self._blocks, blocks), self._chunk_blocks)
        if first:
            self.clear_from(index, first)
        self._blocks = blocks
        count = -(-blocks // self._chunk_blocks)
        cut_off = {index for index, _ in self.extents.chunks() if index >= count}
        cut_off.update(compress(range(count, len(self.entries)), self.entries[count:]))
        for index in cut_off:
            self.set_entry(index, 0)
        resize(self.entries, count)

    def _lay(self, placed: Sequence[Placed], sizes: Mapping[int, int]) -> None:
        self.extents.lay(placed, sizes)
        blocks = self._changes.blocks
        for index, run in placed:
            blocks[index] = blocks.get(index, 0) | block_mask(run.first, run.blocks)
        self._collect_unused()

    def _replace(self, index: int, entry: int, left: Runs) -> bool:
        before = self.entry(index)
        if index >= len(self.entries):  # the chunk was cut off while it was stored
            self._supersede(index, entry)
            return False
        if entry == before and not self.extents.runs(index):
            return False
        if entry != before:
            self._supersede(index, before)
        self.entries[index] = self._changes.entries[index] = entry
        self.extents.keep(index, left)
        self._collect_unused()
        return True

    def _supersede(self, index: int, entry: int) -> None:
        origin, version = entry_parts(entry)
        if entry and not origin:
            self._changes.superseded.append((version, self.chunk(index, entry)))

    def _collect_unused(self) -> None:
        for entry, blocks in self.extents.unused:
            origin, version = entry_parts(entry)
            if not origin:
                stored = StoredObject(entry, -1, blocks * self._block_size)
                self._changes.superseded.append((version, stored))
        self.extents.unused.clear()

    # Compaction

    def begin_fold(self, index: int) -> tuple[int, Runs]:
        """Return the entry and the runs of a chunk that is to be stored anew with them."""
        self._folding.add(index)
        return self.entry(index), self.extents.runs(index)

    def end_fold(self, index: int, entry: int, then: Runs) -> bool:
        """Make a chunk current that was stored with these runs; newer ones stay over it.

        Returns:
            False if the chunk was replaced as a whole meanwhile, so that this one is garbage.

        """
        if index not in self._folding:
            self._supersede(index, entry)
            return False
        self._folding.discard(index)
        return self._replace(index, entry, changed_since(self.extents.runs(index), then))

    def move(
        self, entry: int, blocks: int, copied: Iterable[Placed], then: Mapping[int, Runs]
    ) -> None:
        """Let blocks be read from a segment into which they were copied, if they are unchanged.

        Args:
            entry: of the segment.
            blocks: of the segment.
            copied: the runs in the segment.
            then: the runs of their chunks when they were copied.

        """
        placed: list[Placed] = []
        for index, run in copied:
            for old in clip(then[index], run.first, run.end):
                for now in clip(self.extents.runs(index), old.first, old.end):
                    if now.location(now.first) == old.location(now.first):
                        placed.append((index, run.part(now.first, now.end)))
        self._lay(placed, {entry: blocks})

    # The history

    @property
    def unsaid(self) -> int:
        """Bytes of blocks that are only in memory, and that no record is known to have."""
        found = 0
        for index, mask in self._changes.blocks.items():
            for run in self.extents.runs(index):
                if not isinstance(run.source, int):
                    found += (mask & block_mask(run.first, run.blocks)).bit_count()
        return found * self._block_size

    def take_changes(self) -> tuple[Changes, list[Placed], bytes]:
        """Return what has changed since the last call: for a record that is added right after.

        Returns:
            The changes, to be put back if that fails; the runs to be said, and the data of those
            that are inline.

        """
        changes, self._changes = self._changes, Changes()
        said: list[Placed] = []
        for index in changes.entries:
            said += ((index, run) for run in self.extents.runs(index))
        for index, mask in changes.blocks.items():
            if index not in changes.entries:
                runs = self.extents.runs(index)
                for first, end in runs_of(mask):
                    said += ((index, run) for run in clip(runs, first, end))
        said, data = gather(said, self._block_size)
        if data:  # the view, the state and the record share it
            self.extents.lay([each for each in said if each[1].source is data], {})
        return changes, said, data

    def restore_changes(self, changes: Changes) -> None:
        """Put back changes whose record may not have been added; newer ones win."""
        self._changes.add_older(changes)


def stored_objects(manifest: Manifest, state: DiskState) -> Iterator[StoredObject]:
    """Yield all chunks and segments that a state needs."""
    for index, entry in enumerate(state.chunks):
        if entry:
            yield StoredObject(entry, index, manifest.chunk_size)
    for entry, blocks in state.extents.sizes.items():
        yield StoredObject(entry, -1, blocks * manifest.block_size)
