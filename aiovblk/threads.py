"""Daemon threads for blocking system calls that may wait for this very process to answer."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def run_in_daemon_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Run ``function`` in a new daemon thread; return a future of its result.

    Not in a thread pool: a pool has a limit, and the call that would unblock all others could wait
    behind them. The thread is a daemon, since a call that hangs in the kernel must not keep the
    interpreter from exiting. It blocks all signals: a signal ends NBD_DO_IT, and interrupts a send
    to a full socket. It inherits PR_SET_IO_FLUSHER from the starting thread.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            result = function(*args, **kwargs)
        except BaseException as exc:
            future.set_exception(exc)
        else:
            future.set_result(result)

    name = getattr(function, "__qualname__", "run_in_thread")
    threading.Thread(target=run, name=f"aiovblk {name}", daemon=True).start()
    return future
