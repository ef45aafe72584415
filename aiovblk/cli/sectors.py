"""Whether a disk's partition table fits its block size."""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Iterator

from ..device import BlockDevice
from .errors import SpecError

logger = logging.getLogger("aiovblk")

SECTOR_SIZES = (512, 1024, 2048, 4096)
"""Bytes of the sectors that disks are made of, and that the kernel takes."""

READ_TIMEOUT = 5.0
"""Seconds to read the table in; a mount must not take longer for the sake of a warning."""

_GPT_SIGNATURE = b"EFI PART"  # UEFI, "GPT Header": at the beginning of logical block 1
_MBR_SIGNATURE = b"\x55\xaa"  # UEFI, "Legacy Master Boot Record": the last two bytes of 512
_PARTITION = struct.Struct("<B3xB3xII")  # boot indicator, type, first sector, sectors
_PARTITIONS, _PARTITION_COUNT = 446, 4
_PROTECTIVE = 0xEE  # there is a GPT besides


def check_whole_sectors(device: BlockDevice, spec: str) -> None:
    """Refuse a disk that ends within a sector, such as a file of any length.

    Raises:
        SpecError: it does.

    """
    least = SECTOR_SIZES[0]
    if device.size % least:
        raise SpecError(
            f"{spec} has {device.size} bytes, and the kernel takes multiples of {least} only; a"
            f" file is made longer by `truncate -s %{least} FILE`"
        )


async def warn_of_other_sectors(device: BlockDevice, spec: str) -> None:
    """Log a warning if the device has a partition table that fits another block size only.

    Nothing is told of a device that cannot be read: whoever uses it finds out.

    Args:
        device: not in use yet, since handlers may have to run one at a time.
        spec: what the user calls it.

    """
    length = min(2 * SECTOR_SIZES[-1], device.size // device.block_size * device.block_size)
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            head = bytes(await device.read(0, length))
    except Exception as exc:
        logger.debug("the partition table of %s cannot be looked at: %r", spec, exc)
        return
    wanted = sector_size(head, device.block_size, device.size)
    if wanted not in (None, device.block_size):
        logger.warning(
            "the partition table of %s is made for sectors of %d bytes, and the device has blocks"
            " of %d: the kernel will not find its partitions; try --block-size %d",
            spec,
            wanted,
            device.block_size,
            wanted,
        )


def sector_size(head: bytes, block_size: int, size: int) -> int | None:
    """For which size of sectors a partition table is made.

    Args:
        head: the first bytes of the disk.
        block_size: taken where the table fits several.
        size: bytes of the disk.

    Returns:
        Bytes; None where there is no table, or where it does not tell.

    """
    candidates = sorted(SECTOR_SIZES, key=lambda sector: sector != block_size)
    for sector in candidates:
        if head[sector : sector + len(_GPT_SIGNATURE)] == _GPT_SIGNATURE:
            return sector
    end = max(_ends_of_partitions(head), default=0)
    return next((sector for sector in candidates if 0 < end * sector <= size), None)


def _ends_of_partitions(head: bytes) -> Iterator[int]:
    """Where the partitions of an MBR end, in sectors; none if it is no MBR."""
    if head[510:512] != _MBR_SIGNATURE:
        return
    entries = list(_PARTITION.iter_unpack(head[_PARTITIONS : _PARTITIONS + 16 * _PARTITION_COUNT]))
    # A file system's boot sector has code there.
    if any(boot not in (0, 0x80) or kind == _PROTECTIVE for boot, kind, _, _ in entries):
        return
    for _, kind, first, sectors in entries:
        if kind and first and sectors:
            yield first + sectors
