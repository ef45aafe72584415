"""The code blocks of the page on caching, run as they stand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiovblk
from aiovblk import BlockDevice
from aiovblk.storage import Cache, MemoryDevice

from ...support.pages import blocks

PAGE = "docs/how-to/cache.md"
MIB = 1 << 20


def names(block: int, text: str = "", by: str = "") -> dict[str, Any]:
    """What a block defines."""
    defined: dict[str, Any] = {}
    exec(blocks(PAGE)[block].replace(text, by), defined)
    return defined


async def test_remote_export_is_mounted_through_a_cache() -> None:
    mounts: list[BlockDevice] = []
    connect = aiovblk.connect

    @asynccontextmanager
    async def mounted(device: BlockDevice) -> AsyncIterator[None]:
        mounts.append(device)
        yield
        await device.unmount()

    async with aiovblk.serve(MemoryDevice(MIB), port=0) as server:
        defined = names(0, "...", "await device.read(0, 4096)")
        here = SimpleNamespace(connect=lambda uri: connect(server.uris[0]), mounted=mounted)
        defined["aiovblk"] = here
        await defined["main"]()
    assert isinstance(mounts[0], Cache)
    assert mounts[0].stats.misses == 1


async def test_store_is_made_and_found_again(tmp_path: Path) -> None:
    cached = names(1)["cached"]
    for misses in (1, 0):
        device = cached(MemoryDevice(MIB), tmp_path / "cache")
        await device.read(0, 4096)
        await device.unmount()
        assert device.stats.misses == misses
    assert (tmp_path / "cache").stat().st_blocks < 4096


async def test_memory_lies_in_front_of_a_disk() -> None:
    device = names(2)["two_levels"](MemoryDevice(MIB), MemoryDevice(MIB))
    await device.read(0, 4096)
    assert device.stats.misses == device.inner.stats.misses == 1
    await device.unmount()


async def test_counters_are_printed_and_hints_are_taken() -> None:
    printed: list[str] = []
    device = Cache(MemoryDevice(64 * MIB), size=128 * MIB)
    await names(4)["warm_up"](device)
    for _ in range(4):
        await device.read(0, 4096)
    watch = names(3)["watch"]
    watch.__globals__["print"] = printed.append
    await watch(device)
    assert printed == ["100% hits, 0 evictions", "64 MiB cached, 0 bytes dirty"]
