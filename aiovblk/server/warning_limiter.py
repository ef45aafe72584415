"""Rate limiter for warnings about clients.

Any client may connect and fail any number of times, and must not fill a disk with log lines. So of
each minute the first warnings are logged, and a summary at its end counts the rest.
"""

from __future__ import annotations

import asyncio
import logging
import math
from time import monotonic

logger = logging.getLogger("aiovblk")

WINDOW = 60.0
"""Seconds of one rate-limit window."""

MAX_LINES = 16
"""Warnings that are logged within a window; further ones are only counted."""


class WarningLimiter:
    """Log warnings about refused and broken clients, rate-limited."""

    def __init__(self) -> None:
        self._began = -math.inf
        self._lines = 0
        self._suppressed = 0
        self._timer: asyncio.TimerHandle | None = None

    def warn(self, text: str, *arguments: object) -> None:
        """Log a warning, or only count it once :data:`MAX_LINES` is reached."""
        now = monotonic()
        if now - self._began >= WINDOW:
            self.close()
            self._began, self._lines = now, 0
        self._lines += 1
        if self._lines <= MAX_LINES:
            logger.warning(text, *arguments)
            return
        self._suppressed += 1
        if self._timer is None:
            remaining = self._began + WINDOW - now
            self._timer = asyncio.get_running_loop().call_later(remaining, self.close)

    def close(self) -> None:
        """Log how many warnings were only counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._suppressed:
            logger.warning("%d more clients were refused or failed", self._suppressed)
            self._suppressed = 0
