"""An object store, as far as a disk needs one: whole objects, by path.

What is asked of it: a read after a write sees it, a list sees every write that came before it, and
of several who create an object one succeeds. S3 (since 2024), GCS, Azure, Ceph's gateway and a
local folder do all that.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

from ...aio.backoff import RETRY_TIMEOUT, retry
from ...aio.gather import run_bounded
from ...arguments import check_seconds
from ...errors import MissingExtraError
from ...extras import extra
from ...text import quote
from ..fsync import sync_path
from ..http.url import redact_url
from .access import Access
from .aws import options_of_environment
from .failures import classify
from .folder import Directories, classify_folder_error, leftovers_in, write_object

if TYPE_CHECKING:
    from obstore.store import ObjectStore as ObstoreStore
    from typing_extensions import TypeIs  # every type checker has it

T = TypeVar("T")

Buffer = bytes | bytearray | memoryview

_DELETIONS = 16  # single ones that are made at the same time


class ObjectInfo(NamedTuple):
    """An object that a list has."""

    path: str
    size: int
    """Bytes."""


class ObjectStore(Protocol):
    """The requests. Each is repeated until it succeeds, fails for good, or patience has run out."""

    async def get(self, path: str) -> memoryview:
        """Return the object.

        Raises:
            FileNotFoundError: there is none.
            OSError: anything else.

        """

    async def put(self, path: str, data: Buffer) -> None:
        """Make the object, or replace it; it is durable when this returns."""

    async def create(self, path: str, data: Buffer) -> None:
        """Make the object; it is durable when this returns.

        Raises:
            FileExistsError: there is one. After a repetition it may be the caller's own.

        """

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete the objects; those that are not there are as good as deleted."""

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        """Return what is in the folder, sorted by path, beginning after the path ``after``."""

    def subfolder(self, path: str) -> ObjectStore:
        """Return the same store, seen from a folder of it."""


AnyStore: TypeAlias = "ObjectStore | ObstoreStore | str"
"""What a caller may give: the requests, a store of the package ``obstore``, or a URL."""


class _RacedError(Exception):
    """A put met another one of the same object, and is to be made again."""


class ObjectStoreClient:
    """:class:`ObjectStore` by the package ``obstore``.

    A request that is refused for its credentials is made once more, with those that the environment
    and its files have then, where the store was made from a URL (:func:`from_url`).

    Args:
        store: of obstore.
        folder: that all paths are relative to; none for the store's own root.
        patience: seconds; see :data:`.patience.RETRY_TIMEOUT`.

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
        return await self._retry(path, self._get, absent=True)

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
                await self._retry(paths[0], partial(self._delete, paths), absent=True)
                return
            # Azure and GCS mind a missing object, and the package stops there.
        await run_bounded((partial(self._delete_one, path) for path in paths), limit=_DELETIONS)

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        """See :class:`ObjectStore`."""
        found = await self._retry(folder, partial(self._list, after))
        return await asyncio.to_thread(sorted, found)  # there may be millions

    def where(self, path: str) -> str:
        """What an object, or a folder, is called in messages."""
        full = self._full(path)
        if self._root is None:
            return self._access.where(full)
        return os.path.join(self._root, full)

    def _full(self, path: str) -> str:
        return f"{self._folder}/{path}".strip("/")

    async def _get(self, store: ObstoreStore, path: str) -> memoryview:
        import obstore

        found = await obstore.get_async(store, path)
        return memoryview(await found.bytes_async())

    async def _put(self, data: Buffer, mode: Any, store: ObstoreStore, path: str) -> None:
        if self._root is not None:  # the package puts names before data, and syncs neither
            args = (self._root, path, data, self._directories)
            await asyncio.to_thread(_put_in_folder, *args, replaces=mode == "overwrite")
            return
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            await obstore.put_async(store, path, data, mode=mode, use_multipart=False)
        except AlreadyExistsError:
            # Every 409 becomes this one, and S3 says that of a put too that races with another
            # (ConditionalRequestConflict, OperationAborted): it is to be made again.
            if mode == "create" and await _is_there(store, path):
                raise FileExistsError from None
            raise _RacedError from None

    async def _list(self, after: str, store: ObstoreStore, folder: str) -> list[ObjectInfo]:
        import obstore

        own = len(self._folder) + 1 if self._folder else 0
        offset = self._full(after) if after else None
        found = []
        async for page in obstore.list(store, folder, offset=offset, chunk_size=1000):
            found += [ObjectInfo(each["path"][own:], each["size"]) for each in page]
        return found

    async def _delete_one(self, path: str) -> None:
        with suppress(FileNotFoundError):
            await self._retry(path, partial(self._delete, [path]), absent=True)

    async def _delete(self, paths: Sequence[str], store: ObstoreStore, first: str) -> None:
        import obstore

        await obstore.delete_async(store, [self._full(path) for path in paths])

    async def leftovers(self, folders: Iterable[str], *, delete: bool) -> list[int]:
        """Find what crashed writers have left in a local folder under names that no list has.

        Args:
            folders: to look in.
            delete: whether to delete it.

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
        absent: bool = False,
    ) -> T:
        """Make a request until it succeeds.

        Args:
            path: of the object.
            request: makes it of a store and the object's whole path.
            absent: whether it is about an object that may be missing.

        """
        access, where, path = self._access, self.where(path), self._full(path)
        attempt = partial(_attempt, access, request, path)
        if self._root is None:
            explain = partial(classify_error, access=access, path=path, absent=absent)
        else:
            explain = partial(classify_folder_error, path=where)
        return await retry(attempt, explain, timeout=self._timeout, notices=access.notices)


async def _attempt(
    access: Access, request: Callable[[ObstoreStore, str], Awaitable[T]], path: str
) -> T:
    """Make a request, and once more with new credentials if they are refused."""
    store = access.store
    try:
        result = await request(store, path)
    except Exception as exc:
        if not classify(exc, path).credentials or not await access.renew(store):
            raise
        result = await request(access.store, path)
    access.known = True
    return result


async def _is_there(store: ObstoreStore, path: str) -> bool:
    import obstore

    try:
        await obstore.head_async(store, path)
    except FileNotFoundError:
        return False
    return True


def classify_error(
    failure: Exception, access: Access, path: str, *, absent: bool
) -> tuple[OSError, bool]:
    """Return what obstore raised as an OSError, and whether it may pass by itself."""
    where = access.where(path)
    if isinstance(failure, _RacedError):
        return OSError(errno.EIO, f"{where}: it is being written by another request"), True
    judged = classify(failure, where, known=access.known, absent=absent)
    # A live disk waits for whoever renews its credentials, as long as patience lasts.
    waits = judged.expired and access.known and access.renewable
    return judged.error, judged.transient or waits


def local_root(store: ObstoreStore) -> str | None:
    """The folder that a store of obstore is, or None for one that is no folder."""
    from obstore.store import LocalStore

    if not isinstance(store, LocalStore):
        return None
    return os.fspath(store.prefix or "/")


def _put_in_folder(
    root: str, path: str, data: Buffer, directories: Directories, *, replaces: bool
) -> None:
    directories.check(f"{root}/{path}")
    try:
        write_object(f"{root}/{path}", data, replaces=replaces, sync=_sync)
    except FileExistsError:
        # It may be our own, of an attempt that failed later, and is relied upon from now on.
        _sync(f"{root}/{path}")
        _make_durable(root, path, directories)
        raise
    _make_durable(root, path, directories)


def _make_durable(root: str, path: str, directories: Directories) -> None:
    directories.make_durable(root, path, _sync)


def _sync(path: str) -> None:
    sync_path(path)


def is_store(store: object) -> TypeIs[ObstoreStore]:
    """Whether it is a store of the package ``obstore``."""
    return type(store).__module__.partition(".")[0] == "obstore"


def from_url(
    url: str, *, patience: float = RETRY_TIMEOUT, **options: Any
) -> tuple[ObjectStoreClient, str]:
    """Return the object store that a URL names, and the folder in it.

    Credentials, the region and the endpoint come from the environment (``AWS_ACCESS_KEY_ID``,
    ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME`` and so
    on), from the files that this names, and from the metadata service of a cloud's machine. They
    are renewed when they expire, and when the store refuses them.

    Args:
        url: ``s3://BUCKET/FOLDER``, ``gs://BUCKET/FOLDER``, ``az://CONTAINER/FOLDER``,
            ``file:///FOLDER`` or ``memory:///FOLDER``.
        patience: seconds; see :data:`.patience.RETRY_TIMEOUT`.
        options: for the store of obstore.

    Raises:
        ValueError: it is none of these, or the environment makes no sense.
        MissingExtraError: the package obstore is not installed, or boto3 for profiles.

    """
    check_seconds("patience", patience, zero=True)
    root, folder = split_url(url)
    scheme, _, bucket = root.partition("://")
    if scheme not in {*SCHEMES, "memory", "file"} or (scheme in SCHEMES and not bucket):
        shown = redact_url(url)
        raise ValueError(
            f"{shown!r} is no object store; write s3://BUCKET/FOLDER, gs://, az://, or file:///PATH"
            " (folder:PATH on the command line) for a folder of this machine"
        )
    with extra("objectstore", f"{scheme}:" if scheme in SCHEMES else "disks in object stores"):
        from obstore import store as stores
    if scheme == "memory":
        return ObjectStoreClient(stores.MemoryStore(), patience=patience), folder
    if scheme == "file":
        return ObjectStoreClient(stores.LocalStore("/"), patience=patience), folder
    make = partial(_make, root, patience, options)
    renewable = not options.keys() & _FIXED and not (
        scheme in AWS_SCHEMES and os.environ.get("AWS_ACCESS_KEY_ID")
    )
    access = Access(make(), root, make if renewable else None)
    return ObjectStoreClient(access, patience=patience), folder


# Options that are credentials, or that make them: there are no others to be looked up.
_FIXED = frozenset({"access_key_id", "credential_provider", "skip_signature", "account_key"})


def _make(root: str, patience: float, options: dict[str, Any]) -> ObstoreStore:
    from obstore import store as stores

    retries = {"max_retries": 0, "retry_timeout": timedelta(seconds=patience)}
    try:
        if root.partition("://")[0] in AWS_SCHEMES:
            options = options_of_environment(options)
        return stores.from_url(  # type: ignore[call-overload, no-any-return]  # each has its own
            root, retry_config=retries, **options
        )
    except MissingExtraError:
        raise
    except Exception as exc:  # obstore has one for each kind of store, boto3 for each mistake
        told = next(iter(str(exc).splitlines()), type(exc).__name__)
        if "Account must be specified" in told:
            told += "; set AZURE_STORAGE_ACCOUNT_NAME"
        raise ValueError(f"{root}: {quote(told)}") from None


def split_url(url: str) -> tuple[str, str]:
    """Return the store and the folder in it; all characters stand for themselves."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    return f"{scheme}://{bucket}", str(PurePosixPath("/", path)).strip("/")


AWS_SCHEMES = frozenset({"s3", "s3a"})
SCHEMES = AWS_SCHEMES | {"gs", "az", "abfs", "abfss"}
"""Of the URLs of object stores on the network."""
