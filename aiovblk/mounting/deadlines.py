"""Timeouts of blocking calls: waiting for threads, the kernel and tasks, with a deadline.

Every call that may hang gets a timeout here, and what has not ended by then is left to itself: a
thread in a system call cannot be cancelled. While a mount is still being attached, the waits also
end when it is stopped (:class:`StoppableSteps`).
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from concurrent import futures
from functools import partial
from typing import Any, ParamSpec, TypeVar

from ..aio.tasks import mark_retrieved
from ..errors import AttachError
from ..threads import run_in_daemon_thread

P = ParamSpec("P")
T = TypeVar("T")

KERNEL_TIMEOUT = 5.0
"""Seconds for steps that depend on the kernel alone and take it milliseconds."""


class StoppedError(AttachError):
    """A mount was stopped before the device was live."""

    def __init__(self) -> None:
        super().__init__(errno.ECANCELED, "unmounted before it was mounted")


def start_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Start a blocking function in a thread.

    Returns:
        A future of its result. It need not be awaited: an exception is not reported as lost.

    """
    return _consume_exception(asyncio.wrap_future(run_in_daemon_thread(function, *args, **kwargs)))


async def run_in_thread(
    seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call a blocking function in a thread, with a timeout of ``seconds``.

    After that the thread is left to itself; so it is when the caller is cancelled.

    Raises:
        TimeoutError: it has not returned.

    """
    return await wait_thread(seconds, run_in_daemon_thread(function, *args, **kwargs))


async def wait_thread(seconds: float, step: futures.Future[T]) -> T:
    """Wait for a call in a thread, with a timeout of ``seconds``.

    Raises:
        TimeoutError: it has not returned.

    """
    future = _consume_exception(asyncio.wrap_future(step))
    await asyncio.wait([future], timeout=seconds)
    if not future.done():
        raise _timeout_error(seconds)
    return future.result()


class StoppableSteps:
    """Run the steps of attaching, each of which ends early when the mount is stopped.

    Args:
        stop_requested: done once the mount is to be unmounted.
        unmount_timeout: seconds for which a step may still run after that.

    """

    def __init__(self, stop_requested: asyncio.Future[None], unmount_timeout: float) -> None:
        self.stop_requested = stop_requested
        self._unmount_timeout = unmount_timeout

    async def run(self, step: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine that may never end, since a worker or a device factory has to answer.

        Raises:
            StoppedError: the mount is to be unmounted, and the step was cancelled.

        """
        task = asyncio.create_task(step)
        await asyncio.sleep(0)  # a step that does not wait is done then, and its result counts
        steps: list[asyncio.Future[Any]] = [task, self.stop_requested]
        await asyncio.wait(steps, return_when=asyncio.FIRST_COMPLETED)
        task.cancel()
        await asyncio.wait([task], timeout=self._unmount_timeout)
        if not task.done() or task.cancelled():
            raise StoppedError
        return task.result()

    async def call(
        self,
        seconds: float,
        function: Callable[[], T],
        *,
        undo: Callable[[T], object] | None = None,
        timeout_after_stop: float | None = None,
    ) -> T:
        """Call a blocking function in a thread, with a timeout of ``seconds``.

        Args:
            seconds: after which the thread is left to itself.
            function: what to call.
            undo: called in another thread with the result, should that come too late.
            timeout_after_stop: seconds for which the call may still take once the mount is to be
                unmounted; None for ``unmount_timeout``.

        Raises:
            TimeoutError: it has not returned.
            StoppedError: the mount is to be unmounted, and it has not returned soon after that.

        """
        if timeout_after_stop is None:
            timeout_after_stop = self._unmount_timeout
        step = run_in_daemon_thread(function)
        future = _consume_exception(asyncio.wrap_future(step))
        steps: list[asyncio.Future[Any]] = [future, self.stop_requested]
        await asyncio.wait(steps, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        is_stopped = self.stop_requested.done()
        if is_stopped and not future.done():
            await asyncio.wait([future], timeout=timeout_after_stop)
        if future.done():
            return future.result()
        if undo is not None:
            step.add_done_callback(partial(_undo, undo))
        raise StoppedError if is_stopped else _timeout_error(seconds)


def _timeout_error(seconds: float) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, f"no answer in {seconds:g} s")


def _undo(undo: Callable[[T], object], step: futures.Future[T]) -> None:
    if step.exception() is None:
        run_in_daemon_thread(undo, step.result())  # it blocks, and this may be the loop's thread


def _consume_exception(future: asyncio.Future[T]) -> asyncio.Future[T]:
    """Keep asyncio from reporting an exception that was never retrieved."""
    future.add_done_callback(mark_retrieved)
    return future
