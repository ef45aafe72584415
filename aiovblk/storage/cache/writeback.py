"""Dirty blocks on their way to the inner device."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

from .dirty import Dirty

logger = logging.getLogger("aiovblk")

_LARGEST = 1 << 20
"""Bytes of one write."""

_IN_FLIGHT = 32
"""Writes at a time."""

_PAUSE = 1.0
"""Seconds after a failure before the background tries again; a flush does so at once."""


class WriteBack:
    """Writes back what is dirty: many writes at a time, neighbours together.

    Args:
        dirty: what is dirty.
        clean: writes back what is dirty between two bytes of the device.

    """

    def __init__(self, dirty: Dirty, clean: Callable[[int, int], Awaitable[None]]) -> None:
        self._dirty = dirty
        self._clean = clean
        self._background: asyncio.Task[None] | None = None
        self._pause_until = 0.0

    def look(self) -> None:
        """Begin to write back in the background if much is dirty."""
        if self._dirty.many and self._background is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._pause_until:
                self._background = loop.create_task(self._run())
                self._background.add_done_callback(self._done)

    async def clean(self, end: int) -> None:
        """Write back what is dirty now, up to this byte of the device.

        Raises:
            Exception: the first error of the inner device. All the same everything was tried, and
                what failed is still dirty.

        """
        ranges = [
            (start, min(start + _LARGEST, stop))
            for begin, stop in self._dirty.ranges(0, end)
            for start in range(begin, stop, _LARGEST)
        ]
        errors: list[Exception] = []
        left = iter(ranges)
        async with asyncio.TaskGroup() as group:
            for _ in ranges[:_IN_FLIGHT]:
                group.create_task(self._clean_all(left, errors))
        if errors:
            raise errors[0]

    async def close(self) -> None:
        """Stop the background."""
        self._pause_until = float("inf")
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])

    async def _clean_all(self, ranges: Iterator[tuple[int, int]], errors: list[Exception]) -> None:
        for begin, end in ranges:
            try:
                await self._clean(begin, end)
            except Exception as exc:
                errors.append(exc)

    async def _run(self) -> None:
        try:
            await self.clean(1 << 63)
        except Exception as exc:
            logger.warning("written data stays in the cache until it can be written back: %s", exc)
            self._pause_until = asyncio.get_running_loop().time() + _PAUSE

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background = None
