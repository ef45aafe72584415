"""TLS on a connection that has begun without it."""

from __future__ import annotations

import asyncio
import ssl

from ..errors import ProtocolError
from .protocol import StreamProtocol

TLS_SHUTDOWN_TIMEOUT = 5.0
"""Seconds for the peer to confirm the end of TLS (close_notify)."""


async def start_tls(
    stream: StreamProtocol,
    context: ssl.SSLContext,
    *,
    server_side: bool,
    hostname: str | None = None,
) -> None:
    """Start TLS on a connection; what was written before is sent without it.

    Args:
        stream: the connection.
        context: the certificates, and how the peer's are verified.
        server_side: whether this is the server.
        hostname: the server's name, which its certificate must have.

    Raises:
        ProtocolError: the peer has sent bytes after agreeing to TLS and before TLS began. A
            man in the middle could have injected them.
        OSError: the TLS handshake failed (ssl.SSLError is a subclass), or the connection was
            closed meanwhile.

    """
    if stream.reader.end != stream.reader.start:
        raise ProtocolError("the peer sent unprotected bytes before TLS began")
    stream.over_tls = True
    try:
        transport = await asyncio.get_running_loop().start_tls(
            stream.transport,
            stream,
            context,
            server_side=server_side,
            server_hostname=hostname,
            ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT,
        )
    except BaseException as exc:
        # asyncio does not call connection_lost() for a connection on which TLS never began.
        stream.transport.abort()
        stream.connection_lost(exc if isinstance(exc, Exception) else None)
        raise
    if transport is None:  # it was closed in the meantime
        raise ConnectionResetError("the connection was closed during the TLS handshake")
    stream.connection_made(transport)
