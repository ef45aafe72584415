"""Incremental backups of a disk that qemu-nbd serves, by its persistent bitmaps."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from .programs import run
from .servers import serving

MIB = 1 << 20
CLUSTER = 64 << 10
PREFIX = "qemu:dirty-bitmap:"
COMMAND = (sys.executable, "-m", "aiovblk")

Facts = dict[str, Any]
"""What the command says of a backup, as JSON."""

pytestmark = [pytest.mark.one_loop, pytest.mark.deadline(300)]


class Qcow2:
    """A disk of 64 MiB that is not in use but for backups, with persistent bitmaps."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "disk.qcow2"
        self._raw = folder / "disk.raw"
        self._bitmaps: list[str] = []

    async def make(self) -> None:
        await run(f"qemu-img create -q -f qcow2 {self._path} 64M")

    async def write(self, *commands: str) -> None:
        words = " ".join(f"-c '{each}'" for each in commands)
        await run(f"qemu-io -f qcow2 {words} {self._path}")

    async def add(self, bitmap: str) -> None:
        await run(f"qemu-img bitmap --add -f qcow2 -g {CLUSTER} {self._path} {bitmap}")
        self._bitmaps.append(bitmap)

    async def remove(self, bitmap: str) -> None:
        await run(f"qemu-img bitmap --remove -f qcow2 {self._path} {bitmap}")
        self._bitmaps.remove(bitmap)

    async def back_up(self, target: str, point: str) -> Facts:
        """Back it up as the how-to does: begin a bitmap, and serve it with all that there are."""
        await self.add(point)
        options = [word for name in self._bitmaps for word in ("-B", name)]
        words = ("-t", "-r", "-f", "qcow2", *options, str(self._path))
        with serving("qemu-nbd", *words) as server:
            uri = f"nbd+unix:///?socket={server.path}&contexts={PREFIX}"
            words = (uri, target, "--point", point, "--identity", "the disk", "--json")
            found: Facts = json.loads(await run(shlex.join((*COMMAND, "backup", *words))))
        return found

    async def contents(self) -> bytes:
        await run(f"qemu-img convert -f qcow2 -O raw {self._path} {self._raw}")
        return self._raw.read_bytes()


async def restored(target: str, path: Path, name: str) -> bytes:
    """Restore a backup into a new file, and return what is in it."""
    path.unlink(missing_ok=True)
    await run(shlex.join((*COMMAND, "restore", target, f"file:{path}", "--name", name)))
    return path.read_bytes()


@pytest.mark.parametrize("scheme", ["folder", "file"])
async def test_only_what_the_bitmap_says_moves(tmp_path: Path, scheme: str) -> None:
    disk, target, copy = Qcow2(tmp_path), f"{scheme}:{tmp_path}/backups", tmp_path / "copy"
    await disk.make()
    await disk.write("write -P 1 0 3M", "write -P 2 60M 64k")
    first = await disk.back_up(target, "monday")
    assert (first["base"], first["compared"]) == (None, 0)
    assert first["read"] == first["written"] == 3 * MIB + CLUSTER
    monday = await disk.contents()
    assert await restored(target, copy, first["name"]) == monday

    await disk.write("write -P 3 1M 1k", "write -z 2M 64k", "write -P 4 40M 100k")
    second = await disk.back_up(target, "tuesday")
    assert (second["base"], second["compared"]) == (first["name"], 0)
    assert (second["read"], second["written"]) == (4 * CLUSTER, 3 * CLUSTER)
    tuesday = await disk.contents()
    assert tuesday != monday
    assert await restored(target, copy, second["name"]) == tuesday
    if scheme == "folder":
        assert await restored(target, copy, first["name"]) == monday

    third = await disk.back_up(target, "wednesday")
    assert (third["base"], third["read"], third["written"]) == (second["name"], 0, 0)
    assert "all is well" in await run(shlex.join((*COMMAND, "backups", target, "--verify")))


async def test_no_change_is_missed_where_the_bitmap_was_removed(tmp_path: Path) -> None:
    disk, target = Qcow2(tmp_path), f"folder:{tmp_path}/backups"
    await disk.make()
    await disk.write("write -P 1 0 3M")
    await disk.back_up(target, "monday")
    await disk.write("write -P 2 1M 64k")
    await disk.remove("monday")
    report = await disk.back_up(target, "tuesday")
    assert (report["compared"] > 0, report["written"]) == (True, CLUSTER)
    assert await restored(target, tmp_path / "copy", report["name"]) == await disk.contents()
