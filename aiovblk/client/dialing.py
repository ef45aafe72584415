"""Connect to the server of an NBD URI: socket, TLS, handshake; and explain TLS failures."""

from __future__ import annotations

import asyncio
import errno
import getpass
import socket
import ssl
from collections.abc import Sequence

from .. import tls
from ..protocol import URI, ClientHandshake, NegotiationResult
from ..stream import StreamProtocol, run_handshake, start_tls
from ..text import quote
from .connection import ClientConnection


async def dial(
    uri: URI,
    context: ssl.SSLContext | None,
    timeout: float,
    request_timeout: float | None = None,
    *,
    contexts: Sequence[str] = (),
    list_contexts: bool = False,
) -> ClientConnection:
    """Connect to a server, and run the handshake.

    Args:
        uri: of the server and its export.
        context: for TLS; required where the URI asks for TLS.
        timeout: seconds for all of it.
        request_timeout: seconds in which each request must be answered; None for no limit.
        contexts: metadata contexts to select; as in :class:`ClientHandshake`.
        list_contexts: whether to ask which ones there are.

    Raises:
        OSError: the server cannot be reached, does not answer in time (TimeoutError), ends the
            connection, or TLS fails (ssl.SSLError).
        ProtocolError: it does not speak NBD, or refuses the export.

    Cancellation: the connection is closed.

    """
    handshake = ClientHandshake(
        uri.export, tls=uri.tls, contexts=contexts, list_contexts=list_contexts
    )
    try:
        async with asyncio.timeout(timeout):
            stream = await _open(uri)
            try:
                negotiated = await _negotiate(handshake, stream, uri, context)
                return ClientConnection(stream, negotiated, request_timeout=request_timeout)
            except BaseException:
                stream.transport.abort()
                raise
    except TimeoutError as exc:
        reason = f"{uri} did not answer within {timeout:g} s"
        if handshake.expected_reply == "greeting":
            reason += ": it accepts connections, but does not greet; is this an NBD server?"
        raise TimeoutError(errno.ETIMEDOUT, reason) from exc


async def load_context(uri: URI) -> ssl.SSLContext:
    """Make the TLS context that a URI describes, in a thread, since it reads files.

    Raises:
        OSError: a file is missing or invalid, or this Python lacks pre-shared keys.

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
    # uvloop treats names in the abstract namespace as paths.
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, name)
    except BaseException:
        sock.close()
        raise
    return sock


async def _negotiate(
    handshake: ClientHandshake, stream: StreamProtocol, uri: URI, context: ssl.SSLContext | None
) -> NegotiationResult:
    in_tls = False

    async def begin_tls() -> None:
        nonlocal in_tls
        in_tls = True
        assert context is not None  # TLS is only started where the URI asks for it
        # Of a Unix socket `host` is localhost, which is what its certificate must be for.
        hostname = uri.tls_hostname or uri.host
        await start_tls(stream, context, server_side=False, hostname=hostname)
        in_tls = False

    try:
        return await run_handshake(handshake, stream, start_tls=begin_tls)
    except ssl.SSLError as exc:
        raise _explain(exc, uri) from exc
    except (EOFError, ConnectionError) as exc:
        how = "aborted" if isinstance(exc, OSError) else "closed"
        reason = f"{uri}: the server {how} the connection during the handshake"
        # Not every server says why it refuses. (In TLS 1.3 a refusal arrives after the handshake.)
        if (in_tls or handshake.expected_reply == "tls") and uri.tls_psk_file is not None:
            reason += "; it may not know this user, or has another key than tls-psk-file for it"
        elif in_tls:
            reason += "; it may want a pre-shared key: tls-psk-file=FILE in the URI"
        elif handshake.expected_reply == "tls":
            reason += "; it may require a client certificate: tls-certificates=FOLDER in the URI"
        raise ConnectionResetError(errno.ECONNRESET, reason) from None


_ADVICE = {
    "CERTIFICATE_REQUIRED": (
        "it requires a client certificate: tls-certificates=FOLDER in the URI"
    ),
    "BAD_CERTIFICATE": "it does not trust the client certificate",
    "CERTIFICATE_UNKNOWN": "it does not trust the client certificate",
    "UNKNOWN_CA": "it does not trust the authority that signed the client certificate",
    "WRONG_VERSION_NUMBER": "it agreed to TLS but does not speak it",
    "HANDSHAKE_FAILURE": "no common cipher; does it use pre-shared keys (tls-psk-file) instead?",
    "DECRYPT_ERROR": "the pre-shared key (tls-psk-file) differs from the server's",
}


def _explain(failure: ssl.SSLError, uri: URI) -> ssl.SSLError:
    """Make an error of the same class that names the server, and a fix where one is known."""
    if isinstance(failure, ssl.SSLCertVerificationError):
        reason = f"{uri}: the server's certificate is refused: {quote(failure.verify_message)}"
        if failure.verify_code in _NAME_MISMATCHES:
            reason += "; tls-hostname=NAME in the URI says which name it has"
        elif failure.verify_code in _UNKNOWN_ISSUERS:
            reason += (
                "; tls-certificates=FOLDER in the URI says which authority to trust (ca-cert.pem)"
            )
        explained = ssl.SSLCertVerificationError(failure.errno, reason)
        explained.verify_code = failure.verify_code
        explained.verify_message = failure.verify_message
        return explained
    cause = failure.reason or str(failure)
    advice = next((text for part, text in _ADVICE.items() if cause.endswith(part)), "")
    reason = f"{uri}: TLS with the server failed: {quote(cause)}{advice and f': {advice}'}"
    return ssl.SSLError(failure.errno, reason)


# OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH; those of an issuer that is not
# known: UNABLE_TO_GET_ISSUER_CERT, DEPTH_ZERO_SELF_SIGNED_CERT, SELF_SIGNED_CERT_IN_CHAIN,
# UNABLE_TO_GET_ISSUER_CERT_LOCALLY, UNABLE_TO_VERIFY_LEAF_SIGNATURE.
_NAME_MISMATCHES = frozenset({62, 64})
_UNKNOWN_ISSUERS = frozenset({2, 18, 19, 20, 21})
