"""One member of a mirror, and what it has missed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from ...device import BlockDevice


class Member:
    """One of several devices that hold the same.

    Attributes:
        device: it.
        in_sync: whether it holds the same as the others, and may be read.
        is_syncing: whether it is being brought up to date.
        missed: the regions that differ, or may do so, while it is out.

    """

    def __init__(self, device: BlockDevice) -> None:
        self.device = device
        self.in_sync = True
        self.is_syncing = False
        self.missed: set[int] = set()
        self._unflushed: dict[int, int] = {}  # region to when it was last written

    @property
    def is_written(self) -> bool:
        """Whether changes are made on it too, be it that they are copied once more later."""
        return self.in_sync or self.is_syncing

    def record_write(self, regions: Iterable[int], now: int, *, written: bool) -> None:
        """A change of these has ended.

        Args:
            regions: where.
            now: when.
            written: whether it was made here, and has succeeded.

        """
        if self.in_sync or (written and self.is_syncing):
            self._unflushed.update(dict.fromkeys(regions, now))
        else:
            self.missed.update(regions)

    def flushed(self, began: int, *, succeeded: bool) -> None:
        """A flush has ended that began then."""
        if succeeded:
            self._unflushed = {
                region: when for region, when in self._unflushed.items() if when > began
            }
        elif not self.in_sync:
            self._forget_missed()

    def mark_failed(self) -> None:
        """Let it miss what is written, and what it may have lost."""
        self.in_sync = False
        self._forget_missed()

    def _forget_missed(self) -> None:
        self.missed.update(self._unflushed)
        self._unflushed.clear()


async def on_each(
    members: Iterable[Member], call: Callable[[BlockDevice], Awaitable[object]]
) -> list[BaseException | None]:
    """Make a call of each member, and wait for all of them.

    Returns:
        For each why it has failed, or None if it has not.

    Cancellation: cancels all of them, and waits until they have ended.

    """
    results = await asyncio.gather(
        *(call(member.device) for member in members), return_exceptions=True
    )
    return [result if isinstance(result, BaseException) else None for result in results]
