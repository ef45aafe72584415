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
from ...text import quote
from .chunk_store import ChunkSource
from .client import AnyStore, ObjectStore, ObjectStoreClient, from_url, is_store
from .codec import ObjectCodec, damaged_error
from .journal import Journal
from .keys import CHUNKS, LOG, MANIFEST, MAP, MAX_CHUNKS, is_key
from .manifest import SEALED_VERSION, Manifest, Origin
from .state import DiskState, Snapshot

_SMALLEST_CHUNK, _LARGEST_CHUNK = 4096, 64 << 20
BLOCK_SIZE = 4096
"""Bytes of a block of a new disk."""


@dataclass(frozen=True, slots=True)
class StoredDisk:
    """A disk that is there."""

    root: ObjectStore
    """The store."""
    path: str
    """The disk's folder in it."""
    manifest: Manifest
    codec: ObjectCodec
    key: bytes | None = field(repr=False)

    @classmethod
    async def open(cls, store: AnyStore, path: str = "", *, key: bytes | None = None) -> Self:
        """Find a disk; the arguments and errors are those of :meth:`.ObjectStoreDevice.open`."""
        disk = await cls.found(store, path, key=key)
        disk.manifest.check_origins()
        return disk

    @classmethod
    async def found(cls, store: AnyStore, path: str, *, key: bytes | None) -> Self:
        """Find a disk, be it one that is not to be read; see :meth:`.Manifest.check_origins`."""
        root, path = resolve_store(store, path)
        try:
            data = await root.subfolder(path).get(MANIFEST)
        except FileNotFoundError:
            where = root.where(path) if isinstance(root, ObjectStoreClient) else path
            reason = (
                f"there is no disk in {where or 'this store'}; create one first"
                " (`aiovblk create`, objects.create())"
            )
            raise FileNotFoundError(errno.ENOENT, reason) from None
        description = Manifest.decode(data)
        try:
            check_geometry(description.size, description.block_size, description.chunk_size)
        except (ValueError, TypeError) as exc:
            raise damaged_error(MANIFEST, str(exc)) from None
        description.check_key(key)
        sealing = ObjectCodec(description.identity, compress=description.compress, key=key)
        return cls(root, path, description, sealing, key)

    @property
    def objects(self) -> ObjectStore:
        """The disk's folder."""
        return self.root.subfolder(self.path)

    @property
    def sources(self) -> list[ChunkSource]:
        """Where its chunks lie, by the number of origin."""
        own = ChunkSource(self.objects, self.codec)
        return [own, *(self._source(origin) for origin in self.manifest.origins)]

    def _source(self, origin: Origin) -> ChunkSource:
        # What is sealed tells itself how; only the key is needed.
        return ChunkSource(
            self.root.subfolder(origin.path), ObjectCodec(bytes.fromhex(origin.disk), key=self.key)
        )

    async def journal(self, *, writes: bool) -> Journal:
        """Read the disk's history.

        Raises:
            StorageError: it is damaged; or it is to be added to, and the store cannot do that.

        """
        if writes:
            await require_conditional_puts(self.objects, self.manifest)
        journal = Journal(self.objects, self.codec, self.manifest, writes=writes)
        await journal.load()
        return journal

    async def state(self, snapshot: str | None = None) -> DiskState:
        """Read the present state, or that of a snapshot.

        Raises:
            FileNotFoundError: there is no such snapshot.

        """
        journal = await self.journal(writes=False)
        if snapshot is None:
            return journal.state
        return await journal.state_at(snapshot_state(journal.state, snapshot).sequence)


def snapshot_state(state: DiskState, snapshot: str) -> Snapshot:
    """Return a snapshot.

    Raises:
        FileNotFoundError: there is none of that name.

    """
    try:
        return state.snapshots[snapshot]
    except KeyError:
        names = ", ".join(sorted(state.snapshots)) or "none"
        reason = f"there is no snapshot {snapshot!r}; there are: {quote(names)}"
        raise FileNotFoundError(errno.ENOENT, reason) from None


def resolve_store(store: AnyStore, path: str) -> tuple[ObjectStore, str]:
    """Return the store and the folder that a caller means.

    Args:
        store: one of the package ``obstore``, anything with the methods of :class:`.ObjectStore`, or a
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
    root, path = resolve_store(store, path)
    check_geometry(size, block_size, chunk_size)
    identity = secrets.token_hex(16)
    description = Manifest(identity, size, block_size, chunk_size, compress, None).sealed(key)
    objects = root.subfolder(path)
    await ensure_empty(root, path)
    await publish(objects, description)
    try:
        await require_conditional_puts(objects, description)
    except StorageError:
        await objects.delete([MANIFEST])
        raise


async def require_conditional_puts(objects: ObjectStore, manifest: Manifest) -> None:
    """Make sure that the store creates nothing where there is something: the history rests on that.

    It costs a request. Stores that do not know ``If-None-Match`` do not refuse it, but put.

    Raises:
        StorageError: it has replaced the description, by the same one.

    """
    try:
        await objects.create(MANIFEST, manifest.encode())
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
    disk = await StoredDisk.found(store, path, key=key)
    if key is not None and disk.manifest.version != SEALED_VERSION:
        await disk.objects.put(MANIFEST, disk.manifest.sealed(key).encode())


async def ensure_empty(root: ObjectStore, path: str) -> None:
    """Refuse a folder for a new disk.

    Raises:
        FileExistsError: there is a disk, or there are remains of one, whose history would be taken
            for the new one's; or it is inside the folder of a disk, which is deleted as a whole.

    """
    objects = root.subfolder(path)
    with suppress(FileNotFoundError):
        await objects.get(MANIFEST)
        raise _exists_error()
    # Most disks that were deleted in part have something in the first two, which are short.
    for folder in (LOG, MAP, CHUNKS):
        if any(is_key(found.path) for found in await objects.list_objects(folder)):
            reason = f"there are remains of a deleted disk ({folder}/); delete its whole folder"
            raise FileExistsError(errno.EEXIST, reason)
    # At the end, so that what is wrong with the store itself is said of the folder that was named.
    await _ensure_not_nested(root, path)


async def _ensure_not_nested(root: ObjectStore, path: str) -> None:
    """Refuse a folder inside that of a disk, which is deleted as a whole."""
    for parent in PurePosixPath(path).parents if path else ():
        folder = "" if str(parent) == "." else str(parent)
        # Credentials may be good for a part of the store only.
        with suppress(FileNotFoundError, PermissionError):
            await root.subfolder(folder).get(MANIFEST)
            where = folder or "the root of this store"
            reason = f"{path} is inside the folder of another disk, {where}; choose one outside"
            raise FileExistsError(errno.EEXIST, reason)


async def publish(objects: ObjectStore, manifest: Manifest) -> None:
    """Make a description, and with it the disk.

    Raises:
        FileExistsError: there is a disk.

    """
    data = manifest.encode()
    try:
        await objects.create(MANIFEST, data)
    except FileExistsError:
        if bytes(await objects.get(MANIFEST)) == data:
            return  # an attempt whose answer was lost
        raise _exists_error() from None


def _exists_error() -> FileExistsError:
    return FileExistsError(errno.EEXIST, "there is a disk already; it was left as it is")


def check_geometry(size: int, block_size: int, chunk_size: int) -> None:
    """Refuse what cannot be a disk."""
    check_count("size", size)
    check_block_sizes(block_size, chunk_size)
    if size < block_size or size % block_size:
        raise ValueError(f"the size must be a multiple of {block_size} bytes, not {size}")
    if size > MAX_CHUNKS * chunk_size:
        raise ValueError(
            f"a disk has at most {MAX_CHUNKS} chunks: for {size} bytes choose a larger chunk_size"
        )


def check_block_sizes(block_size: int, chunk_size: int) -> None:
    """Refuse blocks, or chunks, of a size that no disk has."""
    check_block_size(chunk_size, name="chunk_size", minimum=_SMALLEST_CHUNK, maximum=_LARGEST_CHUNK)
    # A block is a part of a chunk, and may be that chunk.
    check_block_size(block_size, minimum=512, maximum=chunk_size)
