"""Those who are connected: served in this process, and the same as seen from elsewhere."""

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
from .connection import ConnectionSettings, ServerConnection, ServerProtocol, format_error
from .listeners import address_of_peer

logger = logging.getLogger("aiovblk")


class Client(Protocol):
    """Somebody who is connected.

    Attributes:
        number: which of the server's clients it is, counted from 1.
        peer: its address in words.
        export: the name of the export that it uses; None during the handshake.
        stats: counters of its requests.

    """

    number: int
    peer: str
    export: str | None
    stats: Stats

    def stop(self) -> None:
        """Take no more requests of it; what is in flight is answered."""


class Clients(Protocol):
    """All clients of one server, wherever they are served.

    Attributes:
        broadcaster: who tells what happens to them.

    """

    broadcaster: EventBroadcaster

    async def open(self) -> None:
        """Get ready to accept some."""

    def count(self) -> int:
        """How many there are, those included that are just being accepted."""

    def recheck(self) -> None:
        """Look who has left, and was not noticed; see :data:`aiovblk.aio.tasks.RECHECK_INTERVAL`."""

    def connected(self) -> Sequence[Client]:
        """Who is connected now."""

    def stats(self) -> Stats:
        """The counters of all there are and were, added up as they are now."""

    def listen(self) -> EventStream:
        """Hear what happens from now on."""

    def accept(self, sock: socket.socket, number: int) -> None:
        """Serve whoever is at the other end; the socket is taken over."""

    def stop(self) -> None:
        """Take no more requests; what is in flight is answered."""

    def cancel_handlers(self) -> None:
        """Give up what is in flight."""

    async def close(self) -> list[str]:
        """Let go of the devices, once there is no client; what went wrong, in words."""


class LocalClients:
    """Clients that are served in this process.

    Args:
        settings: what they have in common.
        on_left: called when one has left.

    """

    def __init__(self, settings: ConnectionSettings, on_left: Callable[[], None]) -> None:
        self.broadcaster = settings.feed
        self._settings = settings
        self._on_left = on_left
        self._accepting: dict[socket.socket, asyncio.Task[object]] = {}
        self._serving: dict[asyncio.Task[None], ServerConnection] = {}
        self._stopped = False
        self._left = Stats()  # the counters of those who have left

    async def open(self) -> None:
        """There is nothing to get ready."""

    def count(self) -> int:
        """How many there are."""
        return len(self._accepting) + len(self._serving)

    def recheck(self) -> None:
        """Look who has left, and was not noticed; see :data:`aiovblk.aio.tasks.RECHECK_INTERVAL`."""
        for serving in [each for each in self._serving if each.done()]:
            self._on_end(serving)

    def connected(self) -> list[ServerConnection]:
        """Who is connected now."""
        return list(self._serving.values())

    def stats(self) -> Stats:
        """The counters of all there are and were."""
        return Stats.sum([self._left, *(each.stats for each in self.connected())])

    def listen(self) -> EventStream:
        """Hear what happens from now on."""
        return self.broadcaster.subscribe()

    def accept(self, sock: socket.socket, number: int) -> None:
        """Serve whoever is at the other end."""
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
        """Take no more requests; what is in flight is answered."""
        self._stopped = True
        for connection in self._serving.values():
            connection.stop()

    def cancel_handlers(self) -> None:
        """Give up what is in flight."""
        set_once(self._settings.expired)

    async def close(self) -> list[str]:
        """Flush and unmount the devices that connections share."""
        settings = self._settings
        # A device that has two names is closed once.
        devices = {id(each.device): each for each in settings.shared.values()}
        closing = [
            GracefulTask(each.close(settings.drain_timeout), lambda: None)
            for each in devices.values()
        ]
        failures = [failure for each in closing for failure in await each]
        settings.failures.close()
        settings.complaints.close()
        return failures

    def _on_accepted(
        self, sock: socket.socket, number: int, accepting: asyncio.Task[object]
    ) -> None:
        error = accepting.exception()
        if error is not None:
            logger.warning("a client was lost at once: %s", error)
            self.broadcaster.publish(
                ClientRefused(number, address_of_peer(sock), format_error(error))
            )
            sock.close()
            self._accepting.pop(sock, None)
            self._on_left()

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
        self._left = Stats.sum([self._left, connection.stats])
        self._left.in_flight = 0  # what was given up is not waited for any more
        if serving.exception() is not None:
            connection.reason = "a bug in aiovblk"
            logger.error("%s: a bug in aiovblk", connection.peer, exc_info=serving.exception())
        publish_disconnect(self.broadcaster, connection, connection.reason)
        self._on_left()


def publish_disconnect(feed: EventBroadcaster, client: Client, reason: str | None) -> None:
    """Tell that a client has left, or was turned away before it had an export."""
    if client.export is not None:
        feed.publish(ClientDisconnected(client.number, client.peer, client.export, reason))
    elif reason is not None:
        feed.publish(ClientRefused(client.number, client.peer, reason))
