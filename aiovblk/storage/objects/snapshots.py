"""Snapshots and clones, which copy nothing, for disks that may be mounted meanwhile."""

from __future__ import annotations

import asyncio
import errno
import re
import secrets
import time
from array import array
from dataclasses import replace

from ...errors import StorageError
from .client import AnyStore
from .codec import ObjectCodec
from .disk import StoredDisk, ensure_empty, publish, snapshot_state
from .journal import record
from .keys import MAX_ORIGINS, ORIGIN_STEP, checkpoint_key
from .manifest import VERSION, Manifest, Origin
from .records import Kind
from .state import DiskState, Snapshot

_NAME = re.compile(r"[\w.+-][\w.:+-]{0,127}")


async def snapshots(
    store: AnyStore, path: str = "", *, key: bytes | None = None
) -> dict[str, Snapshot]:
    """Return the snapshots of a disk, by name, oldest first.

    The arguments and errors of all functions here are those of :meth:`.ObjectStoreDevice.open`.
    """
    disk = await StoredDisk.open(store, path, key=key)
    found = (await disk.state()).snapshots.items()
    return dict(sorted(found, key=lambda each: each[1].sequence))


async def snapshot(store: AnyStore, path: str = "", *, name: str, key: bytes | None = None) -> None:
    """Give the present state of a disk a name, under which it can be opened as long as it exists.

    Of a disk that is mounted it has what was flushed; let ``sync`` or ``fsfreeze`` go before.

    Args:
        store: the store, or a URL.
        path: the disk's folder in it.
        name: letters, digits, and ``.:+-_``.
        key: 32 bytes, if the disk is encrypted.

    Raises:
        FileExistsError: there is a snapshot of that name.
        ValueError: it is no name.

    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no name for a snapshot; use letters, digits and .:+-_")

    def check(state: DiskState) -> None:
        if name in state.snapshots:
            raise FileExistsError(errno.EEXIST, f"there is a snapshot {name!r} already")

    disk = await StoredDisk.open(store, path, key=key)
    journal = await disk.journal(writes=True)
    await journal.add(record(Kind.SNAPSHOT, name=name, time=time.time()), check)


async def drop_snapshot(
    store: AnyStore, path: str = "", *, name: str, key: bytes | None = None
) -> None:
    """Give a snapshot up. What it alone needed is deleted by :func:`.collect_garbage`.

    Raises:
        FileNotFoundError: there is none of that name.
        StorageError: (EBUSY) a clone needs it.

    """

    def check(state: DiskState) -> None:
        clones = snapshot_state(state, name).clones.values()
        if clones:
            paths = ", ".join(clone.path for clone in clones)
            raise StorageError(errno.EBUSY, f"the snapshot {name!r} is needed by clones: {paths}")

    disk = await StoredDisk.open(store, path, key=key)
    journal = await disk.journal(writes=True)
    await journal.add(record(Kind.DROP, name=name), check)


async def clone(
    store: AnyStore, path: str = "", *, name: str, target: str, key: bytes | None = None
) -> None:
    """Make a disk that has the contents of a snapshot, and shares all chunks with it.

    It can be written to, and differs from then on. It lies in the same store, and is encrypted with
    the same key, if at all. The snapshot cannot be dropped while the clone exists.

    Args:
        store: the store, or a URL.
        path: the folder of the disk that has the snapshot.
        name: of the snapshot.
        target: the folder of the new disk, seen from the store's root.
        key: 32 bytes, if the disk is encrypted.

    Raises:
        FileExistsError: there is a disk in ``target``, or there are remains of one, or it is inside
            the folder of a disk.
        FileNotFoundError: there is no such snapshot.

    """
    disk = await StoredDisk.open(store, path, key=key)
    target = target.strip("/")
    objects = disk.root.subfolder(target)
    await ensure_empty(disk.root, target)
    description = _description_of_clone(disk)
    journal = await disk.journal(writes=True)
    await journal.add(
        record(Kind.CLONE, name=name, disk=description.disk, path=target, time=time.time()),
        lambda state: snapshot_state(state, name),
    )
    origin = snapshot_state(journal.state, name)
    state = await journal.state_at(origin.sequence)
    await publish(objects, description)
    sealing = ObjectCodec(description.identity, compress=description.compress, key=key)
    first = checkpoint_key(0)
    sealed = await asyncio.to_thread(lambda: sealing.seal(first, _inherited(state).encode()))
    await objects.put(first, sealed)


def _description_of_clone(disk: StoredDisk) -> Manifest:
    source = disk.manifest
    origins = (Origin(disk.path, source.disk), *source.origins)
    if len(origins) >= MAX_ORIGINS:
        reason = "it descends from too many others; copy it to a new one"
        raise StorageError(errno.EMLINK, reason)
    new = replace(
        source,
        disk=secrets.token_hex(16),
        key_check=None,
        origins=origins,
        version=VERSION,
    )
    return new.sealed(disk.key)


def _inherited(state: DiskState) -> DiskState:
    """Return the state of a new disk in which every chunk is that of another, one origin on."""
    chunks = array("Q", (entry and entry + ORIGIN_STEP for entry in state.chunks))
    return DiskState(state.size, chunks)
