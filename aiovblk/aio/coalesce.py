"""One run of an operation for all who ask for it before it begins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class CoalescedCall:
    """An operation that is run once for many callers, and never beside itself.

    A caller is served by a run that begins after it has called: the next one, if one is under way.

    Cancellation: of a caller, not of the run: others may wait for it, and what it has begun must
    not come late, in the middle of the next one. If it fails when nobody waits any more, the next
    caller is told, since an error may be raised only once for what it is about.

    Args:
        operation: what is run.

    """

    def __init__(self, operation: Callable[[], Awaitable[None]]) -> None:
        self._operation = operation
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._unreported: BaseException | None = None

    async def __call__(self) -> None:
        """Run it, or join others.

        Raises:
            BaseException: what the run raises; all its callers get that.

        """
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._run(self._running))
            self._next.add_done_callback(_retrieve)
        try:
            await asyncio.shield(self._next)
        except asyncio.CancelledError:
            raise  # of the caller
        except BaseException:
            self._unreported = None
            raise

    @property
    def is_idle(self) -> bool:
        """Whether no run is under way, and no error is left to be told."""
        runs = (self._running, self._next)
        return self._unreported is None and all(run is None or run.done() for run in runs)

    async def close(self) -> None:
        """Cancel what is under way, and wait until it has ended."""
        runs = [run for run in (self._running, self._next) if run is not None]
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    async def _run(self, before: asyncio.Task[None] | None) -> None:
        await asyncio.sleep(0)  # a loop may start tasks at once, before this one is known
        if before and not before.done():
            await asyncio.wait([before])  # its callers are told its error before this goes on
        self._running, self._next = self._next, None
        untold, self._unreported = self._unreported, None
        try:
            if untold:
                raise untold
            await self._operation()
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # be it no Exception: its callers are told, or the next one
            self._unreported = exc
            raise


def _retrieve(run: asyncio.Task[None]) -> None:
    """Keep the loop from reporting an error that is told otherwise."""
    if not run.cancelled():
        run.exception()
