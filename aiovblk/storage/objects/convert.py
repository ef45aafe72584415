"""Convert a disk of an earlier format to the present one, in place, copying nothing.

Everything that a disk of format 1 or 2 consists of is part of format 3 too. What has to be ensured
is that no earlier version of aiovblk reads, or writes to, what it would misread:

1. This process becomes the writer, by an OPEN record: a writer of an earlier version is fenced.
2. A CONVERT record, which earlier versions take for damage: they do not read past it, nor past a
   checkpoint that reflects it.
3. The manifest with the new version.

If it is interrupted it is run again. Until the manifest is replaced the disk is only read.
"""

from __future__ import annotations

from contextlib import suppress

from . import lease as leases
from .client import AnyStore
from .disk import StoredDisk
from .journal import FencedError, record
from .keys import MANIFEST
from .records import RecordKind
from .writer import Writer


async def convert(store: AnyStore, path: str = "", *, key: bytes | None = None) -> bool:
    """Convert a disk to the present format, in which it is written to. It must not be in use.

    The disk, its snapshots and its clones have the same contents as before; only this disk is
    converted. Earlier versions of aiovblk do not open it afterwards.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        key: 32 bytes, if the disk is encrypted.

    Returns:
        Whether there was something to do.

    Raises:
        StorageBusyError: another process writes to it.
        StorageError: it is damaged, or the store has no conditional puts.

    Cancellation: safe; it is to be called again.

    """
    disk = await StoredDisk.open(store, path, key=key)
    if disk.manifest.is_writable:
        return False
    journal = await disk.journal(writes=True, any_format=True)
    await leases.wait_until_free(disk.objects, disk.where)
    await Writer.open(journal)
    if not journal.state.converted:
        await journal.add(record(RecordKind.CONVERT))
    await disk.objects.put(MANIFEST, disk.manifest.sealed(key).encode())
    with suppress(FencedError):  # all is done, and another process writes to it already
        await journal.add(record(RecordKind.CLOSE))
    return True
