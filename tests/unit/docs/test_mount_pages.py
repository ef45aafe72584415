"""The Python blocks of the pages on mounts, run as they stand but for the kernel."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

import aiovblk
from aiovblk.storage import FileDevice, MemoryDevice

from ...support.pages import blocks, run

OPTIONS = inspect.signature(aiovblk.mounted)


@pytest.mark.parametrize(
    ("page", "number", "options"),
    [
        ("ublk", 0, {"attach": "ublk"}),
        ("workers", 0, {"connections": 2}),
        ("workers", 1, {"workers": 2}),
        ("survive-a-crash", 0, {"identity": "volume-42", "survive": 60}),
        ("upgrade", 0, {"identity": "volume-42", "survive": 60, "replace": True}),
        (
            "choose",
            0,
            {"queue": aiovblk.RequestQueue(max_sectors_kb=4096, read_ahead_kb=16384)},
        ),
    ],
)
async def test_a_device_is_mounted_with_options(
    page: str, number: int, options: dict[str, Any]
) -> None:
    calls: list[dict[str, Any]] = []

    @asynccontextmanager
    async def mounted(*arguments: Any, **given: Any) -> AsyncIterator[None]:
        bound = OPTIONS.bind(*arguments, **given).arguments
        calls.append({name: value for name, value in bound.items() if name != "device"})
        yield

    here = SimpleNamespace(mounted=mounted, RequestQueue=aiovblk.RequestQueue)
    names = {"aiovblk": here, "device": MemoryDevice(1 << 20), "FileDevice": FileDevice}
    await run(blocks(f"docs/how-to/{page}.md")[number], **names)
    assert calls == [options]


async def test_a_disk_is_made_larger() -> None:
    resized: list[int] = []

    async def resize(blocks: int) -> None:
        resized.append(blocks)

    disk = SimpleNamespace(resize=resize, device=MemoryDevice(1 << 20))
    (block,) = blocks("docs/how-to/resize.md")
    await run(block, disk=disk)
    assert resized == [512]


async def test_sigterm_unmounts_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[str] = []

    async def mount(device: aiovblk.BlockDevice) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.Event().wait()
        finally:
            ends.append("unmounted")

    monkeypatch.setattr(aiovblk, "mount", mount)
    names: dict[str, Any] = {}
    (block,) = blocks("docs/how-to/embed.md")
    exec(block, names)
    try:
        await names["main"](MemoryDevice(1 << 20))
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    assert ends == ["unmounted"]
