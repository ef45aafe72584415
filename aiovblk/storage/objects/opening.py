"""Make a client of the object store that a URL names: address, credentials and their renewal."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from ...aio.backoff import RETRY_TIMEOUT
from ...arguments import check_seconds
from ...errors import MissingExtraError
from ...extras import extra
from ...text import quote
from ..http.url import redact_url
from .access import Access
from .aws import options_of_environment
from .client import ObjectStoreClient
from .url import AWS_SCHEMES, SCHEMES, split_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore as ObstoreStore


def from_url(
    url: str, *, patience: float = RETRY_TIMEOUT, **options: Any
) -> tuple[ObjectStoreClient, str]:
    """Return a client of the object store that a URL names, and the folder in it.

    Credentials, the region and the endpoint come from the environment (``AWS_ACCESS_KEY_ID``,
    ``AWS_ENDPOINT_URL``, ``GOOGLE_APPLICATION_CREDENTIALS``, ``AZURE_STORAGE_ACCOUNT_NAME`` and so
    on), from the files that it names, and from the metadata service of a cloud's machine.
    Credentials are renewed when they expire, and when the store refuses them.

    Args:
        url: ``s3://BUCKET/FOLDER``, ``gs://BUCKET/FOLDER``, ``az://CONTAINER/FOLDER``,
            ``file:///FOLDER`` or ``memory:///FOLDER``.
        patience: the retry timeout: seconds for which a failing request is retried; see
            :data:`~aiovblk.aio.backoff.RETRY_TIMEOUT`.
        options: for the store of obstore.

    Raises:
        ValueError: it is none of these, or the environment is invalid.
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


# Options that are credentials, or provide them: with one of these none are looked up again.
_FIXED = frozenset({"access_key_id", "credential_provider", "skip_signature", "account_key"})


def _make(root: str, retry_timeout: float, options: dict[str, Any]) -> ObstoreStore:
    from obstore import store as stores

    retries = {"max_retries": 0, "retry_timeout": timedelta(seconds=retry_timeout)}
    try:
        if root.partition("://")[0] in AWS_SCHEMES:
            options = options_of_environment(options)
        return stores.from_url(  # type: ignore[call-overload, no-any-return]  # one for each kind of store
            root, retry_config=retries, **options
        )
    except MissingExtraError:
        raise
    except Exception as exc:  # obstore has one for each kind of store, boto3 for each mistake
        reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        if "Account must be specified" in reason:
            reason += "; set AZURE_STORAGE_ACCOUNT_NAME"
        raise ValueError(f"{root}: {quote(reason)}") from None
