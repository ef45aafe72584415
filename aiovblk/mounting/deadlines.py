"""Waiting for threads and for the kernel."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from concurrent import futures
from typing import Any, ParamSpec, TypeVar

from ..errors import AttachError
from ..threads import run_in_daemon_thread

P = ParamSpec("P")
T = TypeVar("T")


class StoppedError(AttachError):
    """A mount is to end that has not been mounted yet."""

    def __init__(self) -> None:
        super().__init__(errno.ECANCELED, "unmounted before it was mounted")


def start_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Start a blocking function in a thread; a future of its result, which nobody need await."""
    return _consume_exception(asyncio.wrap_future(run_in_daemon_thread(function, *args, **kwargs)))


async def run_in_thread(
    seconds: float, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call a blocking function in a thread; after ``seconds`` it is left to itself.

    Raises:
        TimeoutError: it has not returned.

    """
    return await wait_thread(seconds, run_in_daemon_thread(function, *args, **kwargs))


async def wait_thread(seconds: float, step: futures.Future[T]) -> T:
    """Wait for what goes on in a thread, for ``seconds`` at most.

    Raises:
        TimeoutError: it has not returned.

    """
    future = _consume_exception(asyncio.wrap_future(step))
    await asyncio.wait([future], timeout=seconds)
    if not future.done():
        raise TimeoutError(errno.ETIMEDOUT, f"no answer in {seconds:g} s")
    return future.result()


async def wait_or_stopped(
    seconds: float, step: futures.Future[T], stopping: asyncio.Future[None], patience: float
) -> T:
    """Wait for what goes on in a thread, for ``seconds``; or ``patience`` from when it is stopped.

    Raises:
        TimeoutError: it has not returned.
        StoppedError: nor has it that soon after the order to stop.

    """
    future = _consume_exception(asyncio.wrap_future(step))
    steps: list[asyncio.Future[Any]] = [future, stopping]
    await asyncio.wait(steps, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if not future.done() and stopping.done():
        await asyncio.wait([future], timeout=patience)
        if not future.done():
            raise StoppedError
    if not future.done():
        raise TimeoutError(errno.ETIMEDOUT, f"no answer in {seconds:g} s")
    return future.result()


async def wait_for_task(seconds: float, step: Coroutine[Any, Any, T]) -> T:
    """Take a step within ``seconds``, or cancel it.

    For a :class:`~aiovblk.aio.tasks.GracefulTask`: asyncio.timeout would cancel that, which it refuses.

    Raises:
        TimeoutError: it was not done in time.

    """
    taking = asyncio.ensure_future(step)
    try:
        await asyncio.wait([taking], timeout=seconds)
    except BaseException:
        taking.cancel()
        raise
    if not taking.done():
        taking.cancel()
        await asyncio.wait([taking], timeout=seconds)  # what refuses to end is left to itself
        raise TimeoutError(errno.ETIMEDOUT, f"not done in {seconds:g} s")
    return taking.result()


def _consume_exception(future: asyncio.Future[T]) -> asyncio.Future[T]:
    """Keep asyncio from complaining that nobody asked for an exception."""
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    return future
