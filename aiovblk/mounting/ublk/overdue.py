"""Fail requests before the kernel kills the server for them, as it does an ordinary user's.

A device that was made without CAP_SYS_ADMIN (UNPRIVILEGED_DEV) has its server killed by SIGKILL 30
seconds after a request that was not answered (ublk_timeout in drivers/block/ublk_drv.c). A server
that lives can fail the one request, and say so; a killed one fails them all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic_ns

from ...dispatch.scheduler import HandlerScheduler
from ...protocol import Request

logger = logging.getLogger("aiovblk")

CANCEL_AFTER = 20.0
"""Seconds after which the handler of a request is cancelled."""

ANSWER_AFTER = 25.0
"""Seconds after which it is answered with EIO although its handler has not ended."""

INTERVAL = 1.0
"""Seconds between two looks."""


class OverdueRequests:
    """The requests of one device that are not answered yet, and their deadlines.

    Args:
        scheduler: runs their handlers.
        fail: answers a request with EIO.

    """

    def __init__(self, scheduler: HandlerScheduler, fail: Callable[[Request], None]) -> None:
        self._scheduler = scheduler
        self._fail = fail
        self._pending: dict[int, Request] = {}  # by tag, oldest first
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, request: Request) -> None:
        """Note that a request has come."""
        self._pending[request.cookie] = request
        if self._timer is None:
            self._timer = self._loop.call_later(INTERVAL, self._look)

    def settle(self, request: Request) -> bool:
        """Note that a request is answered; return False if it was before, so its tag is not its."""
        if self._pending.get(request.cookie) is not request:
            return False
        del self._pending[request.cookie]
        return True

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        now = monotonic_ns()
        self._scheduler.fail_arrived_before(now - int(CANCEL_AFTER * 1e9))
        limit = now - int(ANSWER_AFTER * 1e9)
        for request in [each for each in self._pending.values() if each.arrival < limit]:
            logger.error(
                "a handler does not end although it was cancelled; its request is answered with"
                " EIO before the kernel kills this process"
            )
            self._fail(request)
        if self._pending:
            self._timer = self._loop.call_later(INTERVAL, self._look)
