"""Write dirty blocks back to the inner device: on flush, and in the background."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Iterator

from ...errors import STOP_EXCEPTIONS
from ..ranges import split_range
from .dirty import Dirty

logger = logging.getLogger("aiovblk")

_MAX_WRITE = 1 << 20
"""Bytes of one write."""

_IN_FLIGHT = 32
"""Writes in flight at most."""

_PAUSE = 1.0
"""Seconds after a failure before the background retries; a flush does so at once."""


class WriteBack:
    """Writes back dirty blocks, many writes at a time, adjacent blocks coalesced into one write.

    Args:
        dirty: the dirty blocks.
        clean: writes back the dirty blocks between two bytes of the device.

    """

    def __init__(self, dirty: Dirty, clean: Callable[[int, int], Awaitable[None]]) -> None:
        self._dirty = dirty
        self._clean = clean
        self._background: asyncio.Task[None] | None = None
        self._pause_until = 0.0

    def start_if_needed(self) -> None:
        """Start write-back in the background if half of what may be dirty is.

        No-op while it runs, and for a second after it has failed.
        """
        if self._dirty.over_limit and self._background is None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._pause_until:
                self._background = loop.create_task(self._run())
                self._background.add_done_callback(self._done)

    async def clean(self, end: int) -> None:
        """Write back the blocks that are dirty now, up to this byte of the device.

        Raises:
            BaseException: the first error of the inner device. The other ranges were tried all the
                same; what failed is still dirty.

        """
        ranges = [
            (begin, begin + length)
            for first, last in self._dirty.ranges(0, end)
            for begin, length in split_range(first, last, _MAX_WRITE)
        ]
        errors: list[BaseException] = []
        remaining = iter(ranges)
        async with asyncio.TaskGroup() as group:
            for _ in ranges[:_IN_FLIGHT]:
                group.create_task(self._clean_all(remaining, errors))
        if errors:
            failed = errors[0]
            if isinstance(failed, asyncio.CancelledError):
                raise OSError(errno.EIO, "the inner device raised CancelledError") from failed
            raise failed

    async def close(self) -> None:
        """Cancel write-back in the background, and prevent that it starts again."""
        self._pause_until = float("inf")
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait([self._background])

    async def _clean_all(
        self, ranges: Iterator[tuple[int, int]], errors: list[BaseException]
    ) -> None:
        """Write back one range after the other, and collect errors: one of several workers."""
        task = asyncio.current_task()
        for begin, end in ranges:
            try:
                await self._clean(begin, end)
            except asyncio.CancelledError as exc:
                # A task group ignores CancelledError of its tasks. If the inner device raised it,
                # a flush would succeed although this range is still dirty.
                if task is None or task.cancelling():
                    raise
                errors.append(exc)
            except STOP_EXCEPTIONS:
                raise
            except BaseException as exc:
                errors.append(exc)

    async def _run(self) -> None:
        """Write back in the background; log an error, which the next flush would raise."""
        try:
            await self.clean(1 << 63)
        except STOP_EXCEPTIONS:
            raise
        except BaseException as exc:
            logger.warning("write-back failed, the data stays dirty in memory: %s", exc)
            self._pause_until = asyncio.get_running_loop().time() + _PAUSE

    def _done(self, task: asyncio.Task[None]) -> None:
        self._background = None
