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
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Protocol

from ...aio.gather import run_bounded
from ...errors import STOP_EXCEPTIONS
from .chunk_store import ChunkStore
from .client import Buffer
from .codec import DamagedError
from .extents import Placed, Runs
from .journal import FencedError
from .limits import FOLD_SHARE, Limits
from .manifest import Manifest
from .object_reader import StoredObject
from .segments import Piece, SegmentPart, divide

logger = logging.getLogger("aiovblk")

UNUSED_SHARE = 3
"""Segments are merged when they have so many times the blocks that are used, and a reserve."""
UNUSED_RESERVE = 8
"""Segments of the full size that may be unused."""

_STEP_CHUNKS = 8  # that are folded between two commits
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
        self._damaged_chunks: set[int] = set()
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
            if folded := self._to_fold():
                await self._commit_after(partial(self._fold, index) for index in folded)
                return True
            if merged := self._to_merge():
                await self._merge(merged)
                return True
            return False

    # Spill

    async def _spill(self) -> None:
        runs = [
            (index, run) for index, run in self._view.extents if not isinstance(run.source, int)
        ]
        pieces: list[tuple[int, Piece]] = []
        for index, run in _in_order(runs):
            assert not isinstance(run.source, int)  # by the condition above
            begin = run.position * self._block_size
            data = memoryview(run.source)[begin : begin + run.blocks * self._block_size]
            pieces.append((index, (run.first, run.blocks, data)))
        await self._copy(pieces)

    async def _copy(self, pieces: list[tuple[int, Piece]]) -> None:
        """Copy blocks into new segments, and commit that."""
        then = {index: self._view.extents.runs(index) for index, _ in pieces}
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

    def _to_fold(self) -> list[int]:
        """Return the chunks to be folded next."""
        covered: list[tuple[int, int]] = []
        most: list[tuple[int, int]] = []
        too_many = self._view.extents.count > self._limits.extents
        for index, runs in self._view.extents.chunks():
            if index in self._damaged_chunks:
                continue
            blocks = sum(run.blocks for run in runs)
            if blocks * FOLD_SHARE >= self._chunk_blocks:
                covered.append((blocks, index))
            elif too_many:
                most.append((len(runs), index))
        chosen = covered or most
        chosen.sort(reverse=True)
        return [index for _, index in chosen[:_STEP_CHUNKS]]

    async def _fold(self, index: int) -> None:
        entry, runs = self._view.begin_fold(index)
        try:
            contents = await self._chunk_store.contents(index, entry, runs)
        except FileNotFoundError:
            return  # it was replaced meanwhile
        except DamagedError as exc:
            self._leave_out(self._damaged_chunks, index, exc)
            return
        new = await self._chunk_store.put(index, contents)
        self._count(self._chunk_size if new else 0)
        if self._view.end_fold(index, new, runs) and new:
            self._chunk_store.cache(index, new, memoryview(contents).toreadonly())

    def _leave_out(self, damaged: set[int], which: int, exc: DamagedError) -> None:
        """Compact the others from now on; reads of what is damaged fail."""
        damaged.add(which)
        logger.warning("%s: compaction leaves out what is damaged: %s", self._where, exc)

    # Merge

    def _to_merge(self) -> list[int]:
        """Return the segments that are to be merged: the least used ones, to fill a new one."""
        sizes = self._view.extents.sizes
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
            if blocks > self._segment_blocks and len(chosen) > 1:
                break
            chosen.append(entry)
        return chosen

    async def _merge(self, entries: list[int]) -> None:
        """Copy what lives in some segments into new ones."""
        stored = [self._view.segment(entry) for entry in entries]
        contents: dict[int, Buffer] = {}

        async def read(segment: StoredObject) -> None:
            try:
                contents[segment.entry] = await self._chunk_store.read_segment(segment)
            except FileNotFoundError:
                pass  # nothing needs it any more
            except DamagedError as exc:
                self._leave_out(self._damaged_segments, segment.entry, exc)

        await run_bounded((partial(read, each) for each in stored), limit=_CONCURRENCY)
        runs = [
            (index, run)
            for index, run in self._view.extents
            if isinstance(run.source, int) and run.source in contents
        ]
        pieces: list[tuple[int, Piece]] = []
        for index, run in _in_order(runs):
            assert isinstance(run.source, int)  # by the condition above
            begin = run.position * self._block_size
            end = begin + run.blocks * self._block_size
            pieces.append((index, (run.first, run.blocks, contents[run.source][begin:end])))
        await self._copy(pieces)


def _in_order(runs: list[Placed]) -> list[Placed]:
    """Sort runs, so that neighbours lie side by side in a segment, and become one run."""
    return sorted(runs, key=lambda each: (each[0], each[1].first))
