"""A store of a cache whose contents outlive the process that uses it."""

from __future__ import annotations

from typing import Any

from aiovblk import BlockDevice
from aiovblk.storage import Cache
from aiovblk.storage.cache import Policy

from .cache_lines import BLOCK, LINE
from .slow_device import Slow, settle

SLOTS = 16
STORE_BLOCKS = (2 * 4096 + SLOTS * (LINE + 8)) // BLOCK + 1
POLICIES: list[Policy] = ["read", "write-through", "write-back"]


class Disk:
    """Contents that outlive the devices over them."""

    def __init__(self) -> None:
        self.content = bytearray(STORE_BLOCKS * BLOCK)

    def open(self, kind: type[Slow] = Slow) -> Slow:
        device = kind(STORE_BLOCKS)
        device.content = self.content
        return device


def cache(inner: BlockDevice, store: BlockDevice, **options: Any) -> Cache:
    return Cache(inner, store, **{"line_size": LINE, "read_ahead": 0} | options)


async def fill(disk: Disk, inner: Slow, **options: Any) -> None:
    """Mount a cache, read lines 0 to 3, and unmount it cleanly."""
    device = cache(inner, disk.open(), **options)
    await device.read(0, 4 * LINE)
    await settle()
    await device.unmount()
    inner.take()
