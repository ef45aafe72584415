"""Events of a server: clients, requests, shutdown."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiovblk import BlockDevice, Export, Server, tls
from aiovblk.dispatch import Dispatcher
from aiovblk.events import (
    ClientConnected,
    EventStream,
    RequestFailed,
    SlowRequest,
)
from aiovblk.protocol import Option, OptionReply
from aiovblk.protocol.options import serialize_info_request, serialize_option
from aiovblk.server import connection as connection_module
from aiovblk.server import stalls
from aiovblk.storage import MemoryDevice

from ...support.certificates import make_certificates
from ...support.network_client import (
    DISC,
    MIB,
    READ,
    WRITE,
    LoggingDevice,
    NetworkClient,
    PuppetDisk,
    connected,
    serve,
    until_left,
    using,
)
from ...support.server_events import LOCAL, NOT_THERE, everything, next_words


@asynccontextmanager
async def watched(
    device: BlockDevice, path: Path, **options: Any
) -> AsyncIterator[tuple[Server, NetworkClient, EventStream]]:
    """A server, a client, and its events after ClientConnected."""
    async with serve({"disk": device}, unix=path, **options) as server:
        events = server.events()
        async with using(path) as client:
            assert isinstance(await anext(events), ClientConnected)
            yield server, client, events


# Clients


async def test_clients_that_connect_and_disconnect_are_published_with_their_numbers(
    path: Path,
) -> None:
    async with serve({"disk": LoggingDevice()}, unix=path) as server:
        events = server.events()
        async with using(path, "disk") as one, using(path) as other:
            assert [await next_words(events), await next_words(events)] == [
                ("ClientConnected", 1, LOCAL, "disk", False),
                ("ClientConnected", 2, LOCAL, "disk", False),
            ]
            assert [each.number for each in server.connections] == [1, 2]
            other.send(DISC)
            assert await next_words(events) == ("ClientDisconnected", 2, LOCAL, "disk", None)
            server.connections[0].stop()
            assert await next_words(events) == ("ClientDisconnected", 1, LOCAL, "disk", None)
            assert await one.closed() == b""


async def test_client_of_tcp_is_published_with_its_address() -> None:
    async with serve(LoggingDevice(), host="127.0.0.1", port=0) as server:
        events = server.events()
        port = int(server.uris[0].rpartition(":")[2].rstrip("/"))
        async with using(("127.0.0.1", port)) as client:
            host, own = client.writer.get_extra_info("sockname")
            assert await next_words(events) == ("ClientConnected", 1, f"{host}:{own}", "", False)


async def test_client_over_tls_is_published_as_such_and_one_without_as_refused(
    path: Path, tmp_path: Path
) -> None:
    certificates = make_certificates(tmp_path / "pki")
    context = tls.server_context(certificates)
    async with serve(LoggingDevice(), unix=path, tls=context) as server:
        events = server.events()
        async with connected(path) as client:
            await client.greet()
            assert (await client.ask(Option.LIST))[-1][0] == OptionReply.ERR_TLS_REQD
            await client.ask(Option.STARTTLS)
            await client.start_tls(tls.client_context(certificates))
            await client.go()
            assert await next_words(events) == ("ClientConnected", 1, LOCAL, "", True)
            client.send(DISC)
            assert await next_words(events) == ("ClientDisconnected", 1, LOCAL, "", None)
        async with connected(path) as client:
            await client.greet()
            assert (await client.ask(Option.LIST))[-1][0] == OptionReply.ERR_TLS_REQD
        reason = "the client did not ask for TLS, which is required"
        assert await next_words(events) == ("ClientRefused", 2, LOCAL, reason)


async def disconnect_between_requests(client: NetworkClient) -> None:
    client.writer.close()


async def disconnect_within_a_request(client: NetworkClient) -> None:
    _, message = client.request(WRITE, 0, data=bytes(512))
    client.writer.write(message[:100])
    client.writer.write_eof()


async def speak_another_protocol(client: NetworkClient) -> None:
    client.writer.write(b"GET / HTTP/1.1\r\n" * 2)


@pytest.mark.parametrize(
    ("disconnect", "reason"),
    [
        (disconnect_between_requests, "disconnected without NBD_CMD_DISC"),
        (disconnect_within_a_request, "disconnected without NBD_CMD_DISC"),
        (speak_another_protocol, "expected a request, found the magic number 0x47455420"),
    ],
)
async def test_disorderly_disconnect_is_published_with_the_reason(
    path: Path, disconnect: Callable[[NetworkClient], Awaitable[None]], reason: str
) -> None:
    async with watched(LoggingDevice(), path) as (_, client, events):
        await disconnect(client)
        assert await next_words(events) == ("ClientDisconnected", 1, LOCAL, "disk", reason)


async def test_disconnect_of_a_stalled_client_is_published_with_the_reason(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stalls, "STALL_TIMEOUT", 0.05)
    monkeypatch.setattr(stalls, "CHECK_INTERVAL", 0.02)
    async with watched(MemoryDevice(MIB), path) as (_, client, events):
        client.transport.pause_reading()
        for _ in range(16):
            client.send(READ, 0, MIB)
        reason = "it has read too little for 0.05 s"
        assert await next_words(events) == ("ClientDisconnected", 1, LOCAL, "disk", reason)


async def test_disconnect_of_a_client_with_cancelled_requests_is_published_with_the_reason(
    path: Path,
) -> None:
    device = PuppetDisk()
    async with watched(device, path) as (server, client, events):
        client.send(READ, 0, 512)
        await device.calls.get()
        server.close(force=True)
        reason = "requests in flight took too long; they are cancelled"
        closing, failed, disconnected, closed = await everything(events)
    assert (closing, closed) == (("ServerClosing",), ("ServerClosed",))
    assert failed == ("RequestFailed", "read", 0, 512, errno.EIO)
    assert disconnected == ("ClientDisconnected", 1, LOCAL, "disk", reason)


# Clients that are refused


async def ask_for_another(client: NetworkClient) -> None:
    replies = await client.ask(Option.GO, serialize_info_request("other", []))
    assert replies[-1][0] == OptionReply.ERR_UNKNOWN


async def ask_for_another_and_abort(client: NetworkClient) -> None:
    await ask_for_another(client)
    await client.ask(Option.ABORT)


async def ask_for_another_the_old_way(client: NetworkClient) -> None:
    client.writer.write(serialize_option(Option.EXPORT_NAME, b"other"))
    assert await client.closed() == b""


async def ask_for_one_that_fails(client: NetworkClient) -> None:
    replies = await client.ask(Option.GO, serialize_info_request("broken", []))
    assert replies[-1][0] == OptionReply.ERR_UNKNOWN


async def write_nonsense(client: NetworkClient) -> None:
    client.writer.write(bytes(16))
    assert await client.closed() == b""


def broken() -> MemoryDevice:
    raise LookupError("there is no disk today")


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        (ask_for_another, NOT_THERE),
        (ask_for_another_and_abort, NOT_THERE),
        (ask_for_another_the_old_way, NOT_THERE),
        (ask_for_one_that_fails, "the client asked for an export that cannot be opened"),
        (write_nonsense, f"expected an option, found the magic number {0:#018x}"),
    ],
)
async def test_client_that_gets_no_export_is_published_as_refused(
    path: Path, ask: Callable[[NetworkClient], Awaitable[None]], reason: str
) -> None:
    exports = {"disk": Export(LoggingDevice()), "broken": Export(broken)}
    async with serve(exports, unix=path) as server:
        events = server.events()
        async with connected(path) as client:
            await client.greet()
            await ask(client)
        assert await next_words(events) == ("ClientRefused", 1, LOCAL, reason)


async def test_handshake_timeout_is_published_as_refused(path: Path) -> None:
    async with serve(LoggingDevice(), unix=path, handshake_timeout=0.05) as server:
        events = server.events()
        async with connected(path):
            reason = "handshake timeout: no export chosen in 0.05 s"
            assert await next_words(events) == ("ClientRefused", 1, LOCAL, reason)


async def test_client_beyond_max_connections_is_published_as_refused(path: Path) -> None:
    async with serve(LoggingDevice(), unix=path, max_connections=1) as server, using(path):
        events = server.events()
        async with connected(path) as client:
            assert await client.closed() == b""
        reason = "max_connections (1) reached"
        assert await next_words(events) == ("ClientRefused", 2, LOCAL, reason)


async def test_client_in_the_handshake_at_shutdown_is_published_as_refused(path: Path) -> None:
    async with serve(LoggingDevice(), unix=path) as server, connected(path) as client:
        events = server.events()
        await client.greet()
        server.close()
        reason = "the server closed the connection before the client chose an export"
        assert await everything(events) == [
            ("ServerClosing",),
            ("ClientRefused", 1, LOCAL, reason),
            ("ServerClosed",),
        ]


async def test_client_that_only_lists_or_retries_is_not_published_as_refused(
    path: Path,
) -> None:
    async with serve({"disk": LoggingDevice()}, unix=path) as server:
        events = server.events()
        async with connected(path):
            pass
        async with connected(path) as client:
            await client.greet()
            await client.ask(Option.LIST)
            await client.ask(Option.ABORT)
        await until_left(server)
        async with connected(path) as client:
            await client.greet()
            await ask_for_another(client)
            await client.go("disk")
            client.send(DISC)
            assert await client.closed() == b""
        server.close()
        published = await everything(events)
    names = ["ClientConnected", "ClientDisconnected", "ServerClosing", "ServerClosed"]
    assert sorted(name for name, *_ in published) == sorted(names)


# Requests


async def test_failed_and_slow_requests_are_published_with_their_client(path: Path) -> None:
    device = PuppetDisk()
    async with watched(device, path, slow_request=0.01) as (_, client, events):
        client.send(READ, 512, 512)
        call = await device.calls.get()
        slow = await anext(events)
        assert isinstance(slow, SlowRequest)
        assert round(slow.seconds, 6) >= 0.01  # a difference of two times of the loop
        call.fail(OSError(errno.ENOSPC, "full"))
        failed = await anext(events)
        assert isinstance(failed, RequestFailed)
        assert failed.errno == errno.ENOSPC
        for event in (slow, failed):
            assert (event.command, event.offset, event.length) == ("read", 512, 512)
            assert (event.client, event.peer, event.export) == (1, LOCAL, "disk")


async def test_no_event_is_made_without_a_listener(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "replace", None)
    async with serve(LoggingDevice(), unix=path) as server, using(path) as client:
        assert (await client.call(READ, MIB, 512)).error == errno.EINVAL
        assert server.stats.errors == 1


async def test_disconnected_client_is_not_kept_alive_by_the_timer_of_slow_requests(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []

    def make(*args: Any, **options: Any) -> Any:
        new = Dispatcher(*args, **options)
        made.append(weakref.ref(new))
        return new

    monkeypatch.setattr(connection_module, "Dispatcher", make)
    device = PuppetDisk()
    async with serve(device, unix=path, slow_request=3600) as server:
        async with using(path) as client:
            client.send(READ, 0, 512)
            (await device.calls.get()).succeed()
            await client.reply()
        await until_left(server)
        gc.collect()
        assert [each() for each in made] == [None]


# The end


async def test_server_closed_is_the_last_event(path: Path) -> None:
    async with serve(LoggingDevice(), unix=path) as server:
        listening = [asyncio.create_task(everything(server.events())) for _ in range(2)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*listening) == [[("ServerClosing",), ("ServerClosed",)]] * 2
    assert await everything(server.events()) == []


async def test_server_of_one_connected_socket_ends_with_its_client() -> None:
    ours, theirs = socket.socketpair()
    async with serve(LoggingDevice(), sockets=[ours]) as server:
        events = server.events()
        theirs.close()
        assert await everything(events) == [("ServerClosed",)]


@pytest.mark.parametrize("slow_request", [0, -1])
async def test_slow_request_must_be_positive(path: Path, slow_request: float) -> None:
    with pytest.raises(ValueError, match="slow_request must be a positive number"):
        async with serve(LoggingDevice(), unix=path, slow_request=slow_request):
            pass
