"""Whether the kernel receives by each connection, and what is done where it does not."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from types import SimpleNamespace
from typing import cast

import pytest

from aiovblk.events import ConnectionLost
from aiovblk.kernel import Attachment, status
from aiovblk.mounting.connections import KernelConnection
from aiovblk.mounting.recovery import receive_threads
from aiovblk.mounting.recovery.receive_threads import ensure_receiving, wait_started, wait_stopped
from aiovblk.protocol import Command

from ...support.dispatch_client import Client, PuppetDevice
from ...support.kernel_tree import KERNEL_THREAD, KernelTree
from ...support.mount_server import Side, side

ATTACHMENT = cast(Attachment, SimpleNamespace(index=7, path="/dev/nbd7"))


@pytest.fixture(autouse=True)
def _no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive_threads, "RECEIVER_TIMEOUT", 0.0)


async def test_receivers_are_counted(tree: KernelTree) -> None:
    tree.kernel_threads("nbd7", "nbd70", "nbd7")
    assert await wait_started(7, 2)
    assert not await wait_started(7, 3)
    assert await wait_stopped(7, lambda: 2, 0)
    assert not await wait_stopped(7, lambda: 1, 0)


async def test_receivers_that_start_late_are_waited_for(
    tree: KernelTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.kernel_threads("nbd7")
    look = status.count_receivers

    def look_too_early() -> Counter[int]:
        seen = look()
        monkeypatch.setattr(status, "count_receivers", look)
        tree.process(50, "nbd7-recv+nbd7-recv", flags=KERNEL_THREAD)  # the workqueue's rescuer
        return seen

    monkeypatch.setattr(receive_threads, "RECEIVER_TIMEOUT", 30.0)
    monkeypatch.setattr(status, "count_receivers", look_too_early)
    assert await wait_started(7, 2)


async def test_where_threads_do_not_show_nothing_is_waited_for(tree: KernelTree) -> None:
    tree.process(2, "sh")  # a container's
    assert await wait_started(7, 4)
    assert await wait_stopped(7, lambda: 0, 30)


async def test_nothing_is_done_where_all_are_received_by(tree: KernelTree) -> None:
    tree.kernel_threads("nbd7", "nbd7")
    async with side(PuppetDevice(), connections=2) as server:
        await server.start()
        await ensure_receiving(ATTACHMENT, server.group)
        assert server.group.reconnector.live_count == 2
        assert [slot.recovery.retired for slot in server.group.slots] == ["", ""]


async def test_one_connection_needs_no_look(tree: KernelTree) -> None:
    tree.kernel_threads()
    async with side(PuppetDevice()) as server:
        await server.start()
        await ensure_receiving(ATTACHMENT, server.group)
        assert not server.group.slots[0].recovery.retired


async def losses(server: Side, count: int) -> set[int]:
    """Wait until so many connections are lost; their numbers."""
    found: set[int] = set()
    while len(found) < count:
        event = await anext(server.events)
        if isinstance(event, ConnectionLost):
            assert event.reason == "the kernel receives by 1 of 3 connections"
            found.add(event.connection)
    return found


async def test_by_netlink_all_are_reconnected(
    tree: KernelTree, caplog: pytest.LogCaptureFixture
) -> None:
    tree.kernel_threads("nbd7")
    device = PuppetDevice()
    async with side(device, connections=3) as server:
        await server.start()
        first = server.clients[0]
        first.send(Command.READ, 0, 512)
        read = await device.calls.get()
        live_counts: list[int] = []
        made: list[Client] = []

        async def open_replacement(old: KernelConnection, new: KernelConnection) -> socket.socket:
            live_counts.append(server.group.reconnector.live_count)
            assert not old.stats.in_flight
            ours, theirs = socket.socketpair()
            made.append(Client(*await asyncio.open_unix_connection(sock=theirs)))
            server.clients.append(made[-1])
            return ours

        server.group.reconnector.open_replacement = open_replacement
        first.send(Command.READ, 512, 512)  # still on its way then
        await ensure_receiving(ATTACHMENT, server.group)
        with pytest.raises(BrokenPipeError):
            os.write(first.writer.get_extra_info("socket").fileno(), b"x")
        assert await losses(server, 3) == {1, 2, 3}
        # What has arrived is answered, and only then the connection closed.
        second = await device.calls.get()
        for each in (second, read):
            each.succeed(bytes(512))
        assert {reply.error for reply in (await first.replies(2)).values()} == {0}
        assert await first.reader.read() == b""
        while len(made) < 3:
            await anext(server.events)
        assert live_counts[0] == 0
        made[-1].send(Command.READ, 0, 512)
        (await device.calls.get()).succeed(bytes(512))
        assert (await made[-1].reply()).error == 0
        assert server.group.reconnector.live_count == 3
        assert server.group.stats.reads == 3
        assert not server.state.stream_ended.done()
    assert "all are reconnected, one by one" in caplog.text


async def test_by_ioctl_those_that_keep_others_from_starting_are_lost(
    tree: KernelTree, caplog: pytest.LogCaptureFixture
) -> None:
    tree.kernel_threads("nbd7")
    device = PuppetDevice()
    async with side(device, connections=3) as server:
        await server.start()
        await ensure_receiving(ATTACHMENT, server.group)
        assert await losses(server, 2) == {1, 2}
        for client in server.clients[:2]:
            assert await client.reader.read() == b""
        server.clients[2].send(Command.READ, 0, 512)
        (await device.calls.get()).succeed(bytes(512))
        assert (await server.clients[2].reply()).error == 0
        assert server.group.reconnector.live_count == 1
        assert not server.state.stream_ended.done()
    assert "connection 2 of 3 is lost" in caplog.text
    assert "it works with fewer connections" in caplog.text
