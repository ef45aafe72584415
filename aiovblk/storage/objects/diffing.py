"""Find what differs between two states of a disk, or of disks that share an origin.

Only records and checkpoints are read, see :mod:`.comparing`.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import StorageError
from .client import AnyStore
from .comparing import Compared, Comparison, Places
from .disk import StoredDisk, resolve_store
from .keys import MAX_ORIGINS
from .state import DiskState

_STEPS = 256  # ranges that are compared before other tasks run


class ChangedExtent(NamedTuple):
    """A range of bytes that differs, or may."""

    offset: int
    """Bytes."""
    length: int
    """Bytes."""
    zero: bool
    """Whether the later state is known to read as zeroes there, a trimmed chunk for instance."""
    granularity: int
    """Bytes of the smallest unit that is compared. The block size: each block of it was written, or
    moved by the compactor. The chunk size: its chunks were stored anew as a whole, and not all of
    their blocks need to have changed."""


@dataclass(frozen=True, slots=True)
class DiffTotals:
    """The sums of all that differs."""

    extents: int = 0
    data: int = 0
    """Bytes that differ, but for those of ``zero``."""
    zero: int = 0
    """Bytes that differ, and are known to be zeroes in the later state."""
    by_chunk: int = 0
    """Bytes of both of which only the chunks are known that differ."""

    @property
    def changed(self) -> int:
        """Bytes that differ."""
        return self.data + self.zero

    def plus(self, extent: ChangedExtent, chunk_size: int) -> DiffTotals:
        """Return the sums with one more extent."""
        return DiffTotals(
            self.extents + 1,
            self.data + (0 if extent.zero else extent.length),
            self.zero + (extent.length if extent.zero else 0),
            self.by_chunk + (extent.length if extent.granularity == chunk_size else 0),
        )


class Difference:
    """What differs between two states; iterate over it (``async for``) for its extents, in order.

    It has the maps of both states in memory, 8 bytes for each chunk and some 200 for each run of
    blocks. Extents are found while they are iterated over, so that any number of them takes no
    memory, and no request.

    Concurrency: any number of iterations, in which other tasks run too.

    Attributes:
        size: bytes of the later state, over which the extents lie.
        since_size: bytes of the earlier state. What the later one has behind that differs where it
            is not zeroes.
        block_size: bytes of a block.
        chunk_size: bytes of a chunk.

    """

    def __init__(
        self, comparison: Comparison, size: int, since_size: int, block_size: int, chunk_size: int
    ) -> None:
        """See :func:`diff`."""
        self._comparison = comparison
        self.size = size
        self.since_size = since_size
        self.block_size = block_size
        self.chunk_size = chunk_size

    async def __aiter__(self) -> AsyncIterator[ChangedExtent]:
        """Yield what differs, in order; no extent continues the one before it."""
        offset = 0
        last: ChangedExtent | None = None
        for step, each in enumerate(self._comparison.walk(0, self.size), 1):
            if each.changed:
                extent = self._extent(offset, each)
                joined = _joined(last, extent)
                if joined is None and last is not None:
                    yield last
                last = joined or extent
            offset += each.length
            if not step % _STEPS:
                await asyncio.sleep(0)
        if last is not None:
            yield last

    def _extent(self, offset: int, found: Compared) -> ChangedExtent:
        granularity = self.chunk_size if found.by_chunk else self.block_size
        return ChangedExtent(offset, found.length, found.zero, granularity)

    async def totals(self) -> DiffTotals:
        """Return the sums of all extents."""
        found = DiffTotals()
        async for extent in self:
            found = found.plus(extent, self.chunk_size)
        return found


def _joined(last: ChangedExtent | None, following: ChangedExtent) -> ChangedExtent | None:
    """Return two extents as one, if the second continues the first."""
    if last is None or last.offset + last.length != following.offset or last[2:] != following[2:]:
        return None
    return last._replace(length=last.length + following.length)


async def diff(
    store: AnyStore,
    path: str = "",
    *,
    snapshot: str | None = None,
    since: str | None = None,
    since_path: str | None = None,
    key: bytes | None = None,
) -> Difference:
    """Find what differs in a disk since a snapshot of it, or from a disk that shares an origin.

    It reads the records and maps of both, and no data, whatever the size. Both may be mounted
    meanwhile: the present state of a disk is that of its last flush.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the folder of the disk of the later state.
        snapshot: the later state; None for the present one.
        since: the snapshot that is the earlier state; None for the present one.
        since_path: the folder of the disk of the earlier state, relative to the store's root, if it
            is another one: a clone of the first one, its origin, or a clone of the same origin.
        key: 32 bytes, if the disks are encrypted.

    Raises:
        FileNotFoundError: there is no such disk or snapshot.
        StorageError: the two disks share no origin; or the errors of
            :meth:`.ObjectStoreDevice.open`.
        ValueError: there is neither ``since`` nor ``since_path``.

    """
    if since is None and since_path is None:
        raise ValueError("since what? Give since=, a snapshot of the disk, or since_path=, a disk")
    root, path = resolve_store(store, path)
    disk = await StoredDisk.open(root, path, key=key)
    journal = await disk.journal(writes=False)
    new = await disk.state_in(journal, snapshot)
    if since_path is None or since_path.strip("/") == disk.path:
        return _compare(disk, new, await disk.state_in(journal, since))
    other = await StoredDisk.open(root, since_path, key=key)
    origins = _match_origins(other, disk)
    return _compare(disk, new, await other.state(since), origins)


def _compare(
    disk: StoredDisk, new: DiskState, old: DiskState, origins: list[int] | None = None
) -> Difference:
    block_size, chunk_size = disk.manifest.block_size, disk.manifest.chunk_size
    later = Places(new.chunks, new.extents, new.size // block_size, origins)
    earlier = Places(old.chunks, old.extents, old.size // block_size)
    comparison = Comparison(earlier, later, block_size, chunk_size)
    return Difference(comparison, new.size, old.size, block_size, chunk_size)


def _match_origins(old: StoredDisk, new: StoredDisk) -> list[int]:
    """Return for every number of origin of one disk the other's number for the same origin.

    Raises:
        StorageError: they have none in common.

    """
    # By folder, too: a copy of a folder has the identity of the disk, and other objects under the
    # same names as soon as it is written to.
    of_old = {each: number for number, each in enumerate(_lineage(old))}
    lineage = _lineage(new)
    if of_old.keys().isdisjoint(lineage) or _geometry(old) != _geometry(new):
        reason = (
            f"{old.where} and {new.where} share no origin: neither is a clone of the other, nor are"
            " both clones of one disk. What differs is then known only by reading both"
        )
        raise StorageError(errno.EINVAL, reason)
    # What the other one lacks gets numbers that it does not use.
    unknown = [MAX_ORIGINS + number for number in range(MAX_ORIGINS)]
    return [of_old.get(each, unknown[number]) for number, each in enumerate(lineage)] + unknown[
        len(lineage) :
    ]


def _lineage(disk: StoredDisk) -> list[tuple[str, str]]:
    """Return the folder and the identity of a disk and of its ancestors, by number of origin."""
    origins = disk.manifest.origins
    return [(disk.path, disk.manifest.disk), *((each.path, each.disk) for each in origins)]


def _geometry(disk: StoredDisk) -> tuple[int, int]:
    return disk.manifest.block_size, disk.manifest.chunk_size
