"""An S3 server (moto's, over HTTP), and a proxy before it that injects network faults.

``python -m tests.support.s3_server`` runs the server, with an empty bucket, until its input ends.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from random import Random
from socket import SO_LINGER, SOL_SOCKET
from threading import Lock, Thread
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from obstore.store import S3Store

BUCKET = "bucket"


@contextmanager
def server() -> Iterator[int]:
    """Run a server with an empty bucket for the time of a block; yield its port."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = one_at_a_time(DomainDispatcherApplication(create_backend_app))
    serving = make_server(
        "127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler
    )
    thread = Thread(target=serving.serve_forever, daemon=True)
    thread.start()
    try:
        yield serving.server_port
    finally:
        serving.shutdown()
        thread.join()
        serving.server_close()


def one_at_a_time(application: WSGIApplication) -> WSGIApplication:
    """Return an application that carries out one request at a time, as soon as it is complete.

    For a conditional put moto looks whether there is an object, and then puts its own; another
    thread may do so in between.
    """
    lock = Lock()

    def carry_out(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = BytesIO(environ["wsgi.input"].read(length))
        with lock:
            response = application(environ, start_response)
            try:
                return list(response)
            finally:
                if hasattr(response, "close"):  # PEP 3333, Specification Details
                    response.close()

    return carry_out


def store(port: int, **options: object) -> S3Store:
    """Return a client (of obstore) of the server, or of a proxy before it."""
    from obstore.store import S3Store

    return S3Store(
        BUCKET,
        endpoint=f"http://127.0.0.1:{port}",
        access_key_id="key",
        secret_access_key="secret",
        region="us-east-1",
        client_options={"allow_http": True},
        **options,  # type: ignore[arg-type]
    )


async def make_bucket(port: int) -> None:
    """Empty the server, and make the bucket."""
    for request in ("POST /moto-api/reset", f"PUT /{BUCKET}"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        status = await reader.readline()
        assert b" 200 " in status, status
        await reader.read()
        writer.close()
        await writer.wait_closed()


@dataclass
class NetworkFaults:
    """The faults that the proxy injects, and the probability of each."""

    random: Random
    delay: float = 0
    """Seconds before each request is passed on."""
    errors: float = 0
    """500, InternalError."""
    throttled: float = 0
    """503, SlowDown."""
    resets: float = 0
    """Reset of the connection; half of the time after the server has carried the request out."""
    counts: dict[str, int] = field(default_factory=dict)

    def next(self) -> str:
        """Choose the fault of the next request, or ``passed``."""
        drawn = self.random.random()
        fault = "passed"
        for name in ("errors", "throttled", "resets"):
            if 0 <= drawn < (probability := getattr(self, name)):
                fault = name
            drawn -= probability
        self.counts[fault] = self.counts.get(fault, 0) + 1
        return fault


@asynccontextmanager
async def proxy(port: int, faults: NetworkFaults) -> AsyncIterator[int]:
    """Run a proxy before the server for the time of a block; yield its port."""
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_serve(reader, writer, port, faults))
        connections.add(task)
        task.add_done_callback(connections.discard)

    listening = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _serve(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int, faults: NetworkFaults
) -> None:
    try:
        while (request := await _request(reader)) is not None:
            await asyncio.sleep(faults.delay)
            fault = faults.next()
            if fault == "errors":
                writer.write(_error_response("500 Internal Server Error", "InternalError"))
            elif fault == "throttled":
                writer.write(_error_response("503 Slow Down", "SlowDown"))
            elif fault == "conflicts" and request.startswith(b"PUT "):
                writer.write(_error_response("409 Conflict", "ConditionalRequestConflict"))
            elif fault == "resets":
                if faults.random.random() < 0.5:
                    await _pass_on(request, port)
                # With a linger time of 0, close() sends a reset.
                sock = writer.get_extra_info("socket")
                sock.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                return
            else:
                writer.write(await _pass_on(request, port))
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _request(reader: asyncio.StreamReader) -> bytes | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return head[:-2] + b"Connection: close\r\n\r\n" + await reader.readexactly(length)


async def _pass_on(request: bytes, port: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        writer.write(request)
        response = await reader.read(-1)
    finally:
        writer.close()
        await writer.wait_closed()
    # The client's connection is kept alive; the response has a Content-Length.
    head, _, body = response.partition(b"\r\n\r\n")
    lines = [each for each in head.split(b"\r\n") if not each.lower().startswith(b"connection:")]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _error_response(status: str, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


if __name__ == "__main__":
    with server() as port:
        asyncio.run(make_bucket(port))
        print(port, flush=True)
        sys.stdin.read()
