"""The Python blocks of the pages on counters, events and hangs, run as they stand."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

import aiovblk
from aiovblk import events
from aiovblk.dispatch import Stats
from aiovblk.events import EventBroadcaster, EventStream
from aiovblk.storage import MemoryDevice

from ...support.network_client import until_left
from ...support.pages import blocks, run


class Disk:
    """What the pages look at of a mount."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.feed = EventBroadcaster()

    def events(self) -> EventStream:
        return self.feed.subscribe()


async def test_counters_are_printed() -> None:
    disk, printed = Disk(), list[str]()
    disk.stats.latency["read"].add(1 << 20, count=100)
    await run(blocks("docs/how-to/metrics.md")[0], disk=disk, print=printed.append)
    assert printed == [
        "100 reads, on average 1049 us",
        "99 of 100 took less than 1311 us, 999 of 1000 1311 us",
    ]


async def test_events_are_printed_until_the_end() -> None:
    disk, printed = Disk(), list[tuple[Any, ...]]()
    printing = asyncio.create_task(
        run(blocks("docs/how-to/events.md")[0], disk=disk, print=lambda *said: printed.append(said))
    )
    await asyncio.sleep(0)
    for event in (
        events.Attached("/dev/nbd0"),
        events.RequestFailed("read", 0, 4096, 5),
        events.SlowRequest("flush", 0, 0, 31.4),
        events.ConnectionLost(1, 2, "it was closed"),
        events.EventsDropped(7),
        events.Unmounted(None),
    ):
        disk.feed.publish(event)
    disk.feed.close()
    await printing
    assert printed == [
        ("read of 4096 bytes at 0 failed: 5",),
        ("flush at 0 has been running for 31 s",),
        ("connection 1 of 2: it was closed",),
        ("7 events were dropped before this one",),
        ("unmounted", "in order"),
    ]


async def test_events_of_a_server_are_printed_until_the_end(tmp_path: Path) -> None:
    class Broken(MemoryDevice):
        async def read(self, offset: int, length: int) -> bytes:
            raise OSError(errno.EIO, "no light, no data")

    printed: list[tuple[Any, ...]] = []
    path = tmp_path / "socket"
    async with aiovblk.serve({"disk": Broken(1 << 20)}, unix=path) as server:
        block = blocks("docs/how-to/events.md")[1]
        printing = asyncio.create_task(
            run(block, server=server, print=lambda *said: printed.append(said))
        )
        await asyncio.sleep(0)
        with pytest.raises(aiovblk.ProtocolError, match="no such export"):
            async with aiovblk.connect(f"nbd+unix:///other?socket={path}"):
                pass
        async with aiovblk.connect(server.uris[0], connections=1) as remote:
            with pytest.raises(OSError, match="Input/output error"):
                await remote.read(8192, 4096)
        await until_left(server)
        server.close()
        await printing
    assert printed == [
        (
            "client 1 (a local client) was refused: the client asked for an export that is not"
            " there",
        ),
        ("client 2 (a local client) uses disk", "without TLS"),
        ("read of 4096 bytes at 8192 by client 2 failed: 5",),
        ("client 2 (a local client) has left disk", "in order"),
        ("no more clients are taken",),
    ]


async def test_metrics_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = prometheus_client.CollectorRegistry()
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    for block in blocks("docs/how-to/metrics.md")[1:]:
        await run(block, disk=Disk(), server=Disk())
    assert registry.get_sample_value("aiovblk_requests_in_flight", {"device": "exports"}) == 0


async def test_metrics_are_offered_to_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    registry, ports = prometheus_client.CollectorRegistry(), list[int]()
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    monkeypatch.setattr(prometheus_client, "start_http_server", ports.append)
    (block,) = blocks("docs/how-to/dashboard.md")
    await run(block, disk=Disk())
    assert registry.get_sample_value("aiovblk_requests_in_flight", {"device": "disk"}) == 0
    assert ports == [9400]


async def test_tasks_are_shown_at_a_signal(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("docs/how-to/debug-a-hang.md")
    names: dict[str, Any] = {}
    exec(block, names)
    shown = asyncio.Event()
    show = names["show_tasks"]

    def show_and_tell() -> None:
        show()
        shown.set()

    names["show_tasks"] = show_and_tell
    await names["main"]()
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        await shown.wait()
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
    assert "test_tasks_are_shown_at_a_signal" in capsys.readouterr().err
