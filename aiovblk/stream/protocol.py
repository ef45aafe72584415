"""The asyncio protocol of a connection: receiving, sending with backpressure, TLS, and its end.

Backpressure: when the peer does not read, the transport's write buffer fills up and asyncio calls
:meth:`StreamProtocol.pause_writing`, which sets ``write_paused``. :meth:`StreamProtocol.send` never
blocks: the code that produces replies or requests (dispatcher, handshake, client) checks
``write_paused``, and continues when ``on_write_resumed`` is called. In the other direction,
:mod:`.reader` pauses receiving while its buffer is full.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from .. import atfork
from .reader import InPlaceStreamReader

JOIN_LIMIT = 16 * 1024
"""Maximum bytes of a payload that is copied behind its header for one ``write``: up to this size, a
call of asyncio's ``writelines`` costs more than the copy. (In uvloop they cost the same.)"""


class StreamProtocol(asyncio.BufferedProtocol):
    """Receive a connection's bytes into its reader, and send buffers with backpressure.

    Attributes:
        reader: the :class:`InPlaceStreamReader` of the received bytes.
        transport: the transport to send by; replaced by another one when TLS begins.
        closed: done once the transport has closed; its result is the error that closed it, or None.
        write_paused: whether the transport's write buffer is above its limit, since the peer reads
            more slowly than is sent to it (backpressure).
        queued: bytes that were sent in spite of that; a running total.
        over_tls: whether TLS protects it; see :func:`.tls.start_tls`.
        on_write_resumed: called when the buffer has drained, or the connection is lost.

    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.reader = InPlaceStreamReader()
        self.closed: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.write_paused = False
        self.queued = 0
        self.on_write_resumed: Callable[[], None] | None = None
        self.over_tls = False

    def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Send buffers, which must not change any more; no-op once the connection is closed.

        Never blocks: see ``write_paused``.
        """
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
            # (CVE-2024-12254). Setting the limits makes the transport check them again.
            transport.set_write_buffer_limits(high, low)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the transport when the connection is established, and when TLS is."""
        # A stream's transport reads and writes; that of uvloop is no subclass of asyncio.Transport.
        self.transport = cast(asyncio.Transport, transport)
        atfork.protect_socket(self)
        self.reader.set_transport(transport)

    def fileno(self) -> int:
        """Return the socket's descriptor; -1 once the connection is closed."""
        if self.closed.done():
            return -1
        sock = self.transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def get_buffer(self, sizehint: int) -> memoryview:
        """Called by the transport before it receives: the buffer to receive into."""
        return self.reader.receive_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the transport after it has received ``nbytes`` bytes into that buffer."""
        self.reader.received(nbytes)

    def eof_received(self) -> bool:
        """Keep the writing side open for replies in flight; TLS cannot be half closed."""
        self.reader.feed_eof()
        return not self.over_tls

    def pause_writing(self) -> None:
        """Called by the transport when its write buffer is above the limit: backpressure begins."""
        self.write_paused = True

    def resume_writing(self) -> None:
        """Called by the transport when its write buffer has drained: backpressure ends."""
        self.write_paused = False
        if self.on_write_resumed is not None:
            self.on_write_resumed()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the transport when the connection is closed, by either side, or broke."""
        if exc is not None:
            self.reader.set_exception(exc)
        self.reader.feed_eof()
        if not self.closed.done():
            self.closed.set_result(exc)
        if self.write_paused:
            self.resume_writing()
