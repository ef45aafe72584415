"""Tasks that serve somebody, and must not end before he lets go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

RECHECK_INTERVAL = 1.0
"""Seconds after which whoever waits for the end of something looks by himself whether it has come.

``asyncio.Runner`` raises KeyboardInterrupt at the second Ctrl-C, wherever the main thread happens
to be: in a callback that was to tell of the end, say, which nobody calls again. Still the end of
the loop has to come to an end.
"""


class GracefulTask(asyncio.Task[T]):
    """A task that takes its cancellation for the order to stop in due form.

    The end of an event loop cancels every task there is. The tasks that serve must go on until
    their client has let go, or it would wait for answers that nobody gives.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], on_cancel: Callable[[], None]) -> None:
        """Start ``coroutine`` on the running loop."""
        self._on_cancel = on_cancel  # first: from then on it may be cancelled
        super().__init__(coroutine, loop=asyncio.get_running_loop())

    def cancel(self, msg: Any = None) -> bool:
        """Do not cancel."""
        self._on_cancel()
        return False

    def force_cancel(self) -> None:
        """Cancel after all."""
        super().cancel()


async def wait_uncancelled(task: asyncio.Task[Any], *, recheck: float | None = None) -> bool:
    """Wait until ``task`` is done, whatever happens meanwhile.

    Args:
        task: what is waited for.
        recheck: seconds after which to look for oneself; see :data:`RECHECK_INTERVAL`. None for never.

    Returns:
        Whether the caller was cancelled meanwhile; it has to raise that when it can.

    """
    cancelled = False
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task], timeout=recheck)
            except asyncio.CancelledError:
                cancelled = True  # natively; anyio's scopes do not reach in here
    return cancelled


def set_once(event: asyncio.Future[None]) -> None:
    """Set an event, if it is not set.

    The events here are futures, so that no cancellation reaches whoever waits for them.
    """
    if not event.done():
        event.set_result(None)
