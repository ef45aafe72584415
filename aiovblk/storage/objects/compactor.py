"""Compaction: put blocks from records into segments, from segments into chunks, in the background.

Three kinds of steps, in this order (docs/reference/object-store-format.md has the figures):

* *Spill*: the data that is in records is stored in segments; then a checkpoint is stored, and the
  records before it are deleted. So opening the disk stays quick, and memory bounded.
* *Fold*: a chunk much of which lies in segments is stored anew.
* *Merge*: what is left in segments that are mostly unused is stored in new ones.

What holds here:

* Objects are stored first, then a record of the writer says so: a step that is interrupted, or
  whose writer was fenced, leaves garbage only.
* A block that was written meanwhile keeps its newer place (:meth:`.DiskView.end_fold`,
  :meth:`.DiskView.move`).
* The disk's data is the same before and after.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from heapq import heappush, heappushpop
from typing import Protocol

from ...aio.gather import run_bounded
from ...errors import STOP_EXCEPTIONS
from .chunk_store import ChunkStore
from .codec import DamagedError
from .extents import Placed, Runs
from .journal import FencedError
from .limits import FOLD_SHARE, Limits
from .manifest import Manifest
from .segments import Piece, SegmentPart, divide

logger = logging.getLogger("aiovblk")

UNUSED_SHARE = 3
"""Segments are merged when they have so many times the blocks that are used, and a reserve."""
UNUSED_RESERVE = 8
"""Segments of the full size that may be unused."""

_STEP_CHUNKS = 8  # that are folded between two commits
_STEP_SEGMENTS = 32  # that are merged between two commits, at most
_RANKED = 256  # chunks that are ranked at once: all are looked at for it
_SLICE = 2048  # chunks that are looked at before other tasks run
_CONCURRENCY = 4  # requests of one step
_RETRY_PAUSE = 10.0  # seconds after a step that failed


class Log(Protocol):
    """What the compactor needs of the writer."""

    def checkpoint_due(self) -> bool:
        """Whether there are so many records, or so much data in them, that a spill is due."""

    async def commit_moved(self) -> None:
        """Add a record of what has changed in the view."""

    async def write_checkpoint(self) -> None:
        """Store a checkpoint, and delete the records before it."""

    async def check_fenced(self) -> None:
        """Raise FencedError if another writer is the reason of a failure."""


class Compactor:
    """Compact one open disk, for its writer.

    Concurrency: :meth:`step` may be called at any time; steps never overlap.

    Args:
        chunk_store: of the disk.
        log: of its writer.
        manifest: of the disk.
        limits: of the disk.
        where: the disk's folder, for messages.

    """

    def __init__(
        self, chunk_store: ChunkStore, log: Log, manifest: Manifest, limits: Limits, where: str
    ) -> None:
        self._chunk_store = chunk_store
        self._view = chunk_store.view
        self._log = log
        self._limits = limits
        self._where = where
        self._block_size = manifest.block_size
        self._chunk_size = manifest.chunk_size
        self._chunk_blocks = manifest.chunk_size // manifest.block_size
        self._segment_blocks = max(1, limits.segment_size // manifest.block_size)
        self._lock = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._resume_at = 0.0  # by the loop's clock
        self._ranked: list[int] = []  # chunks that are to be folded, best first
        # With what they consist of: entry, and segments.
        self._damaged_chunks: dict[int, tuple[int, frozenset[int]]] = {}
        self._damaged_segments: set[int] = set()

    def notify(self) -> None:
        """Let the compactor look whether there is something to do; called after each record."""
        if self._log.checkpoint_due() or self._view.extents.count > self._limits.extents:
            self._wanted.set()

    async def run(self) -> None:
        """Compact whenever there is something to do, at the rate of :attr:`.Limits.compaction`."""
        busy = False
        while True:
            await self._wait(busy=busy)
            try:
                busy = await self.step(paced=True)
            except FencedError:
                return
            except STOP_EXCEPTIONS:
                raise
            except BaseException as exc:  # otherwise compaction would end silently
                logger.warning(
                    "%s: compaction failed, tried again in %.0f s: %s",
                    self._where,
                    _RETRY_PAUSE,
                    exc,
                    exc_info=not isinstance(exc, OSError),
                )
                await asyncio.sleep(_RETRY_PAUSE)
                busy = True

    async def _wait(self, *, busy: bool) -> None:
        """Wait until there is something to do, or until the rate allows what is left to do."""
        if busy:
            pause = self._resume_at - asyncio.get_running_loop().time()
            if pause > 0 and self._is_paced():
                # Not wait_for(), which on Python 3.11 loses a cancellation in the turn of an event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wanted.wait()
        else:
            await self._wanted.wait()
        self._wanted.clear()

    def _is_paced(self) -> bool:
        """Whether folding and merging can wait; spills cannot, since they free memory."""
        early = asyncio.get_running_loop().time() < self._resume_at
        return early and self._view.extents.count <= self._limits.extents

    def _count(self, size: int) -> None:
        """Count bytes that were stored, which postpone what comes next."""
        now = asyncio.get_running_loop().time()
        self._resume_at = max(self._resume_at, now) + size / self._limits.compaction

    async def make_room(self) -> None:
        """Compact until there are at most twice as many extents as there should be.

        Raises:
            OSError: the store fails.

        """
        while self._view.extents.count > 2 * self._limits.extents and await self.step():
            pass

    async def step(self, *, paced: bool = False) -> bool:
        """Do what is most urgent; return whether there was something to do, or may be later.

        Args:
            paced: whether to do nothing but spills before the rate allows it.

        Raises:
            OSError: the store fails.

        """
        async with self._lock:
            if self._log.checkpoint_due():
                await self._spill()
                await self._log.write_checkpoint()
                return True
            if paced and self._is_paced():
                return True
            if folded := await self._to_fold():
                await self._commit_after(partial(self._fold, index) for index in folded)
                return True
            if merged := self._to_merge():
                await self._merge(merged)
                return True
            return False

    # Spill

    async def _spill(self) -> None:
        then: dict[int, Runs] = {}
        pieces: list[tuple[int, Piece]] = []
        async for index, runs in self._scan():
            for run in runs:
                if not isinstance(run.source, int):
                    begin = run.position * self._block_size
                    data = memoryview(run.source)[begin : begin + run.blocks * self._block_size]
                    pieces.append((index, (run.first, run.blocks, data)))
                    then[index] = runs
        await self._copy(pieces, then)

    async def _scan(self) -> AsyncIterator[tuple[int, Runs]]:
        """Yield the chunks that have runs, and these; let other tasks run from time to time."""
        extents = self._view.extents
        for number, (index, _) in enumerate(list(extents.chunks()), 1):
            if runs := extents.runs(index):
                yield index, runs
            if not number % _SLICE:
                await asyncio.sleep(0)

    async def _copy(self, pieces: list[tuple[int, Piece]], then: dict[int, Runs]) -> None:
        """Copy blocks into new segments, and commit that.

        Args:
            pieces: the blocks.
            then: the runs of their chunks at the moment of which the blocks are.

        """
        # So neighbours lie side by side in a segment, and become one run.
        pieces.sort(key=lambda each: (each[0], each[1][0]))
        parts = divide(pieces, self._segment_blocks)
        await self._commit_after(partial(self._store_part, part, then) for part in parts)

    async def _store_part(self, part: SegmentPart, then: dict[int, Runs]) -> None:
        """Store a segment, and let what is in it be read from there."""
        data = b"".join(part.pieces)
        entry = await self._chunk_store.put_segment(data)
        self._count(len(data))
        copied = [(index, run._replace(source=entry)) for index, run in part.runs]
        self._view.move(entry, part.blocks, copied, then)

    async def _commit_after(self, jobs: Iterable[Callable[[], Awaitable[None]]]) -> None:
        """Run jobs that store objects, then commit; after a failure the next record does that."""
        await run_bounded(iter(jobs), limit=_CONCURRENCY)
        await self._log.commit_moved()

    # Fold

    async def _to_fold(self) -> list[int]:
        """Return the chunks to be folded next."""
        while True:
            self._ranked = self._ranked or await self._rank()
            if not self._ranked:
                return []
            taken, self._ranked = self._ranked[:_STEP_CHUNKS], self._ranked[_STEP_CHUNKS:]
            # Much may have changed since.
            chosen = [each for each in taken if self._rank_of(each, self._view.extents.runs(each))]
            if chosen:
                return chosen

    async def _rank(self) -> list[int]:
        """Return the chunks that are most worth to be folded, for many steps."""
        best: list[tuple[tuple[bool, int], int]] = []
        async for index, runs in self._scan():
            if rank := self._rank_of(index, runs):
                if len(best) < _RANKED:
                    heappush(best, (rank, index))
                else:
                    heappushpop(best, (rank, index))
        best.sort(reverse=True)
        covered = [index for (is_covered, _), index in best if is_covered]
        return covered or [index for _, index in best]

    def _rank_of(self, index: int, runs: Runs) -> tuple[bool, int] | None:
        """Return how much a chunk is worth to be folded; None if it is not."""
        if index in self._damaged_chunks and self._is_damaged(index, runs):
            return None
        blocks = sum(run.blocks for run in runs)
        if blocks * FOLD_SHARE >= self._chunk_blocks:
            return True, blocks
        if runs and self._view.extents.count > self._limits.extents:
            return False, len(runs)
        return None

    def _is_damaged(self, index: int, runs: Runs) -> bool:
        """Whether a chunk that was damaged still consists of all that it did then."""
        entry, sources = self._damaged_chunks[index]
        if self._view.entry(index) == entry and sources <= _segments_of(runs):
            return True
        del self._damaged_chunks[index]
        return False

    async def _fold(self, index: int) -> None:
        entry, runs = self._view.begin_fold(index)
        try:
            contents = await self._chunk_store.contents(index, entry, runs)
        except FileNotFoundError:
            return  # it was replaced meanwhile
        except DamagedError as exc:
            await self._warn(exc)
            self._damaged_chunks[index] = entry, _segments_of(runs)
            return
        new = await self._chunk_store.put(index, contents)
        self._count(self._chunk_size if new else 0)
        if self._view.end_fold(index, new, runs) and new:
            self._chunk_store.cache(index, new, memoryview(contents).toreadonly())

    async def _warn(self, exc: DamagedError) -> None:
        """Warn that what is damaged is left out from now on; reads of it fail.

        Raises:
            FencedError: it is missing because another writer has replaced it.
            OSError: the store fails.

        """
        await self._log.check_fenced()
        logger.warning("%s: compaction leaves out what is damaged: %s", self._where, exc)

    # Merge

    def _to_merge(self) -> list[int]:
        """Return the segments that are to be merged: the least used ones, to fill a new one."""
        sizes = self._view.extents.sizes
        self._damaged_segments &= sizes.keys()
        entries = sizes.keys() - self._damaged_segments
        live = {entry: self._view.extents.live(entry) for entry in entries}
        total = sum(sizes[entry] for entry in entries)
        reserve = UNUSED_RESERVE * self._segment_blocks
        if total <= UNUSED_SHARE * sum(live.values()) + reserve:
            return []
        chosen: list[int] = []
        blocks = 0
        for entry in sorted(entries, key=lambda entry: live[entry] / sizes[entry]):
            blocks += live[entry]
            is_full = blocks > self._segment_blocks and len(chosen) > 1
            if is_full or len(chosen) == _STEP_SEGMENTS:
                break
            chosen.append(entry)
        return chosen

    async def _merge(self, entries: list[int]) -> None:
        """Copy what lives in some segments into new ones."""
        segments = {entry: self._view.segment(entry) for entry in entries}
        live: dict[int, list[Placed]] = {entry: [] for entry in entries}
        then: dict[int, Runs] = {}
        async for index, runs in self._scan():
            for run in runs:
                if isinstance(run.source, int) and run.source in live:
                    live[run.source].append((index, run))
                    then[index] = runs
        pieces: list[tuple[int, Piece]] = []

        async def read(entry: int) -> None:
            try:
                contents = await self._chunk_store.read_segment(segments[entry])
            except FileNotFoundError:
                return  # nothing needs it any more
            except DamagedError as exc:
                await self._warn(exc)
                self._damaged_segments.add(entry)
                return
            for index, run in live[entry]:
                begin = run.position * self._block_size
                end = begin + run.blocks * self._block_size
                # A copy, which does not keep the whole segment in memory.
                pieces.append((index, (run.first, run.blocks, bytes(contents[begin:end]))))

        await run_bounded((partial(read, each) for each in entries), limit=_CONCURRENCY)
        await self._copy(pieces, then)


def _segments_of(runs: Runs) -> frozenset[int]:
    return frozenset(run.source for run in runs if isinstance(run.source, int))
