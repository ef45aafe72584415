"""Check that a disk has whole sectors, and that its partition table fits its sector size."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterator

from ..device import BlockDevice
from .errors import SpecError

logger = logging.getLogger("aiovblk")

SECTOR_SIZES = (512, 1024, 2048, 4096)
"""Bytes: the sector sizes of disks, as the kernel accepts them."""

READ_TIMEOUT = 5.0
"""Seconds to read the partition table; a mount must not be delayed further by a warning."""

_GPT_SIGNATURE = b"EFI PART"  # UEFI, "GPT Header": at the beginning of logical block 1
_MBR_SIGNATURE = b"\x55\xaa"  # UEFI, "Legacy Master Boot Record": the last two bytes of 512
_PARTITION = struct.Struct("<B3xB3xII")  # boot indicator, type, first sector, sectors
_PARTITIONS, _PARTITION_COUNT = 446, 4
_PROTECTIVE = 0xEE  # the disk also has a GPT


def check_whole_sectors(device: BlockDevice, spec: str) -> None:
    """Refuse a disk whose size is no multiple of 512 bytes, such as a file of any length.

    Raises:
        SpecError: it ends within a sector.

    """
    smallest = SECTOR_SIZES[0]
    if device.size % smallest:
        raise SpecError(
            f"{spec} has {device.size} bytes, and the kernel takes multiples of {smallest} only;"
            f" extend a file by `truncate -s %{smallest} FILE`"
        )


async def warn_of_other_sectors(device: BlockDevice, spec: str) -> None:
    """Log a warning if the partition table of a device fits another sector size only.

    No warning for a device that cannot be read: its user will get the error.

    Args:
        device: not in use yet, since its handlers may have to run one at a time.
        spec: names the device in the warning.

    """
    length = min(2 * SECTOR_SIZES[-1], device.size // device.block_size * device.block_size)
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            head = bytes(await device.read(0, length))
    except Exception as exc:
        logger.debug("cannot read the partition table of %s: %r", spec, exc)
        return
    fitting = sector_size(head, device.block_size, device.size)
    if fitting not in (None, device.block_size):
        logger.warning(
            "the partition table of %s is made for sectors of %d bytes, and the device has blocks"
            " of %d: the kernel will not find the partitions; try --block-size %d",
            spec,
            fitting,
            device.block_size,
            fitting,
        )


def sector_size(head: bytes, block_size: int, size: int) -> int | None:
    """Find the sector size that a partition table is made for.

    Args:
        head: the first bytes of the disk.
        block_size: of the device; preferred if the table fits several sector sizes.
        size: bytes of the disk.

    Returns:
        Bytes; None if there is no table, or it fits none of the sizes.

    """
    candidates = sorted(SECTOR_SIZES, key=lambda sector: sector != block_size)
    for sector in candidates:
        if head[sector : sector + len(_GPT_SIGNATURE)] == _GPT_SIGNATURE:
            return sector
    end = max(_ends_of_partitions(head), default=0)
    return next((sector for sector in candidates if 0 < end * sector <= size), None)


def _ends_of_partitions(head: bytes) -> Iterator[int]:
    """Yield the ends of the partitions of an MBR, in sectors; nothing if it is no MBR."""
    if head[510:512] != _MBR_SIGNATURE:
        return
    entries = list(_PARTITION.iter_unpack(head[_PARTITIONS : _PARTITIONS + 16 * _PARTITION_COUNT]))
    # A file system's boot sector has code there.
    if any(boot not in (0, 0x80) or kind == _PROTECTIVE for boot, kind, _, _ in entries):
        return
    for _, kind, first, sectors in entries:
        if kind and first and sectors:
            yield first + sectors
