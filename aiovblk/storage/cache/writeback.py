"""Dirty blocks on their way to the inner device."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Iterator

from ...errors import STOP_EXCEPTIONS
from .dirty import Dirty

logger = logging.getLogger("aiovblk")

_MAX_WRITE = 1 << 20
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

    def start_if_needed(self) -> None:
        """Begin to write back in the background if much is dirty."""
        if self._dirty.over_limit and self._background is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._pause_until:
                self._background = loop.create_task(self._run())
                self._background.add_done_callback(self._done)

    async def clean(self, end: int) -> None:
        """Write back what is dirty now, up to this byte of the device.

        Raises:
            BaseException: the first error of the inner device. All the same everything was tried,
                and what failed is still dirty.

        """
        ranges = [
            (start, min(start + _MAX_WRITE, stop))
            for begin, stop in self._dirty.ranges(0, end)
            for start in range(begin, stop, _MAX_WRITE)
        ]
        errors: list[BaseException] = []
        left = iter(ranges)
        async with asyncio.TaskGroup() as group:
            for _ in ranges[:_IN_FLIGHT]:
                group.create_task(self._clean_all(left, errors))
        if errors:
            failed = errors[0]
            if isinstance(failed, asyncio.CancelledError):
                raise OSError(errno.EIO, "the inner device raised CancelledError") from failed
            raise failed

    async def close(self) -> None:
        """Stop the background."""
        self._pause_until = float("inf")
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])

    async def _clean_all(
        self, ranges: Iterator[tuple[int, int]], errors: list[BaseException]
    ) -> None:
        task = asyncio.current_task()
        for begin, end in ranges:
            try:
                await self._clean(begin, end)
            except asyncio.CancelledError as exc:
                # A group takes a cancelled task for one that has nothing to tell. If it was the
                # inner device that raised this, what is still dirty would be taken for stored.
                if task is None or task.cancelling():
                    raise
                errors.append(exc)
            except STOP_EXCEPTIONS:
                raise
            except BaseException as exc:
                errors.append(exc)

    async def _run(self) -> None:
        try:
            await self.clean(1 << 63)
        except STOP_EXCEPTIONS:
            raise
        except BaseException as exc:
            logger.warning("written data stays in the cache until it can be written back: %s", exc)
            self._pause_until = asyncio.get_running_loop().time() + _PAUSE

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background = None
