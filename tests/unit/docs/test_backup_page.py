"""The page on backups: its commands are typed, its program is run."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from aiovblk.storage import MemoryDevice, backup
from aiovblk.storage.backup import DeviceSource, DiskSource, ObjectTarget
from aiovblk.storage.objects import ObjectStoreDevice, create

from ...support.bitmap_device import BitmapDevice
from ...support.console import play
from ...support.pages import blocks, run

pytestmark = pytest.mark.slow

PAGE = "docs/how-to/back-up-changed-blocks.md"
SIZE = 64 * 4096


@pytest.mark.one_loop
@pytest.mark.deadline(480)
async def test_commands_are_typed(tmp_path: Path) -> None:
    assert await play(PAGE, tmp_path, root=False) == 13


async def test_program_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = f"file://{tmp_path}/disk", f"file://{tmp_path}/backups"
    await create(source, size=SIZE)
    data = secrets.token_bytes(4096)
    disk = await ObjectStoreDevice.open(source)
    await disk.write(8192, memoryview(data))
    await disk.unmount()
    monkeypatch.setattr(backup, "DiskSource", lambda url: DiskSource(source))
    monkeypatch.setattr(backup, "ObjectTarget", lambda url: ObjectTarget(target))
    device = MemoryDevice(SIZE)
    await run(blocks(PAGE)[0], device=device)
    assert bytes(await device.read(0, SIZE)) == bytes(8192) + data + bytes(SIZE - 12288)


async def test_point_is_added_before_the_backup(tmp_path: Path) -> None:
    tracked = BitmapDevice(SIZE)
    await tracked.fill(3, b"a")
    target = ObjectTarget(f"file://{tmp_path}/backups")
    names: dict[str, Any] = {
        "DeviceSource": DeviceSource,
        "backup": backup.backup,
        "target": target,
        "tracked": tracked,
    }
    await run(blocks(PAGE)[1], **names)
    (found,) = await target.backups()
    assert (found.source, found.point) == ("disk 7", "2026-12-01")
