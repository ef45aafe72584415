"""An object store, as far as a disk needs one: whole objects, by path.

What is asked of it: a read after a write sees it, a list sees every write that came before it, and
of several who create an object one succeeds. S3 (since 2024), GCS, Azure, Ceph's gateway and a
local folder do all that.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

from ...arguments import check_seconds
from ..patience import PATIENCE, repeat
from ..together import drain
from ..web.address import without_secrets

if TYPE_CHECKING:
    from obstore.store import ObjectStore
    from typing_extensions import TypeIs  # every type checker has it

T = TypeVar("T")

Buffer = bytes | bytearray | memoryview

_DELETIONS = 16  # single ones that are made at the same time


class Found(NamedTuple):
    """An object that a list has."""

    path: str
    size: int
    """Bytes."""


class Objects(Protocol):
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

    async def find(self, folder: str, *, after: str = "") -> list[Found]:
        """Return what is in the folder, sorted by path, beginning after the path ``after``."""

    def at(self, path: str) -> Objects:
        """Return the same store, seen from a folder of it."""


AnyStore: TypeAlias = "Objects | ObjectStore | str"
"""What a caller may give: the requests, a store of the package ``obstore``, or a URL."""


class ObjectStoreClient:
    """:class:`Objects` by the package ``obstore``.

    Args:
        store: of obstore.
        folder: that all paths are relative to; none for the store's own root.
        patience: seconds; see :data:`.patience.PATIENCE`.

    """

    def __init__(self, store: ObjectStore, folder: str = "", *, patience: float = PATIENCE) -> None:
        self._store = store
        self._folder = folder.strip("/")
        self._patience = patience
        self._root = local_root(store)
        self._durable: set[str] = set()

    def at(self, path: str) -> ObjectStoreClient:
        """See :class:`Objects`."""
        other = ObjectStoreClient(self._store, self._full(path), patience=self._patience)
        other._durable = self._durable
        return other

    async def get(self, path: str) -> memoryview:
        """See :class:`Objects`."""
        return await self._repeat(path, self._get)

    async def put(self, path: str, data: Buffer) -> None:
        """See :class:`Objects`."""
        await self._repeat(path, partial(self._put, data, "overwrite"))

    async def create(self, path: str, data: Buffer) -> None:
        """See :class:`Objects`."""
        await self._repeat(path, partial(self._put, data, "create"))

    async def delete(self, paths: Iterable[str]) -> None:
        """See :class:`Objects`."""
        paths = list(paths)
        if self._root is None and len(paths) > 1:
            with suppress(FileNotFoundError):
                await self._repeat(paths[0], lambda path: self._delete(paths))
                return
            # Azure and GCS mind a missing object, and the package stops there.
        await drain((partial(self._delete_one, path) for path in paths), most=_DELETIONS)

    async def find(self, folder: str, *, after: str = "") -> list[Found]:
        """See :class:`Objects`."""
        found = await self._repeat(folder, partial(self._find, after))
        return await asyncio.to_thread(sorted, found)  # there may be millions

    def _full(self, path: str) -> str:
        return f"{self._folder}/{path}".strip("/")

    async def _get(self, path: str) -> memoryview:
        import obstore

        found = await obstore.get_async(self._store, path)
        return memoryview(await found.bytes_async())

    async def _put(self, data: Buffer, mode: Any, path: str) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, GenericError

        try:
            await obstore.put_async(self._store, path, data, mode=mode, use_multipart=False)
        except AlreadyExistsError as exc:
            # Every 409 becomes this one, and S3 says that of a put too that races with another
            # (ConditionalRequestConflict, OperationAborted): it is to be made again.
            if mode == "create" and await self._is_there(path):
                raise
            raise GenericError(str(exc)) from None
        if self._root is not None:  # the package leaves it to the kernel's write-back
            await asyncio.to_thread(_make_durable, self._root, path, self._durable)

    async def _is_there(self, path: str) -> bool:
        import obstore

        try:
            await obstore.head_async(self._store, path)
        except FileNotFoundError:
            return False
        return True

    async def _find(self, after: str, folder: str) -> list[Found]:
        import obstore

        own = len(self._folder) + 1 if self._folder else 0
        offset = self._full(after) if after else None
        found = []
        async for page in obstore.list(self._store, folder, offset=offset, chunk_size=1000):
            found += [Found(each["path"][own:], each["size"]) for each in page]
        return found

    async def _delete_one(self, path: str) -> None:
        with suppress(FileNotFoundError):
            await self._repeat(path, lambda full: self._delete([path]))

    async def _delete(self, paths: Sequence[str]) -> None:
        import obstore

        await obstore.delete_async(self._store, [self._full(path) for path in paths])

    async def _repeat(self, path: str, request: Callable[[str], Awaitable[T]]) -> T:
        path = self._full(path)
        explain = partial(explained, path=path)
        return await repeat(partial(request, path), explain, patience=self._patience)


def explained(failure: Exception, path: str) -> tuple[OSError, bool]:
    """Return what obstore raised as an OSError, and whether it may pass by itself."""
    from obstore import exceptions

    text = f"{path}: {_first_line(failure)}"
    if isinstance(failure, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, text), False
    if isinstance(failure, exceptions.AlreadyExistsError):
        return FileExistsError(errno.EEXIST, text), False
    if isinstance(failure, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        return PermissionError(errno.EACCES, text), False
    if isinstance(failure, OSError):
        return OSError(failure.errno or errno.EIO, text), False
    passes = isinstance(failure, exceptions.GenericError | exceptions.JoinError)
    return OSError(errno.EIO, text), passes


def _first_line(failure: Exception) -> str:
    # What follows is a dump of the request and of the answer. A query may hold a signature.
    line = next(iter(str(failure).splitlines()), type(failure).__name__)
    return re.sub(r"\?\S*", "?...", line)


def local_root(store: ObjectStore) -> str | None:
    """The folder that a store of obstore is, or None for one that is no folder."""
    from obstore.store import LocalStore

    if not isinstance(store, LocalStore):
        return None
    return os.fspath(store.prefix or "/")


def _make_durable(root: str, path: str, folders: set[str]) -> None:
    """Sync a file, and the folders that lead to it, unless that has been done.

    Args:
        root: what the path is relative to.
        path: the file.
        folders: those whose being there is durable; added to.

    """
    _sync(f"{root}/{path}")
    folder = os.path.dirname(path)
    _sync(f"{root}/{folder}")
    while folder and folder not in folders:
        parent = os.path.dirname(folder)
        with suppress(PermissionError):  # it is older, and another's
            _sync(f"{root}/{parent}")
        folders.add(folder)
        folder = parent


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def is_store(store: object) -> TypeIs[ObjectStore]:
    """Whether it is a store of the package ``obstore``."""
    return type(store).__module__.partition(".")[0] == "obstore"


def from_url(
    url: str, *, patience: float = PATIENCE, **options: Any
) -> tuple[ObjectStoreClient, str]:
    """Return the object store that a URL names, and the folder in it.

    Credentials, the region and the endpoint come from the environment (``AWS_ACCESS_KEY_ID``,
    ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME`` and so
    on) and from the metadata service of a cloud's machine.

    Args:
        url: ``s3://BUCKET/FOLDER``, ``gs://BUCKET/FOLDER``, ``az://CONTAINER/FOLDER``,
            ``file:///FOLDER`` or ``memory:///FOLDER``.
        patience: seconds; see :data:`.patience.PATIENCE`.
        options: for the store of obstore.

    Raises:
        ValueError: it is none of these.

    """
    from obstore import store as stores

    check_seconds("patience", patience, zero=True)
    root, folder = parts_of(url)
    scheme, _, bucket = root.partition("://")
    if scheme == "memory":
        return ObjectStoreClient(stores.MemoryStore(), patience=patience), folder
    if scheme == "file":
        return ObjectStoreClient(stores.LocalStore("/"), patience=patience), folder
    if scheme not in SCHEMES or not bucket:
        shown = without_secrets(url)
        raise ValueError(f"{shown!r} is no object store; write s3://BUCKET/FOLDER, gs://, az://")
    retries = {"max_retries": 0, "retry_timeout": timedelta(seconds=patience)}
    try:
        if scheme in AWS_SCHEMES:
            options = _aws_options() | options
        store = stores.from_url(  # type: ignore[call-overload]  # each kind has its own options
            root, retry_config=retries, **options
        )
    except Exception as exc:  # obstore has one for each kind of store, boto3 for each mistake
        raise ValueError(f"{root}: {_first_line(exc)}") from None
    return ObjectStoreClient(store, patience=patience), folder


def parts_of(url: str) -> tuple[str, str]:
    """Return the store and the folder in it; all characters stand for themselves."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    return f"{scheme}://{bucket}", str(PurePosixPath("/", path)).strip("/")


AWS_SCHEMES = frozenset({"s3", "s3a"})
SCHEMES = AWS_SCHEMES | {"gs", "az", "abfs", "abfss"}
"""Of the URLs of object stores on the network."""


def _aws_options() -> dict[str, Any]:
    """Return what Amazon's own tools find by themselves, and obstore does not."""
    environment = os.environ
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL", "")
    options: dict[str, Any] = {}
    if endpoint.startswith("http://"):
        options["client_options"] = {"allow_http": True}
    files = [
        environment.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        environment.get("AWS_CONFIG_FILE", "~/.aws/config"),
    ]
    if "AWS_ACCESS_KEY_ID" not in environment and any(
        os.path.exists(os.path.expanduser(file)) for file in files
    ):
        try:
            from obstore.auth.boto3 import Boto3CredentialProvider
        except ModuleNotFoundError:
            reason = (
                f"the profiles in {' and '.join(files)} are read by boto3; install aiovblk[aws]"
            )
            raise ValueError(reason) from None
        options["credential_provider"] = Boto3CredentialProvider()
    return options
