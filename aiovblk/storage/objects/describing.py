"""Describe a disk: what it is, its snapshots, and who writes to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import lease as leases
from .client import AnyStore
from .disk import StoredDisk
from .lease import Holder
from .state import Snapshot


@dataclass(frozen=True, slots=True)
class DiskDescription:
    """What a disk is at one moment.

    Attributes:
        where: its folder, with the store's name before it.
        identity: of the disk, which a copy in another folder has, too.
        size: bytes.
        block_size: bytes of a block.
        chunk_size: bytes of a chunk.
        compressed: whether new chunks are compressed.
        encrypted: whether its objects are encrypted.
        origins: the folders of the disks whose chunks it reads as a clone, the nearest first.
        snapshots: by name, oldest first.
        writer: who holds the lease, and may write; None if no process does. One that has crashed on
            another machine counts until another takes its place.

    """

    where: str
    identity: str
    size: int
    block_size: int
    chunk_size: int
    compressed: bool
    encrypted: bool
    origins: tuple[str, ...]
    snapshots: Mapping[str, Snapshot]
    writer: Holder | None


async def describe(store: AnyStore, path: str = "", *, key: bytes | None = None) -> DiskDescription:
    """Describe a disk, which may be mounted; a few small requests, none of which changes anything.

    The arguments and errors are those of :meth:`.ObjectStoreDevice.open`.
    """
    disk = await StoredDisk.open(store, path, key=key)
    manifest, state = disk.manifest, await disk.state()
    lease = await leases.current(disk.objects)
    snapshots = sorted(state.snapshots.items(), key=lambda each: each[1].sequence)
    return DiskDescription(
        where=disk.where,
        identity=manifest.disk,
        size=state.size,
        block_size=manifest.block_size,
        chunk_size=manifest.chunk_size,
        compressed=manifest.compress,
        encrypted=key is not None,
        origins=tuple(origin.path for origin in manifest.origins),
        snapshots=dict(snapshots),
        writer=None if lease is None or lease.holder.is_known_dead() else lease.holder,
    )
