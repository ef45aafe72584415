"""Busy polling: keep the event loop awake for a while, since the next request may come at once.

Where client and server run on processors of their own, waking a process that sleeps costs more than
a small request. A loop that has a callback to run does not sleep: it asks for events and goes on.
Other connections and timers have their turn meanwhile; what is spent is the processor's time.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns


class BusyPoll:
    """Keep the running loop from sleeping for a while after each call of :meth:`extend`.

    Args:
        microseconds: for how long.

    """

    def __init__(self, microseconds: int) -> None:
        self._duration = microseconds * 1000
        self._loop = asyncio.get_running_loop()
        self._end = 0
        self._next: asyncio.Handle | None = None

    def extend(self) -> None:
        """Poll until the duration has passed from now."""
        self._end = monotonic_ns() + self._duration
        # Always anew: an interrupt (KeyboardInterrupt) may have been raised in the last turn, and
        # nothing would show that no other was to follow.
        if self._next is not None:
            self._next.cancel()
        self._next = self._loop.call_soon(self._turn)

    def stop(self) -> None:
        """Let the loop sleep again, for good."""
        self._end = self._duration = 0

    def _turn(self) -> None:
        if monotonic_ns() < self._end:
            self._next = self._loop.call_soon(self._turn)
