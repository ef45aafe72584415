"""The same devices over the NBD network protocol: :func:`serve` and :class:`Server`.

For clients that need no kernel driver and no root: qemu, nbdcopy, libnbd, nbd-client, another
machine. (The specification is doc/proto.md of the NetworkBlockDevice project.)
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from ..arguments import MAX_WORKERS, check_count, check_seconds
from ..device import BlockDevice
from ..dispatch import DEFAULT_SLOW_REQUEST, MAX_CONCURRENCY
from ..errors import Error
from ..protocol import DEFAULT_PORT
from .clients import Client, Clients, LocalClients
from .connection import make_settings
from .exports import Export, ExportSource, exports_of
from .listeners import SocketFile, close_all, listen_tcp, listen_unix
from .server import Server
from .workers.pool import WorkerPool

__all__ = [
    "DRAIN_TIMEOUT",
    "HANDSHAKE_TIMEOUT",
    "MAX_CONNECTIONS",
    "MAX_CONNECTION_MEMORY",
    "MAX_MEMORY",
    "Client",
    "Export",
    "Server",
    "serve",
]

MAX_CONNECTIONS = 1024
"""Clients at once; the next is turned away."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds within which a client must have chosen its export."""

DRAIN_TIMEOUT = 30.0
"""Seconds for requests in flight when the server ends."""

MAX_CONNECTION_MEMORY = 64 * 1024 * 1024
"""Bytes that one client's requests in flight may take before it has to wait."""

MAX_MEMORY = 512 * 1024 * 1024
"""Bytes that the requests in flight of all clients may take together."""


@asynccontextmanager
async def serve(
    exports: ExportSource | Mapping[str, ExportSource],
    *,
    unix: str | os.PathLike[str] | None = None,
    host: str | None = None,
    port: int | None = None,
    sockets: Sequence[socket.socket] | None = None,
    tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
    require_tls: bool = True,
    workers: int | None = None,
    max_connections: int = MAX_CONNECTIONS,
    handshake_timeout: float = HANDSHAKE_TIMEOUT,
    idle_timeout: float | None = None,
    drain_timeout: float = DRAIN_TIMEOUT,
    concurrency: int = MAX_CONCURRENCY,
    handler_timeout: float | None = None,
    slow_request: float | None = DEFAULT_SLOW_REQUEST,
    connection_memory: int = MAX_CONNECTION_MEMORY,
    memory: int = MAX_MEMORY,
) -> AsyncIterator[Server]:
    """Serve devices to NBD clients for the length of an ``async with`` block.

    Entering means that clients can connect. Leaving drains: no client is accepted any more, no
    request is taken any more, requests in flight are answered, connections are closed; then each
    shared device gets its ``flush()`` and ``unmount()``.

    Args:
        exports: what is served: by name, or one device whose name is empty. A device is shared by
            all connections; a function, async or not, is called for each and returns a device that
            lives as long as the connection. An :class:`Export` adds a description, or makes either
            read-only. A client that names no export gets the only one there is.
        unix: path of a Unix socket to listen on.
        host: name or address to listen on; empty for all addresses. Without it, ``localhost``.
        port: TCP port; 0 takes any that is free. Without it, 10809.
        sockets: sockets to use, listening ones as well as connected ones. They are closed.
        tls: certificates, for clients that ask for TLS, or a function that loads them. None serves
            without.
        require_tls: whether clients that do not ask for TLS are turned away.
        workers: so many processes share the clients, since one interpreter keeps one processor
            busy. Each client belongs to one of them and has a device of its own there, so each
            export has to be a function (of a module, or a functools.partial of one), and so does
            ``tls``. Clients that use several connections are told that they may where the device
            declares :attr:`BlockDevice.multi_conn` and has blocks of 512 bytes or less. A process
            that is lost takes its clients' connections with it, and is replaced.
        max_connections: how many clients are served at once.
        handshake_timeout: seconds within which a client must have chosen its export.
        idle_timeout: seconds after which a client that asks for nothing is disconnected; None for
            never, since an idle virtual machine is a normal client.
        drain_timeout: seconds to wait for requests in flight when leaving, and again for
            ``flush()`` and ``unmount()``; handlers that take longer are cancelled.
        concurrency: how many handlers may run at once for one connection.
        handler_timeout: seconds after which a handler is cancelled and its request fails with EIO.
        slow_request: seconds after which :meth:`Server.events` tells that a handler still runs;
            None for never.
        connection_memory: bytes that one client's requests may take; it waits when they do.
        memory: bytes that all clients' requests may take together. Those beyond wait for others to
            end, but for one small request (256 KiB) of each client. A client that holds memory and
            does not go on is disconnected: if it moves less than 512 KiB in a minute, or nothing in
            five seconds while others wait.

    With none of ``unix``, ``host``, ``port`` and ``sockets``, it listens on localhost, port 10809.

    Raises:
        TypeError, ValueError: an export, or an option, cannot be.
        OSError: it cannot listen there; the message says why.
        Error: on leaving: a device could not store its data, or its ``unmount()`` failed.

    Cancellation: drains, then goes on.

    """
    check_count("port", port, minimum=0, maximum=65535)
    check_count("workers", workers, maximum=MAX_WORKERS)
    check_count("max_connections", max_connections)
    check_count("concurrency", concurrency)
    check_count("connection_memory", connection_memory)
    check_count("memory", memory)
    check_seconds("handshake_timeout", handshake_timeout)
    check_seconds("idle_timeout", idle_timeout)
    check_seconds("drain_timeout", drain_timeout)
    check_seconds("handler_timeout", handler_timeout)
    check_seconds("slow_request", slow_request)
    if unix is not None and not os.fspath(unix):
        raise ValueError("unix is empty: it must be the path of a socket")
    known = exports_of(exports)
    if not (tls is None or isinstance(tls, ssl.SSLContext) or callable(tls)):
        raise TypeError(
            f"tls must be an ssl.SSLContext (aiovblk.tls makes one) or a function that makes one,"
            f" not {tls!r}"
        )
    make = partial(
        make_settings,
        exports=known,
        tls=tls,
        require_tls=require_tls,
        handshake_timeout=handshake_timeout,
        idle_timeout=idle_timeout,
        drain_timeout=drain_timeout,
        concurrency=concurrency,
        handler_timeout=handler_timeout,
        slow_request=slow_request,
        connection_memory=connection_memory,
        memory=memory // (workers or 1),
    )
    make_clients: Callable[[Callable[[], None]], Clients]
    if workers is None:
        _check_exports_for_one_process(known)
        make_clients = partial(LocalClients, make())
    else:
        _check_exports_for_workers(known, tls)
        make_clients = partial(WorkerPool, workers, make, drain_timeout)
    if unix is None and host is None and port is None and sockets is None:
        host = "localhost"
    server = Server(
        known,
        make_clients,
        tls=tls is not None and require_tls,
        max_connections=max_connections,
        drain_timeout=drain_timeout,
    )
    sockets = list(sockets or ())
    own: list[socket.socket] = []
    try:
        if unix is not None:
            own.append(listen_unix(name := os.fspath(unix)))
            server.file = SocketFile(name)
        if host is not None or port is not None:
            own += await listen_tcp(
                "localhost" if host is None else host, DEFAULT_PORT if port is None else port
            )
        try:
            await server.start([*own, *sockets])
            yield server
        finally:
            failures = await server.close_after_error()
    finally:
        if server.file is not None:
            server.file.remove()
        close_all([*own, *sockets])
    if failures:
        raise Error("it is no longer served, but " + "; ".join(failures))


def _check_exports_for_one_process(exports: Mapping[str, Export]) -> None:
    for name, export in exports.items():
        if isinstance(export.device, type):
            kind = export.device.__name__
            raise TypeError(
                f"export {name!r} is the class {kind}: make an instance of it, which all"
                f" connections share ({kind}(...)), or give a function that makes one for each"
                " (classes are for workers=)"
            )


def _check_exports_for_workers(
    exports: Mapping[str, Export], tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None
) -> None:
    for name, export in exports.items():
        if isinstance(export.device, BlockDevice):
            raise TypeError(
                f"export {name!r} is a device of this process; for workers, give a function that"
                " makes one"
            )
    if isinstance(tls, ssl.SSLContext):
        raise TypeError("an SSLContext stays in its process; for workers, give what makes one")
