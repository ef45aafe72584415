"""A scripted NBD server: it negotiates an :class:`Export`, then sends what the test says."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aiovblk import RemoteDevice, connect
from aiovblk.protocol import (
    URI,
    Command,
    ReplyMode,
    Request,
    TransmissionFlag,
    parse_extended_request,
    parse_request,
)

ALL_FLAGS = (
    TransmissionFlag.HAS_FLAGS
    | TransmissionFlag.SEND_FLUSH
    | TransmissionFlag.SEND_TRIM
    | TransmissionFlag.SEND_WRITE_ZEROES
    | TransmissionFlag.SEND_CACHE
)

ACK, ERR_UNSUP = 1, 2**31 + 1
ALLOCATION_ID = 77


@dataclass
class Export:
    """What the server offers in the handshake."""

    size: int = 1 << 20
    flags: int = ALL_FLAGS
    mode: ReplyMode = ReplyMode.STRUCTURED
    allocation: bool = True
    block_sizes: tuple[int, int, int] | None = None
    description: str = ""
    tls: ssl.SSLContext | None = None

    def replies(self, option: int) -> list[tuple[int, bytes]]:
        """The replies to an option: type and data."""
        if option == 5:  # STARTTLS
            return [(ACK if self.tls else ERR_UNSUP, b"")]
        if option == 11:  # EXTENDED_HEADERS
            return [(ACK if self.mode is ReplyMode.EXTENDED else ERR_UNSUP, b"")]
        if option == 8:  # STRUCTURED_REPLY
            return [(ACK if self.mode >= ReplyMode.STRUCTURED else ERR_UNSUP, b"")]
        if option == 10:  # SET_META_CONTEXT
            context = struct.pack(">I", ALLOCATION_ID) + b"base:allocation"
            return [(4, context), (ACK, b"")] if self.allocation else [(ACK, b"")]
        assert option == 7  # GO
        info = [struct.pack(">HQH", 0, self.size, self.flags)]
        if self.block_sizes is not None:
            info.append(struct.pack(">HIII", 3, *self.block_sizes))
        if self.description:
            info.append(struct.pack(">H", 2) + self.description.encode())
        return [*((3, each) for each in info), (ACK, b"")]


class Peer:
    """One connection, from the server's side."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, mode: ReplyMode
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.mode = mode
        self.data: dict[int, bytes] = {}

    async def request(self) -> Request:
        """The next request; the payload of a WRITE is kept in ``data``, by cookie."""
        if self.mode is ReplyMode.EXTENDED:
            request = parse_extended_request(await self.reader.readexactly(32))
        else:
            request = parse_request(await self.reader.readexactly(28))
        if request.type == Command.WRITE:
            self.data[request.cookie] = await self.reader.readexactly(request.length)
        return request

    async def requests(self, count: int) -> list[Request]:
        return [await self.request() for _ in range(count)]

    async def disconnected(self) -> None:
        """Expect NBD_CMD_DISC, and nothing after that."""
        assert (await self.request()).type == Command.DISC
        assert await self.reader.read() == b""

    async def hung_up(self) -> None:
        """Expect the client to close without NBD_CMD_DISC."""
        assert await self.reader.read() == b""

    def close(self) -> None:
        self.writer.close()

    # Replies

    def simple(self, request: Request, data: bytes = b"", *, error: int = 0) -> None:
        self.writer.write(struct.pack(">IIQ", 0x67446698, error, request.cookie) + data)

    def chunk(
        self, request: Request, chunk: int, payload: bytes = b"", *, done: bool = False
    ) -> None:
        flags, length = int(done), len(payload)
        if self.mode is ReplyMode.EXTENDED:
            where = (request.cookie, request.offset, length)
            self.writer.write(struct.pack(">IHHQQQ", 0x6E8A278C, flags, chunk, *where) + payload)
        else:
            head = struct.pack(">IHHQI", 0x668E33EF, flags, chunk, request.cookie, length)
            self.writer.write(head + payload)

    def part(self, request: Request, offset: int, data: bytes, *, done: bool = False) -> None:
        """A chunk of OFFSET_DATA."""
        self.chunk(request, 1, struct.pack(">Q", offset) + data, done=done)

    def hole(self, request: Request, offset: int, length: int, *, done: bool = False) -> None:
        self.chunk(request, 2, struct.pack(">QI", offset, length), done=done)

    def error(
        self,
        request: Request,
        number: int,
        text: str = "",
        *,
        chunk: int = 32769,
        done: bool = True,
    ) -> None:
        payload = struct.pack(">IH", number, len(text.encode())) + text.encode()
        self.chunk(request, chunk, payload, done=done)

    def succeed(self, request: Request, data: bytes = b"") -> None:
        """Send the usual reply, in the mode that was negotiated."""
        if self.mode is ReplyMode.SIMPLE:
            self.simple(request, data)
        elif data:
            self.part(request, request.offset, data, done=True)
        else:
            self.chunk(request, 0, done=True)

    def fail(self, request: Request, number: int) -> None:
        if self.mode is ReplyMode.SIMPLE:
            self.simple(request, error=number)
        else:
            self.error(request, number)


@dataclass
class Server:
    """Listens on a Unix socket; each client that has negotiated is a :class:`Peer`."""

    path: str
    export: Export
    refuses: bool = False
    """Whether connections are closed at once."""
    max_answered: int | None = None
    """How many connections get an answer; the others wait forever. None for all."""
    _peers: asyncio.Queue[Peer] = field(default_factory=asyncio.Queue)
    _refused: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    _ignored: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _listener: asyncio.Server | None = None

    @property
    def uri(self) -> str:
        return str(URI(socket=self.path))

    @property
    def uri_pattern(self) -> str:
        return re.escape(self.uri)

    async def peer(self) -> Peer:
        """The next client that has negotiated."""
        return await self._peers.get()

    async def refused(self) -> None:
        """Wait until another client was refused."""
        await self._refused.get()

    async def ignored(self) -> None:
        """Wait until another client has connected that gets no answer."""
        await self._ignored.get()

    async def listen(self) -> None:
        self._listener = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        """Close the listening socket and all connections."""
        assert self._listener is not None
        self._listener.close()
        for writer in self._writers:
            writer.close()
        Path(self.path).unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        if self.refuses:
            writer.close()
            self._refused.put_nowait(None)
            return
        if self.max_answered is not None and len(self._writers) > self.max_answered:
            self._ignored.put_nowait(None)
            return
        writer.write(b"NBDMAGICIHAVEOPT\0\3")
        try:
            await self._negotiate(reader, writer)
        except (EOFError, OSError):  # the client refuses the negotiation
            writer.close()
        else:
            self._peers.put_nowait(Peer(reader, writer, self.export.mode))

    async def _negotiate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(4) == b"\0\0\0\3"
        option = 0
        while option != 7:
            magic, option, length = struct.unpack(">QII", await reader.readexactly(16))
            assert magic == 0x49484156454F5054
            await reader.readexactly(length)
            for kind, data in self.export.replies(option):
                head = struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data))
                writer.write(head + data)
            if option == 5 and self.export.tls is not None:
                await writer.start_tls(self.export.tls)


@asynccontextmanager
async def listening(export: Export | None = None, **fields: Any) -> AsyncIterator[Server]:
    """A server of this export, or of one with these fields."""
    with tempfile.TemporaryDirectory() as directory:  # shorter than tmp_path: paths have 108 bytes
        server = Server(f"{directory}/socket", export or Export(**fields))
        await server.listen()
        try:
            yield server
        finally:
            await server.stop()


@asynccontextmanager
async def remote_of(
    export: Export | None = None, *, options: dict[str, Any] | None = None, **fields: Any
) -> AsyncIterator[tuple[RemoteDevice, Peer]]:
    """A device and its only connection; leaving checks that the client disconnects."""
    async with listening(export, **fields) as server:
        async with connect(server.uri, **(options or {})) as remote:
            peer = await server.peer()
            yield remote, peer
        await peer.disconnected()


@asynccontextmanager
async def connected(
    export: Export | None = None, **options: Any
) -> AsyncIterator[tuple[Server, RemoteDevice, Peer]]:
    options = {"reconnect": 60.0, **options}
    async with listening(export) as server, connect(server.uri, **options) as remote:
        yield server, remote, await server.peer()


async def fails(call: asyncio.Future[Any], number: int, why: str) -> None:
    with pytest.raises(OSError, match=why) as caught:
        await call
    assert caught.value.errno == number


async def logged(text: str) -> None:
    """Wait until the library has logged this."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                found.set()

    found = asyncio.Event()
    logger = logging.getLogger("aiovblk")
    handler, level = Handler(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        await found.wait()
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


async def stored(remote: RemoteDevice, peer: Peer) -> None:
    """Make a write, and acknowledge it."""
    writing = asyncio.ensure_future(remote.write(0, b"x"))
    peer.succeed(await peer.request())
    await writing


async def flushed(remote: RemoteDevice, peer: Peer) -> None:
    flushing = asyncio.ensure_future(remote.flush())
    peer.succeed(await peer.request())
    await flushing
