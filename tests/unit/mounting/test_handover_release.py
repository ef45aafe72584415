"""A handover of a device while its client makes requests, its listener, and lost connections."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiovblk import Error
from aiovblk.aio.tasks import GracefulTask
from aiovblk.errors import AttachError
from aiovblk.events import ConnectionLost, ConnectionRestored
from aiovblk.mounting.connections import KernelConnection
from aiovblk.mounting.handover.endpoint import (
    HandoverGeometry,
    HandoverListener,
    HandoverRequest,
    HandoverRequester,
    HandoverResult,
    request_handover,
)
from aiovblk.mounting.recovery import reconnect
from aiovblk.protocol import Command
from aiovblk.storage import MemoryDevice

from ...support.dispatch_client import Client, PuppetDevice
from ...support.mount_server import Side, side
from ...support.polling import until

READ, WRITE = Command.READ, Command.WRITE
WANTED = HandoverRequest("volume", HandoverGeometry(1 << 20, 512, read_only=False))


@asynccontextmanager
async def asked(
    path: Path,
) -> AsyncIterator[tuple[HandoverRequester, asyncio.Future[HandoverResult | None]]]:
    """A requester that asks, as its server sees it, and a future of what it gets."""
    requests: asyncio.Queue[HandoverRequester] = asyncio.Queue()
    listener = HandoverListener(path, requests.put_nowait)
    try:
        asking = asyncio.ensure_future(asyncio.to_thread(request_handover, path, WANTED, 10))
        requester = await requests.get()
        assert requester.request == WANTED
        yield requester, asking
    finally:
        listener.close()
        assert not path.exists()


@pytest.mark.parametrize("connections", [1, 2])
async def test_handover_during_requests_loses_and_repeats_none(
    tmp_path: Path, connections: int
) -> None:
    device = PuppetDevice()
    async with side(device, connections) as old, side(MemoryDevice(1 << 20, block_size=512)) as new:
        await old.start()
        first, *others = old.clients
        waiting = first.send(READ, 0, 512)
        call = await device.calls.get()
        release, attachment = old.release(tmp_path)
        async with asked(tmp_path / "socket") as (requester, asking):
            task = asyncio.create_task(release.run(requester))
            await until(lambda: old.group.paused)
            # Whole requests and half of one, which the old server does not take any more.
            written = first.send(WRITE, 512, data=b"x" * 512)
            cookie, message = first.request(WRITE, 1024, data=b"y" * 1024)
            first.writer.write(message[:500])
            for client in others:
                client.send(READ, 0, 512)
            call.succeed(b"old " * 128)
            reply = await first.reply()
            assert (reply.cookie, reply.data) == (waiting, b"old " * 128)
            flush = await device.calls.get()
            assert (flush.name, device.calls.qsize()) == ("flush", 0)
            flush.succeed()
            await task
            given = await asking
        assert given is not None
        assert attachment.is_detached
        await new.take_over(given)
        first.writer.write(message[500:])
        assert set(await first.replies(2)) == {written, cookie}
        assert await first.read(512, 1536) == b"x" * 512 + b"y" * 1024
        for client in others:
            assert (await client.reply()).data == bytes(512)
        assert len(new.group.all()) == connections


async def test_handler_that_hangs_or_flush_that_fails_refuses_the_handover(tmp_path: Path) -> None:
    device = PuppetDevice()
    async with side(device) as server:
        await server.start()
        [client] = server.clients
        client.send(READ, 0, 512)
        call = await device.calls.get()
        release, attachment = server.release(tmp_path, timeout=0.05)
        with pytest.raises(Error, match=r"handlers did not end within 0\.05 s"):
            # As a mount does it: in a task that nothing cancels.
            await GracefulTask(release.run(None), lambda: pytest.fail("it was cancelled"))
        call.succeed(bytes(512))
        await client.reply()
        release._timeout = 50
        task = asyncio.create_task(release.run(None))
        (await device.calls.get()).fail(OSError(errno.ENOSPC, "full"))
        with pytest.raises(Error, match=r"flush\(\) failed: .*full"):
            await task
        client.send(READ, 0, 512)
        (await device.calls.get()).succeed(bytes(512))
        assert (await client.reply()).error == 0
        assert not attachment.is_detached
        os.close(attachment.lock)


async def test_successor_that_has_gone_gets_nothing_and_the_server_goes_on(tmp_path: Path) -> None:
    async with side(MemoryDevice(1 << 20, block_size=512)) as server:
        await server.start()
        release, attachment = server.release(tmp_path)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        requester = HandoverRequester(ours, WANTED)
        with pytest.raises(Error, match="has not waited"):
            await release.run(requester)
        requester.refuse("it is gone")
        assert await server.clients[0].read(0, 512) == bytes(512)
        os.close(attachment.lock)


class Disconnecting(HandoverRequester):
    """A requester that disconnects just before it is sent the device."""

    def __init__(self, sock: socket.socket, its_end: socket.socket) -> None:
        super().__init__(sock, WANTED)
        self._its_end = its_end

    def is_connected(self) -> bool:
        with self._its_end:
            return super().is_connected()


async def test_connections_are_closed_if_the_successor_disconnects_at_the_last_moment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Device(MemoryDevice):
        async def unmount(self) -> None:
            raise OSError("cannot let go")

    async with side(Device(1 << 20, block_size=512)) as server:
        await server.start()
        release, attachment = server.release(tmp_path)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        await release.run(Disconnecting(ours, theirs))
        assert attachment.is_detached
        assert await server.clients[0].reader.read() == b""
        os.close(attachment.lock)
    assert "the process that asked for it is gone" in caplog.text
    assert "cannot let go" in caplog.text


# The listener


async def test_successor_that_is_refused_gets_the_reason(tmp_path: Path) -> None:
    async with asked(tmp_path / "socket") as (requester, asking):
        requester.refuse("too busy")
        with pytest.raises(AttachError, match="does not hand it over: too busy"):
            await asking


async def test_request_to_a_server_that_does_not_answer_times_out(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    requesters: list[HandoverRequester] = []
    listener = HandoverListener(path, requesters.append)
    with pytest.raises(AttachError, match=r"did not hand it over in 0\.05 s"):
        await asyncio.to_thread(request_handover, path, WANTED, 0.05)
    listener.close()
    requesters[0].refuse("it is gone")


async def test_request_fails_when_the_server_ends_and_finds_none_where_none_listens(
    tmp_path: Path,
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        asking = asyncio.ensure_future(asyncio.to_thread(request_handover, path, WANTED, 5))
        sock = (await asyncio.to_thread(listening.accept))[0]
        sock.close()
        with pytest.raises(AttachError):
            await asking
    # A socket that was left behind is as good as none.
    assert request_handover(path, WANTED, 5) is None
    assert request_handover(tmp_path / "none", WANTED, 5) is None


async def test_listener_is_private_and_ignores_invalid_requests(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.touch()  # of a server that was killed
    listener = HandoverListener(path, lambda requester: pytest.fail("the request is invalid"))
    assert path.stat().st_mode & 0o777 == 0o600
    for words in (b"hello", b'{"identity": 1}', b""):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(path))
            sock.send(words)
            assert await asyncio.to_thread(sock.recv, 10) == b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as waiting:
        waiting.connect(str(path))
        await until(lambda: listener._requests)
        path.unlink()
        other = HandoverListener(path, lambda requester: None)
        listener.close()
        assert path.exists()
        other.close()
        assert not path.exists()


# Connections that are reconnected


async def reconnected(server: Side, open_replacement: Any) -> Client:
    """Break the connection of a server; the client of the replacement."""
    server.group.reconnector.open_replacement = open_replacement
    server.clients[0].writer.close()
    assert isinstance(await anext(server.events), ConnectionLost)
    while not isinstance(await anext(server.events), ConnectionRestored):
        pass  # of the requests that were in flight
    return server.clients[-1]


async def test_lost_connection_is_reconnected(caplog: pytest.LogCaptureFixture) -> None:
    device = PuppetDevice()
    async with side(device) as server:
        await server.start()
        server.clients[0].send(READ, 0, 512)
        abandoned = await device.calls.get()

        async def open_replacement(old: KernelConnection, new: KernelConnection) -> socket.socket:
            assert abandoned.task is not None
            assert abandoned.task.done()
            assert (old, new) == (server.group.all()[0], new)
            ours, theirs = socket.socketpair()
            server.clients.append(Client(*await asyncio.open_unix_connection(sock=theirs)))
            return ours

        client = await reconnected(server, open_replacement)
        client.send(READ, 512, 512)
        (await device.calls.get()).succeed(bytes(512))
        assert (await client.reply()).error == 0
        assert server.group.stats.reads == 1
        assert server.group.stats.errors == 1
        assert not server.state.stream_ended.done()
    assert "connection 1 of 1 was lost (it was closed) and is reconnected" in caplog.text


async def test_connection_whose_reconnect_fails_is_lost() -> None:
    async with side(MemoryDevice(1 << 20, block_size=512)) as server:
        await server.start()

        async def open_replacement(old: KernelConnection, new: KernelConnection) -> socket.socket:
            raise OSError(errno.EINVAL, "no device")

        server.group.reconnector.open_replacement = open_replacement
        server.clients[0].writer.close()
        await server.state.stream_ended
        assert not server.state.disconnected.done()


async def lose_without_replacement(server: Side) -> None:
    """Break a connection of a server, and wait until a replacement is opened, which never ends."""
    began = asyncio.Event()

    async def open_replacement(old: KernelConnection, new: KernelConnection) -> socket.socket:
        began.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    server.group.reconnector.open_replacement = open_replacement
    server.clients[0].writer.close()
    await began.wait()


async def test_reconnect_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconnect, "RECONNECT_TIMEOUT", 0.05)
    async with side(MemoryDevice(1 << 20, block_size=512)) as server:
        await server.start()
        await lose_without_replacement(server)
        await server.state.stream_ended


async def test_close_cancels_a_reconnect() -> None:
    async with side(MemoryDevice(1 << 20, block_size=512)) as server:
        await server.start()
        await lose_without_replacement(server)
        await server.group.close()
        await server.state.stream_ended


async def test_disconnect_by_the_kernel_cancels_a_reconnect() -> None:
    async with side(MemoryDevice(1 << 20, block_size=512), connections=2) as server:
        await server.start()
        await lose_without_replacement(server)
        server.clients[1].send(Command.DISC)
        await server.state.disconnected
        assert not server.state.stream_ended.done()
        server.clients[1].writer.close()
        await server.state.stream_ended
