"""An object store in memory, whose owner decides what happens when, and a disk in it."""

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
"""What happens before a request, to a path; if it can be awaited the request waits for it."""


def undisturbed(request: str, path: str) -> None:
    """Nothing."""


class DeadError(OSError):
    """The process that asks has crashed, as far as the store is concerned."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "crashed")


class Bucket:
    """What outlives the processes that use it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.ignores_conditions = False  # as stores do that know of none

    def client(self, *, lives: int | None = None) -> Client:
        """A process, which crashes at the change after so many (and that one may be made)."""
        return Client(self, "", _Life(lives))

    def forget_lease(self) -> None:
        """As if it had not been renewed for long."""
        self.objects.pop("disk/lease", None)

    def names(self, folder: str) -> list[str]:
        return sorted(name for name in self.objects if name.startswith(folder + "/"))


class _Life:
    def __init__(self, changes: int | None) -> None:
        self.changes = changes
        self.made = 0
        self.is_over = False
        self.loses_an_answer = False

    def step(self) -> None:
        if self.is_over:
            raise DeadError
        self.made += 1
        if self.changes is not None and self.made > self.changes:
            self.is_over = True


class Client:
    """See :class:`aiovblk.storage.objects.ObjectStore`."""

    def __init__(self, bucket: Bucket, folder: str, life: _Life) -> None:
        self.bucket = bucket
        self.folder = folder
        self.life = life
        self.before: Before = undisturbed

    def subfolder(self, path: str) -> Client:
        other = Client(self.bucket, self._full(path), self.life)
        other.before = lambda request, name: self.before(request, name)
        return other

    def crash(self) -> None:
        self.life.is_over = True

    def lose_an_answer(self) -> None:
        """Of the next object that is created, which is there then."""
        self.life.loses_an_answer = True

    async def get(self, path: str) -> memoryview:
        await self._begin("get", path)
        try:
            return memoryview(self.bucket.objects[self._full(path)])
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, path) from None

    async def put(self, path: str, data: Buffer) -> None:
        await self._begin("put", path)
        self._change(path, data)

    async def create(self, path: str, data: Buffer) -> None:
        await self._begin("create", path)
        if self._full(path) in self.bucket.objects and not self.bucket.ignores_conditions:
            raise FileExistsError(errno.EEXIST, path)
        self._change(path, data)
        if self.life.loses_an_answer:
            self.life.loses_an_answer = False
            raise OSError(errno.EIO, "no answer")

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
        if self.life.is_over:
            raise DeadError
        self.bucket.requests.append((request, self._full(path)))
        waits = self.before(request, path)
        if hasattr(waits, "__await__"):
            await waits
        if self.life.is_over:
            raise DeadError

    def _change(self, path: str, data: Buffer | None) -> None:
        dies = self.life.changes is not None and self.life.made >= self.life.changes
        # The last change of all is made or not; whoever asked for it does not hear of it.
        if not dies or self.life.made % 2:
            if data is None:
                self.bucket.objects.pop(self._full(path), None)
            else:
                self.bucket.objects[self._full(path)] = bytes(data)
        self.life.step()
        if dies:
            raise DeadError

    def _full(self, path: str) -> str:
        return f"{self.folder}/{path}".strip("/")


# What happens before requests, which are called by what is asked and by folder: ``get log``


def _called(request: str, path: str) -> str:
    return f"{request} {path.partition('/')[0]}"


def failing(*requests: str) -> Before:
    """These fail, each once."""
    left = list(requests)

    def before(request: str, path: str) -> None:
        word = _called(request, path)
        if word in left:
            left.remove(word)
            raise OSError(errno.EIO, "the store is away")

    return before


def once(
    client: Client, word: str, action: Callable[[], Awaitable[object]], *, after: str = ""
) -> None:
    """Do something before the next such request, or the next after one of another kind."""
    waiting = bool(after)

    async def act() -> None:
        client.before = undisturbed
        await action()

    def before(request: str, path: str) -> Any:
        nonlocal waiting
        if waiting:
            waiting = _called(request, path) != after
            return None
        return act() if _called(request, path) == word else None

    client.before = before


# A disk


async def make_disk(bucket: Bucket, path: str = "disk", **options: Any) -> None:
    """Make one that is small."""
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
    """Write a chunk."""
    await write(device, index * CHUNK, letter * CHUNK)


async def contents(bucket: Bucket, path: str = "disk", *, snapshot: str | None = None) -> bytes:
    """All of a disk, as it is stored."""
    device = await open_disk(bucket.client(), path, snapshot=snapshot, read_only=True)
    data = bytes(await device.read(0, device.size))
    await device.unmount()
    return data
