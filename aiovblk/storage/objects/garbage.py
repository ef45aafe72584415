"""Garbage collection: delete the objects that neither a disk nor its snapshots need.

A live writer may be storing chunks and segments meanwhile, or compact the disk: what it has in
flight has versions from the state's *floor* on, and is left alone. Its other objects are in the
state.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from .client import AnyStore, ObjectInfo, ObjectStore, ObjectStoreClient
from .disk import StoredDisk
from .journal import Journal, record
from .keys import CHUNKS, FOLDERS, MANIFEST, MAP, SEGMENTS, chunk_of, sequence_of, version_of
from .manifest import Manifest
from .records import RecordKind
from .state import DiskState

_BATCH = 500  # objects of one request to delete
_DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Garbage:
    """The objects that nothing needs: how many, and how large."""

    objects: int
    size: int
    """Bytes."""


async def collect_garbage(
    store: AnyStore, path: str = "", *, key: bytes | None = None, delete: bool = True
) -> Garbage:
    """Delete what neither the disk nor a snapshot needs; the disk may be mounted meanwhile.

    A writer deletes by itself what it replaces. Garbage is what crashed writers have stored without
    committing it, and what was kept for snapshots that were dropped since.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        key: 32 bytes, if the disk is encrypted.
        delete: whether to delete it; otherwise it is only counted.

    Raises:
        StorageError: the disk is damaged; nothing was deleted.

    """
    disk = await StoredDisk.open(store, path, key=key)
    journal = await disk.journal(writes=delete)
    if delete:
        await _release_clones(disk, journal)
    unused = await _unused_objects(disk, journal)
    unused += await _unused_checkpoints(disk, journal)
    if delete:
        await delete_objects(disk.objects, unused)
    sizes = [each.size for each in unused]
    if isinstance(disk.objects, ObjectStoreClient):
        sizes += await disk.objects.leftovers(("", *FOLDERS), delete=delete)
    return Garbage(len(sizes), sum(sizes))


async def delete_objects(objects: ObjectStore, listed: Sequence[ObjectInfo]) -> None:
    """Delete what a list has, in batches and in its order."""
    for first in range(0, len(listed), _BATCH):
        await objects.delete([each.path for each in listed[first : first + _BATCH]])


async def _unused_objects(disk: StoredDisk, journal: Journal) -> list[ObjectInfo]:
    """Return the chunks and segments that neither the present state nor a snapshot's has."""
    state = journal.state
    # The state was read before these lists: what is stored later is above its floor.
    listed = await disk.objects.list_objects(CHUNKS)
    listed += await disk.objects.list_objects(SEGMENTS)
    unused = await asyncio.to_thread(_not_in, listed, state, state.floor)
    for sequence in _sequences(state):
        try:
            snapshot = await journal.state_at(sequence)
        except FileNotFoundError:
            if sequence in _sequences(await disk.state()):
                raise
            continue  # it was dropped meanwhile
        unused = await asyncio.to_thread(_not_in, unused, snapshot, state.floor)
    return unused


async def _unused_checkpoints(disk: StoredDisk, journal: Journal) -> list[ObjectInfo]:
    """Return the checkpoints that are neither the newest nor a snapshot's state."""
    snapshots = _sequences(journal.state)
    return [
        each
        for each in await disk.objects.list_objects(MAP)
        if (number := sequence_of(each.path)) is not None
        and number < journal.checkpointed
        and number not in snapshots
    ]


def _sequences(state: DiskState) -> set[int]:
    return {each.sequence for each in state.snapshots.values()}


def _not_in(listed: list[ObjectInfo], state: DiskState, floor: int) -> list[ObjectInfo]:
    """Return the objects that a state lacks, and that no writer is about to add: below the floor.

    Args:
        listed: chunks and segments.
        state: of the disk, or of a snapshot.
        floor: of the disk.

    """
    unused = []
    for each in listed:
        version = version_of(each.path)
        if version is not None and version < floor and not _has(state, each.path, version):
            unused.append(each)
    return unused


def _has(state: DiskState, path: str, version: int) -> bool:
    chunk = chunk_of(path)
    if chunk is None:
        return version in state.extents.sizes
    index = chunk[0]
    return index < len(state.chunks) and state.chunks[index] == version


async def _release_clones(disk: StoredDisk, journal: Journal) -> None:
    """Append a RELEASE record for each clone whose folder was deleted."""
    for snapshot in list(journal.state.snapshots.values()):
        for identity, clone in list(snapshot.clones.items()):
            # A clone that is being made has no folder yet, so young ones are kept.
            if clone.time < time.time() - _DAY and not await clone_exists(
                disk, clone.path, identity
            ):
                await journal.add(record(RecordKind.RELEASE, disk=identity))


async def clone_exists(disk: StoredDisk, path: str, identity: str) -> bool:
    """Return whether a clone is still there, by its folder and its identity."""
    try:
        data = await disk.root.subfolder(path).get(MANIFEST)
    except FileNotFoundError:
        return False
    return Manifest.decode(data, path).disk == identity
