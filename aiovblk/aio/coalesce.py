"""Coalesce concurrent calls of an operation into one run: a shared flush, or group commit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .tasks import mark_retrieved, wait_shielded


class CoalescedCall:
    """Coalesce concurrent calls of an operation, such as a flush, into as few runs as possible.

    Invariants:

    * A call is served by a run that begins after the call was made: while a run is in progress, all
      new calls share the next one (group commit). So a flush covers every write before it.
    * Runs never overlap.

    Cancellation: cancels the caller, not the run. Others may wait for the run, and what it has
    begun must not take effect late, in the middle of the next run. If a run fails when no caller
    waits for it any more, the next caller gets the error: an error may be raised only once for
    the data that it is about.

    Args:
        operation: called once for each run.

    """

    def __init__(self, operation: Callable[[], Awaitable[None]]) -> None:
        self._operation = operation
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None
        self._unreported: BaseException | None = None

    async def __call__(self) -> None:
        """Run the operation, or share the next run with other callers.

        Raises:
            BaseException: what the run raises; all its callers get it.

        """
        if self._next is None or self._next.done():
            self._next = asyncio.create_task(self._run(self._running))
            self._next.add_done_callback(mark_retrieved)
        try:
            await wait_shielded(self._next)
        except asyncio.CancelledError:
            raise  # of the caller
        except BaseException:
            self._unreported = None
            raise

    @property
    def is_idle(self) -> bool:
        """Whether no run is in progress or scheduled, and no error remains to be raised."""
        runs = (self._running, self._next)
        return self._unreported is None and all(run is None or run.done() for run in runs)

    async def close(self) -> None:
        """Cancel the runs in progress and scheduled, and wait until they have ended."""
        runs = [run for run in (self._running, self._next) if run is not None]
        for run in runs:
            run.cancel()
        await asyncio.gather(*runs, return_exceptions=True)

    async def _run(self, previous: asyncio.Task[None] | None) -> None:
        await asyncio.sleep(0)  # an eager task starts before self._next is assigned
        if previous and not previous.done():
            await asyncio.wait([previous])  # its callers get its error before this run begins
        self._running, self._next = self._next, None
        unreported, self._unreported = self._unreported, None
        try:
            if unreported:
                raise unreported
            await self._operation()
        except asyncio.CancelledError:
            raise
        # BaseException, since this run's callers, or the next one, must get any error.
        except BaseException as exc:
            self._unreported = exc
            raise
