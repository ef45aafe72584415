"""Run the handlers of one connection: request queue, tasks, cancellation, errors.

What holds here:

* Handlers start in the order of arrival, as far as the concurrency limiter allows.
* Each runs in a task: the current task, timeouts and context variables are what they are anywhere
  else in asyncio.
* A handler that waits has its task to itself until it ends. Handlers that never wait follow each
  other in one task: a task for each would cost as much as the rest of a small request.
* Exactly one reply for each request, whatever its handler does.
* Queued requests are served for at most a time slice; the rest of the queue then waits for the next
  slice, while other connections run.
"""

from __future__ import annotations

import asyncio
import errno
import math
import sys
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from time import monotonic_ns
from typing import Protocol

from ..protocol import Command, ReplyContent, Request
from ..stream import Slice
from .concurrency import ConcurrencyLimiter
from .failures import ContractError, Reporter
from .handler_call import Handler
from .slow_requests import SlowRequestMonitor

_EAGER = sys.version_info >= (3, 12)

_NOTHING: ReplyContent = b""

_WRITE = int(Command.WRITE)

_LARGE = 16
"""Binary logarithm of the bytes of payload that count as one more small request in a slice."""

CANCELLED_BY_SERVER = "cancelled by the server"
"""Why a request fails whose handler was cancelled by force (reset, forced unmount, shutdown)."""

MAX_RUNS = 10
"""How often a handler is run (retried) that is cancelled each time. The shutdown of an event loop
cancels it once or twice; one that cancels its own task would be run for ever."""


class ReplyCallback(Protocol):
    """Takes a request, the error of its reply (0: none), the reply's content, and the reason."""

    def __call__(
        self, request: Request, error: int, content: ReplyContent, reason: str = "", /
    ) -> None: ...


class HandlerScheduler:
    """Queue the requests of one connection, and run their handlers in tasks.

    One task, the queue task, serves queued requests one after another. When a handler has to wait,
    the task belongs to that handler until it ends, and another task serves the rest of the queue.

    Args:
        handle: calls the handler of a request, with its payload.
        reply: called once for each request.
        reporter: classifies and logs what a handler raises.
        limiter: how many handlers may run at once (concurrency).
        time_slice: how long handlers may follow each other. Begun by the caller of
            :meth:`start_ready`.
        slow_request: seconds after which a handler that still runs is reported; None for never.
        on_slow: called with each such request, and for how many seconds it has run.

    """

    def __init__(
        self,
        handle: Handler,
        reply: ReplyCallback,
        reporter: Reporter,
        limiter: ConcurrencyLimiter,
        time_slice: Slice,
        *,
        slow_request: float | None,
        on_slow: Callable[[Request, float], None],
    ) -> None:
        self._handle = handle
        self._reply = reply
        self._reporter = reporter
        self._limiter = limiter
        self._slice = time_slice
        self._paused = False  # until the next slice
        self._loop = asyncio.get_running_loop()
        self._context = copy_context()
        self._queue: deque[tuple[Request, memoryview | None]] = deque()
        self._queue_task: asyncio.Task[None] | None = None
        self._current: Request  # the last one that the queue task has started
        self._running = SlowRequestMonitor(slow_request, on_slow)
        self._cancelled = False
        self._failed: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()
        # Before Python 3.12: tasks whose first step is still to come, and whether the last task to
        # start had to wait.
        self._starting = 0
        self._slow = False

    @property
    def oldest_start(self) -> float | None:
        """When (in the loop's time) the longest-running handler began; None if none runs."""
        return self._running.oldest_start

    def any_running(self) -> bool:
        """Return whether a handler runs that has had to wait."""
        return any(not task.done() for task in self._running.tasks)

    def wait_for_slice(self) -> bool:
        """Return whether the queue is paused, and resumes with its next time slice."""
        return self._paused and self._slice.is_coming(self._resume)

    def enqueue(self, request: Request, payload: memoryview | None) -> None:
        """Append a request to the queue; :meth:`start_ready` starts it."""
        self._queue.append((request, payload))

    def stop_monitoring(self) -> None:
        """Stop reporting slow requests."""
        self._running.stop_monitoring()

    def fail_running(self, since: float = math.inf) -> None:
        """Cancel handlers and fail their requests with EIO; further requests are served.

        A handler that ignores its cancellation is still waited for.

        Args:
            since: cancel only handlers that began until then (in the loop's time); by default all,
                and queued requests fail as well.

        """
        if since == math.inf:
            self._fail_queue()
        for task, (start, _) in list(self._running.tasks.items()):
            if start <= since:
                self._failed.add(task)
                task.cancel()

    def cancel_all(self) -> None:
        """Cancel the handlers that still run, and start no more."""
        self._cancelled = True
        self._running.stop_monitoring()
        self._fail_queue()
        for task in list(self._running.tasks):
            task.cancel()

    def _fail_queue(self) -> None:
        self._limiter.cancel_wait(self)
        while self._queue:
            request, payload = self._queue.popleft()
            _release(payload)
            self._reply(request, errno.EIO, _NOTHING, CANCELLED_BY_SERVER)

    if sys.version_info >= (3, 12):

        def start_ready(self) -> None:
            """Start queued requests while the limiter allows it and the time slice lasts."""
            time_slice = self._slice
            while (
                self._queue
                and not self._paused
                and (time_slice.left > 0 or not self._is_paused())
                and self._limiter.acquire(self)
            ):
                try:
                    # Eager: if no handler has to wait, all are done when this returns, without
                    # another turn of the loop.
                    task = asyncio.Task(
                        self._run_queue(),
                        loop=self._loop,
                        context=self._context.copy(),
                        eager_start=True,
                    )
                except BaseException:  # a handler was interrupted; the rest of the queue goes on
                    self._loop.call_soon(self.start_ready)
                    raise
                if not task.done():
                    self._move_to_own_task(task)

    else:

        def start_ready(self) -> None:
            """Start queued requests while the limiter allows it and the time slice lasts."""
            # A task takes its first step at the next turn of the loop, so it is not known yet
            # whether it will have to wait. If the last one had to, each queued request gets a task
            # at once; otherwise one task serves the queue.
            while (
                len(self._queue) > self._starting
                and (self._slow or not self._starting)
                and not self._is_paused()
                and self._limiter.acquire(self)
            ):
                self._starting += 1
                task = self._loop.create_task(self._run_queue(), context=self._context.copy())
                self._loop.call_soon(self._has_begun, task)

        def _has_begun(self, task: asyncio.Task[None]) -> None:
            """Called by the loop right after the first step of a task."""
            self._starting -= 1
            if self._queue_task is not task:  # cancelled before its first step: no request taken
                self._limiter.release()
            else:
                self._slow = not task.done()
                if self._slow:
                    self._move_to_own_task(task)
            self.start_ready()

    def _is_paused(self) -> bool:
        """Return whether the queue waits for the next slice; pause it if the slice is used up."""
        if not self._paused and self._slice.left <= 0 and self._slice.is_over():
            self._paused = True
            self._slice.enqueue(self._resume)
        return self._paused

    def _resume(self) -> None:
        self._paused = False
        self._slice.begin(monotonic_ns())
        self.start_ready()

    def _move_to_own_task(self, task: asyncio.Task[None]) -> None:
        """Leave a task to its waiting handler; another task may serve the queue."""
        self._running.add(task, self._current)
        self._queue_task = None

    async def _run_queue(self) -> None:
        """Serve queued requests one after another, until a handler has had to wait.

        The caller has acquired the limiter for it; it is released at the end. One function of more
        than 50 lines: for a handler that never waits this loop is the whole request, and each call
        of a helper would cost some percent of it.
        """
        task = _current_task()
        self._queue_task = task
        queue, limiter, handle, time_slice = self._queue, self._limiter, self._handle, self._slice
        if not _EAGER and self._starting <= 1:
            time_slice.begin(monotonic_ns())  # a new turn of the loop
        while queue:
            request, payload = queue.popleft()
            self._current = request
            if request.type <= _WRITE:
                time_slice.left -= 1 + (request.length >> _LARGE)
            else:
                time_slice.left = 0  # its duration cannot be estimated: look at the clock
            error, content, reason, runs = 0, _NOTHING, "", 0
            interrupt: BaseException | None = None
            while True:
                try:
                    content = await handle(request, payload)
                except asyncio.CancelledError as exc:
                    runs += 1
                    if self._is_to_run_again(task, runs):
                        continue
                    error, reason = self._after_cancellation(task, request, exc, runs)
                except BaseException as exc:  # also a panic of an extension written in Rust
                    if isinstance(exc, GeneratorExit) and not _is_running(task):
                        raise  # the event loop is closed: no client is left to reply to
                    error, reason = self._report(request, exc)
                    interrupt = _interrupt_in(exc)
                break
            waited = self._queue_task is not task
            if waited:
                self._running.tasks.pop(task, None)
            if payload is not None:
                _release(payload)
            if error:
                self._reply(request, error, _NOTHING, reason)
            else:
                self._reply(request, 0, content)
            if interrupt is not None:
                limiter.release()
                raise interrupt
            if (
                waited
                or not queue
                or not _is_unchanged(self._context)
                or (time_slice.left <= 0 and self._is_paused())
            ):
                break
            if limiter.waiting:  # other connections come first
                limiter.release()
                if not limiter.acquire(self):
                    return
        limiter.release()

    def _is_to_run_again(self, task: asyncio.Task[None], runs: int) -> bool:
        """Return whether to run (retry) a handler again whose task was cancelled from outside.

        The shutdown of an event loop cancels all tasks, but the client still waits for the reply,
        and the kernel would take the failure of a write for the loss of its data.
        """
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
    ) -> tuple[int, str]:
        """Return error and reason for a request whose cancelled handler is not run again."""
        if self._has_failed(task) and task.cancelling():
            return errno.EIO, CANCELLED_BY_SERVER
        reason = "its handler raised CancelledError without being cancelled"
        if runs >= MAX_RUNS:
            reason = f"its handler was cancelled {runs} times, as if it cancelled its own task"
        return self._report(request, ContractError(reason).with_traceback(exc.__traceback__))

    def _report(self, request: Request, exc: BaseException) -> tuple[int, str]:
        failure = self._reporter.report(request, exc)
        return failure.error, failure.reason


def _current_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None  # only called in a task
    return task


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


def _is_unchanged(context: Context) -> bool:
    """Return whether handlers have left all context variables as they were.

    If not, the next handler must run in another task: it must not see the changes.
    """
    try:
        return copy_context() == context
    except Exception:  # comparing the values of variables may raise anything
        return False


def _release(payload: memoryview | None) -> None:
    """Release a payload, so that a handler which kept it gets an error at its next access."""
    if payload is not None:
        # If another object still exports it (a NumPy array, say), the receive buffer below stays
        # unchanged for as long as that lives.
        try:  # noqa: SIM105 (contextlib.suppress costs ten times as much)
            payload.release()
        except BufferError:
            pass
