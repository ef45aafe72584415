"""Disk images as others have made them, mounted from where they are."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

import aiovblk
from aiovblk.storage import FileDevice

from .support import MIB, command, program, sh

pytestmark = [pytest.mark.deadline(180), pytest.mark.one_loop, pytest.mark.newest_python]


async def image(folder: Path, size: int, make: str) -> Path:
    path = folder / "disk.img"
    path.touch()
    os.truncate(path, size)
    await sh(make.format(path))
    return path


GPT = "printf 'label: gpt\\nsize=16M\\nsize=16M\\n' | sfdisk -q {}"
SMALL_EXT4 = "mkfs.ext4 -q -b 1024 {}"


async def test_partitions_of_an_image_are_there(tmp_path: Path) -> None:
    path = await image(tmp_path, 64 * MIB, GPT)
    async with command(f"file:{path}", "--partitions", "/dev/nbd1") as running:
        assert running.path == "/dev/nbd1"
        assert (await sh("blockdev --getss --getpbsz /dev/nbd1")).output.split() == ["512"] * 2
        assert os.path.exists("/dev/nbd1p2")
        assert await running.end(signal.SIGINT) == 0


async def test_table_that_fits_other_sectors_is_warned_of(tmp_path: Path) -> None:
    path = await image(tmp_path, 64 * MIB, GPT)
    words = ("-m", "aiovblk", "mount", f"file:{path}?block_size=4096", "--read-only", "/dev/nbd1")
    async with program(*words) as running:
        warning = await running.line()
        assert "made for sectors of 512 bytes, and the device has blocks of 4096" in warning
        assert await running.line() == "mounted /dev/nbd1"
        assert (await sh("blockdev --getss --getro /dev/nbd1")).output.split() == ["4096", "1"]
        assert not os.path.exists("/dev/nbd1p1")
        assert await running.end(signal.SIGINT) == 0


async def test_file_system_of_small_blocks_is_mounted_from_file_and_server(tmp_path: Path) -> None:
    path = await image(tmp_path, 16 * MIB, SMALL_EXT4)
    point = tmp_path / "point"
    point.mkdir()
    use = f"mount {{}} {point} && date >{point}/here && sync {point}/here && umount {point}"
    async with command(f"file:{path}") as running:
        await sh(use.format(running.path))
        assert await running.end(signal.SIGINT) == 0
    # The server's own preference is no fact about the file system.
    device, uri = FileDevice(path, block_size=4096), f"nbd+unix:///?socket={tmp_path}/s"
    async with aiovblk.serve(device, unix=tmp_path / "s"), command(uri) as running:
        await sh(use.format(running.path))
        assert await running.end(signal.SIGINT) == 0


async def test_blocks_smaller_than_the_devices_are_read_changed_and_written(
    tmp_path: Path,
) -> None:
    """A disk in a bucket with blocks of 4096 bytes, with a file system for 512."""
    path = await image(tmp_path, 16 * MIB, SMALL_EXT4)
    spec = f"folder:{tmp_path}/disk"
    await sh(f"{sys.executable} -m aiovblk copy file:{path} '{spec}?block_size=4096'")
    point = tmp_path / "point"
    point.mkdir()
    async with command(f"{spec}?block_size=512") as running:
        await sh(f"mount {running.path} {point} && cp /bin/ls {point} && umount {point}")
        assert await running.end(signal.SIGINT) == 0
    async with command(f"{spec}?block_size=512", "--read-only") as running:
        await sh(f"fsck.ext4 -fn {running.path}")
        await sh(f"mount -o ro {running.path} {point} && cmp /bin/ls {point}/ls; umount {point}")
        assert await running.end(signal.SIGINT) == 0
