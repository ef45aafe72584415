"""A device that is handed to another server while its client makes requests, and by lines alone."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from aiovblk import BlockDevice, Error
from aiovblk.aio.tasks import GracefulTask
from aiovblk.errors import AttachError
from aiovblk.events import ConnectionLost, ConnectionRestored
from aiovblk.kernel import NetlinkAttachment
from aiovblk.mounting import connections as connections_module
from aiovblk.mounting.backend import LocalBackend
from aiovblk.mounting.connections import ConnectionGroup, KernelConnection
from aiovblk.mounting.handover.endpoint import (
    HandoverGeometry,
    HandoverListener,
    HandoverRequest,
    HandoverRequester,
    HandoverResult,
    request_handover,
)
from aiovblk.mounting.handover.release import HandoverRelease
from aiovblk.mounting.state import MountState
from aiovblk.protocol import Command
from aiovblk.storage import MemoryDevice

from ...support.dispatch_client import Client, PuppetDevice

READ, WRITE = Command.READ, Command.WRITE
WANTED = HandoverRequest("volume", HandoverGeometry(1 << 20, 512, read_only=False))


class FakeLink:
    """Is left."""

    path = "/dev/nbd7"

    def __init__(self, folder: Path) -> None:
        self.lock = os.open(folder, os.O_RDONLY)
        self.is_left = False

    def detach(self) -> None:
        self.is_left = True


class Side:
    """A server of a device, and its clients."""

    def __init__(self, device: BlockDevice, connections: int = 1) -> None:
        self.device = device
        self.events = MountState()
        self.heard = self.events.broadcaster.subscribe()
        self.lines = ConnectionGroup(self.events, lambda: None)
        self.clients: list[Client] = []
        self.served = LocalBackend(
            device,
            connections=connections,
            concurrency=128,
            handler_timeout=None,
            slow_request=None,
        )

    async def begin(self) -> None:
        await self.served.open(self.lines)
        for kernel in await self.lines.connect():
            self.clients.append(Client(*await asyncio.open_unix_connection(sock=kernel)))
        self.lines.start()

    async def take_over(self, given: HandoverResult) -> None:
        await self.served.open(self.lines)
        await self.lines.take_over(given.connections, partial(self.served.open_replacement, None))
        os.close(given.lock)
        self.lines.start()

    def leaving(self, folder: Path, patience: float = 5) -> tuple[HandoverRelease, FakeLink]:
        link = FakeLink(folder)
        lines = self.lines
        return HandoverRelease(self.device, lines, cast(NetlinkAttachment, link), patience), link

    async def close(self) -> None:
        self.lines.abort()
        await asyncio.wait([self.events.stream_ended], timeout=0)
        for client in self.clients:
            client.writer.close()


@asynccontextmanager
async def side(device: BlockDevice, connections: int = 1) -> AsyncIterator[Side]:
    made = Side(device, connections)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def asked(
    path: Path,
) -> AsyncIterator[tuple[HandoverRequester, asyncio.Future[HandoverResult | None]]]:
    """A successor at the door, and what it gets."""
    at_the_door: asyncio.Queue[HandoverRequester] = asyncio.Queue()
    door = HandoverListener(path, at_the_door.put_nowait)
    try:
        asking = asyncio.ensure_future(asyncio.to_thread(request_handover, path, WANTED, 10))
        successor = await at_the_door.get()
        assert successor.request == WANTED
        yield successor, asking
    finally:
        door.close()
        assert not path.exists()


@pytest.mark.parametrize("connections", [1, 2])
async def test_a_client_notices_nothing(tmp_path: Path, connections: int) -> None:
    device = PuppetDevice()
    async with side(device, connections) as old, side(MemoryDevice(1 << 20, block_size=512)) as new:
        await old.begin()
        first, *others = old.clients
        waiting = first.send(READ, 0, 512)
        call = await device.calls.get()
        leaving, link = old.leaving(tmp_path)
        async with asked(tmp_path / "door") as (successor, asking):
            task = asyncio.create_task(leaving.run(successor))
            # Whole requests and half of one, which nobody takes any more.
            await asyncio.sleep(0)
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
        assert link.is_left
        await new.take_over(given)
        first.writer.write(message[500:])
        assert set(await first.replies(2)) == {written, cookie}
        assert await first.read(512, 1536) == b"x" * 512 + b"y" * 1024
        for client in others:
            assert (await client.reply()).data == bytes(512)
        assert len(new.lines.all()) == connections


async def test_what_does_not_end_keeps_the_device(tmp_path: Path) -> None:
    device = PuppetDevice()
    async with side(device) as server:
        await server.begin()
        [client] = server.clients
        client.send(READ, 0, 512)
        call = await device.calls.get()
        leaving, link = server.leaving(tmp_path, patience=0.05)
        with pytest.raises(Error, match=r"handlers did not end within 0\.05 s"):
            # As a mount does it: in a task that nothing cancels.
            await GracefulTask(leaving.run(None), lambda: pytest.fail("it was cancelled"))
        call.succeed(bytes(512))
        await client.reply()
        leaving._patience = 50
        task = asyncio.create_task(leaving.run(None))
        (await device.calls.get()).fail(OSError(errno.ENOSPC, "full"))
        with pytest.raises(Error, match=r"flush\(\) failed: .*full"):
            await task
        client.send(READ, 0, 512)
        (await device.calls.get()).succeed(bytes(512))
        assert (await client.reply()).error == 0
        assert not link.is_left
        os.close(link.lock)


async def test_who_has_not_waited_gets_nothing(tmp_path: Path) -> None:
    async with side(MemoryDevice(1 << 20, block_size=512)) as server:
        await server.begin()
        leaving, link = server.leaving(tmp_path)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.close()
        successor = HandoverRequester(ours, WANTED)
        with pytest.raises(Error, match="has not waited"):
            await leaving.run(successor)
        successor.refuse("nobody hears it")
        assert await server.clients[0].read(0, 512) == bytes(512)
        os.close(link.lock)


class Going(HandoverRequester):
    """Goes just before it is given what it asked for."""

    def __init__(self, sock: socket.socket, its_end: socket.socket) -> None:
        super().__init__(sock, WANTED)
        self._its_end = its_end

    def is_connected(self) -> bool:
        with self._its_end:
            return super().is_connected()


async def test_what_is_left_to_nobody_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Device(MemoryDevice):
        async def unmount(self) -> None:
            raise OSError("cannot let go")

    async with side(Device(1 << 20, block_size=512)) as server:
        await server.begin()
        leaving, link = server.leaving(tmp_path)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        await leaving.run(Going(ours, theirs))
        assert link.is_left
        assert await server.clients[0].reader.read() == b""
        os.close(link.lock)
    assert "who asked for it is gone" in caplog.text
    assert "cannot let go" in caplog.text


# The door


async def test_a_successor_is_told_why_not(tmp_path: Path) -> None:
    async with asked(tmp_path / "door") as (successor, asking):
        successor.refuse("too busy")
        with pytest.raises(AttachError, match="does not hand it over: too busy"):
            await asking


async def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "door"
    successors: list[HandoverRequester] = []
    door = HandoverListener(path, successors.append)
    with pytest.raises(AttachError, match=r"did not hand it over in 0\.05 s"):
        await asyncio.to_thread(request_handover, path, WANTED, 0.05)
    door.close()
    successors[0].refuse("nobody hears it")


async def test_a_server_that_ends_is_told(tmp_path: Path) -> None:
    path = tmp_path / "door"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen()
        asking = asyncio.ensure_future(asyncio.to_thread(request_handover, path, WANTED, 5))
        sock = (await asyncio.to_thread(listening.accept))[0]
        sock.close()
        with pytest.raises(AttachError):
            await asking
    # A door that somebody has left is no door.
    assert request_handover(path, WANTED, 5) is None
    assert request_handover(tmp_path / "none", WANTED, 5) is None


async def test_a_door_is_private_and_hears_only_what_is_in_due_form(tmp_path: Path) -> None:
    path = tmp_path / "door"
    path.touch()  # of a server that was killed
    door = HandoverListener(path, lambda successor: pytest.fail("this is not in due form"))
    assert path.stat().st_mode & 0o777 == 0o600
    for words in (b"hello", b'{"identity": 1}', b""):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.connect(str(path))
            sock.send(words)
            assert await asyncio.to_thread(sock.recv, 10) == b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as waiting:
        waiting.connect(str(path))
        await asyncio.sleep(0.01)
        path.unlink()
        other = HandoverListener(path, lambda successor: None)
        door.close()
        assert path.exists()
        other.close()
        assert not path.exists()


# Connections that are made again


async def renewed(server: Side, renew: Any) -> Client:
    """Break the connection of a server; another client in the place of the first."""
    server.lines.open_replacement = renew
    server.clients[0].writer.close()
    assert isinstance(await anext(server.heard), ConnectionLost)
    while not isinstance(await anext(server.heard), ConnectionRestored):
        pass  # of the requests that were in flight
    return server.clients[-1]


async def test_a_lost_connection_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    device = PuppetDevice()
    async with side(device) as server:
        await server.begin()
        server.clients[0].send(READ, 0, 512)
        abandoned = await device.calls.get()

        async def renew(old: KernelConnection, new: KernelConnection) -> socket.socket:
            assert abandoned.task is not None
            assert abandoned.task.done()
            assert (old, new) == (server.lines.all()[0], new)
            ours, theirs = socket.socketpair()
            server.clients.append(Client(*await asyncio.open_unix_connection(sock=theirs)))
            return ours

        client = await renewed(server, renew)
        client.send(READ, 512, 512)
        (await device.calls.get()).succeed(bytes(512))
        assert (await client.reply()).error == 0
        assert server.lines.stats.reads == 1
        assert server.lines.stats.errors == 1
        assert not server.events.stream_ended.done()
    assert "connection 1 of 1 was lost (it was closed) and is made again" in caplog.text


async def test_one_that_cannot_be_made_again_is_lost() -> None:
    async with side(MemoryDevice(1 << 20, block_size=512)) as server:
        await server.begin()

        async def renew(old: KernelConnection, new: KernelConnection) -> socket.socket:
            raise OSError(errno.EINVAL, "no device")

        server.lines.open_replacement = renew
        server.clients[0].writer.close()
        await server.events.stream_ended
        assert not server.events.disconnected.done()


async def test_one_that_is_not_made_again_in_time_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "RECONNECT_TIMEOUT", 0.05)
    async with side(MemoryDevice(1 << 20, block_size=512)) as server:
        await server.begin()

        async def renew(old: KernelConnection, new: KernelConnection) -> socket.socket:
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        server.lines.open_replacement = renew
        server.clients[0].writer.close()
        await server.events.stream_ended


async def test_nothing_is_made_again_at_the_end() -> None:
    async with side(MemoryDevice(1 << 20, block_size=512)) as server:
        await server.begin()
        began = asyncio.Event()

        async def renew(old: KernelConnection, new: KernelConnection) -> socket.socket:
            began.set()
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        server.lines.open_replacement = renew
        server.clients[0].writer.close()
        await began.wait()
        await server.lines.close()
        await server.events.stream_ended


async def test_nothing_is_made_again_once_the_kernel_disconnects() -> None:
    async with side(MemoryDevice(1 << 20, block_size=512), connections=2) as server:
        await server.begin()
        began = asyncio.Event()

        async def renew(old: KernelConnection, new: KernelConnection) -> socket.socket:
            began.set()
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        server.lines.open_replacement = renew
        server.clients[0].writer.close()
        await began.wait()
        server.clients[1].send(Command.DISC)
        await server.events.disconnected
        assert not server.events.stream_ended.done()
        server.clients[1].writer.close()
        await server.events.stream_ended
