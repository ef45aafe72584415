"""Events of a mount, and their listeners."""

from __future__ import annotations

import asyncio
import errno
import gc
import pickle
import socket
from functools import partial
from typing import Any

import pytest

from aiovblk import BlockDevice, Mount
from aiovblk.dispatch import Dispatcher, HandlerLimits
from aiovblk.events import (
    MAX_QUEUED_EVENTS,
    Attached,
    ConnectionLost,
    ConnectionRestored,
    Event,
    EventBroadcaster,
    EventsDropped,
    EventStream,
    RequestFailed,
    Resized,
    SlowRequest,
    Unmounted,
    Unmounting,
)
from aiovblk.mounting.backend import LocalBackend
from aiovblk.mounting.connections import ConnectionGroup, KernelConnection
from aiovblk.mounting.lifecycle import MountLifecycle
from aiovblk.mounting.options import MountOptions
from aiovblk.mounting.state import MountState
from aiovblk.mounting.workers.service import ConnectionService
from aiovblk.protocol import SIMPLE_REPLY, Command, Request, serialize_request
from aiovblk.storage import MemoryDevice

from ..support.dispatch_client import PuppetDevice, served


def local(*, connections: int) -> LocalBackend:
    return LocalBackend(
        MemoryDevice(4096),
        connections=connections,
        limits=HandlerLimits(concurrency=1, handler_timeout=None, slow_request=None),
    )


async def everything(listener: EventStream) -> list[Event]:
    return [event async for event in listener]


async def test_each_listener_gets_all_events_until_the_end() -> None:
    feed = EventBroadcaster()
    happened: list[Event] = [Attached("/dev/nbd0"), Resized(4096), Unmounted(None)]
    listening = [asyncio.create_task(everything(feed.subscribe())) for _ in range(2)]
    await asyncio.sleep(0)
    for event in happened:
        feed.publish(event)
    feed.close()
    feed.publish(RequestFailed("read", 0, 512, errno.EIO))
    assert await asyncio.gather(*listening) == [happened, happened]
    assert await everything(feed.subscribe()) == []


async def test_listener_waits_for_what_is_to_come() -> None:
    feed = EventBroadcaster()
    listener = feed.subscribe()
    waiting = asyncio.create_task(anext(listener))
    await asyncio.sleep(0)
    feed.publish(Resized(1))
    assert await waiting == Resized(1, time=waiting.result().time)
    waiting = asyncio.create_task(anext(listener))
    await asyncio.sleep(0)
    waiting.cancel()
    feed.publish(Resized(2))
    feed.close()
    assert [type(event) for event in await everything(listener)] == [Resized]


async def test_late_listener_gets_the_first_event_and_no_other() -> None:
    feed = EventBroadcaster()
    feed.publish(Attached("/dev/nbd0", time=1), first=True)
    feed.publish(Resized(4096, time=2))
    listener = feed.subscribe()
    feed.publish(Resized(8192, time=3))
    feed.close()
    assert await everything(listener) == [Attached("/dev/nbd0", time=1), Resized(8192, time=3)]


async def test_slow_listener_loses_the_oldest_and_gets_their_count() -> None:
    feed = EventBroadcaster()
    slow, quick = feed.subscribe(), feed.subscribe()
    for size in range(MAX_QUEUED_EVENTS + 10):
        feed.publish(Resized(size, time=0))
        assert await anext(quick) == Resized(size, time=0)
    missed = await anext(slow)
    assert isinstance(missed, EventsDropped)
    assert missed.count == 10
    assert await anext(slow) == Resized(10, time=0)
    assert len(slow.drain()) == MAX_QUEUED_EVENTS - 1
    assert slow.drain() == []


def test_events_that_were_missed_before_count_when_they_are_missed_again() -> None:
    listener = EventStream([EventsDropped(5, time=0), Resized(1, time=0)], limit=2)
    listener.put(Resized(2, time=0))
    missed, *others = listener.drain()
    assert isinstance(missed, EventsDropped)
    assert missed.count == 5
    assert others == [Resized(1, time=0), Resized(2, time=0)]


def test_listener_that_is_gone_is_forgotten() -> None:
    feed = EventBroadcaster()
    feed.subscribe()
    gc.collect()
    assert not feed._listeners


def test_events_travel_between_processes() -> None:
    event = RequestFailed("read", 4096, 512, errno.EIO)
    assert pickle.loads(pickle.dumps(event)) == event
    assert event.time > 1e9


# Requests


def words(event: Event) -> tuple[Any, ...]:
    match event:
        case RequestFailed(command, offset, length, number):
            return "failed", command, offset, length, number
        case SlowRequest(command, offset, length):
            return "slow", command, offset, length
        case ConnectionLost(connection, connections, reason):
            return "lost", connection, connections, reason
    return (type(event).__name__,)


async def test_failed_requests_are_events() -> None:
    device = PuppetDevice()
    events: asyncio.Queue[Event] = asyncio.Queue()
    async with served(device, on_event=events.put_nowait) as server:
        await server.client.call(Command.READ, device.size, 512)
        await server.client.call(77)
        server.client.send(Command.WRITE, 1024, data=bytes(512))
        (await device.calls.get()).fail(OSError(errno.EDQUOT, "full"))
        await server.client.reply()
        server.client.send(Command.FLUSH)
        (await device.calls.get()).succeed()
        await server.client.reply()
    reported = [words(events.get_nowait()) for _ in range(events.qsize())]
    assert reported == [
        ("failed", "read", device.size, 512, errno.EINVAL),
        ("failed", "unknown", 0, 0, errno.EINVAL),
        ("failed", "write", 1024, 512, errno.ENOSPC),
    ]


async def test_slow_requests_are_reported_once_each() -> None:
    device = PuppetDevice()
    events: asyncio.Queue[Event] = asyncio.Queue()
    async with served(device, on_event=events.put_nowait, slow_request=0.001) as server:
        calls = []
        for offset in (0, 512):
            server.client.send(Command.READ, offset, 512)
            calls.append(await device.calls.get())
            event = await events.get()
            assert isinstance(event, SlowRequest)
            assert event.seconds > 0
            assert words(event) == ("slow", "read", offset, 512)
        for call in calls:
            call.succeed()
        await server.client.replies(2)
        # The timer is armed anew after a time without any.
        server.client.send(Command.FLUSH)
        call = await device.calls.get()
        assert words(await events.get()) == ("slow", "flush", 0, 0)
        call.succeed()
        await server.client.reply()
    assert events.empty()


async def test_requests_that_are_slow_together_are_reported_oldest_first() -> None:
    device = PuppetDevice()
    events: asyncio.Queue[Event] = asyncio.Queue()
    async with served(device, on_event=events.put_nowait, slow_request=0.001) as server:
        for offset in range(0, 4096, 512):
            server.client.send(Command.READ, offset, 512)
        reported = [words(await events.get())[2] for _ in range(8)]
        assert reported == list(range(0, 4096, 512))
        for _ in range(8):
            (await device.calls.get()).succeed()
        await server.client.replies(8)


# Connections


async def test_lost_connection_is_an_event_and_a_closed_one_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events = MountState()
    listener = events.broadcaster.subscribe()
    lines = ConnectionGroup(events)
    await local(connections=2).open(lines)
    kernels = await lines.connect()
    lines.start()
    kernels[1].close()
    assert words(await anext(listener)) == ("lost", 2, 2, "it was closed")
    await lines.close()
    await events.stream_ended
    kernels[0].close()
    assert listener.drain() == []
    assert "connection 2 of 2 is lost" in caplog.text


class NeverReads(BlockDevice):
    blocks = 1

    async def read(self, offset: int, length: int) -> bytes:
        never: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        return await never


@pytest.mark.parametrize("timeout", [0.0, 100.0, 1000.0])
async def test_connection_that_the_kernel_has_timed_out_is_reconnected_once(
    timeout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is lost for another reason is always reconnected."""
    # However long this test takes, its handler began a minute ago.
    clock = asyncio.get_running_loop().time
    monkeypatch.setattr(Dispatcher, "oldest_start", property(lambda _: clock() - 60))
    events = MountState()
    listener = events.broadcaster.subscribe()
    lines = ConnectionGroup(events, timeout)
    made: list[socket.socket] = []

    async def renew(old: KernelConnection, new: KernelConnection) -> socket.socket:
        ours, theirs = socket.socketpair()
        made.append(theirs)
        return ours

    served = LocalBackend(
        NeverReads(),
        connections=1,
        limits=HandlerLimits(concurrency=1, handler_timeout=None, slow_request=0.02),
    )
    await served.open(lines)
    [kernel] = await lines.connect()
    lines.reconnector.open_replacement = renew
    lines.start()
    kernel.send(serialize_request(Request(0, Command.READ, 1, 0, 4096)))
    assert isinstance(await anext(listener), SlowRequest)
    kernel.close()
    assert words(await anext(listener)) == ("lost", 1, 1, "it was closed")
    assert isinstance(await anext(listener), RequestFailed)  # to be sent again
    assert isinstance(await anext(listener), ConnectionRestored)
    made[0].send(serialize_request(Request(0, Command.READ, 1, 0, 4096)))
    assert isinstance(await anext(listener), SlowRequest)
    made[0].close()
    assert words(await anext(listener)) == ("lost", 1, 1, "it was closed")
    if timeout == 100:
        await events.stream_ended
        assert len(made) == 1
    else:
        assert isinstance(await anext(listener), RequestFailed)
        assert isinstance(await anext(listener), ConnectionRestored)
    lines.abort()
    await events.stream_ended
    for sock in made:
        sock.close()


async def test_worker_reports_what_happens_to_its_requests() -> None:
    reported: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
    service = ConnectionService(
        partial(MemoryDevice, 4096),
        HandlerLimits(concurrency=1, handler_timeout=None, slow_request=None),
        False,
        False,
        lambda *words: reported.put_nowait(words),
    )
    await service.open()
    ours, theirs = socket.socketpair()
    await service.connect(ours)
    running = asyncio.create_task(service.run())
    reader, writer = await asyncio.open_unix_connection(sock=theirs)
    writer.write(serialize_request(Request(0, Command.READ, 1, 4096, 4096)))
    await reader.readexactly(SIMPLE_REPLY.size)
    writer.close()
    await running
    await service.close()
    await writer.wait_closed()
    reports = {
        name: content for name, *content in [reported.get_nowait() for _ in range(reported.qsize())]
    }
    [events] = reports["events"]
    assert [words(event) for event in events] == [("failed", "read", 4096, 4096, errno.EINVAL)]
    assert reports["report"][0].errors_by_command == {"read": 1}


# Mounts


async def test_mount_publishes_its_end_with_the_failure() -> None:
    class Unattached(MountLifecycle):
        async def _attach(self, path: str | None) -> None:
            self.path = "/dev/nbd7"

        async def _unmount(self) -> Any:
            raise LookupError("a failure")

    limits = HandlerLimits(concurrency=1, handler_timeout=None, slow_request=1)
    lifecycle = Unattached(
        LocalBackend(MemoryDevice(4096), connections=1, limits=limits),
        MountOptions(attach="ioctl", limits=limits, unmount_timeout=1),
    )
    mount = Mount(lifecycle)
    await lifecycle.start(None)
    listening = asyncio.create_task(everything(mount.events()))
    await asyncio.sleep(0)
    with pytest.raises(LookupError):
        await mount.unmount(force=True)
    attached, unmounting, unmounted = await listening
    assert isinstance(attached, Attached)
    assert attached.path == "/dev/nbd7"
    assert isinstance(unmounting, Unmounting)
    assert isinstance(unmounted, Unmounted)
    assert isinstance(unmounted.failure, LookupError)
