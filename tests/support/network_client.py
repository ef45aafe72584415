"""A network client that a test drives byte by byte, and devices that record their calls."""

from __future__ import annotations

import asyncio
import errno
import functools
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiovblk
from aiovblk import Server
from aiovblk.protocol import Command, Option, OptionReply
from aiovblk.protocol.options import (
    GREETING,
    IHAVEOPT,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    serialize_info_request,
    serialize_option,
)
from aiovblk.server.clients import LocalClients
from aiovblk.server.workers.pool import WorkerPool
from aiovblk.storage import MemoryDevice

from .dispatch_client import Client, PuppetDevice
from .polling import until

# Longer than anything takes, and less than a test may take that goes wrong.
serve = functools.partial(aiovblk.serve, drain_timeout=20, handshake_timeout=40)

MIB = 1024 * 1024

FIXED_NEWSTYLE, NO_ZEROES = 1, 2


class NetworkClient(Client):
    """Speaks the handshake, then the transmission phase with simple replies."""

    async def greet(self, flags: int = FIXED_NEWSTYLE | NO_ZEROES) -> int:
        """Receive the greeting and answer it; returns the server's flags."""
        magic, style, offered = GREETING.unpack(await self.reader.readexactly(GREETING.size))
        assert (magic, style) == (0x4E42444D41474943, IHAVEOPT)
        self.writer.write(struct.pack(">I", flags))
        return int(offered)

    async def option_reply(self, option: int) -> tuple[int, bytes]:
        header = await self.reader.readexactly(OPTION_REPLY.size)
        magic, about, reply, length = OPTION_REPLY.unpack(header)
        assert (magic, about) == (OPTION_REPLY_MAGIC, option)
        return reply, await self.reader.readexactly(length)

    async def ask(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; its replies, the final one last."""
        self.writer.write(serialize_option(option, data))
        replies = [await self.option_reply(option)]
        while replies[-1][0] in (OptionReply.SERVER, OptionReply.INFO, OptionReply.META_CONTEXT):
            replies.append(await self.option_reply(option))
        return replies

    async def go(self, name: str = "") -> None:
        replies = await self.ask(Option.GO, serialize_info_request(name, []))
        assert replies[-1][0] == OptionReply.ACK

    async def start_tls(self, context: ssl.SSLContext) -> None:
        await self.writer.start_tls(context, server_hostname="localhost")

    async def closed(self) -> bytes:
        """Read until the server closes; a reset counts as the end, and so does a broken pipe."""
        try:
            return await self.reader.read()
        except (ConnectionResetError, BrokenPipeError):
            return b""


Address = Path | tuple[str, int]


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[NetworkClient]:
    """A client that has connected, and has sent nothing."""
    if isinstance(address, Path):
        client = NetworkClient(*await asyncio.open_unix_connection(address))
    else:
        client = NetworkClient(*await asyncio.open_connection(*address))
    try:
        yield client
    finally:
        client.transport.abort()


@asynccontextmanager
async def using(address: Address, name: str = "") -> AsyncIterator[NetworkClient]:
    """A client in transmission phase."""
    async with connected(address) as client:
        await client.greet()
        await client.go(name)
        yield client


def clients_of(server: Server) -> LocalClients:
    """The server's clients, for tests of what nothing public shows."""
    assert isinstance(server._clients, LocalClients)
    return server._clients


def worker_pids(server: Server) -> list[int]:
    """The processes of the server's worker pool."""
    assert isinstance(server._clients, WorkerPool)
    return [slot.worker.pid for slot in server._clients._slots]


async def until_left(server: Server, *, but: int = 0) -> None:
    """Wait until no more than ``but`` clients are connected."""
    await until(lambda: len(server.connections) <= but)


class LoggingDevice(MemoryDevice):
    """A memory device that records writes, flushes and unmounts."""

    def __init__(self, size: int = MIB) -> None:
        super().__init__(size, block_size=512)
        self.events: list[str] = []

    async def write(self, offset: int, data: memoryview) -> None:
        self.events.append("write")
        await super().write(offset, data)

    async def flush(self) -> None:
        self.events.append("flush")

    async def unmount(self) -> None:
        self.events.append("unmount")


class PuppetDisk(PuppetDevice):
    """A PuppetDevice whose flush and unmount return at once."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    async def flush(self) -> None:
        self.events.append("flush")

    async def unmount(self) -> None:
        self.events.append("unmount")


class FailingDisk(LoggingDevice):
    """A device whose flush fails."""

    async def flush(self) -> None:
        await super().flush()
        raise OSError(errno.EIO, "the disk is on fire")


READ, WRITE, DISC = Command.READ, Command.WRITE, Command.DISC
