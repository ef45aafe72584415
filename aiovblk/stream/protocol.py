"""Between a transport and whoever parses what it brings."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Sequence
from typing import cast

from .. import atfork
from ..errors import ProtocolError
from .reader import InPlaceStreamReader

TLS_SHUTDOWN_TIMEOUT = 5.0
"""Seconds for a peer to confirm the end of TLS."""

JOIN_LIMIT = 16 * 1024
"""Bytes up to which one reply is joined with its header: what asyncio's own ``writelines`` does for
each call costs more. (In uvloop they cost the same.)"""


class StreamProtocol(asyncio.BufferedProtocol):
    """Feeds an :class:`InPlaceStreamReader` and tells when the connection is gone.

    Attributes:
        reader: what is received.
        transport: what to send by; another one since TLS has begun.
        closed: done once the transport has closed; its result is the error that closed it, if any.
        write_paused: whether the peer does not read as fast as is sent to it.
        queued: bytes that were sent while it was congested.
        on_write_resumed: called when that is over.

    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.reader = InPlaceStreamReader()
        self.closed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.write_paused = False
        self.queued = 0
        self.on_write_resumed: Callable[[], None] | None = None
        self._over_tls = False

    async def start_tls(
        self, context: ssl.SSLContext, *, server_side: bool, hostname: str | None = None
    ) -> None:
        """Go on over TLS; what was written before is sent without it.

        Args:
            context: certificates, and what is asked of the peer's.
            server_side: whether this is the server.
            hostname: the server's name, which its certificate must have.

        Raises:
            ProtocolError: the peer has sent something behind its agreement to TLS. Whoever sits
                between could have put it there.
            OSError: the TLS handshake failed; ssl.SSLError is one.

        """
        if self.reader.end != self.reader.start:
            raise ProtocolError("the peer sent bytes before TLS that nobody protects")
        self._over_tls = True
        try:
            transport = await asyncio.get_running_loop().start_tls(
                self.transport,
                self,
                context,
                server_side=server_side,
                server_hostname=hostname,
                ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT,
            )
        except BaseException as exc:
            # asyncio tells nobody of the end of a connection on which TLS never began.
            self.transport.abort()
            self.connection_lost(exc if isinstance(exc, Exception) else None)
            raise
        if transport is None:  # it was closed in the meantime
            raise ConnectionResetError("the connection was closed during the TLS handshake")
        self.connection_made(transport)

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Send these, which must not change any more; nothing once the connection is closed."""
        transport = self.transport
        if not buffers or transport.is_closing():
            return
        if self.write_paused:
            self.queued += sum(map(len, buffers))
        if len(buffers) <= 2 and len(buffers[-1]) <= JOIN_LIMIT:
            transport.write(b"".join(buffers))
            return
        transport.writelines(buffers)
        low, high = transport.get_write_buffer_limits()
        if not self.write_paused and transport.get_write_buffer_size() > high:
            # writelines of asyncio in Python 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 never pauses
            # (CVE-2024-12254). This looks at the limit once more.
            transport.set_write_buffer_limits(high, low)

    async def drain(self) -> None:
        """Wait until all that was sent has left, or the connection is gone."""
        self.transport.set_write_buffer_limits(0)  # so that any byte left is congestion
        decongested = asyncio.Event()
        self.on_write_resumed = decongested.set
        if self.write_paused:
            await decongested.wait()
        self.on_write_resumed = None
        self.transport.set_write_buffer_limits()

    def detach(self) -> tuple[int, bytes]:
        """Let go of the connection without closing it; reading must be paused, all be written.

        Returns:
            A descriptor of its socket, and what was received but not consumed.

        """
        duplicate = os.dup(self.transport.get_extra_info("socket").fileno())
        self.transport.abort()
        reader = self.reader
        return duplicate, bytes(memoryview(reader.buffer)[reader.start : reader.end])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the transport when it is ready."""
        # A stream's transport reads and writes; uvloop's only does not say so by its class.
        self.transport = cast(asyncio.Transport, transport)
        atfork.protect_socket(self)
        self.reader.set_transport(transport)

    def fileno(self) -> int:
        """The descriptor of the socket; -1 once the connection is closed."""
        if self.closed.done():
            return -1
        sock = self.transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by the transport before it receives."""
        return self.reader.receive_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the transport after it received."""
        self.reader.received(nbytes)

    def eof_received(self) -> bool:
        """Keep the writing side open: replies may still be under way. TLS has no such half."""
        self.reader.feed_eof()
        return not self._over_tls

    def pause_writing(self) -> None:
        """Called by the transport when it holds more than it should."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Called by the transport when it has sent most of that."""
        self.write_paused = False
        if self.on_write_resumed is not None:
            self.on_write_resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport when it is closed, by either side."""
        if exc is not None:
            self.reader.set_exception(exc)
        self.reader.feed_eof()
        if not self.closed.done():
            self.closed.set_result(exc)
        if self.write_paused:
            self.resume_writing()
