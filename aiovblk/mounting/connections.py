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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from .. import atfork
from ..aio.tasks import GracefulTask, set_once
from ..dispatch import Dispatcher, Stats
from ..events import ConnectionLost, ConnectionRestored
from ..kernel import socket_pair
from .deadlines import wait_for_task
from .state import MountState

logger = logging.getLogger("aiovblk")

RECONNECT_TIMEOUT = 30.0
"""Seconds for a connection that was lost to be made again, by a new process if need be. The kernel
lets requests wait for it."""


class KernelConnection(Protocol):
    """One connection and who serves it: a :class:`~aiovblk.dispatch.Dispatcher` or its like."""

    stats: Stats
    last_reply: float

    @property
    def oldest_start(self) -> float | None:
        """When the handler began that has run longest."""

    async def connect(self, sock: socket.socket, received: bytes = b"") -> None:
        """Take over the server's end of a socket pair, and what was received on it before."""

    async def run(self) -> None:
        """Serve until the connection ends."""

    async def resize(self, size: int) -> None:
        """Take requests up to this many bytes."""

    def fail_running(self, since: float) -> None:
        """Fail what has been running since then, in the loop's time; if infinite, all there is."""

    def drained(self) -> asyncio.Future[None]:
        """Done as soon as every request that has arrived is answered."""

    def stop_receiving(self) -> None:
        """Let the kernel send no more; :meth:`run` takes what it has sent, and returns."""

    def close(self) -> asyncio.Future[Any]:
        """Send what is queued, then close."""

    def abort(self) -> None:
        """Close at once, and cancel the handlers."""


MakeConnection = Callable[[Callable[[], None]], KernelConnection]
"""Makes a line; is given what that has to call when the kernel sends DISC."""


@dataclass(slots=True, eq=False)
class _Slot:
    """A line, or one in its place after it was lost."""

    number: int
    make_connection: MakeConnection
    connection: KernelConnection
    is_connected: bool = False
    serving: GracefulTask[None] | None = None
    reconnecting: GracefulTask[None] | None = None
    failed_since: float = -math.inf
    """When the kernel last gave a line here up, because a handler took too long."""
    disconnected: bool = False
    retired: str = ""
    """Why the line is to be made again although it serves."""
    lost: str = ""
    """Why the kernel has no connection here, until it has another one."""
    ended: bool = False


class ConnectionGroup:
    """All lines of one mount, as one.

    Args:
        events: what is told when all lines are disconnected, and when all have ended.
        stop: called when the device has to be unmounted for that reason.

    Attributes:
        publish: called with what happens to requests.
        open_replacement: called when a line has ended though nobody wanted it to, with that one and with
            another that is to serve in its place; returns the server's end of a connection for it.
            None where there cannot be one.
        timeout: seconds after which the kernel is to give a line up whose handler does not end;
            0 if it was not told so.

    """

    def __init__(self, events: MountState, stop: Callable[[], None]) -> None:
        self.publish = events.broadcaster.publish
        self.open_replacement: (
            Callable[[KernelConnection, KernelConnection], Awaitable[socket.socket]] | None
        ) = None
        self.timeout = 0.0
        self._events = events
        self._stop = stop
        self._slots: list[_Slot] = []
        self._past: list[Stats] = []
        self._error: BaseException | None = None
        self._aborted = False
        self._closed = False
        self._paused = False

    def add(self, make: MakeConnection) -> KernelConnection:
        """Add a line."""
        place = _Slot(len(self._slots), make, make(lambda: self._on_disconnect(place)))
        self._slots.append(place)
        return place.connection

    def all(self) -> list[KernelConnection]:
        """All of them, whatever has become of them."""
        return [place.connection for place in self._slots]

    async def connect(self) -> list[socket.socket]:
        """Make a socket pair for each line.

        Returns:
            The kernel's ends. The caller closes them.

        """
        kernels: list[socket.socket] = []
        try:
            for place in self._slots:
                ours, theirs = socket_pair()
                kernels.append(theirs)
                await self._connect(place, ours)
        except BaseException:
            self.abort()
            close_all(kernels)
            raise
        return kernels

    async def take_over(
        self,
        connections: Sequence[tuple[socket.socket, bytes]],
        prepare: Callable[[KernelConnection], Awaitable[None]],
    ) -> None:
        """Have the lines serve connections that the kernel has already, as many as there are.

        Args:
            connections: the server's end of each, and what was received on it before.
            prepare: called with each line that is added for that.

        """
        try:
            while len(self._slots) < len(connections):
                await prepare(self.add(self._slots[0].make_connection))
            del self._slots[len(connections) :]
            for place, (sock, received) in zip(self._slots, connections, strict=True):
                await self._connect(place, sock, received)
        except BaseException:
            self.abort()
            close_all([sock for sock, _ in connections])
            raise

    async def _connect(self, place: _Slot, sock: socket.socket, received: bytes = b"") -> None:
        await place.connection.connect(sock, received)
        place.is_connected = True

    def start(self) -> None:
        """Serve, until each line ends."""
        for place in self._slots:
            self._serve(place)

    def _serve(self, place: _Slot) -> None:
        place.serving = GracefulTask(place.connection.run(), self._stop)
        place.serving.add_done_callback(partial(self._on_serving_ended, place))

    @property
    def stats(self) -> Stats:
        """The counters of all lines, added up as they are now."""
        return Stats.sum([*self._past, *(line.stats for line in self.all())])

    async def resize(self, size: int) -> None:
        """Take requests up to this many bytes; those beyond are refused."""
        for line in self.all():
            await line.resize(size)

    @property
    def live_count(self) -> int:
        """How many connections the kernel has: those that were not lost, or are made again."""
        return sum(not (place.lost or place.ended) for place in self._slots)

    def stop_receiving(self, lines: Sequence[KernelConnection], reason: str) -> None:
        """Have lines made again that serve; what has arrived on them is answered before.

        They are lost where :attr:`open_replacement` is None.
        """
        for place in self._slots:
            if place.connection in lines:
                place.retired = reason
                place.connection.stop_receiving()

    def stop_reconnecting(self) -> None:
        """Have no line made again any more.

        Of one that the kernel takes when it has begun to disconnect it does not let go.
        """
        self.open_replacement = None
        for place in self._slots:
            if place.reconnecting is not None:
                place.reconnecting.force_cancel()

    def fail_running(self, since: float = math.inf) -> None:
        """Fail with EIO the requests whose handlers have been running since then, and live on.

        Without ``since`` also those that wait for their turn.
        """
        for place in self._slots:
            if place.is_connected:
                place.connection.fail_running(since)

    @property
    def error(self) -> BaseException | None:
        """What broke the first line that did not just end."""
        return self._error

    def drained(self) -> asyncio.Future[Any]:
        """Done as soon as every request that has arrived is answered."""
        return asyncio.gather(*(line.drained() for line in self.all()))

    @property
    def can_hand_over(self) -> bool:
        """Whether another process can be given the connections: they are in this one."""
        return all(isinstance(line, Dispatcher) for line in self.all())

    async def pause(self) -> None:
        """Take no request any more; returns once all that have been taken are answered."""
        self._paused = True
        for place, _ in self._live():
            assert place.serving is not None  # they have been started
            place.serving.force_cancel()
        await asyncio.gather(*(line.pause() for _, line in self._live()))

    def resume(self) -> None:
        """Take requests again."""
        self._paused = False
        for place, line in self._live():
            line.resume()
            self._serve(place)

    def detach(self) -> list[tuple[socket.socket, bytes]]:
        """Let go of the connections, after :meth:`pause`, without the kernel noticing.

        Returns:
            Of each the server's end, and what was received of requests that were not taken.

        """
        connections = [line.detach() for _, line in self._live()]
        for sock, _ in connections:
            atfork.protect_socket(sock)
        return connections

    def _live(self) -> list[tuple[_Slot, Dispatcher]]:
        return [
            (place, place.connection)
            for place in self._slots
            if not place.ended
            and place.reconnecting is None
            and isinstance(place.connection, Dispatcher)
        ]

    def close(self) -> asyncio.Future[Any]:
        """Send what is queued, then close; the result is done once all is closed."""
        self._closed = True
        self.stop_reconnecting()
        return asyncio.gather(*(line.close() for line in self.all()))

    def abort(self) -> None:
        """Give up: close at once, and cancel the handlers that still run."""
        self._aborted = True
        self.stop_reconnecting()
        for place in self._slots:
            if place.is_connected:
                place.connection.abort()

    def unanswered_since(self) -> float:
        """Since when (in the loop's time) the kernel has been waiting for a sign of life.

        That is when the handler that has run longest began; or when the last reply was sent, if
        none is running.
        """
        begun = [line.oldest_start for line in self.all() if line.oldest_start is not None]
        return min(begun) if begun else max(line.last_reply for line in self.all())

    def _on_disconnect(self, place: _Slot) -> None:
        place.disconnected = True
        self.stop_reconnecting()
        self._check_ended()

    def _on_serving_ended(self, place: _Slot, serving: asyncio.Task[None]) -> None:
        if serving.cancelled():
            return  # it is paused
        error = serving.exception()
        if self._aborted or self._closed or place.disconnected:
            self._mark_ended(place, error)
            return
        if error is not None:
            place.retired = ""  # it broke before
        place.lost = place.retired or str(error or "it was closed")
        self.publish(ConnectionLost(place.number + 1, len(self._slots), place.lost))
        if not place.retired:
            if self.open_replacement is None or self._paused or self._failed_again_at_once(place):
                self._mark_lost(place, error, place.lost)
                return
            _release_slot(place)
        remaking = wait_for_task(RECONNECT_TIMEOUT, self._reconnect(place, self.open_replacement))
        place.reconnecting = GracefulTask(remaking, self._stop)
        place.reconnecting.add_done_callback(
            partial(self._on_reconnected, place, error, place.lost)
        )

    def _failed_again_at_once(self, place: _Slot) -> bool:
        """Whether the kernel has given a line up, and had given up the one before it as well.

        What took too long may have been an outage, so it is tried once more; then it is the end, as
        without another connection, or whoever waits for the request would wait for ever.
        """
        begun = place.connection.oldest_start
        now = asyncio.get_running_loop().time()
        # The kernel counts from before the handler began, and a worker reports now and then.
        if not self.timeout or begun is None or now - begun < self.timeout / 2:
            return False
        before, place.failed_since = place.failed_since, now
        return now - before < 4 * self.timeout

    async def _reconnect(
        self,
        place: _Slot,
        renew: Callable[[KernelConnection, KernelConnection], Awaitable[socket.socket]] | None,
    ) -> None:
        await place.connection.drained()
        if place.retired:
            await place.connection.close()
        if renew is None:
            raise ConnectionError("the kernel takes no other")
        line = place.make_connection(lambda: self._on_disconnect(place))
        sock = await renew(place.connection, line)
        place.lost = place.retired = ""
        try:
            await line.connect(sock)
        except BaseException:
            sock.close()
            raise
        self._past.append(place.connection.stats)
        place.connection = line

    def _on_reconnected(
        self, place: _Slot, error: BaseException | None, why: str, remaking: asyncio.Task[None]
    ) -> None:
        place.reconnecting = None
        if remaking.cancelled():
            self._mark_ended(place, error)
        elif failure := remaking.exception():
            failed = f"it could not be made again: {failure or 'it took too long'}"
            self._mark_lost(place, error, f"{why}; {failed}")
        else:
            logger.warning(
                "connection %d of %d was lost (%s) and is made again; what was in flight on it is"
                " sent again",
                place.number + 1,
                len(self._slots),
                why,
            )
            self.publish(ConnectionRestored(place.number + 1, len(self._slots)))
            self._serve(place)

    def _mark_lost(self, place: _Slot, error: BaseException | None, why: str) -> None:
        if any(not other.ended for other in self._slots if other is not place):
            _release_slot(place)
            logger.error(
                "connection %d of %d is lost (%s); what was in flight on it is sent again on the"
                " others",
                place.number + 1,
                len(self._slots),
                why,
            )
        self._mark_ended(place, error)

    def _mark_ended(self, place: _Slot, error: BaseException | None) -> None:
        self._error = self._error or error
        place.ended = True
        self._check_ended()

    def _check_ended(self) -> None:
        places = self._slots
        if any(place.disconnected for place in places) and all(
            place.disconnected or place.ended for place in places
        ):
            set_once(self._events.disconnected)
            self._stop()
        if all(place.ended for place in places):
            set_once(self._events.stream_ended)
            self._stop()


def _release_slot(place: _Slot) -> None:
    """Have the handlers of a line end whose requests are sent again.

    What they store late could undo what is stored then.
    """
    place.connection.abort()


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Close sockets."""
    for sock in sockets:
        sock.close()
