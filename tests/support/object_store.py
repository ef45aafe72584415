"""An object store in memory with injected delays, failures and crashes, and a disk in it."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiovblk.storage.objects import ObjectInfo, ObjectStoreDevice, create
from aiovblk.storage.objects.client import Buffer

CHUNK, BLOCK = 16384, 4096
SIZE = 8 * CHUNK

Before = Callable[[str, str], object]
"""Called before a request, with its kind and path; what it returns is awaited, if it can be."""


def undisturbed(request: str, path: str) -> None:
    """Do nothing before a request."""


class DeadError(OSError):
    """The process that makes the request has crashed."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "crashed")


class Bucket:
    """The stored objects, which outlive the processes that use them."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.ignores_conditions = False  # as stores without conditional puts do

    def client(self, *, crash_after: int | None = None) -> Client:
        """Return a client of a new process.

        Args:
            crash_after: changes, after which it crashes at the next; that may be made or not.

        """
        return Client(self, "", _Process(crash_after))

    def forget_lease(self) -> None:
        """Make the lease expire: delete it."""
        self.objects.pop("disk/lease", None)

    def names(self, folder: str) -> list[str]:
        return sorted(name for name in self.objects if name.startswith(folder + "/"))


class _Process:
    def __init__(self, changes: int | None) -> None:
        self.changes = changes
        self.made = 0
        self.has_crashed = False
        self.loses_a_response = False

    def step(self) -> None:
        if self.has_crashed:
            raise DeadError
        self.made += 1
        if self.changes is not None and self.made > self.changes:
            self.has_crashed = True


class Client:
    """An object store client of one process; see :class:`aiovblk.storage.objects.ObjectStore`."""

    def __init__(self, bucket: Bucket, folder: str, process: _Process) -> None:
        self.bucket = bucket
        self.folder = folder
        self.process = process
        self.before: Before = undisturbed

    def subfolder(self, path: str) -> Client:
        other = Client(self.bucket, self._full(path), self.process)
        other.before = lambda request, name: self.before(request, name)
        return other

    def crash(self) -> None:
        self.process.has_crashed = True

    def lose_a_response(self) -> None:
        """Lose the response to the next create(); the object is stored."""
        self.process.loses_a_response = True

    async def get(self, path: str) -> memoryview:
        await self._begin("get", path)
        try:
            return memoryview(self.bucket.objects[self._full(path)])
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, path) from None

    async def get_range(self, path: str, start: int, length: int) -> memoryview:
        return (await self.get(path))[start : start + length]

    async def put(self, path: str, data: Buffer) -> None:
        await self._begin("put", path)
        self._change(path, data)

    async def create(self, path: str, data: Buffer) -> None:
        await self._begin("create", path)
        if self._full(path) in self.bucket.objects and not self.bucket.ignores_conditions:
            raise FileExistsError(errno.EEXIST, path)
        self._change(path, data)
        if self.process.loses_a_response:
            self.process.loses_a_response = False
            raise OSError(errno.EIO, "no response")

    async def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            await self._begin("delete", path)
            self._change(path, None)

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        await self._begin("find", folder)
        own = len(self.folder) + 1 if self.folder else 0
        return [
            ObjectInfo(name[own:], len(self.bucket.objects[name]))
            for name in self.bucket.names(self._full(folder))
            if not after or name > self._full(after)
        ]

    async def _begin(self, request: str, path: str) -> None:
        if self.process.has_crashed:
            raise DeadError
        self.bucket.requests.append((request, self._full(path)))
        waits = self.before(request, path)
        if hasattr(waits, "__await__"):
            await waits
        if self.process.has_crashed:
            raise DeadError

    def _change(self, path: str, data: Buffer | None) -> None:
        crashes = self.process.changes is not None and self.process.made >= self.process.changes
        # The last change of all is made or not; the caller gets no response.
        if not crashes or self.process.made % 2:
            if data is None:
                self.bucket.objects.pop(self._full(path), None)
            else:
                self.bucket.objects[self._full(path)] = bytes(data)
        self.process.step()
        if crashes:
            raise DeadError

    def _full(self, path: str) -> str:
        return f"{self.folder}/{path}".strip("/")


# Actions before requests, which are named by kind and folder: ``get log``


def _request_name(request: str, path: str) -> str:
    return f"{request} {path.partition('/')[0]}"


def failing(*requests: str) -> Before:
    """Make the next of each of these requests fail."""
    left = list(requests)

    def before(request: str, path: str) -> None:
        name = _request_name(request, path)
        if name in left:
            left.remove(name)
            raise OSError(errno.EIO, "the store is away")

    return before


def once(
    client: Client, word: str, action: Callable[[], Awaitable[object]], *, after: str = ""
) -> None:
    """Run an action before the next such request; with ``after``, the next one after that."""
    waiting = bool(after)

    async def act() -> None:
        client.before = undisturbed
        await action()

    def before(request: str, path: str) -> Any:
        nonlocal waiting
        if waiting:
            waiting = _request_name(request, path) != after
            return None
        return act() if _request_name(request, path) == word else None

    client.before = before


# A disk


async def make_disk(bucket: Bucket, path: str = "disk", **options: Any) -> None:
    """Create a small disk."""
    await create(bucket.client(), path, **{"size": SIZE, "chunk_size": CHUNK} | options)


async def bucket_with_disk() -> Bucket:
    bucket = Bucket()
    await make_disk(bucket)
    return bucket


async def open_disk(client: Client, path: str = "disk", **options: Any) -> ObjectStoreDevice:
    return await ObjectStoreDevice.open(client, path, **options)


@asynccontextmanager
async def opened(client: Client, **options: Any) -> AsyncIterator[ObjectStoreDevice]:
    device = await open_disk(client, **options)
    try:
        yield device
    finally:
        await device.unmount()


async def write(device: ObjectStoreDevice, offset: int, data: bytes) -> None:
    await device.write(offset, memoryview(data))


async def fill(device: ObjectStoreDevice, index: int, letter: bytes) -> None:
    """Fill a chunk with a letter."""
    await write(device, index * CHUNK, letter * CHUNK)


async def contents(bucket: Bucket, path: str = "disk", *, snapshot: str | None = None) -> bytes:
    """Return all data of a disk, as it is stored."""
    device = await open_disk(bucket.client(), path, snapshot=snapshot, read_only=True)
    data = bytes(await device.read(0, device.size))
    await device.unmount()
    return data


async def letter_of(bucket: Bucket, snapshot: str | None = None) -> bytes:
    """Return the byte that fills the first chunk, of a disk or a snapshot."""
    data = (await contents(bucket, snapshot=snapshot))[:CHUNK]
    assert data == data[:1] * CHUNK
    return data[:1]
