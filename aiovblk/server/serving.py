"""A server at work: who is accepted, who is connected, and the end."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..tasks import SteadyTask, occur, outlast
from .connection import Connection, ServerProtocol, Settings
from .listening import SocketFile, is_listening, uri

logger = logging.getLogger("aiovblk")

# The name of a Unix socket is for whoever made it to take away. Python 3.13 would do it.
_LEAVE_ITS_NAME: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class Server:
    """Devices that are being served, made by :func:`serve`.

    Attributes:
        uris: where clients find each export: ``nbd://localhost:10809/name`` and the like.

    """

    uris: list[str]
    _patience: asyncio.TimerHandle

    def __init__(self, settings: Settings, max_connections: int) -> None:
        self.uris = []
        self.file: SocketFile | None = None  # of the Unix socket that is its own
        self._starting = True
        self._settings = settings
        self._max_connections = max_connections
        self._listeners: list[asyncio.Server] = []
        self._connections: dict[asyncio.Task[None], Connection] = {}
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def connections(self) -> list[Connection]:
        """Who is connected now."""
        return list(self._connections.values())

    def close(self, *, force: bool = False) -> None:
        """Begin to drain, as leaving the block does; :meth:`wait` tells when it is done.

        Args:
            force: give up the requests in flight, now or in a drain that goes on.

        """
        if force:
            occur(self._settings.expired)
        if self._stopping.done():
            return
        occur(self._stopping)
        logger.info("ending, with %d connections", len(self._connections))
        if self.file is not None:
            # While somebody listens there, so that nobody takes the name for one that is left over.
            self.file.remove()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for connection in self._connections.values():
            connection.stop()
        self._patience = asyncio.get_running_loop().call_later(
            self._settings.drain_timeout, occur, self._settings.expired
        )
        self._end_if_alone()

    async def wait(self) -> None:
        """Wait until nobody is served any more.

        That is when it was closed and has drained; or when it had nothing but connected sockets,
        and their clients have left.

        Cancellation: it goes on serving.

        """
        await asyncio.shield(self._ended)

    # What follows is for `serve`.

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Accept clients on listening sockets, serve those that are connected."""
        try:
            for sock in sockets:
                await self._start_on(sock)
        except BaseException:
            self._starting = False
            self.close(force=True)
            await outlast(SteadyTask(self._drain(), lambda: None))
            raise
        self._starting = False
        self._end_if_alone()

    async def _start_on(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        make = partial(ServerProtocol, self._on_connected)
        if not is_listening(sock):
            await loop.connect_accepted_socket(make, sock)
            return
        if sock.family == socket.AF_UNIX:
            listener = await loop.create_unix_server(make, sock=sock, **_LEAVE_ITS_NAME)
        else:
            listener = await loop.create_server(make, sock=sock)
        self._listeners.append(listener)
        tls = self._settings.tls is not None and self._settings.require_tls
        self.uris += [uri(sock, name, tls=tls) for name in self._settings.exports]

    async def leave(self) -> list[str]:
        """Drain, close, and let go of the shared devices; what went wrong, in words."""
        self.close()
        ending = SteadyTask(self._end(), lambda: None)
        if await outlast(ending):
            raise asyncio.CancelledError
        return ending.result()

    async def _drain(self) -> None:
        await self._ended
        self._patience.cancel()

    async def _end(self) -> list[str]:
        settings = self._settings
        await self._drain()
        # A device that has two names is closed once.
        devices = {id(each.device): each for each in settings.shared.values()}
        closing = [
            SteadyTask(each.close(settings.drain_timeout), lambda: None)
            for each in devices.values()
        ]
        return [failure for failures in await asyncio.gather(*closing) for failure in failures]

    def _on_connected(self, stream: ServerProtocol) -> None:
        connection = Connection(self._settings, stream)
        full = len(self._connections) >= self._max_connections
        if full or self._stopping.done():
            if full:
                logger.warning("%s is turned away: there are enough clients", connection.peer)
            stream.transport.abort()
            return
        serving = SteadyTask(connection.run(), connection.stop)
        self._connections[serving] = connection
        serving.add_done_callback(self._on_left)

    def _on_left(self, serving: asyncio.Task[None]) -> None:
        connection = self._connections.pop(serving)
        if serving.exception() is not None:
            logger.error("%s: a bug in aiovblk", connection.peer, exc_info=serving.exception())
        self._end_if_alone()

    def _end_if_alone(self) -> None:
        if not self._starting and not self._listeners and not self._connections:
            occur(self._ended)
