"""Warnings about clients: anybody may come and be refused any number of times.

What does not fit into a minute is counted, and told of at its end, so that nobody fills a disk with
logs.
"""

from __future__ import annotations

import asyncio
import logging
import math
from time import monotonic

logger = logging.getLogger("aiovblk")

WINDOW = 60.0
"""Seconds."""

MAX_LINES = 16
"""Warnings within them; the others are only counted."""


class WarningLimiter:
    """What the log is told of clients that are turned away, or broken off."""

    def __init__(self) -> None:
        self._began = -math.inf
        self._lines = 0
        self._others = 0
        self._timer: asyncio.TimerHandle | None = None

    def warn(self, text: str, *arguments: object) -> None:
        """Log a warning, or count it."""
        now = monotonic()
        if now - self._began >= WINDOW:
            self.close()
            self._began, self._lines = now, 0
        self._lines += 1
        if self._lines <= MAX_LINES:
            logger.warning(text, *arguments)
            return
        self._others += 1
        if self._timer is None:
            left = self._began + WINDOW - now
            self._timer = asyncio.get_running_loop().call_later(left, self.close)

    def close(self) -> None:
        """Tell what was only counted."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._others:
            logger.warning("%d more clients were turned away or broken off", self._others)
            self._others = 0
