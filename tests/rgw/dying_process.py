"""A process that uses a store until it dies: what it has asked for then may arrive, late."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from random import Random
from typing import Any, TypeVar

from aiovblk.storage.objects import ObjectInfo, ObjectStoreClient
from aiovblk.storage.objects.client import Buffer

from ..support.object_store import DeadError

T = TypeVar("T")


class Life:
    """Of a process.

    Args:
        random: decides about what is in flight at its end.
        changes: after which it ends, a moment later, if it has not been ended before.

    """

    def __init__(self, random: Random, changes: int | None = None) -> None:
        self._random = random
        self._changes = changes
        self._over = asyncio.get_running_loop().create_future()
        self._in_flight: set[asyncio.Task[Any]] = set()

    def end(self) -> None:
        """Cut the connections of some requests; others are with the store already."""
        if self._over.done():
            return
        self._over.set_result(None)
        for task in self._in_flight:
            if self._random.random() < 0.5:
                task.cancel()

    def change(self) -> None:
        """Count a change of the store, before it is asked for."""
        if self._changes == 0:
            # About as long as a request takes, so that it is met in all its parts.
            asyncio.get_running_loop().call_later(self._random.uniform(0, 0.02), self.end)
        elif self._changes:
            self._changes -= 1

    async def ask(self, request: Coroutine[Any, Any, T]) -> T:
        """Make a request.

        Raises:
            DeadError: the process dies, or has died.

        """
        if self._over.done():
            request.close()
            raise DeadError
        held = self._changes == 0 and self._random.random() < 0.5
        task = asyncio.create_task(_held(request, self._random) if held else request)
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)
        task.add_done_callback(lambda done: request.close())  # it may not have begun
        await asyncio.wait([task, self._over], return_when=asyncio.FIRST_COMPLETED)
        if self._over.done():
            raise DeadError
        return await task

    async def settle(self) -> None:
        """Wait until nothing is in flight any more."""
        await asyncio.gather(*self._in_flight, return_exceptions=True)


async def _held(request: Coroutine[Any, Any, T], random: Random) -> T:
    """Make a request that the network holds back, until the next process has begun perhaps."""
    await asyncio.sleep(random.uniform(0.02, 0.5))
    return await request


class Mortal:
    """See :class:`aiovblk.storage.objects.ObjectStore`."""

    def __init__(self, store: ObjectStoreClient, life: Life) -> None:
        self.life = life
        self._store = store

    def subfolder(self, path: str) -> Mortal:
        return Mortal(self._store.subfolder(path), self.life)

    async def get(self, path: str) -> memoryview:
        return await self.life.ask(self._store.get(path))

    async def put(self, path: str, data: Buffer) -> None:
        self.life.change()
        await self.life.ask(self._store.put(path, bytes(data)))

    async def create(self, path: str, data: Buffer) -> None:
        self.life.change()
        await self.life.ask(self._store.create(path, bytes(data)))

    async def delete(self, paths: Iterable[str]) -> None:
        self.life.change()
        await self.life.ask(self._store.delete(paths))

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        return await self.life.ask(self._store.list_objects(folder, after=after))
