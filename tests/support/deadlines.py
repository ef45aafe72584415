"""Each test has a deadline, and says where it hangs when that passes.

Three timers, from the one that tells most to the one that always works:

1. asyncio's own timeout, in an asynchronous test: the traceback is that of the await that hangs.
2. A signal, half a deadline later (INTERRUPT), for a test and for what its fixtures do before and
   after it. It interrupts the main thread wherever that is, on an event loop or not.
3. faulthandler's watchdog thread, after twice the deadline (END): the process ends. It works where
   Python does not come to run a signal handler. With pytest-xdist the worker is replaced, and the
   other tests go on.

The first two print what every task waits for and where each thread is.

(pytest-timeout's signal may come while pytest writes the report of a test whose own timeout came
just before, which ends the run; its other method ends the process and does not show tasks.)
"""

from __future__ import annotations

import asyncio
import faulthandler
import functools
import gc
import inspect
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DEADLINE = 60.0
"""Seconds; ``@pytest.mark.deadline(120)`` gives a test another. A machine that is three times
slower, and busy, must not need as many."""

FIXTURE_DEADLINE = 600.0
"""The least for fixtures and synchronous tests outside of tests/unit: they boot machines, and
start servers of other people's."""

INTERRUPT, END = 1.5, 2.0
"""In deadlines."""

END_TIMEOUT = 60.0
"""Seconds for the process to end after the last test; a thread that nobody joined may keep it."""

TESTS = Path(__file__).resolve().parents[1]

_stderr = -1
_seconds = pytest.StashKey[float]()


def configure(config: pytest.Config) -> None:
    """Prepare what has to be there before output is captured."""
    global _stderr
    config.addinivalue_line(
        "markers", f"deadline(seconds): how long a test may take ({DEADLINE:.0f} s)"
    )
    _stderr = os.dup(2)


def unconfigure() -> None:
    """End the process, with a traceback, if it does not end by itself."""
    faulthandler.dump_traceback_later(END_TIMEOUT, exit=True, file=_stderr)


def set_deadline(item: pytest.Item) -> None:
    """Give a test its deadline."""
    marker = item.get_closest_marker("deadline")
    seconds = float(marker.args[0]) if marker else DEADLINE
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.obj = _within(seconds, item.obj)
    is_large = item.path.is_relative_to(TESTS) and not item.path.is_relative_to(TESTS / "unit")
    item.stash[_seconds] = max(seconds, FIXTURE_DEADLINE) if is_large else seconds


@contextmanager
def guarded(item: pytest.Item) -> Iterator[None]:
    """Interrupt the test, or what its fixtures do, and failing that end the process."""
    seconds = item.stash[_seconds]

    def interrupt(number: int, frame: object) -> None:
        told = f"{item.nodeid} hangs\n{what_hangs()}"
        os.write(_stderr, told.encode())  # who knows whether there will be a report
        item.add_report_section("call", "what hangs", told)
        loop = asyncio._get_running_loop()
        if loop is not None and asyncio.current_task(loop) is None:
            # It waits for events, and uvloop lets no exception pass there.
            loop.call_soon_threadsafe(loop.stop)
        else:
            pytest.fail(f"hangs after {INTERRUPT * seconds:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, INTERRUPT * seconds)
    faulthandler.dump_traceback_later(END * seconds, exit=True, file=_stderr)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


def what_hangs() -> str:
    """The stack of each task that is not done, and of each other thread."""
    out = io.StringIO()
    for each in gc.get_objects():  # of whichever loop
        if isinstance(each, asyncio.Task) and not each.done():
            print(f"{each.get_name()}:", *_awaited(each.get_coro()), sep="\n", file=out)
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, frame in sys._current_frames().items():
        if number != threading.get_ident():
            print(f"Thread {names.get(number, number)}:", file=out)
            traceback.print_stack(frame, file=out)
    return out.getvalue()


def _awaited(waiting: Any) -> Iterator[str]:
    """Each line that a coroutine waits in, the innermost last."""
    while waiting is not None:
        for kind in ("cr", "ag", "gi"):
            if (frame := getattr(waiting, f"{kind}_frame", None)) is not None:
                code = frame.f_code
                yield f'  File "{code.co_filename}", line {frame.f_lineno}, in {code.co_qualname}'
                waiting = getattr(waiting, "gi_yieldfrom" if kind == "gi" else f"{kind}_await")
                break
        else:
            yield f"  for {waiting!r}"
            return


def _within(
    seconds: float, function: Callable[..., Awaitable[None]]
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(function)
    async def within_deadline(*args: object, **kwargs: object) -> None:
        loop = asyncio.get_running_loop()
        # Goes off before the timeout does, which it precedes here.
        telling = loop.call_later(seconds, lambda: print(what_hangs(), file=sys.stderr))
        try:
            async with asyncio.timeout(seconds):
                await function(*args, **kwargs)
        finally:
            telling.cancel()

    return within_deadline
