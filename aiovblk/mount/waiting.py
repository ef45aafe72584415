"""Waiting for threads and for the kernel, in tasks that outlast a cancellation."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from concurrent import futures
from typing import Any, ParamSpec, TypeVar

from .. import kernel

P = ParamSpec("P")
T = TypeVar("T")


class SteadyTask(asyncio.Task[T]):
    """A task that takes its cancellation for the order to unmount.

    The end of an event loop cancels every task there is. The tasks that serve must go on until
    the kernel has let go, or it would wait for answers that nobody gives.
    """

    def __init__(
        self, coroutine: Coroutine[Any, Any, T], instead_of_cancel: Callable[[], None]
    ) -> None:
        """Start ``coroutine`` on the running loop."""
        super().__init__(coroutine, loop=asyncio.get_running_loop())
        self._instead_of_cancel = instead_of_cancel

    def cancel(self, msg: Any = None) -> bool:
        """Do not cancel."""
        self._instead_of_cancel()
        return False


def occur(event: asyncio.Future[None]) -> None:
    """Set an event, if it is not set.

    The events here are futures, so that no cancellation reaches whoever waits for them.
    """
    if not event.done():
        event.set_result(None)


def begin(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Start a blocking function in a thread; a future of its result, which nobody need await."""
    return _unneeded(asyncio.wrap_future(kernel.in_thread(function, *args, **kwargs)))


async def call(seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in a thread; after ``seconds`` it is left to itself.

    Raises:
        TimeoutError: it has not returned.

    """
    return await within(seconds, kernel.in_thread(function, *args, **kwargs))


async def within(seconds: float, step: futures.Future[T]) -> T:
    """Wait for what goes on in a thread, for ``seconds`` at most.

    Raises:
        TimeoutError: it has not returned.

    """
    future = _unneeded(asyncio.wrap_future(step))
    await asyncio.wait([future], timeout=seconds)
    if not future.done():
        raise TimeoutError(errno.ETIMEDOUT, f"no answer in {seconds:g} s")
    return future.result()


def _unneeded(future: asyncio.Future[T]) -> asyncio.Future[T]:
    """Keep asyncio from complaining that nobody asked for an exception."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
