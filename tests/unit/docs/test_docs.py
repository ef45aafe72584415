"""The code blocks of the documentation that need no kernel, run as they stand."""

from __future__ import annotations

import asyncio
import errno
import re
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prometheus_client
import pytest
from obstore.store import MemoryStore

import aiovblk
from aiovblk import events, tls
from aiovblk.dispatch import Stats
from aiovblk.events import EventBroadcaster, EventStream
from aiovblk.storage import FileDevice, Layer, MemoryDevice, Mirror, objects
from aiovblk.testing import CrashableDisk, check_block_device

from ...support.network_client import until_left

ROOT = Path(__file__).parents[3]


def blocks(name: str) -> list[str]:
    text = (ROOT / name).read_text()
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


async def run(block: str, **names: Any) -> None:
    """Run a block that awaits."""
    exec("async def block():\n" + textwrap.indent(block, "    "), names)
    await names["block"]()


async def test_device_of_the_readme_is_served_and_read(tmp_path: Path) -> None:
    printed: list[Any] = []
    block = blocks("README.md")[2].replace("/run/", f"{tmp_path}/")
    await run(block, aiovblk=aiovblk, device=MemoryDevice(1 << 20), print=printed.append)
    assert printed == [[f"nbd+unix:///disk?socket={tmp_path}/disk.sock"], bytes(4096)]


async def test_all_exports_are_served_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: asyncio.Queue[str] = asyncio.Queue()
    mains: list[Any] = []
    monkeypatch.setattr(asyncio, "run", mains.append)
    block = blocks("docs/network.md")[0].replace("/run/", f"{tmp_path}/").replace("10809", "0")
    exec(block, {"print": printed.put_nowait})
    serving = asyncio.create_task(mains[0])
    uris = [await asyncio.wait_for(printed.get(), 60) for _ in range(6)]
    assert uris[0] == f"nbd+unix:///scratch?socket={tmp_path}/disks.sock"
    async with aiovblk.connect(uris[1]) as private, aiovblk.connect(uris[2]) as golden:
        await private.write(0, b"x" * 4096)
        assert (golden.read_only, golden.description) == (True, "do not touch")
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_remote_export_is_written_and_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, device, mounts = aiovblk.connect, MemoryDevice(1 << 20), []

    async def mount(device: aiovblk.BlockDevice) -> None:
        mounts.append(device)

    async with aiovblk.serve(device, port=0) as server:

        def connect_here(uri: str, **options: Any) -> Any:
            assert uri == "nbd://server/scratch"
            return connect(server.uris[0], **options)

        monkeypatch.setattr(aiovblk, "connect", connect_here)
        monkeypatch.setattr(aiovblk, "mount", mount)
        await run(blocks("docs/network.md")[3], aiovblk=aiovblk)
    assert isinstance(mounts[0], aiovblk.RemoteDevice)
    assert await device.read(0, 4096) == b"x" * 4096


@pytest.mark.deadline(120)
async def test_a_file_is_served_by_workers(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(8192))
    block = blocks("docs/network.md")[1].replace("/run/", f"{tmp_path}/")
    block = block.replace("disk.img", f"{tmp_path}/disk.img").replace("...", "await use(server)")

    async def use(server: aiovblk.Server) -> None:
        async with aiovblk.connect(server.uris[0], connections=1) as remote:
            assert (remote.size, remote.multi_conn) == (8192, True)

    await run(block, aiovblk=aiovblk, use=use)


async def test_a_remote_export_leaves_its_server_when_it_is_unmounted() -> None:
    made: list[aiovblk.BlockDevice] = []

    @asynccontextmanager
    async def mounted(factory: Any, *, workers: int) -> AsyncIterator[None]:
        made.append(await factory())
        yield
        await made[0].unmount()

    async with aiovblk.serve(MemoryDevice(1 << 20), port=0) as server:
        here = SimpleNamespace(
            BlockDevice=aiovblk.BlockDevice,
            connect=lambda uri: aiovblk.connect(server.uris[0]),
            mounted=mounted,
        )
        block = blocks("docs/tuning.md")[2].replace("...", "await read()")
        await run(block, aiovblk=here, read=lambda: made[0].read(0, 4096))
        with pytest.raises(OSError, match="closed"):
            await made[0].read(0, 4096)


def test_certificates_are_taken_from_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        tls, "server_context", lambda *args, **options: asked.append((args, options))
    )
    exec(blocks("docs/network.md")[2], {})
    assert asked == [(("/etc/pki/disks",), {"verify_peer": True})]


class Disk:
    """What the page on observability looks at of a mount."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.feed = EventBroadcaster()

    def events(self) -> EventStream:
        return self.feed.subscribe()


async def test_counters_are_printed() -> None:
    disk, printed = Disk(), list[str]()
    disk.stats.latency["read"].add(1 << 20, count=100)
    await run(blocks("docs/observability.md")[0], disk=disk, print=printed.append)
    assert printed == [
        "100 reads, on average 1049 us",
        "99 of 100 took less than 1311 us, 999 of 1000 1311 us",
    ]


async def test_events_are_printed_until_the_end() -> None:
    disk, printed = Disk(), list[tuple[Any, ...]]()
    printing = asyncio.create_task(
        run(blocks("docs/observability.md")[1], disk=disk, print=lambda *said: printed.append(said))
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
        block = blocks("docs/observability.md")[2]
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
    for block in blocks("docs/observability.md")[3:]:
        await run(block, disk=Disk(), server=Disk())
    assert registry.get_sample_value("aiovblk_requests_in_flight", {"device": "exports"}) == 0


@pytest.mark.one_loop
@pytest.mark.parametrize("number", range(2))
async def test_devices_of_others_are_checked(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await FileDevice.create(tmp_path / "disk", 1 << 20).unmount()
    theirs = SimpleNamespace(MyDisk=FileDevice, Compressed=Layer)
    monkeypatch.setitem(sys.modules, "mydisk", theirs)
    names: dict[str, Any] = {}
    exec(blocks("docs/testing.md")[number], names)
    test = next(each for name, each in names.items() if name.startswith("test_"))
    await test(*[tmp_path] * (1 - number))


async def test_stack_of_layers_is_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def connect(uri: str) -> AsyncIterator[aiovblk.BlockDevice]:
        yield MemoryDevice(1 << 20)

    @asynccontextmanager
    async def mounted(device: aiovblk.BlockDevice) -> AsyncIterator[Any]:
        await device.read(0, 4096)
        yield SimpleNamespace(wait=partial(asyncio.sleep, 0))

    monkeypatch.setattr(aiovblk, "connect", connect)
    monkeypatch.setattr(aiovblk, "mounted", mounted)
    printed: list[float] = []
    await run(blocks("docs/layers.md")[0], print=printed.append)
    assert 0 < printed[0] < 20


async def test_member_of_a_mirror_is_brought_back() -> None:
    first, second = MemoryDevice(1 << 20), MemoryDevice(1 << 20)
    mirror = Mirror(first, second, stale=[second])
    done: list[int] = []
    here = {"first": first, "second": second, "mirror": mirror}
    await run(blocks("docs/layers.md")[1], progress=SimpleNamespace(update=done.append), **here)
    assert (mirror.in_sync, sum(done)) == ((first, second), 1 << 20)


@pytest.mark.one_loop
async def test_layers_of_others_keep_the_contract() -> None:
    names: dict[str, Any] = {}
    for block in blocks("docs/layers.md")[2:]:
        exec(block, names)
    await names["test_inverted"]()
    medium = CrashableDisk(1 << 20)
    await check_block_device(lambda: names["Limited"](medium.open(), 3), rounds=20)


async def test_disk_in_a_store_is_made_and_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def mounted(device: aiovblk.BlockDevice) -> AsyncIterator[None]:
        await device.write(0, memoryview(b"x" * (1 << 20)))
        yield
        await device.unmount()

    monkeypatch.setattr(aiovblk, "mounted", mounted)
    names: dict[str, Any] = {}
    exec(blocks("docs/object-stores.md")[0], names)
    store = MemoryStore()
    await names["main"](store)
    report = await objects.check(store, "disks/first")
    assert (report.chunks, report.problems) == (1, [])


def test_no_block_is_left_out() -> None:
    assert len(blocks("docs/network.md")) == 4
    assert len(blocks("docs/observability.md")) == 5
    assert len(blocks("docs/testing.md")) == 2
    assert len(blocks("docs/layers.md")) == 5
    assert len(blocks("docs/object-stores.md")) == 1
