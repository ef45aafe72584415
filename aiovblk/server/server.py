"""A server at work: where it listens, and its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable, Sequence

from .. import atfork
from ..aio.tasks import RECHECK_INTERVAL, GracefulTask, set_once, wait_uncancelled
from ..dispatch import Stats
from ..events import ClientRefused, ServerClosed, ServerClosing
from ..events import EventStream as EventListener
from .clients import Client, Clients
from .listeners import SocketAcceptor, SocketFile, address_of_peer, is_listening, tune, uri
from .warning_limiter import WarningLimiter

logger = logging.getLogger("aiovblk")


class Server:
    """Devices that are being served, made by :func:`serve`.

    Attributes:
        uris: where clients find each export: ``nbd://localhost:10809/name`` and the like.

    """

    uris: list[str]
    _patience: asyncio.TimerHandle

    def __init__(
        self,
        names: Iterable[str],
        make_clients: Callable[[Callable[[], None]], Clients],
        *,
        tls: bool,
        max_connections: int,
        drain_timeout: float,
    ) -> None:
        """Make one that listens nowhere.

        Args:
            names: of the exports.
            make_clients: is given what has to be called when a client has left.
            tls: whether clients have to use TLS.
            max_connections: how many there may be.
            drain_timeout: seconds for requests in flight at the end.

        """
        self.uris = []
        self.file: SocketFile | None = None  # of the Unix socket that is its own
        self._names = list(names)
        self._tls = tls
        self._max_connections = max_connections
        self._drain_timeout = drain_timeout
        self._listeners: list[SocketAcceptor] = []
        self._clients = make_clients(self._finish_if_idle)
        self._complaints = WarningLimiter()
        self._accepted = 0
        self._starting = True
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def connections(self) -> Sequence[Client]:
        """Who is connected now."""
        return self._clients.connected()

    @property
    def stats(self) -> Stats:
        """The counters of all clients since it began, as they are now; those included that left."""
        return self._clients.stats()

    def events(self) -> EventListener:
        """What happens from now on, for ``async for``; see :mod:`aiovblk.events`.

        Clients come and go, requests fail or are slow. It ends with
        :class:`~aiovblk.events.ServerClosed`, when nobody is served any more; what goes wrong after that
        is raised on leaving the block. Any number may listen. Nobody waits for a listener: of what
        it has not heard yet the oldest events are dropped when there are too many, and
        :class:`~aiovblk.events.EventsDropped` tells how many those were.

        With workers it is the same, some tenths of a second late. What a worker that is lost had
        not told yet by then is lost with it; of its clients that it had told of, it is told here
        that they have left.
        """
        return self._clients.listen()

    def close(self, *, force: bool = False) -> None:
        """Begin to drain, as leaving the block does; :meth:`wait` tells when it is done.

        Args:
            force: give up the requests in flight, now or in a drain that goes on.

        """
        if force:
            self._clients.cancel_handlers()
        if self._stopping.done():
            return
        set_once(self._stopping)
        logger.info("ending, with %d connections", self._clients.count())
        self._clients.broadcaster.publish(ServerClosing())
        if self.file is not None:
            # While somebody listens there, so that nobody takes the name for one that is left over.
            self.file.remove()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self._clients.stop()
        self._patience = asyncio.get_running_loop().call_later(
            self._drain_timeout, self._clients.cancel_handlers
        )
        self._finish_if_idle()

    async def wait(self) -> None:
        """Wait until nobody is served any more.

        That is when it was closed and has drained; or when it had nothing but connected sockets,
        and their clients have left.

        Cancellation: it goes on serving.

        """
        await asyncio.shield(self._ended)

    # What follows is for `serve`.

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept clients on listening sockets, serve those that are connected.

        Raises:
            ValueError: one is no stream socket.

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
            raise ValueError(f"NBD needs stream sockets, which {sock!r} is not")
        atfork.protect_socket(sock)
        if is_listening(sock):
            self._listeners.append(SocketAcceptor(sock, self._accept))
            self.uris += [uri(sock, name, tls=self._tls) for name in self._names]
        else:
            self._accept(socket.socket(fileno=sock.detach()))

    async def close_after_error(self) -> list[str]:
        """Drain, close, and let go of the shared devices; what went wrong, in words."""
        self.close()
        ending = GracefulTask(self._shut_down(), lambda: None)
        if await wait_uncancelled(ending, recheck=RECHECK_INTERVAL):
            raise asyncio.CancelledError
        return ending.result()

    async def _shut_down(self) -> list[str]:
        while not self._ended.done():
            await asyncio.wait([self._ended], timeout=RECHECK_INTERVAL)
            self._clients.recheck()
            self._finish_if_idle()
        self._patience.cancel()
        self._complaints.close()
        return await self._clients.close()

    def _accept(self, sock: socket.socket) -> None:
        self._accepted += 1
        if self._clients.count() >= self._max_connections:
            peer = address_of_peer(sock)
            reason = f"max_connections ({self._max_connections}) reached"
            self._complaints.warn("%s: refused: %s", peer, reason)
            refusal = ClientRefused(self._accepted, peer, reason)
            self._clients.broadcaster.publish(refusal)
            sock.close()
        else:
            tune(sock)
            self._clients.accept(sock, self._accepted)

    def _finish_if_idle(self) -> None:
        if self._ended.done():
            return
        if not self._starting and not self._listeners and not self._clients.count():
            set_once(self._ended)
            self._clients.broadcaster.publish(ServerClosed())
            self._clients.broadcaster.close()
