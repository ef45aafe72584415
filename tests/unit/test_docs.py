"""The code blocks of README.md and docs/network.md that need no kernel, run as they stand."""

from __future__ import annotations

import asyncio
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk import tls
from aiovblk.storage import MemoryDevice

ROOT = Path(__file__).parents[2]


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
    uris = [await asyncio.wait_for(printed.get(), 20) for _ in range(6)]
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
        await run(blocks("docs/network.md")[2], aiovblk=aiovblk)
    assert isinstance(mounts[0], aiovblk.RemoteDevice)
    assert await device.read(0, 4096) == b"x" * 4096


def test_certificates_are_taken_from_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        tls, "server_context", lambda *args, **options: asked.append((args, options))
    )
    exec(blocks("docs/network.md")[1], {})
    assert asked == [(("/etc/pki/disks",), {"verify_peer": True})]


def test_no_block_is_left_out() -> None:
    assert len(blocks("docs/network.md")) == 3
