"""The connections between the kernel and one device, which live and end together.

The kernel sends a request on the connection of the processor that asks, and its reply must come
back on the same one. A flush covers what was written on any of them, since they have one device
behind them (CAN_MULTI_CONN).

Invariant: a mount lives as long as one connection has not ended. When all have, or when DISC has
come on all that are left, the unmount is requested (``state.py``). A connection that is lost is
reconnected by ``recovery/reconnect.py``, where that can be.
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
from ..aio.tasks import GracefulTask
from ..dispatch import Dispatcher, Stats
from ..events import ConnectionLost
from ..kernel import socket_pair
from .state import MountState

logger = logging.getLogger("aiovblk")


class KernelConnection(Protocol):
    """One connection and what serves it: a :class:`~aiovblk.dispatch.Dispatcher`, or a worker."""

    stats: Stats

    @property
    def last_reply(self) -> float:
        """When (in the loop's time) replies were sent last."""

    @property
    def oldest_start(self) -> float | None:
        """When the handler began that has run longest, in the loop's time; None if none runs."""

    async def connect(self, sock: socket.socket, received: bytes = b"") -> None:
        """Take over the server's end of a socket pair, and what was received on it before."""

    async def run(self) -> None:
        """Serve until the connection ends."""

    async def resize(self, size: int) -> None:
        """Accept requests up to this many bytes; refuse those beyond."""

    def fail_running(self, since: float) -> None:
        """Fail requests whose handlers have been running since then, in the loop's time.

        If infinite: all there are, and those that wait for their turn.
        """

    def drained(self) -> asyncio.Future[None]:
        """Return a future that is done once every request that has arrived is answered."""

    def stop_receiving(self) -> None:
        """Shut down receiving; :meth:`run` serves what has arrived, and returns."""

    def close(self) -> asyncio.Future[Any]:
        """Send what is queued, then close."""

    def abort(self) -> None:
        """Close at once, and cancel the handlers."""


MakeConnection = Callable[[Callable[[], None]], KernelConnection]
"""Makes a connection; takes the callback for DISC from the kernel."""


@dataclass(slots=True, eq=False)
class ConnectionSlot:
    """One of a mount's connections, through all its replacements.

    Attributes:
        number: counted from 0.
        make_connection: makes the connection, and each that replaces it.
        connection: the one that serves, or served last.
        is_connected: whether it was given a socket.
        serving: the task that serves it.
        reconnecting: the task that reconnects it, while that runs.
        failed_since: when the kernel last gave up a connection here because a handler took too
            long, in the loop's time.
        disconnected: whether the kernel has sent DISC.
        retired: why the connection is to be replaced although it works; empty if it is not.
        lost: why the kernel has no connection here now; empty if it has one.
        ended: whether there will be no connection here any more.

    """

    number: int
    make_connection: MakeConnection
    connection: KernelConnection
    is_connected: bool = False
    serving: GracefulTask[None] | None = None
    reconnecting: GracefulTask[None] | None = None
    failed_since: float = -math.inf
    disconnected: bool = False
    retired: str = ""
    lost: str = ""
    ended: bool = False


class LossHandler(Protocol):
    """Decides what becomes of a lost connection: see :class:`.recovery.reconnect.Reconnector`."""

    def handle_loss(self, slot: ConnectionSlot, error: BaseException | None) -> None:
        """Reconnect a connection, or call :meth:`ConnectionGroup.mark_lost`."""

    def stop(self) -> None:
        """Reconnect no connection any more, nor go on with one."""


class ConnectionGroup:
    """All connections of one mount.

    Args:
        state: of the mount; learns when all connections are disconnected, and when all have ended.

    Attributes:
        publish: publishes an event of a request or a connection.
        loss_handler: decides what becomes of a lost connection; None if it is simply lost.
        slots: the connections, by number.
        paused: whether no requests are taken, for a handover.
        error: what broke the first connection that did not just end.

    """

    def __init__(self, state: MountState) -> None:
        self.publish = state.broadcaster.publish
        self.loss_handler: LossHandler | None = None
        self.slots: list[ConnectionSlot] = []
        self.paused = False
        self.error: BaseException | None = None
        self._state = state
        self._replaced: list[Stats] = []
        self._aborted = False
        self._closed = False

    def add(self, make: MakeConnection) -> KernelConnection:
        """Add a connection, which is not connected yet."""
        slot = ConnectionSlot(len(self.slots), make, make(lambda: self._on_disconnect(slot)))
        self.slots.append(slot)
        return slot.connection

    def all(self) -> list[KernelConnection]:
        """List all connections, including those that have ended."""
        return [slot.connection for slot in self.slots]

    async def connect(self) -> list[socket.socket]:
        """Make a socket pair for each connection, and connect the server's end.

        Returns:
            The kernel's ends. The caller closes them.

        """
        kernel_ends: list[socket.socket] = []
        try:
            for slot in self.slots:
                ours, theirs = socket_pair()
                kernel_ends.append(theirs)
                await self._connect(slot, ours)
        except BaseException:
            self.abort()
            close_all(kernel_ends)
            raise
        return kernel_ends

    async def take_over(
        self,
        sockets: Sequence[tuple[socket.socket, bytes]],
        prepare: Callable[[KernelConnection], Awaitable[None]],
    ) -> None:
        """Connect sockets whose other ends the kernel has already; as many as there are.

        Args:
            sockets: the server's end of each, and what was received on it before.
            prepare: called with each connection that is added for that.

        """
        try:
            while len(self.slots) < len(sockets):
                await prepare(self.add(self.slots[0].make_connection))
            del self.slots[len(sockets) :]
            for slot, (sock, received) in zip(self.slots, sockets, strict=True):
                await self._connect(slot, sock, received)
        except BaseException:
            self.abort()
            close_all([sock for sock, _ in sockets])
            raise

    async def _connect(self, slot: ConnectionSlot, sock: socket.socket, data: bytes = b"") -> None:
        await slot.connection.connect(sock, data)
        slot.is_connected = True

    def start(self) -> None:
        """Serve each connection in a task of its own, until it ends."""
        for slot in self.slots:
            self.serve(slot)

    def serve(self, slot: ConnectionSlot) -> None:
        """Serve one connection in a task; cancelling that requests the unmount."""
        slot.serving = GracefulTask(slot.connection.run(), self._state.request_stop)
        slot.serving.add_done_callback(partial(self._on_serving_ended, slot))

    @property
    def stats(self) -> Stats:
        """The counters of all connections, replaced ones included, added up as they are now."""
        return Stats.sum([*self._replaced, *(each.stats for each in self.all())])

    async def resize(self, size: int) -> None:
        """Accept requests up to this many bytes; refuse those beyond."""
        for connection in self.all():
            await connection.resize(size)

    @property
    def live_count(self) -> int:
        """How many connections the kernel has: those that are not lost, or are reconnected."""
        return sum(not (slot.lost or slot.ended) for slot in self.slots)

    def stop_reconnecting(self) -> None:
        """Reconnect no connection any more.

        The kernel does not let go of one that it takes when it has begun to disconnect.
        """
        if self.loss_handler is not None:
            self.loss_handler.stop()

    def fail_running(self, since: float = math.inf) -> None:
        """Fail with EIO the requests whose handlers have been running since then, and live on.

        Without ``since`` also those that wait for their turn.
        """
        for slot in self.slots:
            if slot.is_connected:
                slot.connection.fail_running(since)

    def drained(self) -> asyncio.Future[Any]:
        """Return a future that is done once every request that has arrived is answered."""
        return asyncio.gather(*(each.drained() for each in self.all()))

    def unanswered_since(self) -> float:
        """Return since when (in the loop's time) the kernel has been waiting for a sign of life.

        That is when the handler that has run longest began; or when the last reply was sent, if
        none is running.
        """
        starts = [each.oldest_start for each in self.all() if each.oldest_start is not None]
        return min(starts) if starts else max(each.last_reply for each in self.all())

    def close(self) -> asyncio.Future[Any]:
        """Send what is queued, then close; the result is done once all is closed."""
        self._closed = True
        self.stop_reconnecting()
        return asyncio.gather(*(each.close() for each in self.all()))

    def abort(self) -> None:
        """Close at once, and cancel the handlers that still run."""
        self._aborted = True
        self.stop_reconnecting()
        for slot in self.slots:
            if slot.is_connected:
                slot.connection.abort()

    # For a handover

    @property
    def can_hand_over(self) -> bool:
        """Whether another process can be given the connections: they are in this one."""
        return all(isinstance(each, Dispatcher) for each in self.all())

    async def pause(self) -> None:
        """Take no more requests; returns once all that have been taken are answered."""
        self.paused = True
        for slot, _ in self._live():
            assert slot.serving is not None  # they have been started
            slot.serving.force_cancel()
        await asyncio.gather(*(dispatcher.pause() for _, dispatcher in self._live()))

    def resume(self) -> None:
        """Take requests again after :meth:`pause`."""
        self.paused = False
        for slot, dispatcher in self._live():
            dispatcher.resume()
            self.serve(slot)

    def detach(self) -> list[tuple[socket.socket, bytes]]:
        """Give up the sockets, after :meth:`pause`, without the kernel noticing.

        Returns:
            The server's end of each, and what was received of requests that were not taken.

        """
        sockets = [dispatcher.detach() for _, dispatcher in self._live()]
        for sock, _ in sockets:
            atfork.protect_socket(sock)
        return sockets

    def _live(self) -> list[tuple[ConnectionSlot, Dispatcher]]:
        return [
            (slot, slot.connection)
            for slot in self.slots
            if not slot.ended
            and slot.reconnecting is None
            and isinstance(slot.connection, Dispatcher)
        ]

    # How connections end

    def _on_disconnect(self, slot: ConnectionSlot) -> None:
        slot.disconnected = True
        self.stop_reconnecting()
        self._check_ended()

    def _on_serving_ended(self, slot: ConnectionSlot, serving: asyncio.Task[None]) -> None:
        if serving.cancelled():
            return  # it is paused
        error = serving.exception()
        if self._aborted or self._closed or slot.disconnected:
            self.mark_ended(slot, error)
            return
        if error is not None:
            slot.retired = ""  # it broke before
        slot.lost = slot.retired or str(error or "it was closed")
        self.publish(ConnectionLost(slot.number + 1, len(self.slots), slot.lost))
        if self.loss_handler is None:
            self.mark_lost(slot, error, slot.lost)
        else:
            self.loss_handler.handle_loss(slot, error)

    def new_connection(self, slot: ConnectionSlot) -> KernelConnection:
        """Make a connection that may :meth:`replace` that of a slot."""
        return slot.make_connection(lambda: self._on_disconnect(slot))

    def replace(self, slot: ConnectionSlot, connection: KernelConnection) -> None:
        """Put another connection in place of one that has ended; the counters are kept."""
        self._replaced.append(slot.connection.stats)
        slot.connection = connection

    def mark_lost(self, slot: ConnectionSlot, error: BaseException | None, reason: str) -> None:
        """Record that a connection is lost for good; the others take over what was in flight."""
        if any(not other.ended for other in self.slots if other is not slot):
            abort_handlers(slot)
            logger.error(
                "connection %d of %d is lost (%s); what was in flight on it is sent again on the"
                " others",
                slot.number + 1,
                len(self.slots),
                reason,
            )
        self.mark_ended(slot, error)

    def mark_ended(self, slot: ConnectionSlot, error: BaseException | None) -> None:
        """Record the end of a connection; the last one ends the mount."""
        self.error = self.error or error
        slot.ended = True
        self._check_ended()

    def _check_ended(self) -> None:
        slots = self.slots
        if any(slot.disconnected for slot in slots) and all(
            slot.disconnected or slot.ended for slot in slots
        ):
            self._state.mark_disconnected()
        if all(slot.ended for slot in slots):
            self._state.mark_stream_ended()


def abort_handlers(slot: ConnectionSlot) -> None:
    """Cancel the handlers of a lost connection, whose requests the kernel sends again.

    What they store late could undo what is stored then.
    """
    slot.connection.abort()


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Close sockets."""
    for sock in sockets:
        sock.close()
