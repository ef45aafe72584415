"""One member of a mirror, and the regions that it has missed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from ...device import BlockDevice


class Member:
    """One of the devices of a mirror.

    A write is lost if the next flush of the member fails: so the regions that were written since
    its last flush count as missed when it is dropped.

    Attributes:
        device: the device.
        in_sync: whether it holds the same as the other members, and may be read.
        is_syncing: whether a resync of it is running.
        missed: the regions that are, or may be, stale while it is not in sync.

    """

    def __init__(self, device: BlockDevice) -> None:
        self.device = device
        self.in_sync = True
        self.is_syncing = False
        self.missed: set[int] = set()
        self._unflushed: dict[int, int] = {}  # region -> time of its last write

    @property
    def is_written(self) -> bool:
        """Whether changes go to it too: it is in sync, or its resync is running."""
        return self.in_sync or self.is_syncing

    def record_write(self, regions: Iterable[int], now: int, *, written: bool) -> None:
        """Record that a change of the mirror has ended.

        Args:
            regions: the regions that were changed.
            now: time by the mirror's logical clock.
            written: whether the change was made on this member, and has succeeded.

        """
        if self.in_sync or (written and self.is_syncing):
            self._unflushed.update(dict.fromkeys(regions, now))
        else:
            self.missed.update(regions)

    def flushed(self, began: int, *, succeeded: bool) -> None:
        """Record that a flush of this member has ended, which began at this time."""
        if succeeded:
            self._unflushed = {
                region: when for region, when in self._unflushed.items() if when > began
            }
        elif not self.in_sync:
            self._count_unflushed_as_missed()

    def mark_failed(self) -> None:
        """Drop the member: it misses writes from now on, and may have lost unflushed ones."""
        self.in_sync = False
        self._count_unflushed_as_missed()

    def _count_unflushed_as_missed(self) -> None:
        self.missed.update(self._unflushed)
        self._unflushed.clear()


async def on_each(
    members: Iterable[Member], call: Callable[[BlockDevice], Awaitable[object]]
) -> list[BaseException | None]:
    """Call a handler of each member at the same time, and wait for all of them.

    Returns:
        For each member its exception, or None if it has succeeded.

    Cancellation: cancels all calls, and waits until they have ended.

    """
    results = await asyncio.gather(
        *(call(member.device) for member in members), return_exceptions=True
    )
    return [result if isinstance(result, BaseException) else None for result in results]
