"""Sector sizes: partition tables that do not fit, and files that end within a sector."""

from __future__ import annotations

import logging
import struct
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.cli import mount as mount_command
from aiovblk.cli.errors import SpecError
from aiovblk.cli.sectors import check_whole_sectors, sector_size, warn_of_other_sectors
from aiovblk.cli.spec import open_spec
from aiovblk.storage import FileDevice

MIB = 1 << 20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(bytes(MIB))
    Path("users.py").write_text(
        "import aiovblk.storage\ndef disk(): return aiovblk.storage.MemoryDevice(1 << 20)\n"
    )
    return tmp_path


Head = Callable[[int], bytes]


def gpt(sector: int) -> bytes:
    """A protective MBR, and the signature of the header in sector 1."""
    head = bytearray(8192)
    head[446:462] = struct.pack("<B3xB3xII", 0, 0xEE, 1, 0xFFFFFFFF)
    head[510:512] = b"\x55\xaa"
    head[sector : sector + 8] = b"EFI PART"
    return bytes(head)


def mbr(first: int, sectors: int, *, boot: int = 0) -> bytes:
    head = bytearray(8192)
    head[446:462] = struct.pack("<B3xB3xII", boot, 0x83, first, sectors)
    head[510:512] = b"\x55\xaa"
    return bytes(head)


@pytest.mark.parametrize("block_size", [512, 4096])
@pytest.mark.parametrize("sector", [512, 1024, 2048, 4096])
def test_gpt_lies_in_sector_1(sector: int, block_size: int) -> None:
    assert sector_size(gpt(sector), block_size, MIB) == sector


def test_old_gpt_besides_one_that_fits_says_nothing() -> None:
    both = bytearray(gpt(512))
    both[4096:4104] = b"EFI PART"
    assert sector_size(bytes(both), 4096, MIB) == 4096
    assert sector_size(bytes(both), 512, MIB) == 512


def test_mbr_fits_sectors_by_which_it_does_not_leave_the_disk() -> None:
    half = mbr(1, MIB // 512 - 1)
    assert sector_size(half, 512, MIB) == 512
    assert sector_size(half, 4096, MIB) == 512
    assert sector_size(mbr(1, 100), 4096, MIB) == 4096
    assert sector_size(mbr(1, 1 << 30), 512, MIB) is None


@pytest.mark.parametrize(
    "head",
    [
        bytes(8192),
        b"",
        b"\xff" * 100,
        mbr(1, MIB // 512 - 1, boot=0x33),  # a boot sector with code
        mbr(0, 0),
    ],
)
def test_what_is_no_table_says_nothing(head: bytes) -> None:
    assert sector_size(head, 4096, MIB) is None


def image(head: bytes, block_size: int) -> BlockDevice:
    Path("disk.img").write_bytes(head.ljust(MIB, b"\0"))
    return FileDevice("disk.img", block_size=block_size)


@pytest.mark.parametrize(
    ("head", "block_size", "fitting"),
    [
        (gpt(512), 4096, 512),
        (gpt(4096), 512, 4096),
        (mbr(1, MIB // 512 - 1), 4096, 512),
        (gpt(512), 512, None),
        (gpt(4096), 4096, None),
        (bytes(8192), 512, None),
    ],
)
async def test_table_that_fits_another_block_size_is_warned_of(
    head: bytes, block_size: int, fitting: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    device = image(head, block_size)
    await warn_of_other_sectors(device, "file:disk.img")
    await device.unmount()
    expected = (
        f"the partition table of file:disk.img is made for sectors of {fitting} bytes, and the"
        f" device has blocks of {block_size}: the kernel will not find the partitions; try"
        f" --block-size {fitting}"
    )
    assert caplog.messages == ([expected] if fitting else [])


async def test_table_of_a_device_that_cannot_be_read_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(BlockDevice):
        blocks = 16

    caplog.set_level(logging.WARNING)
    await warn_of_other_sectors(Broken(), "x")
    assert not caplog.messages


async def test_file_that_ends_within_a_sector_is_refused() -> None:
    Path("odd.img").write_bytes(bytes(1000))
    with pytest.raises(SpecError, match=r"odd.img has 1000 bytes, .* `truncate -s %512 FILE`"):
        async with mount_command._open_device(arguments(spec="file:odd.img")):
            pass
    await FileDevice("odd.img").unmount()  # its lock is free
    async with open_spec("file:disk.img", block_size=1) as device:
        check_whole_sectors(device, "file:disk.img")  # its blocks are another matter
        await device.unmount()


def arguments(**others: Any) -> Namespace:
    given = {
        "spec": "file:disk.img",
        "block_size": None,
        "read_only": False,
        "workers": None,
        "replace": False,
        "overlay": None,
        "cache": None,
        "cache_path": None,
        "cache_policy": None,
        "layer": None,
    }
    return Namespace(**given | others)


async def test_mount_warns_before_it_mounts(caplog: pytest.LogCaptureFixture) -> None:
    Path("disk.img").write_bytes(gpt(512).ljust(MIB, b"\0"))
    for block_size, count in ((512, 0), (4096, 1)):
        async with mount_command._open_device(arguments(block_size=block_size)) as device:
            assert isinstance(device, FileDevice)
            assert device.block_size == block_size
            await device.unmount()
        assert len(caplog.messages) == count


async def test_mount_by_workers_warns_too(caplog: pytest.LogCaptureFixture) -> None:
    Path("disk.img").write_bytes(gpt(512).ljust(MIB, b"\0"))
    async with mount_command._open_device(arguments(workers=2, block_size=4096)) as make:
        assert not isinstance(make, BlockDevice)
        device = FileDevice("disk.img")  # it is not in use
        await device.unmount()
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("workers", [None, 2])
async def test_mount_refuses_a_file_that_ends_within_a_sector(workers: int | None) -> None:
    Path("disk.img").write_bytes(bytes(MIB + 1))
    with pytest.raises(SpecError, match=r"disk\.img has 1048577 bytes, .* `truncate -s %512 FILE`"):
        async with mount_command._open_device(arguments(workers=workers)):
            pass
    again = FileDevice("disk.img")  # its lock is free
    await again.unmount()


async def test_device_is_unmounted_when_its_check_is_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def broken_off(device: BlockDevice, spec: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mount_command, "warn_of_other_sectors", broken_off)
    with pytest.raises(KeyboardInterrupt):
        async with mount_command._open_device(arguments()):
            pass
    again = FileDevice("disk.img")  # its lock is free
    await again.unmount()
