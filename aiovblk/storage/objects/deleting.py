"""Delete a disk, or what an interrupted deletion has left of one."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence

from ...errors import StorageBusyError, StorageError
from . import lease as leases
from .client import AnyStore, ObjectInfo, ObjectStore, ObjectStoreClient
from .disk import StoredDisk, resolve_store
from .garbage import Garbage, clone_exists, delete_objects
from .journal import Journal, record
from .keys import FOLDERS, LEASE, LOG, MANIFEST, is_key
from .records import RecordKind
from .writer import Writer

logger = logging.getLogger("aiovblk")


async def delete(
    store: AnyStore, path: str = "", *, key: bytes | None = None, force: bool = False
) -> Garbage:
    """Delete a disk with its snapshots: it does not exist from the first request to delete on.

    A deletion that was interrupted is completed by the next one, which needs no key. Objects in the
    folder that are not a disk's stay. A clone of the disk must not be made meanwhile. If it is a
    clone itself, the snapshot that it was made from may be dropped from then on. It may have any
    format that can be read.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        key: 32 bytes, if the disk is encrypted: it tells whether there are clones.
        force: whether to delete it although a process writes to it. What that process writes from
            then on is lost, and may leave remains, which another deletion removes.

    Returns:
        How many objects were deleted, and how large they were.

    Raises:
        FileNotFoundError: there is no disk, and nothing is left of one.
        StorageBusyError: a process writes to it. That is known after a third of its lease; after a
            crash on another machine it takes as long as the lease.
        StorageError: (EBUSY) clones need one of its snapshots; or it is damaged.

    """
    root, folder = resolve_store(store, path)
    objects = root.subfolder(folder)
    try:
        disk = await StoredDisk.find(store, path, key=key)
    except FileNotFoundError:
        remains = await _objects_of(objects)
        if not remains:
            raise
        return await _delete(objects, remains)
    journal = await disk.journal(writes=True, any_format=True)
    await _ensure_no_clones(disk, journal)
    if not force:
        await _ensure_not_written(disk)
    await Writer.open(journal)
    await _ensure_no_clones(disk, journal)  # one may have been made while the lease was observed
    await objects.delete([MANIFEST])
    deleted = await _delete(objects, await _objects_of(objects))
    await _release_origin(disk)
    return Garbage(deleted.objects + 1, deleted.size)


async def _ensure_not_written(disk: StoredDisk) -> None:
    try:
        await leases.wait_until_free(disk.objects, disk.where)
    except StorageBusyError:
        lease = await leases.current(disk.objects)
        holder = "a process" if lease is None else lease.holder
        reason = f"{disk.where} is in use: {holder} writes to it; unmount it first, or use force"
        raise StorageBusyError(errno.EBUSY, reason) from None


async def _ensure_no_clones(disk: StoredDisk, journal: Journal) -> None:
    for name, snapshot in journal.state.snapshots.items():
        for identity, clone in snapshot.clones.items():
            if await clone_exists(disk, clone.path, identity):
                raise StorageError(
                    errno.EBUSY,
                    f"{disk.where}: a clone, {clone.path}, needs the snapshot {name!r}; delete the"
                    " clone first, or copy it to a disk of its own",
                )


async def _objects_of(objects: ObjectStore) -> list[ObjectInfo]:
    """Return the objects of a disk but for its manifest: the history last, which fences writers."""
    listed = [each for each in await objects.list_objects("") if is_key(each.path)]
    return sorted(listed, key=lambda each: each.path.startswith(f"{LOG}/"))


async def _delete(objects: ObjectStore, listed: Sequence[ObjectInfo]) -> Garbage:
    await objects.delete([LEASE])
    await delete_objects(objects, listed)
    sizes = [each.size for each in listed]
    if isinstance(objects, ObjectStoreClient):
        sizes += await objects.leftovers(("", *FOLDERS), delete=True)
    return Garbage(len(sizes), sum(sizes))


async def _release_origin(disk: StoredDisk) -> None:
    """Release the disk that a clone was made from; else its garbage collection notices later."""
    for origin in disk.manifest.origins[:1]:
        try:
            parent = await StoredDisk.open(disk.root, origin.path, key=disk.key)
            journal = await parent.journal(writes=True)
            await journal.add(record(RecordKind.RELEASE, disk=disk.manifest.disk))
        except (OSError, ValueError) as exc:
            logger.info("%s still counts %s as a clone: %s", origin.path, disk.where, exc)
