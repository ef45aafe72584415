"""Extents: runs of blocks that lie over the chunks of a disk, and where their data is.

What holds here:

* The runs of one chunk are sorted and do not overlap. A run that is laid over others cuts them.
* The tuple of a chunk's runs is replaced and never changed, so a reference to it is a state of one
  moment, and can tell by ``is`` whether there is a newer one.
* A segment is *unused* as soon as no run has a block of it.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from .client import Buffer

ZEROES = 0
"""The source of a run of zeroes."""

_COUNT_BITS = 18  # a chunk, or a segment, of 64 MiB has 2**17 blocks of 512 bytes
_INDEX_SHIFT = 2 * _COUNT_BITS
_COUNT_MASK = (1 << _COUNT_BITS) - 1
_SLOT_SHIFT = 32
_POSITION_MASK = (1 << _SLOT_SHIFT) - 1
_INLINE_SLOT, _ZERO_SLOT, _FIRST_SLOT = 0, 1, 2


class Run(NamedTuple):
    """Consecutive blocks of a chunk whose data is in one place."""

    first: int
    """The first block, in the chunk."""
    blocks: int
    """How many there are."""
    source: int | Buffer
    """The entry of a segment (see :mod:`.keys`), :data:`ZEROES`, or the data itself (*inline*)."""
    position: int
    """The first block, in the source."""

    @property
    def end(self) -> int:
        """The block after the last one, in the chunk."""
        return self.first + self.blocks

    def part(self, first: int, end: int) -> Run:
        """Return the run of some of its blocks."""
        if (first, end) == (self.first, self.end):
            return self
        moved = 0 if self.source == ZEROES else self.position + first - self.first
        return Run(first, end - first, self.source, moved)

    def location(self, block: int) -> tuple[int | None, int]:
        """Return a value that is equal for two runs if both have the block in the same place."""
        at = self.position + block - self.first
        if isinstance(self.source, int):
            return self.source, 0 if self.source == ZEROES else at
        return None, (id(self.source) << _SLOT_SHIFT) + at


Runs = tuple[Run, ...]
Placed = tuple[int, Run]
"""A run, with the index of its chunk before it."""


class ExtentMap:
    """The runs of all chunks of one state of a disk."""

    def __init__(self) -> None:
        self._runs: dict[int, Runs] = {}
        self._live: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        """Blocks of each segment that has runs, by entry."""
        self.count = 0
        """Runs of all chunks."""
        self.inline = 0
        """Blocks whose data is in memory."""
        self.unused: list[tuple[int, int]] = []
        """Segments that have become unused, until the list is cleared: entry, and blocks."""

    def copy(self) -> ExtentMap:
        """Return an independent copy; what is unused is not copied."""
        other = ExtentMap()
        other._runs, other._live = dict(self._runs), dict(self._live)
        other.sizes, other.count, other.inline = dict(self.sizes), self.count, self.inline
        return other

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._runs)

    def __iter__(self) -> Iterator[Placed]:
        """Iterate over all runs, in any order of chunks."""
        return ((index, run) for index, runs in self._runs.items() for run in runs)

    def chunks(self) -> Iterable[tuple[int, Runs]]:
        """Return the chunks that have runs, and these."""
        return self._runs.items()

    def chunks_among(self, indices: Iterable[int]) -> Iterator[int]:
        """Return those of some chunks that have runs."""
        return filter(self._runs.__contains__, indices)

    def runs(self, index: int) -> Runs:
        """Return the runs of a chunk."""
        return self._runs.get(index, ())

    def live(self, source: int) -> int:
        """Return the blocks of a segment that have runs."""
        return self._live.get(source, 0)

    def lay(self, placed: Iterable[Placed], sizes: Mapping[int, int]) -> None:
        """Lay runs over those that are there.

        Args:
            placed: the runs; those of one chunk do not overlap.
            sizes: the blocks of each segment that they are in.

        """
        by_chunk: dict[int, list[Run]] = {}
        for index, run in placed:
            by_chunk.setdefault(index, []).append(run)
        self.sizes.update(sizes)
        touched = set(sizes)
        for index, new in by_chunk.items():
            new.sort(key=itemgetter(0))
            old = self.runs(index)
            begin = bisect_right(old, new[0].first, key=_end_of)
            end = bisect_left(old, new[-1].end, key=itemgetter(0))
            low, high = max(begin - 1, 0), end + 1  # a neighbour may be continued by a new run
            between = (*old[low:begin], *lay_over(old[begin:end], new), *old[end:high])
            touched |= self._replace(index, (*old[:low], *_joined(between), *old[high:]))
        self._forget_unused(touched)  # not before: one chunk may need what another no longer does

    def clear(self, index: int) -> None:
        """Remove all runs of a chunk."""
        self._forget_unused(self._replace(index, ()))

    def keep(self, index: int, runs: Runs) -> None:
        """Remove all runs of a chunk but these, which are parts of them."""
        self._forget_unused(self._replace(index, runs))

    def _replace(self, index: int, new: Runs) -> set[int]:
        """Set the runs of a chunk, and count; return the segments that are concerned."""
        old = self._runs.get(index, ())
        if new:
            self._runs[index] = new
        else:
            self._runs.pop(index, None)
        self.count += len(new) - len(old)
        unchanged = set(map(id, old)) & set(map(id, new))
        touched: set[int] = set()
        for runs, sign in ((new, 1), (old, -1)):
            for run in runs:
                if id(run) in unchanged:
                    continue
                if not isinstance(run.source, int):
                    self.inline += sign * run.blocks
                elif run.source != ZEROES:
                    touched.add(run.source)
                    self._live[run.source] = self._live.get(run.source, 0) + sign * run.blocks
        return touched

    def _forget_unused(self, sources: Iterable[int]) -> None:
        for source in sources:
            if not self._live.get(source):
                self._live.pop(source, None)
                if source in self.sizes:
                    self.unused.append((source, self.sizes.pop(source)))


def _end_of(run: Run) -> int:
    return run.first + run.blocks


def lay_over(old: Sequence[Run], new: Sequence[Run]) -> list[Run]:
    """Return both, sorted, of the old ones only what the new ones do not cover.

    Args:
        old: sorted, without overlaps.
        new: likewise.

    """
    merged = list(new)
    at = 0
    for run in old:
        while at < len(new) and new[at].end <= run.first:
            at += 1
        begin, over = run.first, at
        while over < len(new) and new[over].first < run.end:
            if begin < new[over].first:
                merged.append(run.part(begin, new[over].first))
            begin = new[over].end
            over += 1
        if begin < run.end:
            merged.append(run.part(begin, run.end))
    merged.sort(key=itemgetter(0))
    return merged


def _joined(runs: Iterable[Run]) -> list[Run]:
    """Join neighbours of which one continues the other in the same segment, or in zeroes."""
    joined: list[Run] = []
    for run in runs:
        last = joined[-1] if joined else None
        if last is not None and isinstance(run.source, int) and last.end == run.first:
            whole = Run(last.first, last.blocks + run.blocks, run.source, last.position)
            if last.source == run.source and whole.part(run.first, run.end) == run:
                joined[-1] = whole
                continue
        joined.append(run)
    return joined


def clip(runs: Sequence[Run], first: int, end: int) -> list[Run]:
    """Return the parts of sorted runs that are within a range of blocks."""
    begin = bisect_right(runs, first, key=_end_of)
    stop = bisect_left(runs, end, key=itemgetter(0))
    return [run.part(max(run.first, first), min(run.end, end)) for run in runs[begin:stop]]


def changed_since(now: Runs, then: Runs) -> Runs:
    """Return the blocks of ``now`` that were not in the same place before, as runs."""
    if not then:
        return now
    kept: list[Run] = []
    for run in now:
        begin = run.first
        for old in clip(then, run.first, run.end):
            # Both are contiguous, so what holds for their first common block holds for all.
            if old.location(old.first) == run.location(old.first):
                if begin < old.first:
                    kept.append(run.part(begin, old.first))
                begin = old.end
        if begin < run.end:
            kept.append(run.part(begin, run.end))
    return tuple(kept)


# Encoding


@dataclass(frozen=True, slots=True)
class PackedRuns:
    """Runs as they are stored."""

    words: array[int]
    """Two for each run."""
    sources: list[tuple[int, int]] = field(default_factory=list)
    """The segments that they are in: entry, and blocks."""


def gather(placed: Iterable[Placed], block_size: int) -> tuple[list[Placed], bytes]:
    """Return the same runs with all inline data in one buffer, and that buffer."""
    pieces: list[Buffer] = []
    found: list[tuple[int, Run, bool]] = []
    position = 0
    for index, run in placed:
        inline = not isinstance(run.source, int)
        if not isinstance(run.source, int):
            begin = run.position * block_size
            pieces.append(memoryview(run.source)[begin : begin + run.blocks * block_size])
            run = run._replace(position=position)
            position += run.blocks
        found.append((index, run, inline))
    data = b"".join(pieces)
    return [
        (index, run._replace(source=data) if inline else run) for index, run, inline in found
    ], data


def pack(placed: Iterable[Placed], sizes: Mapping[int, int]) -> PackedRuns:
    """Encode runs; the inline ones have their data in one buffer, see :func:`gather`."""
    slots: dict[int, int] = {}
    words = array("Q")
    for index, run in placed:
        if not isinstance(run.source, int):
            slot = _INLINE_SLOT
        elif run.source == ZEROES:
            slot = _ZERO_SLOT
        else:
            slot = slots.setdefault(run.source, _FIRST_SLOT + len(slots))
        words.append(index << _INDEX_SHIFT | run.first << _COUNT_BITS | run.blocks)
        words.append(slot << _SLOT_SHIFT | run.position)
    return PackedRuns(words, [(source, sizes[source]) for source in slots])


def unpack(packed: PackedRuns, data: Buffer, block_size: int) -> list[Placed]:
    """Decode runs.

    Args:
        packed: as they are stored.
        data: of the inline ones.
        block_size: bytes.

    Raises:
        ValueError: they are impossible.

    """
    blocks = len(data) // block_size
    placed = []
    words = iter(packed.words)
    for first, second in zip(words, words, strict=True):
        index = first >> _INDEX_SHIFT
        begin, count = first >> _COUNT_BITS & _COUNT_MASK, first & _COUNT_MASK
        slot, position = second >> _SLOT_SHIFT, second & _POSITION_MASK
        source: int | Buffer = ZEROES
        available = position + count
        if slot == _INLINE_SLOT:
            source, available = data, blocks
        elif slot != _ZERO_SLOT:
            source, available = packed.sources[slot - _FIRST_SLOT]
        if not count or position + count > available:
            raise ValueError(f"chunk {index} has a run of {count} blocks outside of its data")
        placed.append((index, Run(begin, count, source, position)))
    return placed
