"""Make requests to an object store: whole objects by key, conditional puts, retry with backoff.

What a disk needs of a store:

* a read after a write returns what was written;
* a list includes every write that has completed before it;
* a conditional put (:meth:`ObjectStore.create`, ``If-None-Match: *``): of several clients that
  create an object at the same time, exactly one succeeds.

S3 (since 2024), GCS, Azure, Ceph's gateway and a local folder have all three. Objects are never put
in several parts (multipart upload): all are small enough for one request, which has the condition.

Requests that fail for a while are retried here; what a failure means is judged in :mod:`.failures`.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

from ...aio.backoff import RETRY_TIMEOUT, retry
from ...aio.gather import run_bounded
from .access import Access
from .failures import classify, is_beyond_end
from .folder import Directories, classify_folder_error, leftovers_in, put_in_folder

if TYPE_CHECKING:
    from obstore.store import ObjectStore as ObstoreStore
    from typing_extensions import TypeIs  # every type checker has it

T = TypeVar("T")

Buffer = bytes | bytearray | memoryview

_DELETIONS = 16  # concurrent requests, where each deletes one object


class ObjectInfo(NamedTuple):
    """An object in a list."""

    path: str
    size: int
    """Bytes."""


class ObjectStore(Protocol):
    """The requests that a disk makes of a store.

    Each is retried until it succeeds, fails permanently, or the retry timeout has passed.
    """

    async def get(self, path: str) -> memoryview:
        """Return the object's contents.

        Raises:
            FileNotFoundError: it does not exist.
            OSError: the store fails.

        """

    async def get_range(self, path: str, start: int, length: int) -> memoryview:
        """Return some of the object's bytes (ranged GET).

        Fewer where the object ends before the range does, and none where it ends before the range
        begins: an object may be damaged, so that is no error of the request.

        Raises:
            FileNotFoundError: it does not exist.
            OSError: the store fails.

        """

    async def put(self, path: str, data: Buffer) -> None:
        """Store the object, or replace it; it is durable when this returns."""

    async def create(self, path: str, data: Buffer) -> None:
        """Store the object only if it does not exist (conditional put); durable on return.

        Raises:
            FileExistsError: it exists. After a retry it may be the caller's own.

        """

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete the objects; those that do not exist are no error."""

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        """Return the objects below a folder, sorted by path, beginning after the path ``after``."""

    def subfolder(self, path: str) -> ObjectStore:
        """Return the same store, with all paths relative to a folder of it."""


AnyStore: TypeAlias = "ObjectStore | ObstoreStore | str"
"""What a caller may pass: an :class:`ObjectStore`, a store of the package ``obstore``, or a URL."""


class _RacedError(Exception):
    """A put raced with another one of the same object, and is to be retried."""


class ObjectStoreClient:
    """An :class:`ObjectStore` that makes its requests by the package ``obstore``.

    A request whose credentials are refused is retried once with renewed ones, from the environment
    and its files, where the store was made from a URL (:func:`from_url`).

    Concurrency: any number of requests.

    Cancellation: safe. A write that is cancelled may still reach the store.

    Args:
        store: of obstore.
        folder: that all paths are relative to; empty for the store's own root.
        patience: the retry timeout: seconds for which a failing request is retried; see
            :data:`~aiovblk.aio.backoff.RETRY_TIMEOUT`.

    """

    def __init__(
        self, store: ObstoreStore | Access, folder: str = "", *, patience: float = RETRY_TIMEOUT
    ) -> None:
        self._access = store if isinstance(store, Access) else Access(store)
        self._folder = folder.strip("/")
        self._timeout = patience
        self._root = local_root(self._access.store)
        self._directories = Directories()

    def subfolder(self, path: str) -> ObjectStoreClient:
        """See :class:`ObjectStore`."""
        other = ObjectStoreClient(self._access, self._full(path), patience=self._timeout)
        other._directories = self._directories
        return other

    async def get(self, path: str) -> memoryview:
        """See :class:`ObjectStore`."""
        return await self._retry(path, self._get, may_be_absent=True)

    async def get_range(self, path: str, start: int, length: int) -> memoryview:
        """See :class:`ObjectStore`."""
        return await self._retry(path, partial(self._get_range, start, length), may_be_absent=True)

    async def put(self, path: str, data: Buffer) -> None:
        """See :class:`ObjectStore`."""
        await self._retry(path, partial(self._put, data, "overwrite"))

    async def create(self, path: str, data: Buffer) -> None:
        """See :class:`ObjectStore`."""
        await self._retry(path, partial(self._put, data, "create"))

    async def delete(self, paths: Iterable[str]) -> None:
        """See :class:`ObjectStore`."""
        paths = list(paths)
        if self._root is None and len(paths) > 1:
            with suppress(FileNotFoundError):
                await self._retry(paths[0], partial(self._delete, paths), may_be_absent=True)
                return
            # For Azure and GCS a missing object is an error, and the package stops at it.
        await run_bounded((partial(self._delete_one, path) for path in paths), limit=_DELETIONS)

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        """See :class:`ObjectStore`."""
        listed = await self._retry(folder, partial(self._list, after))
        return await asyncio.to_thread(sorted, listed)  # there may be millions

    def where(self, path: str) -> str:
        """Return the name of an object or folder for messages, with the store's before it."""
        full = self._full(path)
        if self._root is None:
            return self._access.where(full)
        return os.path.join(self._root, full)

    def _full(self, path: str) -> str:
        return f"{self._folder}/{path}".strip("/")

    async def _get(self, store: ObstoreStore, path: str) -> memoryview:
        import obstore

        response = await obstore.get_async(store, path)
        return memoryview(await response.bytes_async())

    async def _get_range(
        self, start: int, length: int, store: ObstoreStore, path: str
    ) -> memoryview:
        import obstore

        try:
            found = await obstore.get_range_async(store, path, start=start, length=length)
        except Exception as exc:  # obstore has one class for this and for a server that is down
            if not is_beyond_end(exc):
                raise
            return memoryview(b"")
        return memoryview(found)

    async def _put(self, data: Buffer, mode: Any, store: ObstoreStore, path: str) -> None:
        if self._root is not None:  # the package makes the name before the data, and syncs neither
            args = (self._root, path, data, self._directories)
            await asyncio.to_thread(put_in_folder, *args, replaces=mode == "overwrite")
            return
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            await obstore.put_async(store, path, data, mode=mode, use_multipart=False)
        except AlreadyExistsError:
            # The package makes this of every 409, and S3 answers that also to a put that races
            # with another one (ConditionalRequestConflict, OperationAborted): retry it.
            if mode == "create" and await _exists(store, path):
                raise FileExistsError from None
            raise _RacedError from None

    async def _list(self, after: str, store: ObstoreStore, folder: str) -> list[ObjectInfo]:
        import obstore

        own = len(self._folder) + 1 if self._folder else 0
        offset = self._full(after) if after else None
        listed = []
        async for page in obstore.list(store, folder, offset=offset, chunk_size=1000):
            listed += [ObjectInfo(each["path"][own:], each["size"]) for each in page]
        return listed

    async def _delete_one(self, path: str) -> None:
        with suppress(FileNotFoundError):
            await self._retry(path, partial(self._delete, [path]), may_be_absent=True)

    async def _delete(self, paths: Sequence[str], store: ObstoreStore, first: str) -> None:
        import obstore

        await obstore.delete_async(store, [self._full(path) for path in paths])

    async def leftovers(self, folders: Iterable[str], *, delete: bool) -> list[int]:
        """Find old temporary files in a local folder, which no list includes; for gc.

        Args:
            folders: to look in.
            delete: whether to delete the files.

        Returns:
            Bytes of each file.

        """
        if self._root is None:
            return []
        directories = [f"{self._root}/{self._full(folder)}" for folder in folders]
        found = [await asyncio.to_thread(leftovers_in, each, delete=delete) for each in directories]
        return [size for sizes in found for size in sizes]

    async def _retry(
        self,
        path: str,
        request: Callable[[ObstoreStore, str], Awaitable[T]],
        *,
        may_be_absent: bool = False,
    ) -> T:
        """Make a request; retry with backoff until it succeeds or the retry timeout has passed.

        Args:
            path: of the object.
            request: makes it, of a store and the object's full path.
            may_be_absent: whether a 404 is about the object, rather than the bucket.

        """
        access, where, path = self._access, self.where(path), self._full(path)
        attempt = partial(_attempt, access, request, path)
        if self._root is None:
            judge = partial(classify_error, access=access, path=path, may_be_absent=may_be_absent)
        else:
            judge = partial(classify_folder_error, path=where)
        return await retry(attempt, judge, timeout=self._timeout, notices=access.notices)


async def _attempt(
    access: Access, request: Callable[[ObstoreStore, str], Awaitable[T]], path: str
) -> T:
    """Make a request; if the credentials are refused, retry it once with renewed ones."""
    store = access.store
    try:
        result = await request(store, path)
    except Exception as exc:
        if not classify(exc, path).credentials or not await access.renew(store):
            raise
        result = await request(access.store, path)
    access.known = True
    return result


async def _exists(store: ObstoreStore, path: str) -> bool:
    import obstore

    try:
        await obstore.head_async(store, path)
    except FileNotFoundError:
        return False
    return True


def classify_error(
    failure: Exception, access: Access, path: str, *, may_be_absent: bool
) -> tuple[OSError, bool]:
    """Return an exception of obstore as an OSError, and whether to retry the request."""
    where = access.where(path)
    if isinstance(failure, _RacedError):
        return OSError(errno.EIO, f"{where}: another request is writing it; try again"), True
    judged = classify(failure, where, known=access.known, may_be_absent=may_be_absent)
    # A live disk waits until its credentials are renewed, at most for the retry timeout.
    wait_for_renewal = judged.expired and access.known and access.renewable
    return judged.error, judged.transient or wait_for_renewal


def location(store: ObjectStore, path: str = "") -> str:
    """Return the name of a folder of a store for messages; never empty."""
    name = store.where(path) if isinstance(store, ObjectStoreClient) else path
    return name.rstrip("/") or "this store"


def local_root(store: ObstoreStore) -> str | None:
    """Return the directory of a store of obstore that is a local folder, or None."""
    from obstore.store import LocalStore

    if not isinstance(store, LocalStore):
        return None
    return os.fspath(store.prefix or "/")


def is_store(store: object) -> TypeIs[ObstoreStore]:
    """Whether it is a store of the package ``obstore``."""
    return type(store).__module__.partition(".")[0] == "obstore"
