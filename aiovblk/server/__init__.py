"""NBD server: serve devices over TCP or a Unix socket, :func:`serve` and :class:`Server`.

For clients that need no kernel driver and no root: qemu, nbdcopy, libnbd, nbd-client, another
machine. (The specification is doc/proto.md of the NetworkBlockDevice project.)

:func:`serve` is long because its options are documented where ``help()`` and editors show them.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from ..arguments import MAX_WORKERS, check_count, check_seconds
from ..device import BlockDevice
from ..dispatch import DEFAULT_SLOW_REQUEST, MAX_CONCURRENCY, HandlerLimits
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
"""Default limit of clients at once; further clients are refused."""

HANDSHAKE_TIMEOUT = 10.0
"""Default handshake timeout: seconds within which a client must have chosen its export."""

DRAIN_TIMEOUT = 30.0
"""Default drain timeout: seconds for requests in flight at a graceful shutdown."""

MAX_CONNECTION_MEMORY = 64 * 1024 * 1024
"""Default memory quota of one client: bytes that its requests in flight may take. At the quota no
more of its requests are read (backpressure)."""

MAX_MEMORY = 512 * 1024 * 1024
"""Default memory budget: bytes that the requests in flight of all clients may take together."""


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
    busy_poll: int | None = None,
    connection_memory: int = MAX_CONNECTION_MEMORY,
    memory: int = MAX_MEMORY,
) -> AsyncIterator[Server]:
    """Serve devices to NBD clients for the length of an ``async with`` block.

    On entering, it listens: clients can connect. On leaving, it shuts down gracefully (drains):
    it accepts no more clients, reads no more requests, answers requests in flight, and closes
    connections; then it calls ``flush()`` and ``unmount()`` of each shared device.

    Args:
        exports: the devices to serve: a mapping from export names, or one device, whose name is
            empty. A device is shared by all connections; a function, async or not, is called for
            each connection and returns a device that lives as long as the connection. An
            :class:`Export` adds a description, or makes either read-only. A client that names no
            export gets the only one there is.
        unix: path of a Unix socket to listen on.
        host: name or address to listen on; empty for all addresses. Without it, ``localhost``.
        port: TCP port; 0 takes any free port. Without it, 10809.
        sockets: sockets to use, listening or connected (socket activation). They are closed.
        tls: an ``SSLContext`` for clients that ask for TLS, or a function that makes one. Without
            it, TLS is off.
        require_tls: whether to refuse clients that do not ask for TLS.
        workers: size of a worker pool: so many processes share the clients, since one interpreter
            keeps one processor busy. Each client belongs to one worker and has a device of its own
            there, so each export has to be a function (of a module, or a functools.partial of
            one), and so does ``tls``. Such exports permit several connections per client where the
            device declares :attr:`BlockDevice.multi_conn` and has blocks of 512 bytes or less. If a
            worker is lost, its clients' connections are lost too, and a new worker replaces it.
        max_connections: limit of clients at once; further clients are refused.
        handshake_timeout: seconds within which a client must have chosen its export.
        idle_timeout: seconds without a request after which a client is disconnected; None for
            never, since an idle virtual machine is a normal client.
        drain_timeout: seconds to wait for requests in flight when leaving, and again for
            ``flush()`` and ``unmount()``; handlers that take longer are cancelled.
        concurrency: limit of handlers that run at once for one connection.
        handler_timeout: seconds after which a handler is cancelled and its request fails with EIO.
        slow_request: seconds after which :meth:`Server.events` reports a handler that still runs;
            None for never.
        busy_poll: microseconds for which the event loop polls for the next request before it
            sleeps; None for none. It answers sooner where clients send one request at a time, and
            keeps a processor busy meanwhile, which should be one to spare.
        connection_memory: memory quota of one client, in bytes for its requests in flight; at the
            quota, no more of its requests are read (backpressure).
        memory: memory budget of all clients together, in bytes. Requests beyond it wait until
            others end, except one small request (256 KiB) of each client. A client that holds
            memory and stalls is disconnected: if it moves less than 512 KiB in a minute, or
            nothing in five seconds while others wait for memory.

    With none of ``unix``, ``host``, ``port`` and ``sockets``, it listens on localhost, port 10809.

    Raises:
        TypeError, ValueError: an export, or an option, is invalid.
        OSError: listening failed; the message gives the reason.
        Error: on leaving: a device could not store its data, or its ``unmount()`` failed.

    Cancellation: drains, then raises CancelledError.

    """
    _check_numbers(
        port=port,
        counts={
            "max_connections": max_connections,
            "connection_memory": connection_memory,
            "memory": memory,
        },
        seconds={
            "handshake_timeout": handshake_timeout,
            "idle_timeout": idle_timeout,
            "drain_timeout": drain_timeout,
        },
        workers=workers,
    )
    limits = HandlerLimits(
        concurrency=concurrency,
        handler_timeout=handler_timeout,
        slow_request=slow_request,
        busy_poll=busy_poll,
    )
    if unix is not None and not os.fspath(unix):
        raise ValueError("unix is empty: it must be the path of a socket")
    known = exports_of(exports)
    _check_exports(known, tls, workers)
    make = partial(
        make_settings,
        exports=known,
        tls=tls,
        require_tls=require_tls,
        handshake_timeout=handshake_timeout,
        idle_timeout=idle_timeout,
        drain_timeout=drain_timeout,
        limits=limits,
        connection_memory=connection_memory,
        memory=memory // (workers or 1),
    )
    make_clients: Callable[[Callable[[], None]], Clients]
    if workers is None:
        make_clients = partial(LocalClients, make())
    else:
        make_clients = partial(WorkerPool, workers, make, drain_timeout)
    server = Server(
        known,
        make_clients,
        tls=tls is not None and require_tls,
        max_connections=max_connections,
        drain_timeout=drain_timeout,
    )
    async with _listening(server, unix, host, port, sockets):
        yield server


@asynccontextmanager
async def _listening(
    server: Server,
    unix: str | os.PathLike[str] | None,
    host: str | None,
    port: int | None,
    sockets: Iterable[socket.socket] | None,
) -> AsyncIterator[None]:
    """Listen for the length of the block; then drain, and close all sockets. See :func:`serve`.

    Raises:
        OSError: listening failed.
        Error: at the end: a device could not store its data.

    """
    if unix is None and host is None and port is None and sockets is None:
        host = "localhost"
    given, opened = list(sockets or ()), list[socket.socket]()
    try:
        await _listen(server, opened, unix, host, port)
        try:
            await server.start([*opened, *given])
            yield
        finally:
            failures = await server.drain_and_close()
    finally:
        if server.file is not None:
            server.file.remove()
        close_all([*opened, *given])
    if failures:
        raise Error("the server has closed, but " + "; ".join(failures))


def _check_numbers(
    *,
    port: int | None,
    workers: int | None,
    counts: Mapping[str, int],
    seconds: Mapping[str, float | None],
) -> None:
    check_count("port", port, minimum=0, maximum=65535)
    check_count("workers", workers, maximum=MAX_WORKERS)
    for name, count in counts.items():
        check_count(name, count)
    for name, value in seconds.items():
        check_seconds(name, value)


async def _listen(
    server: Server,
    opened: list[socket.socket],
    unix: str | os.PathLike[str] | None,
    host: str | None,
    port: int | None,
) -> None:
    """Open the listening sockets that the options name.

    Each is appended to ``opened`` at once: the caller closes them, also when a later one fails.
    """
    if unix is not None:
        opened.append(listen_unix(name := os.fspath(unix)))
        server.file = SocketFile(name)
    if host is not None or port is not None:
        opened += await listen_tcp(
            "localhost" if host is None else host, DEFAULT_PORT if port is None else port
        )


def _check_exports(
    exports: Mapping[str, Export],
    tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None,
    workers: int | None,
) -> None:
    """Refuse devices and certificates that cannot be served by this process, or by workers."""
    if not (tls is None or isinstance(tls, ssl.SSLContext) or callable(tls)):
        raise TypeError(
            f"tls must be an ssl.SSLContext (aiovblk.tls makes one) or a function that makes one,"
            f" not {tls!r}"
        )
    if workers is None:
        _check_exports_for_one_process(exports)
    else:
        _check_exports_for_workers(exports, tls)


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
                f"export {name!r} is a device of this process, which workers cannot use: give a"
                " function that makes one"
            )
    if isinstance(tls, ssl.SSLContext):
        raise TypeError(
            "tls is an SSLContext of this process, which workers cannot use: give a function that"
            " makes one"
        )
