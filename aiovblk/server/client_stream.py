"""A client's byte stream: :class:`ServerProtocol`, with write backpressure and stall detection.

A client that does not read its replies is congested: the transport has called ``pause_writing()``.
Its replies then go on to queue up, as far as its memory quota reaches, since a reply's memory is
refunded only once it was sent. So a client that reads too slowly, or nothing at all, is watched by
a :class:`~aiovblk.server.stalls.StallMonitor` and disconnected.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial

from ..stream import StreamProtocol
from .listeners import address
from .stalls import Progress, StallMonitor

logger = logging.getLogger("aiovblk")

WRITE_BUFFER = 1024 * 1024
"""Bytes of replies that the transport may hold before the client counts as congested
(``write_paused``). It is no bound on what is queued: that is the client's memory quota."""

SOCKET_BUFFER = 2 * 1024 * 1024
"""Bytes of replies that the kernel may hold for a client on a Unix socket, as far as
``net.core.wmem_max`` lets it. The default of 208 KiB is less than one large read: the rest of it
would wait for another turn of the loop. TCP sizes its buffers by itself."""


class ServerProtocol(StreamProtocol):
    """Carry the bytes of one client, which is not trusted.

    Args:
        on_connected: called with this protocol, once, when the client is connected.
        is_short: returns whether others wait for memory.

    Attributes:
        stalled: how the client stalled, in words; None while it has not.

    """

    def __init__(
        self, on_connected: Callable[[ServerProtocol], None], is_short: Callable[[], bool]
    ) -> None:
        super().__init__()
        self.stalled: str | None = None
        self.is_short = is_short
        self._on_connected: Callable[[ServerProtocol], None] | None = on_connected
        self._monitor = StallMonitor(
            self._progress, is_short, partial(self.abort_stalled, "it has read too little")
        )
        self._congestions = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to use a transport; called by it, and by the TLS transport that replaces it."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if self._on_connected is not None:
            _enlarge_buffer(self.transport.get_extra_info("socket"))
            on_connected, self._on_connected = self._on_connected, None
            on_connected(self)

    def pause_writing(self) -> None:
        """Note that the client is congested, and watch from now on whether it goes on to read."""
        super().pause_writing()
        self._congestions += 1
        self._monitor.start()

    def abort_stalled(self, how: str, seconds: float) -> None:
        """Close the connection at once, and log a warning.

        Args:
            how: in what way the client has stalled, in words.
            seconds: for how long.

        """
        self.stalled = f"{how} for {seconds:g} s"
        logger.warning("%s: %s; disconnected", self.peer(), self.stalled)
        self.transport.abort()

    def peer(self) -> str:
        """Return the client's address in words."""
        return address(self.transport.get_extra_info("peername"))

    def _progress(self) -> Progress | None:
        if not self.write_paused or self.transport.is_closing():
            return None
        return self._congestions, self.queued - self.transport.get_write_buffer_size()


def _enlarge_buffer(sock: socket.socket) -> None:
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
