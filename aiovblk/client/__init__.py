"""NBD client: use an export of an NBD server as a device, :func:`connect`.

:func:`connect` is long because its options are documented where ``help()`` and editors show them.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

from ..arguments import MAX_WORKERS, check_count, check_seconds
from ..protocol import URI
from .connection import ClientConnection
from .contexts import check_contexts
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
    contexts: Sequence[str] = (),
    list_contexts: bool = False,
) -> AbstractAsyncContextManager[RemoteDevice]:
    """Connect to an export of an NBD server.

    ``async with connect("nbd://server/export") as remote:``. Entering connects; then the export
    can be used. Leaving waits until requests in flight are answered, disconnects (NBD_CMD_DISC)
    and closes; ten seconds at most. Writes after the last flush may be lost with the server.

    Args:
        uri: ``nbd://HOST[:PORT]/EXPORT`` or ``nbd+unix:///EXPORT?socket=PATH``, with TLS ``nbds:``
            or ``nbds+unix:``; also as given by other tools, with libnbd's TLS parameters.
        tls: context to use for TLS in place of what the URI says; the server's certificate must be
            for ``tls-hostname``, else for the host (localhost for Unix sockets).
        connections: at most as many at once, where the server permits more than one. Those
            after the first join in the background.
        timeout: seconds for connecting and negotiating.
        request_timeout: seconds in which each request must be answered whole, however the server
            goes on sending; else its connection is aborted and handled as a lost one: see
            ``reconnect``. By default there is no limit, since a server may have reasons to take its
            time.
        reconnect: seconds after the loss of a connection during which reconnecting is retried, with
            backoff (``math.inf``: forever); an attempt that begins by then has a second at least,
            and is given up for another one after five, or twice as many as the first connection
            took. Requests wait meanwhile. Those in flight are replayed, except :meth:`write`,
            :meth:`trim` and :meth:`write_zeroes`, which fail with EIO; the first :meth:`flush`
            after a loss fails with EIO, if there were writes that no flush has made durable. By
            default there is no reconnect: a lost connection stays lost.
        replay_writes: replay those as well. That is right only where no other request writes to
            the same place before the first write has returned, and the server drops the requests
            of a broken connection.
        contexts: names of at most 64 metadata contexts to select beside ``base:allocation``, such
            as ``qemu:dirty-bitmap:NAME``. One that ends with a colon selects all that the server
            lists for it: ``qemu:dirty-bitmap:`` is every dirty bitmap. Those that the server does
            not have are left out: :attr:`RemoteDevice.contexts` has what was selected. A reconnect
            fails permanently where one of these is missing then.
        list_contexts: ask which contexts there are: :attr:`RemoteDevice.offered_contexts`.

    Raises:
        ValueError: the URI, a context or a number is invalid.
        OSError: on entering: the server cannot be reached, or not within ``timeout``
            (TimeoutError), or TLS failed (ssl.SSLError).
        ProtocolError: on entering: the server does not speak NBD. RefusedError: it refuses the
            export. TLSRequiredError, TLSUnavailableError: it requires TLS, or has none.

    Cancellation: safe. While leaving, it drops the requests in flight.

    """
    parsed = URI.parse(uri)
    if tls is not None and not parsed.tls:
        raise ValueError(f"TLS needs a URI that begins with nbds, not {uri!r}")
    check_count("connections", connections, maximum=MAX_WORKERS)
    check_seconds("timeout", timeout)
    check_seconds("request_timeout", request_timeout)
    if reconnect != math.inf:  # forever
        check_seconds("reconnect", reconnect)

    contexts = check_contexts(contexts)

    async def dial_within(limit: float | None) -> ClientConnection:
        nonlocal tls
        if parsed.tls and tls is None:
            tls = await load_context(parsed)
        within = timeout if limit is None else min(timeout, limit)
        return await dial(
            parsed,
            tls,
            within,
            request_timeout,
            contexts=contexts,
            list_contexts=list_contexts,
        )

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
                "%s: its size, %d bytes, is not a multiple of the server's minimum block size (%d):"
                " the last %d bytes can be neither read nor written, and are left out",
                uri,
                remote.info.size,
                remote.block_size,
                remote.left_out,
            )
        yield remote
    finally:
        await session.close()
