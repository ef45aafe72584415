"""What the commands have in common that run an event loop."""

from __future__ import annotations

import asyncio
import signal
from argparse import Namespace
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

Command = Callable[[Namespace], None]


def in_loop(main: Callable[[Namespace], Coroutine[Any, Any, None]]) -> Command:
    """Make a command of a coroutine function."""

    def command(arguments: Namespace) -> None:
        factory = uvloop.new_event_loop if arguments.loop == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main(arguments))

    return command


def ending_signals() -> list[signal.Signals]:
    """The signals at which a command that serves ends in order."""
    # nohup has a program ignore SIGHUP, and means it.
    hang_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]
