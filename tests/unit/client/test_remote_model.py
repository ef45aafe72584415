"""Random requests of several clients to one server: it must do what an array of bytes does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from random import Random

import pytest

from aiovblk import BlockDevice, RemoteDevice, Server, connect, serve
from aiovblk.protocol import Command, Request, serialize_request
from aiovblk.storage import FileDevice, MemoryDevice

from ...support.wire import FLAGS, go

pytestmark = pytest.mark.slow

SIZE = (1 << 20) + 1536
BLOCK = 512
PAGE = 4096

# What clients send that then disconnect.
STRANGERS = [
    b"",
    FLAGS + b"IHAVEOPT",
    b"GET / HTTP/1.1\r\n\r\n",
    FLAGS + go() + serialize_request(Request(0, Command.WRITE, 1, 0, 4096)) + b"x" * 4095,
    FLAGS + go() + serialize_request(Request(0, Command.READ, 1, 0, SIZE // BLOCK * BLOCK)) * 20,
    FLAGS + go() + b"\0" * 28,
]


class Model:
    """A served device, its clients, and what it should contain."""

    def __init__(self, server: Server, device: BlockDevice, path: str, random: Random) -> None:
        self.server = server
        self.device = device
        self.path = path
        self.random = random
        self.content = bytearray(device.size)
        self.clients: list[tuple[AbstractAsyncContextManager[RemoteDevice], RemoteDevice]] = []

    # Clients that come and go

    async def join(self) -> None:
        if len(self.clients) < 4:
            # A replayed write does no harm here: none overlaps another in flight.
            remote = connect(
                self.server.uris[0],
                connections=self.random.randint(1, 3),
                reconnect=10,
                replay_writes=True,
            )
            self.clients.append((remote, await remote.__aenter__()))

    async def disconnect(self) -> None:
        if len(self.clients) > 1:
            await self.clients.pop(self.random.randrange(len(self.clients)))[0].__aexit__(
                None, None, None
            )

    async def disconnect_all(self) -> None:
        while self.clients:
            await self.clients.pop()[0].__aexit__(None, None, None)

    async def lose(self) -> None:
        """Close any connection at the server's side."""
        if self.server.connections:
            self.random.choice(self.server.connections).stop()

    async def be_strange(self) -> None:
        _, writer = await asyncio.open_unix_connection(self.path)
        writer.write(self.random.choice(STRANGERS))
        writer.transport.abort()

    # Requests

    def a_client(self) -> RemoteDevice:
        return self.random.choice(self.clients)[1]

    async def ask_together(self) -> None:
        """Make a few requests at once, each to a range of its own, by any clients."""
        count = self.random.randint(1, 6)
        edges = sorted(self.random.sample(range(0, SIZE + 1, BLOCK), 2 * count))
        kinds = [self.read, self.write, self.write_zeroes, self.trim]
        await asyncio.gather(
            *(
                self.random.choices(kinds, weights=[4, 4, 1, 1])[0](begin, end)
                for begin, end in zip(edges[::2], edges[1::2], strict=True)
            )
        )

    async def read(self, begin: int, end: int) -> None:
        assert await self.a_client().read(begin, end - begin) == self.content[begin:end]

    async def write(self, begin: int, end: int) -> None:
        data = self.random.randbytes(end - begin)
        self.content[begin:end] = data
        await self.a_client().write(begin, data)

    async def write_zeroes(self, begin: int, end: int) -> None:
        may_trim = self.random.choice([False, True])
        self.content[begin:end] = bytes(end - begin)
        await self.a_client().write_zeroes(begin, end - begin, may_trim=may_trim)

    async def trim(self, begin: int, end: int) -> None:
        """Memory reads as zeroes afterwards, where it is whole pages; files as they like."""
        await self.a_client().trim(begin, end - begin)
        found = bytes(await self.a_client().read(begin, end - begin))
        for at in range(begin, end, BLOCK):
            block, before = found[at - begin :][:BLOCK], self.content[at : at + BLOCK]
            page = at // PAGE * PAGE
            is_whole = begin <= page and page + PAGE <= end
            allowed = [bytes(BLOCK)]
            if isinstance(self.device, FileDevice) or not is_whole:
                allowed.append(bytes(before))
            assert block in allowed
        self.content[begin:end] = found

    async def flush(self) -> None:
        with contextlib.suppress(OSError):  # it fails once after a connection was lost
            await self.a_client().flush()

    async def compare_extents(self) -> None:
        at = 0
        while at < SIZE:
            for extent in await self.a_client().extents(at, SIZE - at):
                if extent.zero:
                    assert not any(self.content[at : at + extent.length])
                at += extent.length
        assert at == SIZE

    async def compare(self) -> None:
        await self.read(0, SIZE)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["memory", "file"])
async def test_served_device_does_what_an_array_of_bytes_does(
    kind: str, seed: int, tmp_path: Path
) -> None:
    device: BlockDevice = MemoryDevice(SIZE, block_size=BLOCK)
    if kind == "file":
        device = FileDevice.create(tmp_path / "disk", SIZE)
    path = str(tmp_path / "socket")
    random = Random(seed)
    async with serve(device, unix=path) as server:
        model = Model(server, device, path, random)
        weights: dict[Callable[[], Awaitable[None]], int] = {
            model.ask_together: 60,
            model.compare: 10,
            model.compare_extents: 10,
            model.flush: 6,
            model.join: 6,
            model.disconnect: 4,
            model.be_strange: 6,
            model.lose: 2,
        }
        await model.join()
        try:
            for step in random.choices(list(weights), weights=list(weights.values()), k=120):
                await step()
            await model.compare()
        finally:
            await model.disconnect_all()
    stored = await device.read(0, SIZE) if kind == "memory" else (tmp_path / "disk").read_bytes()
    assert stored == model.content
