"""Backups in an object store: a disk there, each of whose backups is a snapshot.

A run writes what has changed to the disk, and flushes; then the snapshot, one record, makes it a
backup. Before that the earlier backups are what they were, since nothing that a snapshot has is
ever changed. Beside the disk's own objects there are, sealed like them::

    backups/<name>          what the snapshot of that name is a backup of (:class:`.Backup`)
    backups/unfinished      the writer's epoch, as a line of its own, and how far the run has come
                            that is under way (:class:`.Progress`)

The first is put before the snapshot is taken, and counts only together with it. The second counts
only if its base is the newest backup, and if no other writer has opened the disk since.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from ...aio.gather import gather_all
from ..objects import AnyStore, Limits, ObjectStoreDevice, check, collect_garbage, create
from ..objects.codec import damaged_error
from ..objects.disk import StoredDisk
from ..objects.keys import BACKUPS, backup_key
from ..objects.snapshots import drop_unless_cloned, take_snapshot
from ..objects.state import DiskState
from .errors import BackupError
from .moving import Advance
from .sources import Geometry
from .states import Backup, Progress, free_name

_UNFINISHED = backup_key("unfinished")
_LIMITS = Limits(compaction=1 << 10, extents=1 << 18)
"""Compaction would store again what a backup has just stored; it waits until it must."""


class ObjectTarget:
    """A disk in an object store that holds backups, each as a snapshot.

    It is made by the first backup. It is a disk like any other: ``?snapshot=NAME`` mounts a backup,
    a clone of it is a writable copy, and :func:`aiovblk.storage.objects.check` verifies all. Only
    backups may write to it.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        key: 32 bytes to encrypt with, whatever the source is; None for no encryption.
        chunk_size: bytes, of a disk that is made; see :func:`aiovblk.storage.objects.create`.
        compress: whether to compress a disk that is made.

    """

    keeps_history = True

    def __init__(
        self,
        store: AnyStore,
        path: str = "",
        *,
        key: bytes | None = None,
        chunk_size: int = 1 << 20,
        compress: bool = False,
    ) -> None:
        self._store = store
        self._path = path
        self._key = key
        self._chunk_size = chunk_size
        self._compress = compress

    @asynccontextmanager
    async def open(self, geometry: Geometry) -> AsyncGenerator[OpenObjectTarget, None]:
        """See :class:`.Target`."""
        try:
            disk = await self._find()
        except FileNotFoundError:
            await self._create(geometry)
            disk = await self._find()
        await _ensure_backups(disk)
        device = await ObjectStoreDevice.open(
            self._store, self._path, key=self._key, limits=_LIMITS
        )
        try:
            if geometry.size % device.block_size:
                raise BackupError(
                    f"the target has blocks of {device.block_size} bytes, and the source's"
                    f" {geometry.size} are no multiple of that: name another folder"
                )
            target = OpenObjectTarget(disk, device)
            await target.load()
            if device.size != geometry.size:
                target.resize(geometry.size)
            yield target
        finally:
            await device.unmount()

    async def _find(self) -> StoredDisk:
        return await StoredDisk.open(self._store, self._path, key=self._key)

    async def _create(self, geometry: Geometry) -> None:
        # What is backed up was made for sectors of this size; no disk has sectors below 512 bytes.
        await create(
            self._store,
            self._path,
            size=geometry.size,
            block_size=max(geometry.block_size, 512),
            chunk_size=self._chunk_size,
            compress=self._compress,
            key=self._key,
        )

    async def backups(self) -> Sequence[Backup]:
        """See :class:`.Target`."""
        disk = await self._find()
        return await _backups(disk, await disk.state())

    @asynccontextmanager
    async def read(self, name: str) -> AsyncGenerator[ObjectStoreDevice, None]:
        """See :class:`.Target`."""
        device = await ObjectStoreDevice.open(self._store, self._path, snapshot=name, key=self._key)
        try:
            yield device
        finally:
            await device.unmount()

    async def verify(self, advance: Advance) -> list[str]:
        """See :class:`.Target`."""
        report = await check(self._store, self._path, key=self._key, advance=advance)
        return report.problems

    async def collect_garbage(self) -> int:
        """See :class:`.Target`."""
        return (await collect_garbage(self._store, self._path, key=self._key)).size


class OpenObjectTarget:
    """See :class:`.OpenTarget`.

    Args:
        disk: the disk.
        device: the same, opened for writing.

    """

    def __init__(self, disk: StoredDisk, device: ObjectStoreDevice) -> None:
        self._disk = disk
        self.device = device
        self.identity = disk.manifest.disk
        self.progress = Progress.after(None)
        self._epoch = 0

    async def load(self) -> None:
        """Find out what the disk's present state is.

        Raises:
            StorageError: the disk is damaged.

        """
        state = await self._disk.state()
        found = await _backups(self._disk, state)
        latest = found[-1] if found else None
        self._epoch = state.epoch
        epoch, unfinished = await self._unfinished()
        if unfinished is None or unfinished.base != (latest and latest.name):
            is_current = latest is not None and await self._is_at(latest, state)
            self.progress = Progress.after(latest, is_current=is_current)
        elif epoch == self._epoch - 1:
            self.progress = unfinished
        else:  # the writer in between may have written anything
            self.progress = Progress.after(latest, is_current=False)

    def resize(self, size: int) -> None:
        """Give the disk another size; what is new reads as zeroes."""
        self.progress = self.progress.resized(size, self.device.size)
        self.device.blocks = size // self.device.block_size

    async def _is_at(self, latest: Backup, state: DiskState) -> bool:
        """Whether nothing was written since the newest backup."""
        return (await self._disk.state(latest.name)).contents == state.contents

    async def _unfinished(self) -> tuple[int, Progress | None]:
        """Return the epoch of the writer of the last unfinished run, and how far that has come."""
        try:
            data = await self._disk.objects.get(_UNFINISHED)
        except FileNotFoundError:
            return 0, None
        epoch, _, progress = bytes(self._disk.codec.open(_UNFINISHED, data)).partition(b"\n")
        try:
            return int(epoch), Progress.decode(progress)
        except (ValueError, KeyError, TypeError) as exc:
            raise damaged_error(f"{self._disk.where}/{_UNFINISHED}", str(exc)) from None

    async def note(self, progress: Progress) -> None:
        """See :class:`.OpenTarget`."""
        await self._put(_UNFINISHED, b"%d\n" % self._epoch + progress.encode())
        self.progress = progress

    async def commit(self, backup: Backup) -> Backup:
        """See :class:`.OpenTarget`."""
        state = await self._disk.state()
        backup = replace(backup, name=free_name(backup.time, state.snapshots))
        await self._put(backup_key(backup.name), backup.encode())
        # Not of what another writer has made of it, if this process was away for a while.
        await take_snapshot(self._disk, backup.name, epoch=self._epoch)
        await self._disk.objects.delete([_UNFINISHED])
        return backup

    async def _put(self, key: str, contents: bytes) -> None:
        await self._disk.objects.put(key, self._disk.codec.seal(key, contents))

    async def backups(self) -> Sequence[Backup]:
        """See :class:`.OpenTarget`."""
        return await _backups(self._disk, await self._disk.state())

    async def drop(self, names: Collection[str]) -> Sequence[str]:
        """See :class:`.OpenTarget`."""
        disk = self._disk
        dropped = [
            name
            for name in names
            if await drop_unless_cloned(disk.root, disk.path, name=name, key=disk.key)
        ]
        # Also those that an interrupted run has left.
        there = {each.name for each in await self.backups()}
        listed = await disk.objects.list_objects(BACKUPS)
        kept = {_UNFINISHED, *map(backup_key, there)}
        await disk.objects.delete([each.path for each in listed if each.path not in kept])
        return dropped


async def _ensure_backups(disk: StoredDisk) -> None:
    """Refuse a disk that was written to, and that no backup has made.

    Raises:
        BackupError: it is one.

    """
    if await disk.objects.list_objects(BACKUPS):
        return
    state = await disk.state()
    if state.contents or state.snapshots:
        raise BackupError(
            f"{disk.where} is a disk that no backup has made; it was left as it is: name a folder"
            " in which there is none"
        )


async def _backups(disk: StoredDisk, state: DiskState) -> list[Backup]:
    """Return the snapshots that are backups, oldest first."""
    listed = {each.path for each in await disk.objects.list_objects(BACKUPS)}
    snapshots = sorted(state.snapshots.items(), key=lambda each: each[1].sequence)
    listed.discard(_UNFINISHED)  # which a snapshot that is no backup may be called, too
    keys = [key for name, _ in snapshots if (key := backup_key(name)) in listed]
    return await gather_all(_read(disk, key) for key in keys)


async def _read(disk: StoredDisk, key: str) -> Backup:
    contents = bytes(disk.codec.open(key, await disk.objects.get(key)))
    try:
        return Backup.decode(contents)
    except (ValueError, KeyError, TypeError) as exc:
        raise damaged_error(f"{disk.where}/{key}", str(exc)) from None
