"""The running server: it accepts clients up to max_connections, and shuts down gracefully.

A server's life: listen (:meth:`Server.start`); close (:meth:`Server.close`): no more clients, no
more requests; drain: requests in flight are answered, by the drain deadline at the latest; closed,
when no client is left (:meth:`Server.wait`). :meth:`Server.drain_and_close` does all that, and
closes the shared devices.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence

from .. import atfork
from ..aio.tasks import (
    RECHECK_INTERVAL,
    GracefulTask,
    set_once,
    wait_shielded,
    wait_uncancelled,
)
from ..dispatch import Stats
from ..events import ClientRefused, EventStream, ServerClosed, ServerClosing
from .clients import Client, Clients
from .listeners import SocketAcceptor, SocketFile, address_of_peer, is_listening, tune, uri
from .warning_limiter import WarningLimiter

logger = logging.getLogger("aiovblk")


class Server:
    """A running server, made by :func:`serve`.

    Attributes:
        uris: the NBD URIs of each export: ``nbd://localhost:10809/name`` and the like.

    """

    uris: list[str]
    _drain_timer: asyncio.TimerHandle

    def __init__(
        self,
        names: Iterable[str],
        make_clients: Callable[[Callable[[], None]], Clients],
        *,
        tls: bool,
        max_connections: int,
        drain_timeout: float,
    ) -> None:
        """Make a server that does not listen yet; see :meth:`start`.

        Args:
            names: of the exports.
            make_clients: makes what serves clients; it is given a function to call when a client
                has disconnected.
            tls: whether clients have to use TLS.
            max_connections: limit of clients at once; further clients are refused.
            drain_timeout: seconds for requests in flight at a graceful shutdown.

        """
        self.uris = []
        self.file: SocketFile | None = None  # of the Unix socket that `serve` has opened
        self._names = list(names)
        self._tls = tls
        self._max_connections = max_connections
        self._drain_timeout = drain_timeout
        self._listeners: list[SocketAcceptor] = []
        self._clients = make_clients(self._finish_if_idle)
        self._warnings = WarningLimiter()
        self._accepted = 0
        self._starting = True
        self._closing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def connections(self) -> Sequence[Client]:
        """The clients that are connected now."""
        return self._clients.connected()

    @property
    def stats(self) -> Stats:
        """The summed counters of all clients, present and past, as they are now."""
        return self._clients.stats()

    def events(self) -> EventStream:
        """Subscribe to events from now on, for ``async for``; see :mod:`aiovblk.events`.

        Clients connect and disconnect, requests fail or are slow. The last event is
        :class:`~aiovblk.events.ServerClosed`, when no client is left; what fails after that is
        raised on leaving the block. There may be any number of subscribers. A slow subscriber
        delays nothing: when too many events wait for it, the oldest are dropped, and
        :class:`~aiovblk.events.EventsDropped` says how many.

        With workers, events arrive some tenths of a second late. If a worker is lost, so are its
        events that had not arrived; for each of its clients that was known here,
        :class:`~aiovblk.events.ClientDisconnected` is published.
        """
        return self._clients.listen()

    def close(self, *, force: bool = False) -> None:
        """Begin a graceful shutdown (drain), as leaving the block does; see :meth:`wait`.

        No-op without ``force``: closing already.

        Args:
            force: cancel the requests in flight at once, also of a drain that is under way.

        """
        if force:
            self._clients.cancel_handlers()
        if self._closing.done():
            return
        set_once(self._closing)
        logger.info("shutting down, draining %d connections", self._clients.count())
        self._clients.broadcaster.publish(ServerClosing())
        if self.file is not None:
            # While the socket still listens, or another server may take the file for a stale one.
            self.file.remove()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self._clients.stop()
        self._drain_timer = asyncio.get_running_loop().call_later(
            self._drain_timeout, self._clients.cancel_handlers
        )
        self._finish_if_idle()

    async def wait(self) -> None:
        """Wait until the server has closed: it accepts no more clients, and none is left.

        That is when it was closed and has drained; or, where it was given connected sockets only,
        when their clients have disconnected.

        Cancellation: safe; the server goes on.

        """
        await wait_shielded(self._closed)

    # For `serve`

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept clients on listening sockets; serve the clients of connected sockets.

        Raises:
            ValueError: one is no stream socket.
            Exception: from workers: a process did not start.

        """
        try:
            await self._clients.open()
            for sock in sockets:
                self._start_on(sock)
        finally:
            self._starting = False
            self._finish_if_idle()

    def _start_on(self, sock: socket.socket) -> None:
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"{sock!r} is no stream socket, which NBD needs")
        atfork.protect_socket(sock)
        if is_listening(sock):
            self._listeners.append(SocketAcceptor(sock, self._accept))
            self.uris += [uri(sock, name, tls=self._tls) for name in self._names]
        else:
            self._accept(socket.socket(fileno=sock.detach()))

    async def drain_and_close(self) -> list[str]:
        """Shut down gracefully: drain, then flush and unmount the shared devices.

        Returns:
            Failures of the devices, in words.

        Cancellation: raised when the shutdown is complete.

        """
        self.close()
        closing = GracefulTask(self._finish_shutdown(), lambda: None)
        if await wait_uncancelled(closing, recheck=RECHECK_INTERVAL):
            raise asyncio.CancelledError
        return closing.result()

    async def _finish_shutdown(self) -> list[str]:
        while not self._closed.done():
            await asyncio.wait([self._closed], timeout=RECHECK_INTERVAL)
            self._clients.recheck()
            self._finish_if_idle()
        self._drain_timer.cancel()
        self._warnings.close()
        return await self._clients.close()

    def _accept(self, sock: socket.socket) -> None:
        self._accepted += 1
        if self._clients.count() >= self._max_connections:
            peer = address_of_peer(sock)
            reason = f"max_connections ({self._max_connections}) reached"
            self._warnings.warn("%s: refused: %s", peer, reason)
            refusal = ClientRefused(self._accepted, peer, reason)
            self._clients.broadcaster.publish(refusal)
            sock.close()
        else:
            tune(sock)
            self._clients.accept(sock, self._accepted)

    def _finish_if_idle(self) -> None:
        if self._closed.done():
            return
        if not self._starting and not self._listeners and not self._clients.count():
            set_once(self._closed)
            self._clients.broadcaster.publish(ServerClosed())
            self._clients.broadcaster.close()
