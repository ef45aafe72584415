"""An asynchronous NBD client: the export of a server as a device."""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from ..arguments import MAX_WORKERS, check_count, check_seconds
from ..protocol import URI
from .connection import ClientConnection
from .dialing import dial, load_context
from .remote import RemoteDevice
from .session import Session

__all__ = ["RemoteDevice", "connect"]

logger = logging.getLogger("aiovblk")


def connect(
    uri: str,
    *,
    tls: ssl.SSLContext | None = None,
    connections: int = 4,
    timeout: float = 30.0,
    request_timeout: float | None = None,
    reconnect: float | None = None,
    replay_writes: bool = False,
) -> AbstractAsyncContextManager[RemoteDevice]:
    """Connect to an export of an NBD server.

    ``async with connect("nbd://server/export") as remote:``. Entering means that the export is
    there and can be used. Leaving lets requests in flight be answered, takes leave of the server
    and closes; ten seconds at most. Writes that no flush followed may be lost with the server.

    Args:
        uri: ``nbd://HOST[:PORT]/EXPORT`` or ``nbd+unix:///EXPORT?socket=PATH``, with TLS ``nbds:``
            or ``nbds+unix:``; also as given by other tools, with libnbd's TLS parameters.
        tls: what to use for TLS in place of what the URI says; the server's certificate must be
            for ``tls-hostname``, else for the host (localhost for Unix sockets).
        connections: at most as many at once, where the server allows for more than one. Those
            after the first join in the background.
        timeout: seconds for connecting and negotiating.
        request_timeout: seconds in which each request must be answered whole, however the server
            goes on sending; else its connection is broken off, like one that is lost: see
            ``reconnect``. By default there is no limit, since a server may have reasons to take its
            time.
        reconnect: seconds after a loss of the connection during which it is tried to get it back
            (``math.inf`` for ever);
            an attempt that begins by then has a second at least. Requests wait then. Those in
            flight are made again, except for :meth:`write`, :meth:`trim` and :meth:`write_zeroes`,
            which fail with EIO; the first :meth:`flush` after a loss fails with EIO, if there were
            writes that no flush has made durable. By default a lost connection stays lost.
        replay_writes: make those again as well. That is right only where nobody writes to the
            same place before the first write has returned, and the server forgets what a broken
            connection has asked for.

    Raises:
        ValueError: the URI or a number cannot be.
        OSError: on entering: the server cannot be reached, or not within ``timeout``
            (TimeoutError), or TLS failed (ssl.SSLError).
        ProtocolError: on entering: the server does not speak NBD. RefusedError: it refuses the
            export. TLSRequiredError, TLSUnavailableError: ``nbds:`` is wanted, or is not there.

    Cancellation: safe. While leaving, it gives up what is in flight.

    """
    parsed = URI.parse(uri)
    if tls is not None and not parsed.tls:
        raise ValueError(f"TLS needs a URI that begins with nbds, not {uri!r}")
    check_count("connections", connections, maximum=MAX_WORKERS)
    check_seconds("timeout", timeout)
    check_seconds("request_timeout", request_timeout)
    if reconnect != math.inf:  # which is for ever
        check_seconds("reconnect", reconnect)

    async def dial_within(limit: float | None) -> ClientConnection:
        nonlocal tls
        if parsed.tls and tls is None:
            tls = await load_context(parsed)
        within = timeout if limit is None else min(timeout, limit)
        return await dial(parsed, tls, within, request_timeout)

    make_session = partial(
        Session,
        uri,
        dial_within,
        connections=connections,
        reconnect=reconnect,
        replay_writes=replay_writes,
    )
    return _connected(uri, make_session)


@asynccontextmanager
async def _connected(uri: str, make_session: Callable[[], Session]) -> AsyncIterator[RemoteDevice]:
    session = make_session()
    try:
        await session.start()
        remote = RemoteDevice(uri, session)
        if remote.left_out:
            logger.warning(
                "%s: its %d bytes are no multiple of the server's smallest block (%d): the last %d"
                " are left out, since they can be neither read nor written",
                uri,
                remote.info.size,
                remote.block_size,
                remote.left_out,
            )
        yield remote
    finally:
        await session.close()
