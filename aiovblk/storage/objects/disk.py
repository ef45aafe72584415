"""A disk's folder in a store: made, and found again."""

from __future__ import annotations

import errno
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Self

from ...arguments import check_block_size, check_count
from ...errors import StorageError
from ...text import quoted
from .description import SEALED_VERSION, Description, Origin
from .journal import Journal
from .names import CHUNKS, DESCRIPTION, LOG, MAP, MOST_CHUNKS, is_name
from .sealing import Sealing, damaged
from .state import Snapshot, State
from .store import AnyStore, Objects, ObjectStoreClient, from_url, is_store
from .stored import Source

_SMALLEST_CHUNK, _LARGEST_CHUNK = 4096, 64 << 20
BLOCK_SIZE = 4096
"""Bytes of a block of a new disk."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk that is there."""

    root: Objects
    """The store."""
    path: str
    """The disk's folder in it."""
    description: Description
    sealing: Sealing
    key: bytes | None = field(repr=False)

    @classmethod
    async def open(cls, store: AnyStore, path: str = "", *, key: bytes | None = None) -> Self:
        """Find a disk; the arguments and errors are those of :meth:`.ObjectStoreDevice.open`."""
        disk = await cls.found(store, path, key=key)
        disk.description.check_origins()
        return disk

    @classmethod
    async def found(cls, store: AnyStore, path: str, *, key: bytes | None) -> Self:
        """Find a disk, be it one that is not to be read; see :meth:`.Description.check_origins`."""
        root, path = located(store, path)
        try:
            data = await root.at(path).get(DESCRIPTION)
        except FileNotFoundError:
            where = root.where(path) if isinstance(root, ObjectStoreClient) else path
            reason = (
                f"there is no disk in {where or 'this store'}; create one first"
                " (`aiovblk create`, objects.create())"
            )
            raise FileNotFoundError(errno.ENOENT, reason) from None
        description = Description.decode(data)
        try:
            check_geometry(description.size, description.block_size, description.chunk_size)
        except (ValueError, TypeError) as exc:
            raise damaged(DESCRIPTION, str(exc)) from None
        description.check_key(key)
        sealing = Sealing(description.identity, compress=description.compress, key=key)
        return cls(root, path, description, sealing, key)

    @property
    def objects(self) -> Objects:
        """The disk's folder."""
        return self.root.at(self.path)

    @property
    def sources(self) -> list[Source]:
        """Where its chunks lie, by the number of origin."""
        own = Source(self.objects, self.sealing)
        return [own, *(self._source(origin) for origin in self.description.origins)]

    def _source(self, origin: Origin) -> Source:
        # What is sealed tells itself how; only the key is needed.
        return Source(self.root.at(origin.path), Sealing(bytes.fromhex(origin.disk), key=self.key))

    async def journal(self, *, writes: bool) -> Journal:
        """Read the disk's history.

        Raises:
            StorageError: it is damaged; or it is to be added to, and the store cannot do that.

        """
        if writes:
            await require_conditional_puts(self.objects, self.description)
        journal = Journal(self.objects, self.sealing, self.description, writes=writes)
        await journal.load()
        return journal

    async def state(self, snapshot: str | None = None) -> State:
        """Read the present state, or that of a snapshot.

        Raises:
            FileNotFoundError: there is no such snapshot.

        """
        journal = await self.journal(writes=False)
        if snapshot is None:
            return journal.state
        return await journal.state_at(found_in(journal.state, snapshot).sequence)


def found_in(state: State, snapshot: str) -> Snapshot:
    """Return a snapshot.

    Raises:
        FileNotFoundError: there is none of that name.

    """
    try:
        return state.snapshots[snapshot]
    except KeyError:
        names = ", ".join(sorted(state.snapshots)) or "none"
        reason = f"there is no snapshot {snapshot!r}; there are: {quoted(names)}"
        raise FileNotFoundError(errno.ENOENT, reason) from None


def located(store: AnyStore, path: str) -> tuple[Objects, str]:
    """Return the store and the folder that a caller means.

    Args:
        store: one of the package ``obstore``, anything with the methods of :class:`.Objects`, or a
            URL, whose path comes before the other.
        path: the folder.

    """
    path = path.strip("/")
    if isinstance(store, str):
        root, folder = from_url(store)
        return root, f"{folder}/{path}".strip("/")
    if is_store(store):
        return ObjectStoreClient(store), path
    return store, path


async def create(
    store: AnyStore,
    path: str = "",
    *,
    size: int,
    block_size: int = BLOCK_SIZE,
    chunk_size: int = 1 << 20,
    compress: bool = False,
    key: bytes | None = None,
) -> None:
    """Make a disk, all zeroes: one small object.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        size: bytes, a multiple of ``block_size``.
        block_size: bytes, a power of two from 512.
        chunk_size: bytes, a power of two from 4 KiB to 64 MiB: what is read, and what is stored
            after a write of one block. Smaller ones make small random requests cheaper, larger ones
            make fewer objects.
        compress: whether to compress chunks (zstd).
        key: 32 bytes to encrypt with (AES-256-GCM). Nothing can be read without it. What is not
            hidden: which chunks are written and when, and how large they are.

    Raises:
        FileExistsError: there is a disk, or there are remains of one, or ``path`` is inside the
            folder of a disk.
        StorageError: the store has no conditional puts.
        ValueError: a size is impossible.
        OSError: the store fails.

    """
    root, path = located(store, path)
    check_geometry(size, block_size, chunk_size)
    identity = secrets.token_hex(16)
    description = Description(identity, size, block_size, chunk_size, compress, None).sealed(key)
    objects = root.at(path)
    await refuse_occupied(root, path)
    await publish(objects, description)
    try:
        await require_conditional_puts(objects, description)
    except StorageError:
        await objects.delete([DESCRIPTION])
        raise


async def require_conditional_puts(objects: Objects, description: Description) -> None:
    """Make sure that the store creates nothing where there is something: the history rests on that.

    It costs a request. Stores that do not know ``If-None-Match`` do not refuse it, but put.

    Raises:
        StorageError: it has replaced the description, by the same one.

    """
    try:
        await objects.create(DESCRIPTION, description.encode())
    except FileExistsError:
        return
    raise StorageError(
        errno.EOPNOTSUPP,
        "the store overwrites what is to be created only where there is nothing (If-None-Match: *),"
        " so two writers would not notice each other; Ceph does so where a bucket has versioning:"
        " use one without it",
    )


async def trust_origins(store: AnyStore, path: str = "", *, key: bytes | None = None) -> None:
    """Authenticate the ancestors of an encrypted clone that an earlier version has made.

    Before that nothing tells whether they are right: see :attr:`.StorageError.reason` of the error
    that opening it raises, which names them. Of a disk that needs none of this nothing is changed.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        key: 32 bytes.

    """
    disk = await Disk.found(store, path, key=key)
    if key is not None and disk.description.version != SEALED_VERSION:
        await disk.objects.put(DESCRIPTION, disk.description.sealed(key).encode())


async def refuse_occupied(root: Objects, path: str) -> None:
    """Refuse a folder for a new disk.

    Raises:
        FileExistsError: there is a disk, or there are remains of one, whose history would be taken
            for the new one's; or it is inside the folder of a disk, which is deleted as a whole.

    """
    objects = root.at(path)
    with suppress(FileNotFoundError):
        await objects.get(DESCRIPTION)
        raise _there_is_one()
    # Most disks that were deleted in part have something in the first two, which are short.
    for folder in (LOG, MAP, CHUNKS):
        if any(is_name(found.path) for found in await objects.find(folder)):
            reason = f"there are remains of a deleted disk ({folder}/); delete its whole folder"
            raise FileExistsError(errno.EEXIST, reason)
    # At the end, so that what is wrong with the store itself is said of the folder that was named.
    await _refuse_nested(root, path)


async def _refuse_nested(root: Objects, path: str) -> None:
    """Refuse a folder inside that of a disk, which is deleted as a whole."""
    for parent in PurePosixPath(path).parents if path else ():
        folder = "" if str(parent) == "." else str(parent)
        # Credentials may be good for a part of the store only.
        with suppress(FileNotFoundError, PermissionError):
            await root.at(folder).get(DESCRIPTION)
            where = folder or "the root of this store"
            reason = f"{path} is inside the folder of another disk, {where}; choose one outside"
            raise FileExistsError(errno.EEXIST, reason)


async def publish(objects: Objects, description: Description) -> None:
    """Make a description, and with it the disk.

    Raises:
        FileExistsError: there is a disk.

    """
    data = description.encode()
    try:
        await objects.create(DESCRIPTION, data)
    except FileExistsError:
        if bytes(await objects.get(DESCRIPTION)) == data:
            return  # an attempt whose answer was lost
        raise _there_is_one() from None


def _there_is_one() -> FileExistsError:
    return FileExistsError(errno.EEXIST, "there is a disk already; it was left as it is")


def check_geometry(size: int, block_size: int, chunk_size: int) -> None:
    """Refuse what cannot be a disk."""
    check_count("size", size)
    check_block_sizes(block_size, chunk_size)
    if size < block_size or size % block_size:
        raise ValueError(f"the size must be a multiple of {block_size} bytes, not {size}")
    if size > MOST_CHUNKS * chunk_size:
        raise ValueError(
            f"a disk has at most {MOST_CHUNKS} chunks: for {size} bytes choose a larger chunk_size"
        )


def check_block_sizes(block_size: int, chunk_size: int) -> None:
    """Refuse blocks, or chunks, of a size that no disk has."""
    check_block_size(chunk_size, name="chunk_size", least=_SMALLEST_CHUNK, most=_LARGEST_CHUNK)
    # A block is a part of a chunk, and may be that chunk.
    check_block_size(block_size, least=512, most=chunk_size)
