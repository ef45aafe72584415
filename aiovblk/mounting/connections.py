"""The connections between the kernel and one device, which live and end together.

The kernel sends a request on the connection of the processor that asks, and its reply must come
back on the same one. A flush covers what was written on any of them, since they have one device
behind them (CAN_MULTI_CONN).

Invariant: a mount lives as long as one connection has not ended. When all have, or when DISC has
come on all that are left, the unmount is requested (``state.py``).

A connection that is lost goes to ``recovery/reconnect.py``; ``handover/connections.py`` pauses
connections and takes over their sockets.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from ..aio.tasks import GracefulTask
from ..dispatch import Dispatcher, Stats
from ..kernel import socket_pair
from .recovery.reconnect import Reconnector, Recovery
from .state import MountState
from .ublk.dispatcher import UblkDispatcher


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
        make: makes the connection, and each that replaces it.
        connection: the one that serves, or served last.
        is_connected: whether it was given a socket.
        serving: the task that serves it.
        disconnected: whether the kernel has sent DISC.
        ended: whether there will be no connection here any more.
        recovery: how it was lost, and is being reconnected.

    """

    number: int
    make: MakeConnection
    connection: KernelConnection = field(init=False)
    is_connected: bool = False
    serving: GracefulTask[None] | None = None
    disconnected: bool = False
    ended: bool = False
    recovery: Recovery = field(default_factory=Recovery)


class ConnectionGroup:
    """All connections of one mount.

    Args:
        state: of the mount; learns when all connections are disconnected, and when all have ended.
        request_timeout: seconds after which the kernel gives up a connection whose handler does not
            end; 0 if it was given no limit.

    Attributes:
        publish: publishes an event of a request or a connection.
        slots: the connections, by number.
        reconnector: decides what becomes of a lost connection.
        paused: whether no requests are taken, for a handover.
        error: what broke the first connection that did not just end.

    """

    def __init__(self, state: MountState, request_timeout: float = 0.0) -> None:
        self.publish = state.broadcaster.publish
        self.slots: list[ConnectionSlot] = []
        self.reconnector = Reconnector(self, state, request_timeout)
        self.paused = False
        self.error: BaseException | None = None
        self._state = state
        self._closed = False

    def add(self, make: MakeConnection) -> KernelConnection:
        """Add a connection, which is not connected yet."""
        slot = ConnectionSlot(len(self.slots), make)
        slot.connection = self.new_connection(slot)
        self.slots.append(slot)
        return slot.connection

    def new_connection(self, slot: ConnectionSlot) -> KernelConnection:
        """Make a connection for a slot: its first one, or one that replaces another."""
        return slot.make(lambda: self._on_disconnect(slot))

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
                await self.connect_slot(slot, ours)
        except BaseException:
            self.abort()
            close_all(kernel_ends)
            raise
        return kernel_ends

    async def connect_slot(
        self, slot: ConnectionSlot, sock: socket.socket, received: bytes = b""
    ) -> None:
        """Connect a slot to the server's end of a socket pair."""
        await slot.connection.connect(sock, received)
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
        return Stats.sum([*self.reconnector.replaced, *(each.stats for each in self.all())])

    @property
    def are_local(self) -> bool:
        """Whether this process serves all connections itself, and could hand them over."""
        return all(isinstance(each, Dispatcher | UblkDispatcher) for each in self.all())

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
        self.reconnector.stop()
        return asyncio.gather(*(each.close() for each in self.all()))

    def abort(self) -> None:
        """Close at once, and cancel the handlers that still run."""
        self._closed = True
        self.reconnector.stop()
        for slot in self.slots:
            if slot.is_connected:
                slot.connection.abort()

    # How connections end

    def _on_disconnect(self, slot: ConnectionSlot) -> None:
        slot.disconnected = True
        self.reconnector.stop()
        self._check_ended()

    def _on_serving_ended(self, slot: ConnectionSlot, serving: asyncio.Task[None]) -> None:
        if serving.cancelled():
            return  # it is paused
        error = serving.exception()
        if self._closed or slot.disconnected:
            self.mark_ended(slot, error)
        else:
            self.reconnector.handle_loss(slot, error)

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


def close_all(sockets: Sequence[socket.socket]) -> None:
    """Close sockets."""
    for sock in sockets:
        sock.close()
