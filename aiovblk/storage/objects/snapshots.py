"""Take, list and drop snapshots, and make clones, copying nothing; the disk may be mounted."""

from __future__ import annotations

import asyncio
import errno
import re
import secrets
import time
from array import array
from dataclasses import replace

from ...errors import StorageError
from .client import AnyStore, location
from .codec import ObjectCodec
from .disk import StoredDisk, ensure_empty, get_snapshot, publish
from .extents import ZEROES, Run
from .journal import FencedError, record
from .keys import MAX_ORIGINS, ORIGIN_STEP, checkpoint_key
from .manifest import VERSION, Manifest, Origin
from .records import RecordKind
from .state import DiskState, Snapshot

_NAME = re.compile(r"[\w.+-][\w.:+-]{0,127}")


async def snapshots(
    store: AnyStore, path: str = "", *, key: bytes | None = None
) -> dict[str, Snapshot]:
    """Return the snapshots of a disk, by name, oldest first.

    The arguments and errors of all functions here are those of :meth:`.ObjectStoreDevice.open`.
    """
    disk = await StoredDisk.open(store, path, key=key)
    items = (await disk.state()).snapshots.items()
    return dict(sorted(items, key=lambda each: each[1].sequence))


async def snapshot(store: AnyStore, path: str = "", *, name: str, key: bytes | None = None) -> None:
    """Take a snapshot: give a disk's present state a name, by which it can be opened.

    Of a disk that is mounted it has what was flushed; run ``sync`` or ``fsfreeze`` before.

    Args:
        store: the store, or a URL.
        path: the disk's folder in it.
        name: letters, digits, and ``.:+-_``.
        key: 32 bytes, if the disk is encrypted.

    Raises:
        FileExistsError: there is a snapshot of that name.
        ValueError: the name is invalid.

    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is no name for a snapshot; use letters, digits and .:+-_")
    await take_snapshot(await StoredDisk.open(store, path, key=key), name)


async def take_snapshot(disk: StoredDisk, name: str, *, epoch: int | None = None) -> None:
    """Take a snapshot of a disk; see :func:`snapshot`.

    Args:
        disk: the disk.
        name: a valid one.
        epoch: of the writer whose state is meant; None for any writer's.

    Raises:
        FileExistsError: there is a snapshot of that name.
        FencedError: another writer has opened the disk since.

    """

    def check(state: DiskState) -> None:
        if epoch is not None and state.epoch != epoch:
            raise FencedError(
                errno.EIO, f"{disk.where}: another process has become the disk's writer meanwhile"
            )
        if name in state.snapshots:
            reason = f"{disk.where}: there is a snapshot {name!r} already"
            raise FileExistsError(errno.EEXIST, reason)

    journal = await disk.journal(writes=True)
    await journal.add(record(RecordKind.SNAPSHOT, name=name, time=time.time()), check)


async def drop_snapshot(
    store: AnyStore, path: str = "", *, name: str, key: bytes | None = None
) -> None:
    """Drop a snapshot. What only it needed becomes garbage: see :func:`.collect_garbage`.

    Raises:
        FileNotFoundError: there is none of that name.
        StorageError: (EBUSY) a clone needs it.

    """
    disk = await StoredDisk.open(store, path, key=key)

    def check(state: DiskState) -> None:
        clones = get_snapshot(state, name, disk.where).clones.values()
        if clones:
            paths = ", ".join(clone.path for clone in clones)
            reason = f"{disk.where}: the snapshot {name!r} is needed by clones: {paths}"
            raise StorageError(errno.EBUSY, reason)

    journal = await disk.journal(writes=True)
    await journal.add(record(RecordKind.DROP, name=name), check)


async def drop_unless_cloned(
    store: AnyStore, path: str = "", *, name: str, key: bytes | None = None
) -> bool:
    """Drop a snapshot as :func:`drop_snapshot` does, unless a clone needs it; return whether."""
    try:
        await drop_snapshot(store, path, name=name, key=key)
    except StorageError as exc:
        if exc.errno != errno.EBUSY:
            raise
        return False
    return True


async def clone(
    store: AnyStore, path: str = "", *, name: str, target: str, key: bytes | None = None
) -> None:
    """Make a new disk that has the contents of a snapshot, and shares all chunks with it.

    The clone is writable, and differs from then on (copy-on-write). It lies in the same store, and
    is encrypted with the same key, if at all. The snapshot cannot be dropped while the clone
    exists.

    Args:
        store: the store, or a URL.
        path: the folder of the disk that has the snapshot.
        name: of the snapshot.
        target: the folder of the new disk, relative to the store's root.
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
    manifest = _clone_manifest(disk)
    journal = await disk.journal(writes=True)
    # The record first: from then on the snapshot cannot be dropped.
    await journal.add(
        record(RecordKind.CLONE, name=name, disk=manifest.disk, path=target, time=time.time()),
        lambda state: get_snapshot(state, name, disk.where),
    )
    origin = get_snapshot(journal.state, name, disk.where)
    state = await journal.state_at(origin.sequence)
    await publish(objects, manifest, location(disk.root, target))
    codec = ObjectCodec(manifest.identity, compress=manifest.compress, key=key)
    first = checkpoint_key(0)
    block_size = manifest.block_size
    sealed = await asyncio.to_thread(lambda: codec.seal(first, _inherit(state).encode(block_size)))
    await objects.put(first, sealed)


def _clone_manifest(disk: StoredDisk) -> Manifest:
    """Return the manifest of a clone: another identity, and the disk as its first ancestor."""
    source = disk.manifest
    origins = (Origin(disk.path, source.disk), *source.origins)
    if len(origins) >= MAX_ORIGINS:
        reason = f"{disk.where} has {len(origins) - 1} ancestors, the most; copy it to a new disk"
        raise StorageError(errno.EMLINK, reason)
    new = replace(
        source,
        disk=secrets.token_hex(16),
        key_check=None,
        origins=origins,
        version=VERSION,
    )
    return new.sealed(disk.key)


def _inherit(state: DiskState) -> DiskState:
    """Return the first state of a clone: all objects are its ancestor's, one origin further."""
    chunks = array("Q", (entry and entry + ORIGIN_STEP for entry in state.chunks))
    inherited = DiskState(state.size, chunks)
    sizes = {entry + ORIGIN_STEP: blocks for entry, blocks in state.extents.sizes.items()}
    runs = ((index, _inherit_run(run)) for index, run in state.extents)
    inherited.extents.lay(runs, sizes)
    return inherited


def _inherit_run(run: Run) -> Run:
    if isinstance(run.source, int) and run.source != ZEROES:
        return run._replace(source=run.source + ORIGIN_STEP)
    return run
