"""The code blocks of the page on overlays, run as they stand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk.storage import FileDevice, Overlay

from ...support.pages import blocks, run

BLOCKS = blocks("docs/how-to/overlays.md")
GOLDEN = b"golden  " * 8192


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with an image, where the blocks are run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "golden.img").write_bytes(GOLDEN)
    return tmp_path


async def a_written_disk(here: Path, **options: Any) -> None:
    golden = FileDevice(here / "golden.img", read_only=True)
    disk = await Overlay.file(golden, here / "disk.diff", **options)
    await disk.write(4096, memoryview(b"x" * 4096))
    await disk.unmount()


async def test_disk_over_an_image_is_mounted(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mains: list[Any] = []

    async def mount(device: aiovblk.BlockDevice, path: str) -> None:
        assert path == "/dev/nbd0"
        await device.write(0, memoryview(b"x" * 4096))
        await device.unmount()

    monkeypatch.setattr(asyncio, "run", mains.append)
    monkeypatch.setattr(aiovblk, "mount", mount)
    for _ in range(2):
        exec(BLOCKS[0], {})
        await mains.pop()
    golden = FileDevice(here / "golden.img", read_only=True)
    disk = await Overlay.file(golden, here / "disk.diff", identity="debian 13.1")
    assert await disk.read(0, 8192) == b"x" * 4096 + GOLDEN[:4096]
    await disk.unmount()


async def test_many_disks_are_served_over_one_image(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use_and_leave(server: aiovblk.Server) -> None:
        assert len(server.uris) == 10
        async with (
            aiovblk.connect(server.uris[3], connections=1) as one,
            aiovblk.connect(server.uris[4], connections=1) as another,
        ):
            await one.write(0, memoryview(b"x" * 4096))
            assert await another.read(0, 4096) == GOLDEN[:4096]

    monkeypatch.setattr(aiovblk.Server, "wait", use_and_leave)
    block = BLOCKS[1].replace("/run/", f"{here}/").replace("1000", "10")
    await run(block, aiovblk=aiovblk)
    assert (here / "golden.img").read_bytes() == GOLDEN
    await FileDevice(here / "golden.img").unmount()  # it would be locked


async def test_disk_that_may_be_forgotten_needs_no_file(here: Path) -> None:
    async def use(disk: Overlay) -> None:
        await disk.write(0, memoryview(b"x" * 4096))
        assert await disk.read(0, 8192) == b"x" * 4096 + GOLDEN[:4096]
        await disk.unmount()

    await run(BLOCKS[2] + "await use(disk)\n", use=use)
    assert [path.name for path in here.iterdir()] == ["golden.img"]


async def test_commit_writes_into_the_image(here: Path) -> None:
    await a_written_disk(here)
    await run(BLOCKS[3])
    assert (here / "golden.img").read_bytes() == GOLDEN[:4096] + b"x" * 4096 + GOLDEN[8192:]
    golden = FileDevice(here / "golden.img", read_only=True)
    disk = await Overlay.file(golden, here / "disk.diff")
    assert await disk.read(0, 8192) == GOLDEN[:4096] + b"x" * 4096
    await disk.unmount()


async def test_rebase_keeps_the_disk_as_it_was(here: Path) -> None:
    await a_written_disk(here, identity="debian 13.1")
    (here / "golden-13.2.img").write_bytes(GOLDEN[:8192] + b"another " * 7168)
    await run(BLOCKS[4] + "disks.append(disk)\n", disks=(disks := list[Overlay]()))
    expected = GOLDEN[:4096] + b"x" * 4096 + GOLDEN[8192:]
    assert await disks[0].read(0, len(GOLDEN)) == expected
    await disks[0].unmount()
