"""A process that crashes while requests are in flight; some of them arrive late."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from random import Random
from typing import Any, TypeVar

from aiovblk.storage.objects import ObjectInfo, ObjectStoreClient
from aiovblk.storage.objects.client import Buffer

from ..support.object_store import DeadError

T = TypeVar("T")


class ProcessLife:
    """The life of a process, and its requests in flight.

    Args:
        random: decides which requests in flight are cut off by the crash.
        changes: after which it crashes, a moment later, unless it has been ended before.

    """

    def __init__(self, random: Random, changes: int | None = None) -> None:
        self._random = random
        self._changes = changes
        self._over = asyncio.get_running_loop().create_future()
        self._in_flight: set[asyncio.Task[Any]] = set()

    def end(self) -> None:
        """Crash: cut the connections of some requests; others have reached the store."""
        if self._over.done():
            return
        self._over.set_result(None)
        for task in self._in_flight:
            if self._random.random() < 0.5:
                task.cancel()

    def change(self) -> None:
        """Count a change of the store, before the request."""
        if self._changes == 0:
            # About as long as a request takes, so that the crash meets it at any point.
            asyncio.get_running_loop().call_later(self._random.uniform(0, 0.02), self.end)
        elif self._changes:
            self._changes -= 1

    async def run(self, request: Coroutine[Any, Any, T]) -> T:
        """Make a request.

        Raises:
            DeadError: the process crashes, or has crashed.

        """
        if self._over.done():
            request.close()
            raise DeadError
        delayed = self._changes == 0 and self._random.random() < 0.5
        task = asyncio.create_task(_delayed(request, self._random) if delayed else request)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        task.add_done_callback(lambda done: request.close())  # it may not have begun
        await asyncio.wait([task, self._over], return_when=asyncio.FIRST_COMPLETED)
        if self._over.done():
            raise DeadError
        return await task

    async def settle(self) -> None:
        """Wait until no request is in flight."""
        await asyncio.gather(*self._in_flight, return_exceptions=True)


async def _delayed(request: Coroutine[Any, Any, T], random: Random) -> T:
    """Make a request that the network delays, perhaps until the next process has begun."""
    await asyncio.sleep(random.uniform(0.02, 0.5))
    return await request


class CrashingStore:
    """An object store client of a process that crashes."""

    def __init__(self, store: ObjectStoreClient, life: ProcessLife) -> None:
        self.life = life
        self._store = store

    def subfolder(self, path: str) -> CrashingStore:
        return CrashingStore(self._store.subfolder(path), self.life)

    async def get(self, path: str) -> memoryview:
        return await self.life.run(self._store.get(path))

    async def get_range(self, path: str, start: int, length: int) -> memoryview:
        return await self.life.run(self._store.get_range(path, start, length))

    async def put(self, path: str, data: Buffer) -> None:
        self.life.change()
        await self.life.run(self._store.put(path, bytes(data)))

    async def create(self, path: str, data: Buffer) -> None:
        self.life.change()
        await self.life.run(self._store.create(path, bytes(data)))

    async def delete(self, paths: Iterable[str]) -> None:
        self.life.change()
        await self.life.run(self._store.delete(paths))

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        return await self.life.run(self._store.list_objects(folder, after=after))
