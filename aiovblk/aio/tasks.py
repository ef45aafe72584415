"""Graceful tasks: cancel() requests a graceful shutdown, and waits that survive cancellation.

A task that serves a client must run until the client disconnects, even while the event loop ends.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

RECHECK_INTERVAL = 1.0
"""Seconds after which a wait for a task checks by itself whether the task is done.

``asyncio.Runner`` raises KeyboardInterrupt at the second Ctrl-C, wherever the main thread is at
that moment: for example in the callback that would have reported the end, which is not called
again. The loop's shutdown has to complete nevertheless.
"""


class GracefulTask(asyncio.Task[T]):
    """A task that treats ``cancel()`` as a request to shut down gracefully.

    When an event loop ends, it cancels all tasks. A task that serves must go on until its client
    has disconnected; otherwise the client would wait for replies that never come.

    Args:
        coroutine: what the task runs.
        on_cancel: called for each ``cancel()``; starts the graceful shutdown.

    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], on_cancel: Callable[[], None]) -> None:
        """Start ``coroutine`` on the running loop."""
        self._on_cancel = on_cancel  # set first: the task can be cancelled once super() has it
        super().__init__(coroutine, loop=asyncio.get_running_loop())

    def cancel(self, msg: Any = None) -> bool:
        """Request a graceful shutdown; do not cancel. Returns False, as for a task that is done."""
        self._on_cancel()
        return False

    def force_cancel(self) -> None:
        """Cancel the task, as :meth:`asyncio.Task.cancel` does."""
        super().cancel()


async def wait_uncancelled(task: asyncio.Task[Any], *, recheck: float | None = None) -> bool:
    """Wait until ``task`` is done, even if the caller is cancelled meanwhile.

    Args:
        task: what to wait for.
        recheck: seconds after which to check whether the task is done, in case its callback was
            lost; see :data:`RECHECK_INTERVAL`. None: never.

    Returns:
        Whether the caller was cancelled meanwhile. It has to raise CancelledError when it can.

    """
    cancelled = False
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task], timeout=recheck)
            except asyncio.CancelledError:
                cancelled = True  # asyncio's own; anyio's cancel scopes are shielded off
    return cancelled


async def wait_for_task(seconds: float, step: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine with a timeout of ``seconds``; cancel it after that.

    For use in a :class:`GracefulTask`: asyncio.timeout would cancel that task, which refuses.

    Raises:
        TimeoutError: it was not done in time. It has been cancelled; if it does not end within
            ``seconds`` after that, it is left to itself.

    """
    task = asyncio.ensure_future(step)
    try:
        await asyncio.wait([task], timeout=seconds)
    except BaseException:
        task.cancel()
        raise
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=seconds)
        raise TimeoutError(errno.ETIMEDOUT, f"not done in {seconds:g} s")
    return task.result()


async def wait_shielded(future: asyncio.Future[T]) -> T:
    """Wait for a future that others wait for, too, or that has to go on if this is cancelled.

    As ``asyncio.shield``; but from Python 3.14 on that logs an exception which comes after the
    cancellation, although others have it.

    Raises:
        BaseException: the future's.

    Cancellation: of the caller, not of the future.

    """
    if not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            future.add_done_callback(mark_retrieved)
            raise
    return future.result()


def mark_retrieved(future: asyncio.Future[Any]) -> None:
    """Keep the event loop from logging an exception that others have, or that has no one to go to.

    For ``add_done_callback``.
    """
    if not future.cancelled():
        future.exception()


def set_once(event: asyncio.Future[None]) -> None:
    """Set a future that serves as an event; no-op if it is set already.

    Futures serve as events in this package so that a cancelled waiter does not affect the others.
    """
    if not event.done():
        event.set_result(None)
