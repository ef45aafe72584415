"""What becomes of a request whose handler raised: an error in its reply, or another run.

What holds here:

* A handler that is cancelled from outside is run again: the shutdown of an event loop cancels all
  tasks, but the client still waits for the reply, and the kernel would take the failure of a write
  for the loss of its data.
* A handler that the server has cancelled fails its request with EIO.
* Whatever a handler raises, its request gets a reply; KeyboardInterrupt and SystemExit are raised
  after that.
"""

from __future__ import annotations

import asyncio
import errno
import weakref
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from ..protocol import ReplyContent, Request
from .failures import ContractError, Reporter

CANCELLED_BY_SERVER = "cancelled by the server"
"""Why a request fails whose handler was cancelled by force (reset, forced unmount, shutdown)."""

MAX_RUNS = 10
"""How often a handler is run (retried) that is cancelled each time. The shutdown of an event loop
cancels it once or twice; one that cancels its own task would be run for ever."""

Handler = Callable[[Request, memoryview | None], Awaitable[ReplyContent]]


class Outcome(NamedTuple):
    """What a request is answered with."""

    error: int
    """The error value; 0 for success."""
    content: ReplyContent
    reason: str
    """Why it failed, in words."""
    interrupt: BaseException | None
    """A KeyboardInterrupt or SystemExit, to be raised after the reply."""


class OutcomeResolver:
    """Resolve what handlers raise, on one connection.

    Args:
        handle: calls the handler of a request, with its payload.
        reporter: classifies and logs what a handler raises.

    """

    def __init__(self, handle: Handler, reporter: Reporter) -> None:
        self._handle = handle
        self._reporter = reporter
        self._cancelled = False
        self._failed: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()

    def fail(self, task: asyncio.Task[None]) -> None:
        """Cancel a handler's task, and fail its request with EIO."""
        self._failed.add(task)
        task.cancel()

    def fail_once(self, task: asyncio.Task[None]) -> None:
        """As :meth:`fail`. No-op: that was done, and the handler may be cleaning up since."""
        if task not in self._failed:
            self.fail(task)

    def fail_all(self) -> None:
        """Run no handler again whose task is cancelled."""
        self._cancelled = True

    async def resolve(
        self,
        task: asyncio.Task[None],
        request: Request,
        payload: memoryview | None,
        exc: BaseException,
    ) -> Outcome:
        """Return what a request is answered with whose handler raised ``exc`` in this task."""
        runs = 0
        while True:
            if isinstance(exc, asyncio.CancelledError):
                runs += 1
                if not self._is_to_run_again(task, runs):
                    return self._after_cancellation(task, request, exc, runs)
            elif isinstance(exc, GeneratorExit) and not _is_running(task):
                raise exc  # the event loop is closed: no client is left to reply to
            else:  # also a panic of an extension written in Rust
                return self._report(request, exc)
            try:
                return Outcome(0, await self._handle(request, payload), "", None)
            except BaseException as again:
                exc = again

    def _is_to_run_again(self, task: asyncio.Task[None], runs: int) -> bool:
        """Return whether to run (retry) a handler again whose task was cancelled from outside."""
        if not task.cancelling() or self._has_failed(task):
            return False
        while task.uncancel():
            pass
        return runs < MAX_RUNS

    def _has_failed(self, task: asyncio.Task[None]) -> bool:
        return self._cancelled or task in self._failed

    def _after_cancellation(
        self,
        task: asyncio.Task[None],
        request: Request,
        exc: asyncio.CancelledError,
        runs: int,
    ) -> Outcome:
        """Resolve a request whose cancelled handler is not run again."""
        if self._has_failed(task) and task.cancelling():
            return Outcome(errno.EIO, b"", CANCELLED_BY_SERVER, None)
        reason = "its handler raised CancelledError without being cancelled"
        if runs >= MAX_RUNS:
            reason = f"its handler was cancelled {runs} times, as if it cancelled its own task"
        return self._report(request, ContractError(reason).with_traceback(exc.__traceback__))

    def _report(self, request: Request, exc: BaseException) -> Outcome:
        failure = self._reporter.report(request, exc)
        return Outcome(failure.error, b"", failure.reason, _interrupt_in(exc))


def _is_running(task: asyncio.Task[None]) -> bool:
    """Return whether a task is being run by its loop, and not just closed."""
    try:
        return asyncio.current_task() is task
    except RuntimeError:
        return False


def _interrupt_in(exc: BaseException) -> BaseException | None:
    """Return the KeyboardInterrupt or SystemExit in an exception, to be raised after the reply."""
    if isinstance(exc, KeyboardInterrupt | SystemExit):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        return next(filter(None, map(_interrupt_in, exc.exceptions)), None)
    return None
