"""Compare two states of a disk by where their blocks are, without reading any of them.

What holds here:

* A stored object never changes and its name is never used twice. So a block that is in the same
  place in both states is equal.
* A block in another place was written since, or the compactor has moved it. So what is found
  changed is never less than what differs, and may be more: after a spill or a merge by the blocks
  that were moved, after a fold by the rest of the chunk.
* Data that is in the states themselves (*inline*) is compared.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from .client import Buffer
from .extents import ZEROES, ExtentMap, Run, Runs
from .keys import ORIGIN_STEP, entry_parts

_GROUP = 1024  # chunks whose entries are compared at a time


class Compared(NamedTuple):
    """A range of bytes, and how the later state differs there from the earlier one."""

    length: int
    """Bytes."""
    changed: bool
    """Whether it may differ."""
    zero: bool = False
    """Whether the later state is known to be zeroes; said of what has changed only."""
    by_chunk: bool = False
    """Whether whole chunks were replaced, so that it is not known which of their blocks differ."""


class _Piece(NamedTuple):
    """Consecutive blocks of a chunk that are in one place."""

    end: int
    """The block after the last one, in the chunk."""
    source: int | Buffer
    """The entry of a chunk or of a segment, :data:`ZEROES`, or the data itself."""
    shift: int
    """The first block's place in the source, less its place in the chunk."""
    in_chunk: bool
    """Whether the source is the chunk itself."""


class Places:
    """Where the blocks of a state are.

    Args:
        entries: of the chunks; see :mod:`.keys`.
        extents: the runs over them.
        size: blocks of the disk; those behind them count as zeroes.
        origins: for every number of origin in this state the one that the other state has for the
            same disk; None if both number them alike.

    """

    def __init__(
        self,
        entries: array[int],
        extents: ExtentMap,
        size: int,
        origins: Sequence[int] | None = None,
    ) -> None:
        self._entries = entries
        self._extents = extents
        self.size = size
        """Blocks of the disk."""
        self._origins = origins

    def with_runs(self, indices: range) -> Iterable[int]:
        """Return those of some chunks that have runs."""
        return self._extents.chunks_among(indices)

    def runs(self, index: int) -> Runs:
        """Return the runs of a chunk."""
        return self._extents.runs(index)

    def entries(self, indices: range) -> Sequence[int]:
        """Return the entries of some chunks, as the other state names them."""
        found = self._entries[indices.start : indices.stop]
        found.frombytes(bytes(8 * (len(indices) - len(found))))
        return found if self._origins is None else [self._named(entry) for entry in found]

    def _named(self, entry: int) -> int:
        if self._origins is None or not entry:
            return entry
        origin, version = entry_parts(entry)
        return self._origins[origin] * ORIGIN_STEP + version

    def pieces(self, index: int, blocks: range, chunk_blocks: int) -> Iterator[_Piece]:
        """Yield where some blocks of a chunk are: pieces in order that cover all of them.

        Args:
            index: of the chunk.
            blocks: at least one, in the chunk.
            chunk_blocks: of a chunk.

        """
        inside = min(blocks.stop, max(blocks.start, self.size - index * chunk_blocks))
        at = blocks.start
        entry = self.entries(range(index, index + 1))[0]
        runs = self.runs(index)
        for run in islice(runs, bisect_right(runs, at, key=attrgetter("end")), None):
            if run.first >= inside:
                break
            if at < run.first:
                yield _Piece(run.first, entry, 0, in_chunk=True)
            at = min(run.end, inside)
            yield self._piece_of(run, at)
        if at < inside:
            yield _Piece(inside, entry, 0, in_chunk=True)
        if inside < blocks.stop:
            yield _Piece(blocks.stop, ZEROES, 0, in_chunk=False)

    def _piece_of(self, run: Run, end: int) -> _Piece:
        source = self._named(run.source) if isinstance(run.source, int) else run.source
        return _Piece(end, source, run.position - run.first, in_chunk=False)


class Comparison:
    """Compare a later state with an earlier one.

    Args:
        old: the earlier state.
        new: the later one; its size is that of what is compared.
        block_size: bytes, of both.
        chunk_size: bytes, of both.

    """

    def __init__(self, old: Places, new: Places, block_size: int, chunk_size: int) -> None:
        self._old = old
        self._new = new
        self._block_size = block_size
        self._chunk_blocks = chunk_size // block_size

    def walk(self, offset: int, end: int) -> Iterator[Compared]:
        """Yield ranges in order that cover a part of the later state; neighbours may be alike.

        Each takes a bounded time to find: it is about 1024 chunks that are unchanged, or about the
        blocks that have one place.

        Args:
            offset: bytes, a multiple of the block size.
            end: bytes, likewise; at most the size of the later state.

        """
        size = self._block_size
        block, stop = offset // size, end // size
        while block < stop:
            first = block // self._chunk_blocks
            group = range(first, min(first + _GROUP, -(-stop // self._chunk_blocks)))
            for index in self._candidates(group):
                begin = index * self._chunk_blocks
                if block < begin:
                    yield Compared((begin - block) * size, changed=False)
                    block = begin
                last = min(begin + self._chunk_blocks, stop)
                yield from self._compare_chunk(index, range(block - begin, last - begin))
                block = last
            last = min(group.stop * self._chunk_blocks, stop)
            if block < last:
                yield Compared((last - block) * size, changed=False)
                block = last

    def _candidates(self, indices: range) -> list[int]:
        """Return the chunks that may have changed blocks, sorted."""
        found = {*self._old.with_runs(indices), *self._new.with_runs(indices)}
        old, new = self._old.entries(indices), self._new.entries(indices)
        if old != new:
            pairs = enumerate(zip(old, new, strict=True), indices.start)
            found.update(index for index, (before, now) in pairs if before != now)
        if self._old.size < self._new.size:
            found.update({self._old.size // self._chunk_blocks} & {*indices})
        return sorted(found)

    def _compare_chunk(self, index: int, blocks: range) -> Iterator[Compared]:
        """Yield what is changed in some blocks of a chunk."""
        of_old = self._old.pieces(index, blocks, self._chunk_blocks)
        of_new = self._new.pieces(index, blocks, self._chunk_blocks)
        only = range(index, index + 1)
        is_same_chunk = self._old.entries(only)[0] == self._new.entries(only)[0]
        old, new = next(of_old), next(of_new)
        at = blocks.start
        while True:
            end = min(old.end, new.end)
            by_chunk = new.in_chunk and not is_same_chunk
            for length, changed in self._compare_pieces(old, new, at, end):
                zero = changed and new.source == ZEROES
                yield Compared(length * self._block_size, changed, zero, changed and by_chunk)
            at = end
            if at == blocks.stop:
                return
            old = next(of_old) if old.end == at else old
            new = next(of_new) if new.end == at else new

    def _compare_pieces(
        self, old: _Piece, new: _Piece, first: int, end: int
    ) -> Iterator[tuple[int, bool]]:
        """Yield how many of the blocks that both pieces have are equal or changed, in order."""
        if isinstance(old.source, int) and isinstance(new.source, int):
            is_same = old.source == new.source and (not old.source or old.shift == new.shift)
            yield end - first, not is_same
            return
        before, now = self._data_of(old, first, end), self._data_of(new, first, end)
        if before is None or now is None:
            yield end - first, True
            return
        size = self._block_size
        for at in range(0, len(now), size):
            yield 1, before[at : at + size] != now[at : at + size]

    def _data_of(self, piece: _Piece, first: int, end: int) -> Buffer | None:
        """Return the data of some blocks if no object has to be read for it."""
        length = (end - first) * self._block_size
        if isinstance(piece.source, int):
            return None if piece.source else bytes(length)
        begin = (first + piece.shift) * self._block_size
        return memoryview(piece.source)[begin : begin + length]
