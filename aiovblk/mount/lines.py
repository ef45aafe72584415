"""The connections between the kernel and one device, which live and end together.

The kernel sends a request on whichever of them belongs to the processor that asks, and its reply
must come back on the same one. A flush covers what was written by any of them, since they have one
device behind them (CAN_MULTI_CONN).
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from ..dispatch import Stats
from ..events import ConnectionLost
from ..tasks import SteadyTask, occur
from .events import Events

logger = logging.getLogger("aiovblk")

SOCKET_BUFFER = 4 * 1024 * 1024
"""Bytes that each end may have under way; the default of 208 KiB makes large requests wait."""

_SO_SNDBUFFORCE = 32  # include/uapi/asm-generic/socket.h; Python has no name for it


class Line(Protocol):
    """One connection and who serves it: a :class:`~aiovblk.dispatch.Dispatcher` or its like."""

    stats: Stats
    last_reply: float

    @property
    def oldest_start(self) -> float | None:
        """When the handler began that has run longest."""

    async def connect(self, sock: socket.socket) -> None:
        """Take over the server's end of a socket pair."""

    async def run(self) -> None:
        """Serve until the connection ends."""

    async def resize(self, size: int) -> None:
        """Take requests up to this many bytes."""

    def give_up(self, since: float) -> None:
        """Fail what has been running since then, in the loop's time; if infinite, all there is."""

    def drained(self) -> asyncio.Future[None]:
        """Done as soon as every request that has arrived is answered."""

    def close(self) -> asyncio.Future[Any]:
        """Send what is queued, then close."""

    def abort(self) -> None:
        """Close at once, and cancel the handlers."""


class Lines:
    """All lines of one mount, as one.

    Args:
        events: what is told when all lines are disconnected, and when all have ended.
        stop: called when the device has to be unmounted for that reason.

    Attributes:
        tell: called with what happens to requests.

    """

    def __init__(self, events: Events, stop: Callable[[], None]) -> None:
        self.tell = events.feed.publish
        self._events = events
        self._stop = stop
        self._lines: list[Line] = []
        self._connected: list[Line] = []
        self._disconnected: set[int] = set()
        self._ended: set[int] = set()
        self._error: BaseException | None = None
        self._aborted = False
        self._closed = False

    def add(self, make: Callable[[Callable[[], None]], Line]) -> None:
        """Add a line; ``make`` is given what it has to call when the kernel sends DISC."""
        self._lines.append(make(partial(self._on_disconnect, len(self._lines))))

    async def connect(self) -> list[socket.socket]:
        """Make a socket pair for each line.

        Returns:
            The kernel's ends. The caller closes them.

        """
        kernels: list[socket.socket] = []
        try:
            for line in self._lines:
                ours, theirs = socket.socketpair()
                kernels.append(theirs)
                _enlarge_buffers(ours, theirs)
                await line.connect(ours)
                self._connected.append(line)
        except BaseException:
            self.abort()
            close_all(kernels)
            raise
        return kernels

    def start(self) -> None:
        """Serve, until each line ends."""
        for number, line in enumerate(self._lines):
            serving = SteadyTask(line.run(), self._stop)
            serving.add_done_callback(partial(self._on_end, number))

    @property
    def stats(self) -> Stats:
        """The counters of all lines, added up as they are now."""
        return Stats.sum(line.stats for line in self._lines)

    async def resize(self, size: int) -> None:
        """Take requests up to this many bytes; those beyond are refused."""
        for line in self._lines:
            await line.resize(size)

    def give_up(self, since: float = math.inf) -> None:
        """Fail with EIO the requests whose handlers have been running since then, and live on.

        Without ``since`` also those that wait for their turn.
        """
        for line in self._connected:
            line.give_up(since)

    @property
    def error(self) -> BaseException | None:
        """What broke the first line that did not just end."""
        return self._error

    def drained(self) -> asyncio.Future[Any]:
        """Done as soon as every request that has arrived is answered."""
        return asyncio.gather(*(line.drained() for line in self._lines))

    def close(self) -> asyncio.Future[Any]:
        """Send what is queued, then close; the result is done once all is closed."""
        self._closed = True
        return asyncio.gather(*(line.close() for line in self._lines))

    def abort(self) -> None:
        """Give up: close at once, and cancel the handlers that still run."""
        self._aborted = True
        for line in self._connected:
            line.abort()

    def waited_since(self) -> float:
        """Since when (in the loop's time) the kernel has been waiting for a sign of life.

        That is when the handler that has run longest began; or when the last reply was sent, if
        none is running.
        """
        begun = [line.oldest_start for line in self._lines if line.oldest_start is not None]
        return min(begun) if begun else max(line.last_reply for line in self._lines)

    def _on_disconnect(self, number: int) -> None:
        self._disconnected.add(number)
        self._look()

    def _on_end(self, number: int, serving: asyncio.Task[None]) -> None:
        error = serving.exception()
        self._error = self._error or error
        self._ended.add(number)
        is_last = len(self._ended) == len(self._lines)
        is_wanted = self._aborted or self._closed or number in self._disconnected
        if not is_wanted:
            reason = str(error or "it was closed")
            self.tell(ConnectionLost(number + 1, len(self._lines), reason))
        if not (is_last or is_wanted):
            logger.error(
                "connection %d of %d is lost (%s); what was in flight on it is sent again on the"
                " others",
                number + 1,
                len(self._lines),
                error or "it was closed",
            )
            # Its handlers must not go on: what they store late could undo what is stored then.
            self._lines[number].abort()
        self._look()

    def _look(self) -> None:
        count = len(self._lines)
        if self._disconnected and len(self._disconnected | self._ended) == count:
            occur(self._events.disconnected)
            self._stop()
        if len(self._ended) == count:
            occur(self._events.stream_ended)
            self._stop()


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Close sockets."""
    for sock in sockets:
        sock.close()


def _enlarge_buffers(*ends: socket.socket) -> None:
    for end in ends:
        try:
            # Beyond net.core.wmem_max, which takes CAP_NET_ADMIN.
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SOCKET_BUFFER)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
