"""Back up a source to a target."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ...arguments import check_count
from ..copying import REQUESTS, check_source
from ..metered import Metered
from ..ratelimited import Rate, RateLimited
from .errors import BackupError
from .moving import Progressed, common_block, counting, move, unseen
from .retention import Keep
from .sources import OpenSource, Source, identity_of_disk
from .spans import How, Planner, Span, total_of
from .states import Backup, Progress
from .targets import OpenTarget, Target


@dataclass(frozen=True, slots=True)
class BackupReport:
    """What a backup was."""

    backup: Backup
    """The new one."""
    base: str | None
    """The backup that it was made by the differences from; None if everything was copied."""
    compared: int
    """Bytes that were read from both sides, since nothing could tell what differs there."""
    read: int
    """Bytes that were read from the source."""
    written: int
    """Bytes that were written to the target; before compression there, and without zeroes."""
    dropped: Sequence[str]
    """The backups that retention has dropped."""
    freed: int
    """Bytes of objects that were deleted after that."""


async def backup(
    source: Source,
    target: Target,
    *,
    keep: Keep | None = None,
    rate: float | None = None,
    requests: int = REQUESTS,
    advance: Progressed = unseen,
) -> BackupReport:
    """Back up a source: all of it the first time, then what differs from the newest backup.

    Where the source cannot tell what differs (it has no bitmaps, or not that one any more, or is
    another disk), both are read and compared, and only what differs is written.

    **After an interruption**, be it a crash at any moment, the target holds the backups that it
    held before, or the new one as well. What was copied is not copied again by the next call, but
    for the last 256 MiB, even if the source has changed since.

    Args:
        source: what to back up: :class:`.DiskSource` or :class:`.DeviceSource`.
        target: where to: :class:`.ObjectTarget`, :class:`.FileTarget` or :class:`.DeviceTarget`.
        keep: which backups to keep; the others are dropped once the new one is complete, and what
            only they needed is deleted. None keeps all.
        rate: bytes per second that are read from the source at most; None for no limit.
        requests: reads and writes in flight.
        advance: called for progress.

    Raises:
        BackupError: the target is no backup, does not fit, or is the source.
        StorageBusyError, BlockingIOError: another process writes to the target.
        ValueError: the source has no such bitmap; or an argument is invalid.
        OSError: the first error of a request.

    Cancellation: as an interruption.

    """
    check_count("requests", requests)
    _check_keep(keep, target)
    geometry = await source.geometry()
    dropped: Sequence[str] = ()
    async with target.open(geometry) as opened:
        label = opened.identity[:8]
        async with source.open(label) as state:
            if state.identity == identity_of_disk(opened.identity):
                await source.release(label, None)  # the snapshot that was just taken
                raise BackupError("source and target are the same disk")
            _check_state(state, geometry.size)
            run = _Run(state, opened, rate, requests, advance)
            done = await run.copy()
            await source.release(label, state.point)
        if keep is not None:
            there = await opened.backups()
            kept = keep.select(there)
            dropped = await opened.drop([each.name for each in there if each.name not in kept])
    freed = await target.collect_garbage() if dropped else 0
    return BackupReport(done, run.base, run.compared, run.read, run.written, tuple(dropped), freed)


def _check_keep(keep: Keep | None, target: Target) -> None:
    if keep is not None and not target.keeps_history:
        raise BackupError(
            "this target holds the newest backup only, so there is nothing to keep: use a folder or"
            " a bucket"
        )


def _check_state(state: OpenSource, size: int) -> None:
    check_source(state.device)
    if state.device.size != size:
        raise BackupError("the source was resized meanwhile; try again")


class _Run:
    """One run of a backup.

    Args:
        state: the state of the source.
        target: the open target.
        rate: bytes per second.
        requests: in flight.
        advance: called for progress.

    """

    def __init__(
        self,
        state: OpenSource,
        target: OpenTarget,
        rate: float | None,
        requests: int,
        advance: Progressed,
    ) -> None:
        self._state = state
        self._target = target
        limited = state.device if rate is None else RateLimited(state.device, Rate(bytes=rate))
        self._from = Metered(limited)
        self._to = Metered(target.device)
        self._requests = requests
        self._advance = advance
        self._time = time.time()
        self.base: str | None = None
        self.compared = 0

    @property
    def read(self) -> int:
        """Bytes that were read from the source."""
        return self._from.counts["read"].bytes

    @property
    def written(self) -> int:
        """Bytes that were written to the target."""
        return self._to.counts["write"].bytes

    async def copy(self) -> Backup:
        """Make the target hold the state of the source, as its newest backup."""
        state, target = self._state, self._target
        size = state.device.size
        is_same = target.progress.source == state.identity
        progress = target.progress.begin(state.identity, state.point)
        # Before anything is written: from now on the target may hold parts of this state.
        await target.note(progress)
        block = common_block(state.device, target.device)
        planner = Planner(self._from, self._to, block)
        bitmaps = state.bitmaps if is_same else None
        spans = await planner.of_regions(bitmaps, progress.regions(size))
        self.compared = total_of(spans, How.COMPARE)
        self.base = progress.base
        await self._move(spans, block, progress)
        new = Backup("", self._time, size, state.identity, state.point)
        return await target.commit(new)

    async def _move(self, spans: Sequence[Span], block: int, progress: Progress) -> None:
        async def note(end: int) -> None:
            await self._target.note(progress.advance(end))

        await move(
            self._from,
            self._to,
            spans,
            block=block,
            requests=self._requests,
            advance=counting(spans, self._advance),
            note=note,
        )
