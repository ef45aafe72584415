"""From a URI to a connection in transmission phase."""

from __future__ import annotations

import asyncio
import errno
import getpass
import socket
import ssl

from .. import tls
from ..protocol import URI, ClientHandshake
from ..stream import StreamProtocol, converse
from .connection import Connection


async def dial(uri: URI, context: ssl.SSLContext | None, timeout: float) -> Connection:
    """Connect to a server, and negotiate.

    Args:
        uri: where to.
        context: for TLS; needed where the URI asks for it.
        timeout: seconds that it may take.

    Raises:
        OSError: the server cannot be reached, does not answer in time (TimeoutError), ends the
            connection, or TLS fails (ssl.SSLError).
        ProtocolError: it does not speak NBD, or refuses the export.

    Cancellation: what was opened is closed.

    """
    try:
        async with asyncio.timeout(timeout):
            stream = await _open(uri)
            try:
                return await _negotiate(stream, uri, context)
            except BaseException:
                stream.transport.abort()
                raise
    except TimeoutError as exc:
        reason = f"{uri} did not answer within {timeout:g} s"
        raise TimeoutError(errno.ETIMEDOUT, reason) from exc
    except EOFError:
        reason = f"{uri}: the server closed the connection during the handshake"
        raise ConnectionResetError(errno.ECONNRESET, reason) from None


async def load_context(uri: URI) -> ssl.SSLContext:
    """The TLS context that a URI describes.

    Raises:
        OSError: a file is missing or wrong, or this Python cannot do it.

    """
    return await asyncio.to_thread(_load_context, uri)


def _load_context(uri: URI) -> ssl.SSLContext:
    if uri.tls_psk_file is not None:
        # "If userinfo is not present it SHOULD default to a local operating system credential."
        return tls.psk_client_context(uri.tls_psk_file, uri.user or getpass.getuser())
    return tls.client_context(uri.tls_certificates, verify_peer=uri.tls_verify_peer)


async def _open(uri: URI) -> StreamProtocol:
    loop = asyncio.get_running_loop()
    try:
        if uri.socket is not None and uri.socket.startswith("\0"):
            _, stream = await loop.create_unix_connection(
                StreamProtocol, sock=await _connect_to_abstract(uri.socket)
            )
        elif uri.socket is not None:
            _, stream = await loop.create_unix_connection(StreamProtocol, uri.socket)
        else:
            _, stream = await loop.create_connection(StreamProtocol, uri.host, uri.port)
    except OSError as exc:
        raise OSError(exc.errno, f"cannot connect to {uri}: {exc.strerror or exc}") from exc
    return stream


async def _connect_to_abstract(name: str) -> socket.socket:
    # uvloop takes such names for paths.
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, name)
    except BaseException:
        sock.close()
        raise
    return sock


async def _negotiate(
    stream: StreamProtocol, uri: URI, context: ssl.SSLContext | None
) -> Connection:
    async def start_tls() -> None:
        assert context is not None  # nothing else asks for TLS than a URI that has one
        # The certificate of a server on this machine's sockets is for localhost.
        hostname = uri.tls_hostname or uri.host
        await stream.start_tls(context, server_side=False, hostname=hostname)

    handshake = ClientHandshake(uri.export, tls=uri.tls)
    return Connection(stream, await converse(handshake, stream, start_tls=start_tls))
