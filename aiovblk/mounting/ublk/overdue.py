"""Fail requests before the kernel kills the server for them, as it does an ordinary user's.

A device that was made without CAP_SYS_ADMIN (UNPRIVILEGED_DEV) has its server killed by SIGKILL 30
seconds after a request that was not answered (ublk_timeout in drivers/block/ublk_drv.c). A server
that lives can fail the one request, and say so; a killed one fails them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic_ns

from ...dispatch.scheduler import HandlerScheduler
from ...protocol import Request

CANCEL_AFTER = 20.0
"""Seconds after which the handler of a request is cancelled."""

ANSWER_AFTER = 25.0
"""Seconds after which it is answered with EIO although its handler has not ended."""

INTERVAL = 1.0
"""Seconds between two looks."""


class OverdueRequests:
    """The deadlines of the requests of one device.

    Args:
        scheduler: runs their handlers.
        answer: answers the request of a task with EIO, whatever becomes of its handler.

    """

    def __init__(
        self,
        scheduler: HandlerScheduler,
        answer: Callable[[asyncio.Task[None], Request], None],
    ) -> None:
        self._scheduler = scheduler
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    def watch(self) -> None:
        """Look from now on, for as long as a request waits."""
        if self._timer is None and not self._is_closed and self._scheduler.is_waiting:
            self._timer = self._loop.call_later(INTERVAL, self._look)

    def close(self) -> None:
        """Look no more: the requests are the kernel's."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        now = monotonic_ns()
        self._scheduler.fail_arrived_before(now - int(CANCEL_AFTER * 1e9))
        for task, request in self._scheduler.running_since(now - int(ANSWER_AFTER * 1e9)):
            self._answer(task, request)
        self.watch()
