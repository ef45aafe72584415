"""How much one connection may serve now: its time slice, and the memory of its client.

What holds here:

* The clock and the quota are not looked at for each request, but whenever a credit is used up, of
  which each request takes its part: some 32 small requests, or one large one. Reading the clock
  takes 30 ns where the kernel's vDSO provides the time, and more than a microsecond where it does
  not (virtual machines).
* Once a slice is used up, nothing is served until the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic_ns

from ..stream.slices import SLICE, Slice
from .memory_budget import ConnectionQuota

SMALL = 8192
"""What a request takes of the credit, beside the bytes of its payload."""

CREDIT = 32 * SMALL
"""What may be served between two looks at the clock: 32 small requests, say."""


class Pacer:
    """Pace the requests of one connection.

    Args:
        quota: the memory of a client; None for the kernel, which has no quota.
        on_resumed: called when the next slice has begun.

    Attributes:
        credit: what may be served until :meth:`renew` must be called. Serving a request takes
            :data:`SMALL` and the bytes of its payload from it.
        slice_end: when the time slice ends, in nanoseconds of :func:`time.monotonic_ns`; set when
            requests arrive.
        paused: whether a slice is used up, and the next one has not begun.

    """

    def __init__(self, quota: ConnectionQuota | None, on_resumed: Callable[[], None]) -> None:
        self.credit = 0
        self.slice_end = 0
        self._slice = Slice()
        self.paused = False
        self._granted = 0  # the credit when it was granted
        self._room = 0  # bytes that were left of the quota then
        self._quota = quota
        self._on_resumed = on_resumed
        self._resumed: asyncio.Future[None] | None = None

    def begin_batch(self) -> None:
        """Grant the first credit for what is served in one go."""
        self.credit = self._granted = CREDIT
        if self._quota is not None:
            self._room = self._quota.available()
            if self._room < CREDIT:
                self.credit = self._granted = self._room

    def renew(self, charge: Callable[[], None]) -> bool:
        """Renew a credit that is used up.

        Args:
            charge: charges to the quota what was served and is not yet.

        Returns:
            Whether more may be served. If not, either :attr:`paused` is set, or memory is missing,
            and the next request has to be charged before it may be served.

        """
        if self.paused or monotonic_ns() >= self.slice_end:
            self._pause()
            return False
        if self._quota is None:
            self.credit = CREDIT
            return True
        self._room += self.credit - self._granted
        if self._room <= 0:
            charge()
            self._room = self._quota.available()
        self.credit = self._granted = min(CREDIT, self._room)
        return self.credit > 0

    def is_coming(self) -> bool:
        """Return whether the next slice will come: others have had theirs since the last call."""
        return self.paused and self._slice.is_coming(self._resume)

    async def resumed(self) -> None:
        """Wait for the next slice.  Cancellation: safe."""
        if self.paused:
            self._resumed = asyncio.get_running_loop().create_future()
            await self._resumed

    def _pause(self) -> None:
        if not self.paused:
            self.paused = True
            self._slice.enqueue(self._resume)

    def _resume(self) -> None:
        self.paused = False
        self.slice_end = monotonic_ns() + SLICE
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._on_resumed()
