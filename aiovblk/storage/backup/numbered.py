"""The snapshots of a disk in an object store, under names that no later one can have as well."""

from __future__ import annotations

from collections.abc import Sequence

from ...bitmaps import DirtyExtent, SupportsDirtyBitmaps
from ...device import BlockDevice
from ..objects import ObjectStoreDevice

_SEPARATOR = "@"  # which no name of a snapshot has


class NumberedSnapshots:
    """The dirty bitmaps of a disk in an object store, named ``SNAPSHOT@NUMBER``.

    A snapshot that was dropped, and taken again under its name, is another state: what differs from
    it says nothing of a backup of the first one. So its number is part of the name.

    Args:
        disk: the open disk.

    """

    def __init__(self, disk: ObjectStoreDevice) -> None:
        self._disk = disk

    async def dirty_bitmaps(self) -> Sequence[str]:
        """See :class:`.SupportsDirtyBitmaps`."""
        numbers = await self._disk.snapshot_numbers()
        return sorted(f"{name}{_SEPARATOR}{number}" for name, number in numbers.items())

    async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
        """See :class:`.SupportsDirtyBitmaps`."""
        if name not in await self.dirty_bitmaps():
            raise KeyError(name)
        return await self._disk.dirty_extents(snapshot_of(name), offset, length)

    async def number(self, snapshot: str) -> str | None:
        """Return the numbered name of a snapshot; None if there is none of that name."""
        found = (await self._disk.snapshot_numbers()).get(snapshot)
        return None if found is None else f"{snapshot}{_SEPARATOR}{found}"


def snapshot_of(name: str) -> str:
    """Return the name of the snapshot that a numbered name is about."""
    return name.rpartition(_SEPARATOR)[0]


def bitmaps_of(device: BlockDevice) -> SupportsDirtyBitmaps | None:
    """Return what tells how a device differs from earlier states; None if nothing does."""
    if isinstance(device, ObjectStoreDevice):
        return NumberedSnapshots(device)
    return device if isinstance(device, SupportsDirtyBitmaps) else None
