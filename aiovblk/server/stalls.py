"""Stall detection and idle timeout of clients.

A stalled client holds memory and does not go on: it has sent a part of a request and not the rest,
or does not read its replies. An idle client has no request in flight and sends none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

STALL_TIMEOUT = 60.0
"""Seconds in which a client has to move :data:`MIN_PROGRESS`, or all that is to be moved."""

MIN_PROGRESS = 512 * 1024
"""Bytes in :data:`STALL_TIMEOUT`: 70 kbit/s."""

LOW_MEMORY_TIMEOUT = 5.0
"""Seconds in which it has to move any byte at all, while others wait for the memory that it holds.
TCP retransmits what was lost after a fifth of a second, then after twice as long each time."""

CHECK_INTERVAL = 1.0
"""Seconds between checks of a transfer."""

MAX_DELAY = 2.0
"""Seconds by which a check may be late. A later one says nothing about the client: this process was
stopped (SIGSTOP, a frozen container) or busy, and has not received what was sent meanwhile."""

Progress = tuple[int, int]
"""The number of a transfer, and how many bytes of it have been moved."""


class StallMonitor:
    """Watch one direction of one connection, while there is a transfer.

    Args:
        progress: returns how far the transfer is; None where there is none.
        is_short: returns whether others wait for memory.
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
        self._moved_at = 0.0  # when any byte was moved last
        self._mark = 0  # bytes at which the last MIN_PROGRESS was complete
        self._marked_at = 0.0
        self._due = 0.0  # when the next check is

    def start(self) -> None:
        """Check regularly from now on, while there is a transfer. No-op: it does already."""
        if self._timer is None and (progress := self._progress()) is not None:
            self._begin(progress)
            self._schedule()

    def stop(self) -> None:
        """Check no more. No-op: stopped already."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def check(self) -> None:
        """Check the transfer: report a stall, or schedule the next check."""
        self.stop()
        if (progress := self._progress()) is None:
            return
        now = self._loop.time()
        if progress[0] != self._last[0] or now > self._due + MAX_DELAY:
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
            self._schedule()

    def _schedule(self) -> None:
        self._due = self._loop.time() + CHECK_INTERVAL
        self._timer = self._loop.call_at(self._due, self.check)

    def _begin(self, progress: Progress) -> None:
        self._last, self._mark = progress, progress[1]
        self._moved_at = self._marked_at = self._loop.time()


class IdleTimer:
    """Detect the idle timeout of a client.

    Args:
        timeout: seconds without a request in flight after which it is idle; None for never.
        idle_since: returns when (in the loop's time) the last request was answered; None if one is
            in flight.
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
        """Check no more. No-op: stopped already."""
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
