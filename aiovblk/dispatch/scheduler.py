"""In which tasks the handlers of one connection run, and how they end.

What holds here:

* Handlers begin in the order of arrival, as far as there are turns.
* Each runs in a task: the current task, timeouts and context variables are what they are anywhere
  else in asyncio.
* A handler that waits has its task to itself until it ends. Those that never wait follow each other
  in one task: a task for each would cost as much as the rest of a small request.
* Exactly one answer for each request, whatever its handler does.
* Requests are served for no longer than a slice of time; what is left in line then waits for the
  next one, while other connections have theirs.
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
"""Binary logarithm of the bytes of a read or write that takes as long as one more small one."""

CANCELLED_BY_SERVER = "given up"
"""Why a request fails whose handler was cancelled by force."""

MAX_RUNS = 10
"""How often a handler is run that is cancelled each time. The end of an event loop cancels it once
or twice; one that cancels its own task would be run without end."""


class ReplyCallback(Protocol):
    """Takes a request, its error value, what else its reply says, and why it has failed."""

    def __call__(
        self, request: Request, error: int, content: ReplyContent, reason: str = "", /
    ) -> None: ...


class HandlerScheduler:
    """Requests in line, and the tasks that serve them.

    The first in line is served by a task that leads: it goes on with the next when that is done.
    Once a handler has had to wait, its task is that handler's alone, and another one leads.

    Args:
        handle: calls the handler of a request, with its payload.
        reply: called once for each request.
        reporter: judges what a handler has raised.
        limiter: how many handlers may run at once.
        time_slice: how long they may follow each other; begun by whoever calls :meth:`start_ready`.
        slow_request: seconds after which a handler that still runs is told of; None for never.
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
        self._current: Request  # what the leader has taken last
        self._running = SlowRequestMonitor(slow_request, on_slow)
        self._cancelled = False
        self._failed: weakref.WeakSet[asyncio.Task[None]] = weakref.WeakSet()
        # Before Python 3.12: tasks whose first step is still to come, and what those before were.
        self._starting = 0
        self._slow = False

    @property
    def oldest_start(self) -> float | None:
        """When (in the loop's time) the handler began that has run longest; None if none runs."""
        return self._running.oldest_start

    def any_running(self) -> bool:
        """Whether a handler runs that has had to wait."""
        return any(not task.done() for task in self._running.tasks)

    def wait_for_slice(self) -> bool:
        """Whether those in line go on when others have had their slices."""
        return self._paused and self._slice.is_coming(self._resume)

    def enqueue(self, request: Request, payload: memoryview | None) -> None:
        """Put a request in line; it waits there for :meth:`start_ready`."""
        self._queue.append((request, payload))

    def stop_monitoring(self) -> None:
        """Tell nobody of slow handlers any more."""
        self._running.stop_monitoring()

    def fail_running(self, since: float = math.inf) -> None:
        """Fail with EIO what has been running since ``since`` (in the loop's time), and live on.

        Without ``since`` also what waits in line. Handlers are cancelled; one that takes no notice
        of that is waited for as before.
        """
        if since == math.inf:
            self._fail_queue()
        for task, (start, _) in list(self._running.tasks.items()):
            if start <= since:
                self._failed.add(task)
                task.cancel()

    def cancel_all(self) -> None:
        """Cancel the handlers that still run, and start none any more."""
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
            """Serve those in line for as long as there are turns, and the slice lasts."""
            time_slice = self._slice
            while (
                self._queue
                and not self._paused
                and (time_slice.left > 0 or not self._is_paused())
                and self._limiter.acquire(self)
            ):
                try:
                    # Eager: where no handler has to wait, all are done when this returns, at no
                    # turn of the loop.
                    task = asyncio.Task(
                        self._run_queue(),
                        loop=self._loop,
                        context=self._context.copy(),
                        eager_start=True,
                    )
                except BaseException:  # a handler was interrupted; the others are not to wait
                    self._loop.call_soon(self.start_ready)
                    raise
                if not task.done():
                    self._move_to_own_task(task)

    else:

        def start_ready(self) -> None:
            """Serve those in line for as long as there are turns, and the slice lasts."""
            # A task begins at the next turn of the loop only, so nobody knows yet whether it will
            # have to wait. Where the last one had to, each in line is given a task; else one leads.
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
            if self._queue_task is not task:  # it was cancelled before, and has taken no request
                self._limiter.release()
            else:
                self._slow = not task.done()
                if self._slow:
                    self._move_to_own_task(task)
            self.start_ready()

    def _is_paused(self) -> bool:
        """Whether those in line wait for the next slice."""
        if not self._paused and self._slice.left <= 0 and self._slice.is_over():
            self._paused = True
            self._slice.enqueue(self._resume)
        return self._paused

    def _resume(self) -> None:
        self._paused = False
        self._slice.begin(monotonic_ns())
        self.start_ready()

    def _move_to_own_task(self, task: asyncio.Task[None]) -> None:
        """Its handler has to wait: somebody else may lead."""
        self._running.add(task, self._current)
        self._queue_task = None

    async def _run_queue(self) -> None:
        """Serve those in line, one after another, until a handler has had to wait.

        It has a turn when it begins.
        """
        task = _current_task()
        self._queue_task = task
        line, turns, handle, time_slice = self._queue, self._limiter, self._handle, self._slice
        if not _EAGER and self._starting <= 1:
            time_slice.begin(monotonic_ns())  # in a turn of the loop of its own
        while line:
            request, payload = line.popleft()
            self._current = request
            # How long anything but a read or a write takes says nothing of the next one.
            if request.type <= _WRITE:
                time_slice.left -= 1 + (request.length >> _LARGE)
            else:
                time_slice.left = 0
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
                except BaseException as exc:  # be it a panic of an extension in Rust
                    if isinstance(exc, GeneratorExit) and not _is_running(task):
                        raise  # the event loop is closed: no client is left to be answered
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
                turns.release()
                raise interrupt
            if (
                waited
                or not line
                or not _is_unchanged(self._context)
                or (time_slice.left <= 0 and self._is_paused())
            ):
                break
            if turns.waiting:  # others come first
                turns.release()
                if not turns.acquire(self):
                    return
        turns.release()

    def _is_to_run_again(self, task: asyncio.Task[None], runs: int) -> bool:
        """Whether this task, not its handler, was cancelled while the client still waits.

        The shutdown of an event loop cancels all tasks. The kernel knows nothing of that: it would
        take the failure of a write for the loss of its data.
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
        """Error value and reason of a request whose handler is not run again."""
        if self._has_failed(task) and task.cancelling():
            return errno.EIO, CANCELLED_BY_SERVER
        reason = "its handler raised CancelledError though nobody cancelled it"
        if runs >= MAX_RUNS:
            reason = f"its handler was cancelled {runs} times over, as if it cancelled its own task"
        return self._report(request, ContractError(reason).with_traceback(exc.__traceback__))

    def _report(self, request: Request, exc: BaseException) -> tuple[int, str]:
        failure = self._reporter.report(request, exc)
        return failure.error, failure.reason


def _current_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None  # only called in a task
    return task


def _is_running(task: asyncio.Task[None]) -> bool:
    """Whether a task is being run by its loop, and not just closed."""
    try:
        return asyncio.current_task() is task
    except RuntimeError:
        return False


def _interrupt_in(exc: BaseException) -> BaseException | None:
    """What is to be raised on once its request is answered: what ends the program."""
    if isinstance(exc, KeyboardInterrupt | SystemExit):
        return exc
    if isinstance(exc, BaseExceptionGroup):
        return next(filter(None, map(_interrupt_in, exc.exceptions)), None)
    return None


def _is_unchanged(context: Context) -> bool:
    """Whether no handler has set a context variable: the next one is not to see it."""
    try:
        return copy_context() == context
    except Exception:  # the value of a variable need not agree to be compared
        return False


def _release(payload: memoryview | None) -> None:
    """End the life of a payload, so that a handler which kept it finds out at once."""
    if payload is not None:
        # Where something exports it on (an array, say), the buffer below it stays as it is for as
        # long as that lives.
        try:  # noqa: SIM105 (contextlib.suppress costs ten times as much)
            payload.release()
        except BufferError:
            pass
