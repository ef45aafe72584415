"""The Python blocks of the pages on layers, object stores and the test kit, run as they stand."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from obstore.store import MemoryStore

import aiovblk
from aiovblk.storage import FileDevice, Layer, MemoryDevice, Mirror, objects
from aiovblk.testing import CrashableDisk, check_block_device

from ...support.pages import blocks, run

pytestmark = pytest.mark.slow


@pytest.mark.one_loop
@pytest.mark.deadline(300)
@pytest.mark.parametrize("number", range(2))
async def test_devices_of_others_are_checked(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await FileDevice.create(tmp_path / "disk", 1 << 20).unmount()
    theirs = SimpleNamespace(MyDisk=FileDevice, Compressed=Layer)
    monkeypatch.setitem(sys.modules, "mydisk", theirs)
    names: dict[str, Any] = {}
    exec(blocks("docs/how-to/test-a-device.md")[number], names)
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
    await run(blocks("docs/how-to/layers.md")[0], print=printed.append)
    assert 0 < printed[0] < 20


async def test_member_of_a_mirror_is_brought_back() -> None:
    first, second = MemoryDevice(1 << 20), MemoryDevice(1 << 20)
    mirror = Mirror(first, second, stale=[second])
    done: list[int] = []
    here = {"first": first, "second": second, "mirror": mirror}
    await run(
        blocks("docs/how-to/layers.md")[1], progress=SimpleNamespace(update=done.append), **here
    )
    assert (mirror.in_sync, sum(done)) == ((first, second), 1 << 20)


@pytest.mark.one_loop
async def test_layers_of_others_keep_the_contract() -> None:
    names: dict[str, Any] = {}
    for block in blocks("docs/how-to/write-a-layer.md"):
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
    exec(blocks("docs/how-to/object-stores.md")[0], names)
    store = MemoryStore()
    await names["main"](store)
    report = await objects.check(store, "disks/first")
    assert (report.chunks, report.problems) == (1, [])


async def test_what_has_changed_in_a_disk_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    store = MemoryStore()
    await objects.create(store, "disk", size=1 << 30)
    device = await objects.ObjectStoreDevice.open(store, "disk")
    await objects.snapshot(store, "disk", name="monday")
    await device.write(8192, memoryview(b"x" * 4096))
    await device.flush()
    await objects.snapshot(store, "disk", name="tuesday")
    await device.unmount()
    names: dict[str, Any] = {}
    exec(blocks("docs/how-to/object-stores.md")[1], names)
    await names["show"](store)
    assert capsys.readouterr().out == "8192 4096 False 4096\n4096\n"


def test_limits_are_changed() -> None:
    names: dict[str, Any] = {}
    exec(blocks("docs/how-to/layers.md")[2], names)
    assert names["limited"].write_limit.bytes == 50e6
