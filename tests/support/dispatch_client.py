"""Helpers of the dispatcher's tests: a raw client, a served device, and a device under control."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from aiovblk import BlockDevice
from aiovblk.dispatch import MAX_CONCURRENCY, ConcurrencyLimiter, Dispatcher, Stats
from aiovblk.protocol import (
    SIMPLE_REPLY,
    Command,
    ReplyMode,
    Request,
    parse_reply_header,
    serialize_request,
)


class Reply(NamedTuple):
    cookie: int
    error: int
    data: bytes


class Client:
    """A client in transmission phase, as the kernel is; fails on a reply without a request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        # It reads as well, but a StreamWriter declares only the half that it uses.
        self.transport = cast(asyncio.Transport, writer.transport)
        self._cookies = itertools.count(0xFEED_0000_0000_0001)
        self._in_flight: dict[int, Request] = {}

    def request(
        self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", *, flags: int = 0
    ) -> tuple[int, bytes]:
        """Make a request and expect its reply; the caller sends the bytes."""
        request = Request(flags, command, next(self._cookies), offset, length or len(data))
        if command != Command.DISC:
            self._in_flight[request.cookie] = request
        return request.cookie, serialize_request(request) + data

    def send(
        self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", *, flags: int = 0
    ) -> int:
        cookie, message = self.request(command, offset, length, data, flags=flags)
        self.writer.write(message)
        return cookie

    async def reply(self) -> Reply:
        head = await self.reader.readexactly(SIMPLE_REPLY.size)
        cookie, *_, error = parse_reply_header(ReplyMode.SIMPLE, head)
        request = self._in_flight.pop(cookie)  # KeyError: a reply without a request
        if error or request.type != Command.READ:
            return Reply(cookie, error, b"")
        return Reply(cookie, error, await self.reader.readexactly(request.length))

    async def replies(self, count: int) -> dict[int, Reply]:
        got = [await self.reply() for _ in range(count)]
        return {reply.cookie: reply for reply in got}

    async def call(
        self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", *, flags: int = 0
    ) -> Reply:
        """Send one request while no other is in flight, and read its reply."""
        cookie = self.send(command, offset, length, data, flags=flags)
        reply = await self.reply()
        assert reply.cookie == cookie
        return reply

    async def read(self, offset: int, length: int) -> bytes:
        reply = await self.call(Command.READ, offset, length)
        assert reply.error == 0
        return reply.data

    async def write(self, offset: int, data: bytes) -> None:
        assert (await self.call(Command.WRITE, offset, data=data)).error == 0


@dataclass
class Served:
    """A device that a dispatcher serves to a client."""

    client: Client
    dispatcher: Dispatcher
    stats: Stats
    serving: asyncio.Task[None]
    owner: asyncio.Task[None] | None = field(default_factory=asyncio.current_task)
    on_disconnect: Callable[[], None] = lambda: None
    _disconnects: asyncio.Queue[None] = field(default_factory=asyncio.Queue)
    _received: int = 0
    _arrivals: asyncio.Event = field(default_factory=asyncio.Event)

    async def accepted(self) -> None:
        """Wait until the dispatcher has accepted everything that the client has sent."""
        self.client.send(Command.DISC)
        await self.disconnected()

    async def disconnected(self) -> None:
        """Wait until the dispatcher reports the next DISC."""
        await self._disconnects.get()

    def has_disconnected(self) -> None:
        self.on_disconnect()
        self._disconnects.put_nowait(None)

    async def arrive(self, data: bytes) -> None:
        """Send these bytes, and wait until the dispatcher has received and looked at them."""
        wanted = self._received + len(data)
        self.client.writer.write(data)
        while self._received < wanted:
            self._arrivals.clear()
            await self._arrivals.wait()
        for _ in range(2):  # before Python 3.12 a task looks at them, in the loop's next turn
            await asyncio.sleep(0)

    def watch_arrivals(self) -> None:
        reader = self.dispatcher._reader
        original = reader.received

        def received(count: int) -> None:
            original(count)
            self._received += count
            self._arrivals.set()

        # The dispatcher makes its reader itself; there is no place for a subclass.
        reader.received = received  # type: ignore[method-assign]  # see above


@asynccontextmanager
async def served(
    device: BlockDevice,
    *,
    concurrency: int = MAX_CONCURRENCY,
    limiter: ConcurrencyLimiter | None = None,
    **options: Any,
) -> AsyncIterator[Served]:
    """Serve ``device`` to a client; at the end check that no reply was left unread."""
    ours, theirs = socket.socketpair()
    stats = Stats()
    dispatcher = Dispatcher(
        device,
        stats,
        limiter=limiter or ConcurrencyLimiter(concurrency),
        on_disconnect=lambda: server.has_disconnected(),
        **options,
    )
    await dispatcher.connect(ours)
    client = Client(*await asyncio.open_unix_connection(sock=theirs))
    serving = asyncio.ensure_future(dispatcher.run())
    server = Served(client, dispatcher, stats, serving)
    server.watch_arrivals()
    try:
        yield server
        if not client.writer.is_closing():
            client.writer.write_eof()
        if not serving.done():
            await serving
        await dispatcher.drained()
        await dispatcher.close()
        assert await client.reader.read() == b""
        assert stats.in_flight == 0
    finally:
        dispatcher.abort()
        serving.cancel()
        await asyncio.wait([serving])
        await dispatcher.close()
        client.writer.close()


class Call:
    """A handler call that waits until the test completes it."""

    def __init__(self, name: str, offset: int, length: int, data: memoryview | None = None) -> None:
        self.name = name
        self.offset = offset
        self.length = length
        self.data = data
        self.task = asyncio.current_task()
        self.result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def succeed(self, result: Any = None) -> None:
        self.result.set_result(result)

    def fail(self, exc: BaseException) -> None:
        self.result.set_exception(exc)

    def cancel(self) -> None:
        """Cancel the handler's task from outside, not by the dispatcher."""
        assert self.task is not None
        self.task.cancel()


class PuppetDevice(BlockDevice):
    """A device whose handlers put a :class:`Call` into ``calls``, and wait for its completion."""

    block_size = 512
    blocks = 2**20

    def __init__(self) -> None:
        self.calls: asyncio.Queue[Call] = asyncio.Queue()

    async def _wait(self, call: Call) -> Any:
        self.calls.put_nowait(call)
        return await call.result

    async def read(self, offset: int, length: int) -> bytes:
        data = await self._wait(Call("read", offset, length))
        return bytes(length) if data is None else data

    async def write(self, offset: int, data: memoryview) -> None:
        await self._wait(Call("write", offset, len(data), data))

    async def flush(self) -> None:
        await self._wait(Call("flush", 0, 0))

    async def trim(self, offset: int, length: int) -> None:
        await self._wait(Call("trim", offset, length))

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        await self._wait(Call("write_zeroes", offset, length))
