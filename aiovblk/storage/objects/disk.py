"""Create a disk, and open the one in a folder of a store: manifest, key, codec and journal."""

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
from .client import AnyStore, ObjectStore, ObjectStoreClient, is_store, location
from .codec import ObjectCodec, damaged_error
from .journal import Journal
from .keys import FOLDERS, MANIFEST, MAX_CHUNKS, checkpoint_key, is_key
from .manifest import PLAIN_VERSION, SEALED_VERSION, Manifest, Origin
from .object_reader import ObjectSource
from .opening import from_url
from .state import DiskState, Snapshot

_MIN_CHUNK_SIZE, _MAX_CHUNK_SIZE = 4096, 64 << 20
BLOCK_SIZE = 4096
"""Bytes of a block of a new disk, by default."""


@dataclass(frozen=True, slots=True)
class StoredDisk:
    """An existing disk: where it is, its manifest, and how its objects are encoded."""

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
        disk = await cls.find(store, path, key=key)
        disk.manifest.check_origins(disk.where)
        return disk

    @classmethod
    async def find(cls, store: AnyStore, path: str, *, key: bytes | None) -> Self:
        """Find a disk, even one that must not be read; see :meth:`.Manifest.check_origins`."""
        root, path = resolve_store(store, path)
        where = location(root, path)
        try:
            data = await root.subfolder(path).get(MANIFEST)
        except FileNotFoundError:
            reason = (
                f"there is no disk in {where}; create one first"
                " (`aiovblk create`, objects.create())"
            )
            raise FileNotFoundError(errno.ENOENT, reason) from None
        manifest = Manifest.decode(data, where)
        try:
            check_geometry(manifest.size, manifest.block_size, manifest.chunk_size)
        except (ValueError, TypeError) as exc:
            raise damaged_error(f"{where}/{MANIFEST}", str(exc)) from None
        manifest.check_key(key, where)
        codec = ObjectCodec(manifest.identity, compress=manifest.compress, key=key, where=where)
        return cls(root, path, manifest, codec, key)

    @property
    def where(self) -> str:
        """The disk's folder, with the store's name before it, for messages."""
        return location(self.root, self.path)

    @property
    def objects(self) -> ObjectStore:
        """The disk's folder."""
        return self.root.subfolder(self.path)

    @property
    def sources(self) -> list[ObjectSource]:
        """Where its chunks lie, by the number of origin."""
        own = ObjectSource(self.objects, self.codec)
        return [own, *(self._source(origin) for origin in self.manifest.origins)]

    def _source(self, origin: Origin) -> ObjectSource:
        # Whether it is compressed is in each object's header; only the key is needed.
        codec = ObjectCodec(
            bytes.fromhex(origin.disk), key=self.key, where=location(self.root, origin.path)
        )
        return ObjectSource(self.root.subfolder(origin.path), codec)

    async def journal(self, *, writes: bool, any_format: bool = False) -> Journal:
        """Read the disk's history.

        Args:
            writes: whether it is to be written as well.
            any_format: whether to write even to that of a disk of an earlier format: to convert or
                delete it.

        Raises:
            StorageError: it is damaged; or it is to be written, and has an earlier format, or the
                store has no conditional puts.

        """
        if writes:
            if not any_format:
                self.manifest.check_writable(self.where)
            await require_conditional_puts(self.objects, self.manifest, self.where)
        journal = self._journal(writes=writes)
        await journal.load()
        return journal

    def _journal(self, *, writes: bool) -> Journal:
        return Journal(self.objects, self.codec, self.manifest, writes=writes, where=self.where)

    async def checkpoint(self, sequence: int) -> DiskState:
        """Read a checkpoint, such as a snapshot's, without the history; see :class:`.Journal`.

        Raises:
            FileNotFoundError: there is none of that number.
            StorageError: it is damaged.

        """
        return await self._journal(writes=False).state_at(sequence)

    async def state(self, snapshot: str | None = None) -> DiskState:
        """Read the present state, or that of a snapshot.

        Raises:
            FileNotFoundError: there is no such snapshot.

        """
        return await self.state_in(await self.journal(writes=False), snapshot)

    async def state_in(self, journal: Journal, snapshot: str | None) -> DiskState:
        """Return the last state of a history that was read, or a snapshot's in it.

        Raises:
            FileNotFoundError: there is no such snapshot, or its state is gone.

        """
        if snapshot is None:
            return journal.state
        sequence = get_snapshot(journal.state, snapshot, self.where).sequence
        try:
            return await journal.state_at(sequence)
        except FileNotFoundError:
            reason = (
                f"{self.where}: {checkpoint_key(sequence)} of the snapshot {snapshot!r} is missing;"
                " it was dropped meanwhile, or the disk is damaged (`aiovblk check`)"
            )
            raise FileNotFoundError(errno.ENOENT, reason) from None


def get_snapshot(state: DiskState, snapshot: str, where: str) -> Snapshot:
    """Return a snapshot by name.

    Args:
        state: the disk's present one.
        snapshot: its name.
        where: the disk's folder, for messages.

    Raises:
        FileNotFoundError: there is none of that name.

    """
    try:
        return state.snapshots[snapshot]
    except KeyError:
        names = ", ".join(sorted(state.snapshots)) or "none"
        reason = f"{where}: there is no snapshot {snapshot!r}; there are: {quote(names)}"
        raise FileNotFoundError(errno.ENOENT, reason) from None


def resolve_store(store: AnyStore, path: str) -> tuple[ObjectStore, str]:
    """Return the client of a store, and the folder in it, from what a caller has passed.

    Args:
        store: one of the package ``obstore``, anything with the methods of :class:`.ObjectStore`,
            or a URL, whose path is put before the other.
        path: the folder.

    Raises:
        ValueError: it is no URL of an object store, or the environment is invalid.

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
    """Create a disk, all zeroes: one small object.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        size: bytes, a multiple of ``block_size``.
        block_size: bytes, a power of two from 512.
        chunk_size: bytes, a power of two from 4 KiB to 64 MiB. A chunk is stored anew as a whole
            when about half of its blocks were written; until then these lie in records and
            segments. Smaller ones make that cheaper, larger ones make fewer objects.
        compress: whether to compress chunks (zstd).
        key: 32 bytes to encrypt with (AES-256-GCM). Nothing can be read without it. It does not
            hide which chunks are written and when, and how large they are.

    Raises:
        FileExistsError: there is a disk, or there are remains of one, or ``path`` is inside the
            folder of a disk.
        StorageError: the store has no conditional puts.
        ValueError: a size is invalid.
        OSError: the store fails.

    """
    root, path = resolve_store(store, path)
    check_geometry(size, block_size, chunk_size)
    identity = secrets.token_hex(16)
    manifest = Manifest(identity, size, block_size, chunk_size, compress, None).sealed(key)
    objects, where = root.subfolder(path), location(root, path)
    await ensure_empty(root, path)
    await publish(objects, manifest, where)
    try:
        await require_conditional_puts(objects, manifest, where)
    except StorageError:
        await objects.delete([MANIFEST])
        raise


async def require_conditional_puts(objects: ObjectStore, manifest: Manifest, where: str) -> None:
    """Verify that the store honours conditional puts (``If-None-Match: *``): fencing rests on that.

    It costs a request. Stores that do not know the header do not refuse it, but overwrite.

    Raises:
        StorageError: (EOPNOTSUPP) the store has overwritten the manifest, by the same one.

    """
    try:
        await objects.create(MANIFEST, manifest.encode())
    except FileExistsError:
        return
    raise StorageError(
        errno.EOPNOTSUPP,
        f"{where}: the store overwrites what is to be created only where there is nothing"
        " (If-None-Match: *), so two writers would not notice each other; Ceph does so where a"
        " bucket has versioning: use one without it",
    )


async def trust_origins(store: AnyStore, path: str = "", *, key: bytes | None = None) -> None:
    """Authenticate the ancestors of an encrypted clone that an earlier version has made.

    The caller vouches for them: until then nothing proves that they are right. The error that
    opening the disk raises names them (:attr:`.StorageError.reason`). No-op for any other disk.

    Args:
        store: the store, or a URL, as for :meth:`.ObjectStoreDevice.open`.
        path: the disk's folder in it.
        key: 32 bytes.

    """
    disk = await StoredDisk.find(store, path, key=key)
    if key is not None and disk.manifest.version == PLAIN_VERSION:
        sealed = disk.manifest.sealed(key, SEALED_VERSION)
        await disk.objects.put(MANIFEST, sealed.encode())


async def ensure_empty(root: ObjectStore, path: str) -> None:
    """Verify that a folder is fit for a new disk: empty, and not inside another disk's.

    Raises:
        FileExistsError: there is a disk, or there are remains of one, whose history would be taken
            for the new one's; or it is inside the folder of a disk, which is deleted as a whole.

    """
    objects, where = root.subfolder(path), location(root, path)
    with suppress(FileNotFoundError):
        await objects.get(MANIFEST)
        raise _exists_error(where)
    # Most disks that were deleted in part have some records or checkpoints left.
    for folder in FOLDERS:
        if any(is_key(found.path) for found in await objects.list_objects(folder)):
            reason = (
                f"{where}: there are remains of a deleted disk ({folder}/); delete its whole folder"
            )
            raise FileExistsError(errno.EEXIST, reason)
    # Last, so that an error of the store itself is about the folder that the caller has named.
    await _ensure_not_nested(root, path)


async def _ensure_not_nested(root: ObjectStore, path: str) -> None:
    """Refuse a folder inside that of a disk, which is deleted as a whole."""
    for parent in PurePosixPath(path).parents if path else ():
        folder = "" if str(parent) == "." else str(parent)
        # The credentials may be limited to a part of the store.
        with suppress(FileNotFoundError, PermissionError):
            await root.subfolder(folder).get(MANIFEST)
            where = folder or "the root of this store"
            reason = f"{path} is inside the folder of another disk, {where}; choose one outside"
            raise FileExistsError(errno.EEXIST, reason)


async def publish(objects: ObjectStore, manifest: Manifest, where: str) -> None:
    """Store a manifest by a conditional put; from then on the disk exists.

    Raises:
        FileExistsError: there is a disk.

    """
    data = manifest.encode()
    try:
        await objects.create(MANIFEST, data)
    except FileExistsError:
        if bytes(await objects.get(MANIFEST)) == data:
            return  # our own, of an attempt whose response was lost
        raise _exists_error(where) from None


def _exists_error(where: str) -> FileExistsError:
    reason = f"{where}: there is a disk already; it was left as it is"
    return FileExistsError(errno.EEXIST, reason)


def check_geometry(size: int, block_size: int, chunk_size: int) -> None:
    """Verify the size, block size and chunk size of a disk, all in bytes.

    Raises:
        ValueError: they are invalid, or do not fit together.

    """
    check_count("size", size)
    check_block_sizes(block_size, chunk_size)
    if size < block_size or size % block_size:
        raise ValueError(f"the size must be a multiple of {block_size} bytes, not {size}")
    if size > MAX_CHUNKS * chunk_size:
        raise ValueError(
            f"a disk has at most {MAX_CHUNKS} chunks: for {size} bytes choose a larger chunk_size"
        )


def check_block_sizes(block_size: int, chunk_size: int) -> None:
    """Verify the sizes of blocks and chunks.

    Raises:
        ValueError: one is no power of two, too small or too large.

    """
    check_block_size(
        chunk_size, name="chunk_size", minimum=_MIN_CHUNK_SIZE, maximum=_MAX_CHUNK_SIZE
    )
    # A block is a part of a chunk, or a whole one.
    check_block_size(block_size, minimum=512, maximum=chunk_size)
