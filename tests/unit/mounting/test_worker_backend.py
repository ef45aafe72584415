"""Mounts with worker processes: workers that do not begin or hang, and those that take over."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aiovblk
from aiovblk import AttachError, Error, kernel
from aiovblk.dispatch import HandlerLimits
from aiovblk.events import ConnectionRestored
from aiovblk.mounting.attaching import AttachSequence
from aiovblk.mounting.backend import make_backend
from aiovblk.mounting.connections import ConnectionGroup, KernelConnection, close_all
from aiovblk.mounting.handover import takeover
from aiovblk.mounting.handover.connections import take_over
from aiovblk.mounting.handover.endpoint import (
    HandoverGeometry,
    HandoverRequest,
    HandoverResult,
    request_handover,
)
from aiovblk.mounting.handover.options import Handover
from aiovblk.mounting.lifecycle import MountLifecycle
from aiovblk.mounting.options import MountOptions
from aiovblk.mounting.state import MountState
from aiovblk.mounting.workers.backend import WorkerBackend
from aiovblk.storage import MemoryDevice
from aiovblk.workers import worker
from aiovblk.workers.channel import MAX_MESSAGE

from ...support.dispatch_client import Client
from ...support.network_client import WRITE
from ...support.polling import until
from ...support.worker_services import (
    FileOfAll,
    hang_for_ever,
    make_and_hang,
    raise_cancelled,
)

LIMITS = HandlerLimits(concurrency=1, handler_timeout=None, slow_request=None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.deadline(120),
    pytest.mark.either_loop,
    pytest.mark.usefixtures("no_child_is_left"),
]


async def test_a_factory_that_cannot_travel_ends_every_worker() -> None:
    with pytest.raises(TypeError, match="must be a function or a class of a module"):
        await aiovblk.mount(lambda: MemoryDevice(4096), workers=3)


async def test_a_factory_that_fails_or_is_cancelled_is_reported() -> None:
    with pytest.raises(FileNotFoundError):
        await aiovblk.mount(partial(FileOfAll, Path("/no/such/file")), workers=2)
    with pytest.raises(RuntimeError, match="CancelledError"):
        await aiovblk.mount(raise_cancelled, workers=1)


@pytest.mark.parametrize("seconds", [0, 0.01, 0.1, 1])
async def test_a_mount_is_cancelled_while_its_workers_begin(seconds: float) -> None:
    mounting = asyncio.create_task(aiovblk.mount(hang_for_ever, workers=2))
    await asyncio.wait([mounting], timeout=seconds)
    mounting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mounting


async def test_a_mount_is_cancelled_although_a_worker_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "EXIT_TIMEOUT", 0.1)
    hanging = tmp_path / "hanging"
    mounting = asyncio.create_task(aiovblk.mount(partial(make_and_hang, hanging), workers=1))
    await until(hanging.exists)
    await asyncio.wait([mounting], timeout=0.1)  # for an answer that does not come
    mounting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await mounting


def make_pool(
    factory: Any, *, workers: int = 1, opens_after_handover: bool = False
) -> WorkerBackend:
    return WorkerBackend(
        factory,
        workers=workers,
        limits=LIMITS,
        memory_safe=False,
        opens_after_handover=opens_after_handover,
    )


def options(*, replace: bool = False) -> MountOptions:
    return MountOptions(
        attach="netlink",
        limits=LIMITS,
        unmount_timeout=1,
        handover=Handover(identity="volume", survive=60, replace=replace),
    )


@asynccontextmanager
async def opened(image: Path) -> AsyncIterator[tuple[WorkerBackend, ConnectionGroup]]:
    """Two workers with a connection each, as of a mount, but for the kernel."""
    backend = make_pool(partial(FileOfAll, image), workers=2)
    group = ConnectionGroup(MountState())
    try:
        await backend.open(group)
        kernels = await group.connect()
        group.start()
        yield backend, group
    finally:
        await backend.close()
        close_all(kernels)


async def test_what_stands_for_the_devices_is_like_them(image: Path) -> None:
    async with opened(image) as (backend, _):
        device = backend.device
        assert (device.block_size, device.blocks) == (512, 2048)
        assert (device.read_only, device.rotational) == (False, True)


async def test_a_lost_worker_is_not_waited_for(image: Path) -> None:
    async with opened(image) as (backend, group):
        lost = backend._connections[0]
        lost.oldest_start, lost.stats.in_flight = 1.0, 1  # as if a handler ran
        os.kill(lost.worker.pid, signal.SIGKILL)
        await lost.worker.lost
        await lost.resize(512)
        await until(lambda: lost.oldest_start is None)
        assert group.unanswered_since() > 1.0
        assert group.stats.in_flight == 0


async def test_workers_answer_what_has_arrived_before_their_connections_are_made_again(
    image: Path,
) -> None:
    backend = make_pool(partial(FileOfAll, image), workers=2)
    events = MountState()
    heard = events.broadcaster.subscribe()
    group = ConnectionGroup(events)
    clients: list[Client] = []

    async def renew(old: KernelConnection, new: KernelConnection) -> socket.socket:
        await backend.open_replacement(old, new)
        ours, theirs = socket.socketpair()
        clients.append(Client(*await asyncio.open_unix_connection(sock=theirs)))
        return ours

    try:
        await backend.open(group)
        for kernel_end in await group.connect():
            clients.append(Client(*await asyncio.open_unix_connection(sock=kernel_end)))
        group.start()
        group.reconnector.open_replacement = renew
        data = os.urandom(512)
        clients[0].send(WRITE, 512, data=data)
        group.reconnector.retire(group.all(), "for a test")
        assert (await clients[0].reply()).error == 0
        restored = 0
        while restored < 2:
            restored += isinstance(await anext(heard), ConnectionRestored)
        assert [await client.reader.read() for client in clients[:2]] == [b"", b""]
        for client in clients[2:]:
            assert await client.read(512, 512) == data
        assert group.reconnector.live_count == 2
    finally:
        group.abort()  # else those of the workers that end would be reconnected
        await events.stream_ended
        await backend.close()
        for client in clients:
            client.writer.close()


# A device that another server has had


@asynccontextmanager
async def taking_over(
    factory: Any, connections: list[tuple[socket.socket, bytes]]
) -> AsyncIterator[ConnectionGroup]:
    """One worker, and as many more as there are connections that another server has handed over."""
    backend = make_pool(factory)
    group = ConnectionGroup(MountState())
    try:
        await backend.open(group)
        await take_over(group, connections, partial(backend.open_replacement, None))
        group.start()
        yield group
    finally:
        await backend.close()


async def test_a_worker_goes_on_within_a_large_write(image: Path) -> None:
    ours, theirs = socket.socketpair()
    client = Client(*await asyncio.open_unix_connection(sock=theirs))
    _, message = client.request(WRITE, 0, data=os.urandom(1 << 20))
    received, rest = message[: MAX_MESSAGE - 1000], message[MAX_MESSAGE - 1000 :]
    async with taking_over(partial(FileOfAll, image), [(ours, received)]):
        client.writer.write(rest)
        assert (await client.reply()).error == 0
        client.writer.close()
    assert image.read_bytes() == message[-(1 << 20) :]


async def test_each_connection_has_a_worker_if_they_share_their_data(image: Path) -> None:
    pairs = [socket.socketpair() for _ in range(3)]
    connections = [(ours, b"") for ours, _ in pairs]
    async with taking_over(partial(FileOfAll, image), connections) as group:
        assert len(group.all()) == 3
        for _, theirs in pairs:
            theirs.close()


async def test_several_connections_are_refused_if_nothing_says_that_workers_share_their_data() -> (
    None
):
    pairs = [socket.socketpair() for _ in range(2)]
    with pytest.raises(ValueError, match="MemoryDevice cannot be served by several workers"):
        async with taking_over(partial(MemoryDevice, 4096), [(ours, b"") for ours, _ in pairs]):
            pass
    for ours, theirs in pairs:
        with theirs:
            assert theirs.recv(1) == b""
        assert ours.fileno() < 0


async def test_a_mount_with_workers_refuses_its_successor(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unattached(MountLifecycle):
        async def _attach(self, path: str | None) -> None:
            await self.backend.open(self.connections)
            self.path, self.index = "/dev/nbd7", 7
            self.handover.listen(self.index, self.path)

        async def _unmount(self) -> None:
            pass

    monkeypatch.setattr(kernel.locks, "socket_path", lambda index: tmp_path / f"socket{index}")
    lifecycle = Unattached(make_pool(partial(FileOfAll, image)), options())
    mount = aiovblk.Mount(lifecycle)
    await lifecycle.start(None)
    wanted = HandoverRequest("volume", HandoverGeometry.of(mount.device))
    reason = "its connections are in workers; end it, and mount the device again"
    with pytest.raises(AttachError, match=reason):
        await asyncio.to_thread(request_handover, tmp_path / "socket7", wanted, 10)
    with pytest.raises(Error, match=reason):
        await mount.detach()
    await mount.unmount(force=True)
    assert not (tmp_path / "socket7").exists()


async def test_workers_start_when_the_other_server_has_released_it(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = socket.socketpair()
    log = image.with_suffix(".log")
    geometry = HandoverGeometry(1 << 20, 512, read_only=False)

    def hand_over(
        path: Path, wanted: HandoverRequest, seconds: float, sock: socket.socket
    ) -> HandoverResult:
        sock.close()
        assert (wanted, log.exists()) == (HandoverRequest("volume", None), False)
        return HandoverResult(os.open(tmp_path, os.O_RDONLY), [(ours, b"")], geometry)

    monkeypatch.setattr(kernel, "find_by_identity", lambda path, identity: 7)
    monkeypatch.setattr(
        kernel, "attachment_for_existing", lambda *_: SimpleNamespace(path="/dev/nbd7")
    )
    monkeypatch.setattr(kernel.locks, "write_owner", os.close)
    monkeypatch.setattr(takeover, "request_handover", hand_over)
    backend = make_pool(partial(FileOfAll, image), opens_after_handover=True)
    events = MountState()
    group = ConnectionGroup(events)
    try:
        attaching = AttachSequence(backend, group, events, options(replace=True))
        await takeover.TakeoverSequence(attaching).take_over(None, "volume")
        client = Client(*await asyncio.open_unix_connection(sock=theirs))
        await client.write(512, b"x" * 512)
        client.writer.close()
    finally:
        await backend.close()
    assert image.read_bytes()[512:1024] == b"x" * 512


def test_workers_that_are_to_replace_a_server_are_to_start_late(image: Path) -> None:
    for replace in (False, True):
        handover = Handover(identity="volume", replace=replace)
        wanted = MountOptions(workers=2, limits=LIMITS, handover=handover)
        backend = make_backend(partial(FileOfAll, image), wanted)
        assert isinstance(backend, WorkerBackend)
        assert backend.opens_after_handover == replace
