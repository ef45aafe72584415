"""An object store in memory, whose owner decides what happens to whom and when."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from aiovblk.storage.objects import Found
from aiovblk.storage.objects.store import Buffer


class DeadError(OSError):
    """The process that asks has crashed, as far as the store is concerned."""

    def __init__(self) -> None:
        super().__init__(errno.EIO, "crashed")


class Bucket:
    """What outlives the processes that use it."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []

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

    def step(self) -> None:
        if self.is_over:
            raise DeadError
        self.made += 1
        if self.changes is not None and self.made > self.changes:
            self.is_over = True


class Client:
    """See :class:`aiovblk.storage.objects.Objects`."""

    def __init__(self, bucket: Bucket, folder: str, life: _Life) -> None:
        self.bucket = bucket
        self.folder = folder
        self.life = life
        self.before: Callable[[str, str], object] = lambda request, path: None

    def at(self, path: str) -> Client:
        other = Client(self.bucket, self._full(path), self.life)
        other.before = lambda request, name: self.before(request, name)
        return other

    def crash(self) -> None:
        self.life.is_over = True

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
        if self._full(path) in self.bucket.objects:
            raise FileExistsError(errno.EEXIST, path)
        self._change(path, data)

    async def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            await self._begin("delete", path)
            self._change(path, None)

    async def find(self, folder: str, *, after: str = "") -> list[Found]:
        await self._begin("find", folder)
        own = len(self.folder) + 1 if self.folder else 0
        return [
            Found(name[own:], len(self.bucket.objects[name]))
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
