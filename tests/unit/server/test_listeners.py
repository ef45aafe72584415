"""Listening sockets: Unix and TCP, stale socket files, inherited sockets, backlog, closing."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

import aiovblk.server
from aiovblk import connect
from aiovblk.server import listeners
from aiovblk.storage import MemoryDevice

from ...support.network_client import MIB, NetworkClient, clients_of, connected, serve, using

Sockets = list[tuple[str, int]]


def disk() -> MemoryDevice:
    return MemoryDevice(MIB)


def unix_listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock


def resolve_to(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    """Make every host name resolve to these addresses."""

    async def getaddrinfo(host: object, port: int, **options: object) -> list[Any]:
        return [
            (family, socket.SOCK_STREAM, 0, "", (address, port))
            for address in addresses
            for family in [socket.AF_INET6 if ":" in address else socket.AF_INET]
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)


# Unix sockets


async def test_unix_socket_exists_inside_the_block_and_is_removed_after_it(path: Path) -> None:
    async with serve(disk(), unix=path) as server:
        assert server.uris == [f"nbd+unix:///?socket={path}"]
        async with connect(server.uris[0]) as remote:
            assert remote.size == MIB
        assert stat.S_ISSOCK(path.stat().st_mode)
    assert not path.exists()


async def test_unix_socket_may_hold_more_than_one_large_read(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as untouched:
        usual = untouched.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    async with serve(disk(), unix=path) as server, connect(server.uris[0]):
        (connection,) = clients_of(server).connected()
        sock = connection._stream.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > usual


async def test_stale_unix_socket_of_a_dead_server_is_replaced(path: Path) -> None:
    unix_listener(path).close()
    assert path.exists()
    async with serve(disk(), unix=path), using(path) as client:
        assert await client.read(0, 4096) == bytes(4096)
    assert not path.exists()


async def test_unix_socket_of_a_living_server_is_refused_and_not_changed(path: Path) -> None:
    async with serve(disk(), unix=path):
        with pytest.raises(OSError, match="cannot listen there: Address already in use") as caught:
            async with serve(disk(), unix=path):
                pass
        assert (caught.value.errno, caught.value.filename) == (errno.EADDRINUSE, str(path))
        async with using(path) as client:
            assert await client.read(0, 4096) == bytes(4096)


async def test_file_that_is_no_socket_is_refused_and_not_changed(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(OSError, match="cannot listen there") as caught:
        async with serve(disk(), unix=path):
            pass
    assert caught.value.filename == str(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "reason"), [("missing/socket", "No such file"), ("x" * 120, "too long")]
)
async def test_unix_socket_that_cannot_be_made_is_an_error_with_its_reason(
    tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(OSError, match=reason) as caught:
        async with serve(disk(), unix=tmp_path / name):
            pass
    assert caught.value.errno
    assert caught.value.filename == str(tmp_path / name)


async def test_successor_can_listen_while_a_closed_server_drains(path: Path) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serve(disk(), unix=path))
        client = await stack.enter_async_context(using(path))
        first.close()
        async with serve(disk(), unix=path):
            await stack.aclose()
            assert await client.closed() == b""
            async with using(path) as other:
                assert await other.read(0, 4096) == bytes(4096)
    assert not path.exists()


async def test_file_that_another_process_has_put_there_is_not_removed(path: Path) -> None:
    async with serve(disk(), unix=path):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


async def test_uri_of_a_relative_path_is_absolute(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    async with serve(disk(), unix=path.name) as server:
        assert server.uris == [f"nbd+unix:///?socket={path}"]


async def test_file_that_may_not_be_removed_any_more_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(name: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", name)

    caplog.set_level("INFO")
    async with serve(disk(), unix=path):
        monkeypatch.setattr(os, "unlink", refuse)
    assert path.exists()
    assert f"{path} stays: its directory cannot be written to any more" in caplog.messages


async def test_socket_in_the_abstract_namespace(path: Path) -> None:
    name = f"\0{path}"
    async with serve(disk(), unix=name) as server:
        assert server.uris == [f"nbd+unix:///?socket=%00{path}"]
        async with connect(server.uris[0]) as remote:
            assert remote.size == MIB
        with pytest.raises(OSError, match="Address already in use"):
            async with serve(disk(), unix=name):
                pass


# TCP


@pytest.mark.parametrize(
    ("host", "start"),
    [("127.0.0.1", "nbd://127.0.0.1:"), ("::1", "nbd://[::1]:"), ("localhost", "nbd://127.0.0.1:")],
)
async def test_tcp_port_0_is_any_free_port(host: str, start: str) -> None:
    async with serve(disk(), host=host, port=0) as server:
        assert server.uris[0].startswith(start)
        async with connect(server.uris[0]) as remote:
            assert remote.size == MIB


async def test_port_alone_means_localhost() -> None:
    async with serve(disk(), port=0) as server:
        [uri] = server.uris
        assert uri.startswith("nbd://127.0.0.1:")


@pytest.mark.parametrize("host", ["", "every address of this name"])
async def test_all_addresses_of_a_host_get_the_same_port(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if host:
        resolve_to(monkeypatch, ["127.0.0.1", "::1", "127.0.0.2"])
    async with serve(disk(), host=host, port=0) as server:
        ports = {uri.rsplit(":", 1)[1] for uri in server.uris}
        assert (len(server.uris), len(ports)) == (3 if host else 2, 1)
        monkeypatch.undo()
        for uri in server.uris:
            async with connect(uri) as remote:
                assert remote.size == MIB


async def test_address_of_a_disabled_family_is_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Where IPv6 is switched off, localhost is ::1 still. 192.0.2.1 is never assigned (RFC 5737).
    resolve_to(monkeypatch, ["192.0.2.1", "127.0.0.1"])
    async with serve(disk(), host="localhost", port=0) as server:
        [uri] = server.uris
        assert uri.startswith("nbd://127.0.0.1:")


async def test_host_without_an_address_of_this_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="cannot listen there") as caught:
        async with serve(disk(), host="192.0.2.1", port=0):
            pass
    assert (caught.value.errno, caught.value.filename) == (
        errno.EADDRNOTAVAIL,
        "192.0.2.1 port 0",
    )


async def test_tcp_port_in_use_is_an_error_that_names_it() -> None:
    async with serve(disk(), host="127.0.0.1", port=0) as server:
        port = int(server.uris[0].rpartition(":")[2].rstrip("/"))
        with pytest.raises(OSError, match="cannot listen there: Address already in use") as caught:
            async with serve(disk(), host="127.0.0.1", port=port):
                pass
        assert caught.value.filename == f"127.0.0.1 port {port}"


async def test_host_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(OSError, match="cannot listen there: Name or service not known"):
        async with serve(disk(), host="nowhere.invalid", port=0):
            pass


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("localhost", 10809)),
        ({"host": "::1"}, ("::1", 10809)),
        ({"port": 7}, ("localhost", 7)),
        ({"host": ""}, ("", 10809)),
    ],
)
async def test_default_is_localhost_and_port_10809(
    options: dict[str, Any], expected: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Sockets = []

    async def listen_tcp(host: str, port: int) -> list[socket.socket]:
        calls.append((host, port))
        return []

    monkeypatch.setattr(aiovblk.server, "listen_tcp", listen_tcp)
    async with serve(disk(), **options):
        assert calls == [expected]


async def test_unix_and_tcp_sockets_at_once(path: Path) -> None:
    async with serve({"a": disk(), "b c": disk()}, unix=path, host="127.0.0.1", port=0) as server:
        assert [uri.rsplit("/", 1)[1].split("?")[0] for uri in server.uris[2:]] == ["a", "b%20c"]
        assert server.uris[1].startswith("nbd+unix:///b%20c?socket=")
        for uri in server.uris:
            async with connect(uri) as remote:
                assert remote.size == MIB


# Inherited sockets


async def test_inherited_listening_sockets_are_used_and_closed(path: Path) -> None:
    unix, tcp = unix_listener(path), socket.create_server(("127.0.0.1", 0))
    address = tcp.getsockname()
    async with serve(disk(), sockets=[unix, tcp]) as server:
        assert server.uris == [f"nbd+unix:///?socket={path}", f"nbd://127.0.0.1:{address[1]}/"]
        for uri in server.uris:
            async with connect(uri) as remote:
                assert remote.size == MIB
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    assert path.exists()  # it belongs to the process that has made it


async def test_connected_sockets_are_served_until_their_clients_disconnect() -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    async with serve(disk(), sockets=[ours for ours, _ in pairs]) as server:
        assert server.uris == []
        waiting = asyncio.create_task(server.wait())
        for _, theirs in pairs:
            assert not waiting.done()
            client = NetworkClient(*await asyncio.open_unix_connection(sock=theirs))
            await client.greet()
            await client.go()
            assert await client.read(0, 4096) == bytes(4096)
            client.writer.close()
        await waiting


async def test_client_that_disconnects_before_it_is_served_ends_only_itself() -> None:
    (dead, gone), (alive, theirs) = socket.socketpair(), socket.socketpair()
    gone.close()
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    async with serve(disk(), sockets=[dead, alive, listener]) as server:
        waiting = asyncio.create_task(server.wait())
        client = NetworkClient(*await asyncio.open_unix_connection(sock=theirs))
        await client.greet()
        await client.go()
        client.writer.close()
        async with using(address) as other:
            assert await other.read(0, 4096) == bytes(4096)
            assert not waiting.done()
        server.close()
        await waiting


async def test_socket_that_cannot_be_used_is_refused_and_all_are_closed(path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(ValueError, match=r"[Ss]tream"):
        async with serve(disk(), unix=path, sockets=[listener, datagrams]):
            pass
    assert (listener.fileno(), datagrams.fileno()) == (-1, -1)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    assert not path.exists()


async def test_sockets_are_closed_when_another_address_cannot_be_listened_on(path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    path.touch()
    with pytest.raises(OSError, match="cannot listen"):
        async with serve(disk(), unix=path, sockets=[listener]):
            pass
    assert listener.fileno() == -1


async def test_listening_ends_at_once_when_the_server_is_closed(path: Path) -> None:
    async with serve(disk(), unix=path, host="127.0.0.1", port=0) as server, using(path) as client:
        port = int(server.uris[1].rpartition(":")[2].rstrip("/"))
        server.close()
        for address in (path, ("127.0.0.1", port)):
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                async with connected(address):
                    pass
        await client.closed()
        await server.wait()
    assert not os.listdir(path.parent)


async def test_accept_is_retried_when_descriptors_have_run_out(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [errno.EMFILE, errno.ECONNABORTED]

    class Poor(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            if failures:
                number = failures.pop(0)
                raise OSError(number, os.strerror(number))
            return super().accept()

    monkeypatch.setattr(listeners, "ACCEPT_PAUSE", 0.01)
    listener = Poor(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    async with serve(disk(), sockets=[listener]), using(path) as client:
        assert await client.read(0, 512) == bytes(512)
    assert not failures
    assert "cannot accept clients: Too many open files" in caplog.text
