"""Sources of backups: a disk in an object store, which may be live, or any device that is not.

A source gives a device that does not change while it is read, and the *point* of that state: the
name under which it can tell, at the next backup, what differs from it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from ...bitmaps import SupportsDirtyBitmaps, list_bitmaps
from ...contract import check_inner
from ...device import BlockDevice
from ..objects import (
    AnyStore,
    ObjectStoreDevice,
    collect_garbage,
    describe,
    snapshot,
    snapshots,
)
from ..objects.snapshots import drop_unless_cloned
from .numbered import NumberedSnapshots, bitmaps_of, snapshot_of
from .states import Point, name_of

PREFIX = "backup-"
"""Begins the names of the snapshots that a backup takes of its source."""


class Geometry(NamedTuple):
    """The shape of a disk."""

    size: int
    """Bytes."""
    block_size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A state of a source, to be read."""

    device: BlockDevice
    """It does not change while it is open."""
    identity: str
    """Identifies the source, in all its states."""
    point: Point
    """The name of this state; None if the source has none for it."""

    @property
    def bitmaps(self) -> SupportsDirtyBitmaps | None:
        """What tells the differences between this state and others; None if nothing does."""
        return bitmaps_of(self.device)


class Source(Protocol):
    """What is backed up: :class:`DiskSource` or :class:`DeviceSource`."""

    async def geometry(self) -> Geometry:
        """Return the present size and block size."""
        ...

    def open(self, label: str) -> AbstractAsyncContextManager[OpenSource]:
        """Open a state that stays as it is until the block is left.

        Args:
            label: identifies the target, by letters and digits: several may have one source.

        """
        ...

    async def release(self, label: str, point: Point) -> None:
        """Forget the states that were taken for the target ``label``, but for ``point``."""
        ...


class DiskSource:
    """A disk in an object store, which may be mounted meanwhile.

    Each backup takes a snapshot of the disk, and reads that: what was flushed is in it, as it would
    be after a crash at that moment. It is kept until the next backup is complete, which reads only
    what differs from it; then it is dropped. So between two backups the disk has one snapshot for
    each target, ``backup-TARGET-TIME``, and keeps in the store what was replaced since.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        key: 32 bytes, if the disk is encrypted.

    """

    def __init__(self, store: AnyStore, path: str = "", *, key: bytes | None = None) -> None:
        self._store = store
        self._path = path
        self._key = key

    async def geometry(self) -> Geometry:
        """See :class:`Source`."""
        found = await describe(self._store, self._path, key=self._key)
        return Geometry(found.size, found.block_size)

    @asynccontextmanager
    async def open(self, label: str) -> AsyncGenerator[OpenSource, None]:
        """Take a snapshot, and open it."""
        store, path, key = self._store, self._path, self._key
        now = time.time()
        name = f"{PREFIX}{label}-{name_of(now)}.{int(now * 1e6) % 1000000:06d}"
        await snapshot(store, path, name=name, key=key)
        device = await ObjectStoreDevice.open(store, path, snapshot=name, key=key)
        try:
            point = await NumberedSnapshots(device).number(name)
            yield OpenSource(device, identity_of(device), point)
        finally:
            await device.unmount()

    async def release(self, label: str, point: Point) -> None:
        """Drop the other snapshots that were taken for this target, and what only they needed."""
        store, path, key = self._store, self._path, self._key
        names = await snapshots(store, path, key=key)
        kept = snapshot_of(point or "")
        others = [each for each in names if each.startswith(f"{PREFIX}{label}-") and each != kept]
        if [each for each in others if await drop_unless_cloned(store, path, name=each, key=key)]:
            await collect_garbage(store, path, key=key)


class DeviceSource:
    """Any device that nothing writes to during the backup.

    It is for the caller to see to that: by a snapshot, a frozen file system, or a disk that is not
    in use. What is written all the same is in the backup or not, block by block; with a ``point``
    that was set before the backup began, the next one has it.

    Args:
        device: to be read. The caller unmounts it.
        identity: identifies it, at every backup the same. With another one, or none that stays, a
            backup cannot rely on bitmaps, and compares.
        point: the name of the dirty bitmap that began in the state that is backed up, so that the
            next backup reads only what is dirty in it. The name must never have been used for
            another state of this source. None if there is none: the next backup compares.

    Raises:
        TypeError: not a BlockDevice.

    """

    def __init__(self, device: BlockDevice, *, identity: str, point: str | None = None) -> None:
        self._opened = OpenSource(check_inner(device, "device"), identity, point)

    async def geometry(self) -> Geometry:
        """See :class:`Source`."""
        return Geometry(self._opened.device.size, self._opened.device.block_size)

    @asynccontextmanager
    async def open(self, label: str) -> AsyncGenerator[OpenSource, None]:
        """Return the device.

        Raises:
            ValueError: it has no bitmap of the name ``point``.

        """
        opened = self._opened
        if opened.point is not None:
            known = await list_bitmaps(opened.device)
            if opened.point not in known:
                names = ", ".join(known) or "none"
                raise ValueError(f"the source has no bitmap {opened.point!r}; there are: {names}")
            if isinstance(opened.bitmaps, NumberedSnapshots):
                opened = replace(opened, point=await opened.bitmaps.number(opened.point))
        yield opened

    async def release(self, label: str, point: Point) -> None:
        """No-op: the bitmaps are the caller's."""


def identity_of(device: ObjectStoreDevice) -> str:
    """Identify a disk in an object store, whatever its state."""
    return identity_of_disk(device.identity.partition(" ")[0])


def identity_of_disk(disk: str) -> str:
    """Identify a disk in an object store by what its manifest says."""
    return f"disk {disk}"
