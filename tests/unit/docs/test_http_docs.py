"""The code block of the page on web servers, run as it stands."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import FileDevice

from ...support.pages import blocks
from ...support.stream_server import serving
from ...support.web_server import Web


async def test_image_is_mounted_with_a_cache_and_an_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = blocks("docs/how-to/web-server-image.md")
    monkeypatch.chdir(tmp_path)
    await FileDevice.create("store", 4 << 20).unmount()

    @asynccontextmanager
    async def mounted(device: BlockDevice) -> AsyncIterator[None]:
        assert await device.read(0, 4096) == b"x" * 4096
        await device.write(0, memoryview(bytes(4096)))
        assert await device.read(0, 8192) == bytes(4096) + b"x" * 4096
        yield
        await device.unmount()

    defined: dict[str, Any] = {}
    exec(block, defined)
    defined["aiovblk"] = SimpleNamespace(mounted=mounted)
    async with serving(Web(b"x" * (1 << 20))) as web:
        await defined["main"](web.url(), "store")
