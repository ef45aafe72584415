"""The connected clients of a server: the interface, and clients that this process serves.

:class:`Clients` is what :class:`~aiovblk.server.server.Server` accepts sockets for: either
:class:`LocalClients`, here, or a :class:`~aiovblk.server.workers.pool.WorkerPool`. Its life:
``open()``, then ``accept()`` for each client; for a graceful shutdown ``stop()``, at the drain
deadline ``cancel_handlers()``, and ``close()`` once ``count()`` is 0.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from .. import atfork
from ..aio.tasks import GracefulTask, set_once
from ..dispatch import Stats
from ..events import ClientDisconnected, ClientRefused, EventBroadcaster, EventStream
from .client_stream import ServerProtocol
from .connection import ConnectionSettings, ServerConnection, format_error
from .listeners import address_of_peer

logger = logging.getLogger("aiovblk")


class Client(Protocol):
    """A connected client.

    Attributes:
        number: of the client; all that the server has accepted are counted from 1.
        peer: its address in words.
        export: the name of the export that it uses; None during the handshake.
        stats: counters of its requests.

    """

    number: int
    peer: str
    export: str | None
    stats: Stats

    def stop(self) -> None:
        """Disconnect it gracefully: read no more requests; those in flight are answered."""


class Clients(Protocol):
    """Serve all clients of one server, in this process or in workers.

    Attributes:
        broadcaster: publishes the events of the clients.

    """

    broadcaster: EventBroadcaster

    async def open(self) -> None:
        """Prepare to accept clients: start worker processes, if any."""

    def count(self) -> int:
        """Return how many clients there are, including those that are just being accepted."""

    def recheck(self) -> None:
        """Find clients that have disconnected without a callback.

        See :data:`aiovblk.aio.tasks.RECHECK_INTERVAL`.
        """

    def connected(self) -> Sequence[Client]:
        """Return the clients that are connected now."""

    def stats(self) -> Stats:
        """Return the summed counters of all clients, present and past."""

    def listen(self) -> EventStream:
        """Subscribe to events from now on."""

    def accept(self, sock: socket.socket, number: int) -> None:
        """Serve the client that is connected to ``sock``, which is owned by this object now."""

    def stop(self) -> None:
        """Begin a graceful shutdown: read no more requests; those in flight are answered."""

    def cancel_handlers(self) -> None:
        """End the drain by force: cancel handlers that still run, close their connections."""

    async def close(self) -> list[str]:
        """Close the shared devices, once no client is left.

        Returns:
            Failures, in words.

        """


class LocalClients:
    """Serve clients in this process.

    Args:
        settings: what their connections share.
        on_disconnect: called when a client has disconnected.

    """

    def __init__(self, settings: ConnectionSettings, on_disconnect: Callable[[], None]) -> None:
        self.broadcaster = settings.broadcaster
        self._settings = settings
        self._on_disconnect = on_disconnect
        self._accepting: dict[socket.socket, asyncio.Task[object]] = {}
        self._serving: dict[asyncio.Task[None], ServerConnection] = {}
        self._stopped = False
        self._past_stats = Stats()  # of disconnected clients

    async def open(self) -> None:
        """No-op: there is nothing to prepare."""

    def count(self) -> int:
        """Return how many clients there are, including those that are just being accepted."""
        return len(self._accepting) + len(self._serving)

    def recheck(self) -> None:
        """Find clients that have disconnected without a callback.

        See :data:`aiovblk.aio.tasks.RECHECK_INTERVAL`.
        """
        for serving in [each for each in self._serving if each.done()]:
            self._on_end(serving)

    def connected(self) -> list[ServerConnection]:
        """Return the clients that are connected now."""
        return list(self._serving.values())

    def stats(self) -> Stats:
        """Return the summed counters of all clients, present and past."""
        return Stats.sum([self._past_stats, *(each.stats for each in self.connected())])

    def listen(self) -> EventStream:
        """Subscribe to events from now on."""
        return self.broadcaster.subscribe()

    def accept(self, sock: socket.socket, number: int) -> None:
        """Serve the client that is connected to ``sock``, which is owned by this object now."""
        atfork.protect_socket(sock)
        loop = asyncio.get_running_loop()
        make = partial(
            ServerProtocol,
            partial(self._on_connected, sock, number),
            self._settings.budget.is_low,
        )
        accepting: asyncio.Task[object] = GracefulTask(
            loop.connect_accepted_socket(make, sock), lambda: None
        )
        self._accepting[sock] = accepting
        accepting.add_done_callback(partial(self._on_accepted, sock, number))

    def stop(self) -> None:
        """Begin a graceful shutdown: read no more requests; those in flight are answered."""
        self._stopped = True
        for connection in self._serving.values():
            connection.stop()

    def cancel_handlers(self) -> None:
        """End the drain by force: cancel handlers that still run, close their connections."""
        set_once(self._settings.drain_expired)

    async def close(self) -> list[str]:
        """Flush and unmount the devices that connections share.

        Returns:
            Failures, in words.

        """
        settings = self._settings
        # A device with two export names is closed once.
        devices = {id(each.device): each for each in settings.shared.values()}
        closing = [
            GracefulTask(each.close(settings.drain_timeout), lambda: None)
            for each in devices.values()
        ]
        failures = [failure for each in closing for failure in await each]
        settings.failures.close()
        settings.warnings.close()
        return failures

    def _on_accepted(
        self, sock: socket.socket, number: int, accepting: asyncio.Task[object]
    ) -> None:
        error = accepting.exception()
        if error is not None:
            logger.warning("cannot serve a client: %s", error)
            self.broadcaster.publish(
                ClientRefused(number, address_of_peer(sock), format_error(error))
            )
            sock.close()
            self._accepting.pop(sock, None)
            self._on_disconnect()

    def _on_connected(self, sock: socket.socket, number: int, stream: ServerProtocol) -> None:
        del self._accepting[sock]
        connection = ServerConnection(self._settings, stream, number)
        if self._stopped:
            connection.stop()
        serving = GracefulTask(connection.run(), connection.stop)
        self._serving[serving] = connection
        serving.add_done_callback(self._on_end)

    def _on_end(self, serving: asyncio.Task[None]) -> None:
        connection = self._serving.pop(serving, None)
        if connection is None:
            return
        self._past_stats = Stats.sum([self._past_stats, connection.stats])
        self._past_stats.in_flight = 0  # handlers that did not end when they were cancelled
        if serving.exception() is not None:
            connection.reason = "a bug in aiovblk"
            logger.error("%s: a bug in aiovblk", connection.peer, exc_info=serving.exception())
        publish_disconnect(self.broadcaster, connection, connection.reason)
        self._on_disconnect()


def publish_disconnect(broadcaster: EventBroadcaster, client: Client, reason: str | None) -> None:
    """Publish that a client has disconnected, or was refused before it had an export."""
    if client.export is not None:
        broadcaster.publish(ClientDisconnected(client.number, client.peer, client.export, reason))
    elif reason is not None:
        broadcaster.publish(ClientRefused(client.number, client.peer, reason))
