"""Run commands in an event loop, and end them by a signal: graceful shutdown, then by force."""

from __future__ import annotations

import asyncio
import logging
import signal
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import uvloop

from ..events import EventStream, SlowRequest
from .allocator import keep_freed_memory

logger = logging.getLogger("aiovblk")

T = TypeVar("T")

ExitStatus = int | None
"""Of a command; None is 0."""

Command = Callable[[Namespace], ExitStatus]


def async_command(main: Callable[[Namespace], Coroutine[Any, Any, ExitStatus]]) -> Command:
    """Make a command from a coroutine function; ``--loop`` chooses uvloop or asyncio's loop."""

    def command(arguments: Namespace) -> ExitStatus:
        keep_freed_memory()
        factory = uvloop.new_event_loop if arguments.loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(main(arguments))

    return command


async def run_until_signal(
    serve: Callable[[asyncio.Future[T]], Coroutine[Any, Any, ExitStatus]],
    end: Callable[[T, bool], None],
) -> ExitStatus:
    """Serve until SIGINT, SIGTERM or SIGHUP, or until serving ends by itself.

    Args:
        serve: sets the future that it is given once it can be shut down gracefully; a signal
            before that cancels it.
        end: starts the shutdown at each later signal. It is called with the future's result, and
            with whether to use force: no at the first signal, yes at all others.

    Returns:
        What ``serve`` returns; None if a signal has cancelled it.

    Raises:
        Exception: what ``serve`` raises.

    Cancellation: only the waiting ends; ``serve`` goes on until its loop cancels it.

    """
    with anyio.open_signal_receiver(*_ending_signals()) as signals:
        live: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        serving = asyncio.create_task(serve(live))
        waiting = asyncio.create_task(_wait_for_signals(signals, serving, live, end))
        try:
            await asyncio.wait([serving])
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])
    if live.done() or not serving.cancelled():
        return serving.result()
    return None


async def _wait_for_signals(
    signals: AsyncIterator[signal.Signals],
    serving: asyncio.Task[ExitStatus],
    live: asyncio.Future[T],
    end: Callable[[T, bool], None],
) -> None:
    force = False
    async for _ in signals:
        if live.done():
            end(live.result(), force)
            force = True
        else:
            serving.cancel()


@contextmanager
def warning_of_slow_requests(events: EventStream) -> Iterator[None]:
    """Log a warning for each slow request while the block runs."""
    logging_task = asyncio.create_task(_warn_of_slow_requests(events))
    try:
        yield
    finally:
        logging_task.cancel()


async def _warn_of_slow_requests(events: EventStream) -> None:
    async for event in events:
        if isinstance(event, SlowRequest):
            logger.warning(
                "slow: %s of %d bytes at %d%s has been running for %.3g s",
                event.command,
                event.length,
                event.offset,
                "" if event.peer is None else f" of export {event.export!r} by {event.peer}",
                event.seconds,
            )


def _ending_signals() -> list[signal.Signals]:
    # nohup sets SIGHUP to be ignored, which must stay so.
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]
