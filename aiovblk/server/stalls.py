"""Clients that hold memory and do not go on, and clients that are idle.

The first have sent a part of a request, and not the rest, or read nothing of their replies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

STALL_TIMEOUT = 60.0
"""Seconds in which a client has to move :data:`MIN_PROGRESS`, or all that there is."""

MIN_PROGRESS = 512 * 1024
"""Bytes: 70 kbit/s."""

LOW_MEMORY_TIMEOUT = 5.0
"""Seconds in which it has to move anything at all, while others wait for the memory that it holds.
TCP sends again what was lost after a fifth of a second, then after twice as long each time."""

CHECK_INTERVAL = 1.0
"""Seconds."""

LATE = 2.0
"""Seconds after which a look comes too late to tell anything: this process has been stopped
(SIGSTOP, a frozen container), or busy, and has not received what the client has sent meanwhile."""

Progress = tuple[int, int]
"""Which transfer it is, and how many bytes of it have been moved."""


class StallMonitor:
    """Looks at one direction of one connection, while something is to be moved there.

    Args:
        progress: how far it is; None where nothing is to be moved.
        is_short: whether others wait for memory.
        on_stalled: called once, with the seconds in which too little was moved.

    """

    def __init__(
        self,
        progress: Callable[[], Progress | None],
        is_short: Callable[[], bool],
        on_stalled: Callable[[float], None],
    ) -> None:
        self._progress = progress
        self._is_short = is_short
        self._on_stalled = on_stalled
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._last: Progress = 0, 0
        self._moved_at = 0.0  # anything at all
        self._mark = 0
        self._marked_at = 0.0
        self._due = 0.0  # when to look next

    def start(self) -> None:
        """Look from now on, until there is nothing to be moved. No-op: it does."""
        if self._timer is None and (progress := self._progress()) is not None:
            self._begin(progress)
            self._look_later()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self) -> None:
        """Look, and again in a while."""
        self.stop()
        if (progress := self._progress()) is None:
            return
        now = self._loop.time()
        if progress[0] != self._last[0] or now > self._due + LATE:
            self._begin(progress)
        elif progress != self._last:
            self._last, self._moved_at = progress, now
            if progress[1] - self._mark >= MIN_PROGRESS:
                self._mark, self._marked_at = progress[1], now
        if now - self._marked_at >= STALL_TIMEOUT:
            self._on_stalled(STALL_TIMEOUT)
        elif now - self._moved_at >= LOW_MEMORY_TIMEOUT and self._is_short():
            self._on_stalled(LOW_MEMORY_TIMEOUT)
        else:
            self._look_later()

    def _look_later(self) -> None:
        self._due = self._loop.time() + CHECK_INTERVAL
        self._timer = self._loop.call_at(self._due, self.check)

    def _begin(self, progress: Progress) -> None:
        self._last, self._mark = progress, progress[1]
        self._moved_at = self._marked_at = self._loop.time()


class IdleTimer:
    """Looks whether a client asks for anything.

    Args:
        timeout: seconds without a request in flight after which it is idle; None for never.
        idle_since: when (in the loop's time) the last request was answered; None if one is in
            flight.
        on_idle: called once.

    """

    def __init__(
        self,
        timeout: float | None,
        idle_since: Callable[[], float | None],
        on_idle: Callable[[], None],
    ) -> None:
        self._idle_since = idle_since
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        if timeout is not None:
            self._timer = self._loop.call_later(timeout, self._check, timeout)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self, timeout: float) -> None:
        now = self._loop.time()
        since = self._idle_since()
        due = (now if since is None else since) + timeout
        if due <= now:
            self._on_idle()
        else:
            self._timer = self._loop.call_at(due, self._check, timeout)
