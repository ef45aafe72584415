"""A TCP server of what one coroutine serves on each connection."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol, TypeVar


class Service(Protocol):
    """Serves connections.

    Attributes:
        port, scheme: where it is served, set by :func:`serving`.

    """

    port: int
    scheme: str

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, which is closed when this returns."""


S = TypeVar("S", bound=Service)


@asynccontextmanager
async def serving(service: S, tls: ssl.SSLContext | None = None) -> AsyncIterator[S]:
    """Run the server for the time of a block."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                await service.serve(reader, writer)
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    service.port = listening.sockets[0].getsockname()[1]
    service.scheme = "https" if tls else "http"
    try:
        yield service
    finally:
        listening.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
