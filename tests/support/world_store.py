"""The store of a world: requests fail before they are made, after it, or are made late."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable
from contextlib import suppress
from random import Random
from typing import TypeVar

from aiovblk.storage.objects import ObjectInfo
from aiovblk.storage.objects.client import Buffer

T = TypeVar("T")

LATE = 90.0
"""Seconds until a request is made whose sender has given up, at most."""


class WorldStore:
    """The store: objects, and requests that go wrong."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.objects: dict[str, bytes] = {}
        self.faults = 0.0  # probability of each request

    def client(self) -> WorldClient:
        return WorldClient(self, "", [])

    def drop_lease(self) -> None:
        self.objects.pop("disk/lease", None)


class WorldClient:
    """The store, as one process sees it."""

    def __init__(self, store: WorldStore, folder: str, dead: list[bool]) -> None:
        self.store = store
        self._folder = folder
        self._dead = dead  # shared by all clients of the process; empty while it lives

    def subfolder(self, path: str) -> WorldClient:
        return WorldClient(self.store, self._full(path), self._dead)

    def kill(self) -> None:
        self._dead.append(True)

    def _full(self, path: str) -> str:
        return f"{self._folder}/{path}".strip("/")

    async def get(self, path: str) -> memoryview:
        return await self._request(lambda: self._get(path))

    async def get_range(self, path: str, start: int, length: int) -> memoryview:
        return await self._request(lambda: self._get(path)[start : start + length])

    async def put(self, path: str, data: Buffer) -> None:
        full, copied = self._full(path), bytes(data)
        await self._request(lambda: self.store.objects.update({full: copied}), changes=True)

    async def create(self, path: str, data: Buffer) -> None:
        full, copied = self._full(path), bytes(data)

        def make() -> None:
            if full in self.store.objects:
                raise FileExistsError(errno.EEXIST, path)
            self.store.objects[full] = copied

        await self._request(make, changes=True)

    async def delete(self, paths: Iterable[str]) -> None:
        for full in [self._full(path) for path in paths]:
            await self._request(lambda full=full: self.store.objects.pop(full, None), changes=True)  # type: ignore[misc]  # a default argument

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        return await self._request(lambda: self._list(folder, after))

    def _get(self, path: str) -> memoryview:
        try:
            return memoryview(self.store.objects[self._full(path)])
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, path) from None

    def _list(self, folder: str, after: str) -> list[ObjectInfo]:
        own = len(self._folder) + 1 if self._folder else 0
        begin = self._full(folder) + "/"
        return [
            ObjectInfo(name[own:], len(self.store.objects[name]))
            for name in sorted(self.store.objects)
            if name.startswith(begin) and (not after or name > self._full(after))
        ]

    async def _request(self, make: Callable[[], T], *, changes: bool = False) -> T:
        random = self.store.random
        self._check_alive()
        await asyncio.sleep(random.random())
        if self._dead:
            # It was sent before: it is made or not, perhaps long after.
            if changes and random.random() < 0.7:
                self._make_late(make)
            self._check_alive()
        fault = random.choice(["before", "after", "late"])
        if random.random() >= self.store.faults:
            fault = ""
        if fault == "before":
            raise OSError(errno.EIO, "the request was not made")
        if fault == "late" and changes:
            self._make_late(make)
            raise OSError(errno.EIO, "no answer, and the request is on its way")
        result = make()
        await asyncio.sleep(random.random())
        self._check_alive()
        if fault:
            raise OSError(errno.EIO, "no answer")
        return result

    def _make_late(self, make: Callable[[], object]) -> None:
        def try_it() -> None:
            with suppress(OSError):
                make()

        delay = self.store.random.choice([0.0, 1.0, 5.0, LATE]) * self.store.random.random()
        asyncio.get_running_loop().call_later(delay, try_it)

    def _check_alive(self) -> None:
        if self._dead:
            raise OSError(errno.EIO, "the process is dead")
