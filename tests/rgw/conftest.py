"""One Ceph cluster for all tests here, and a folder of a bucket for each test."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
import pytest

from aiovblk.storage.objects import ObjectStoreClient

from ..support import s3_server
from .ceph import Ceph, Gateway

_folders = count()


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    # So that the folder is deleted also when the tests are terminated; the daemons end in any case.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Not below pytest's folder: that is kept, and a monitor's data is large.
    with tempfile.TemporaryDirectory(prefix="aiovblk-ceph-") as folder:
        ceph = Ceph(Path(folder))
        with ceph.running():
            yield ceph


@pytest.fixture(scope="session")
def port(ceph: Ceph) -> Iterator[int]:
    """The port of a gateway, with a bucket."""
    with Gateway.of(ceph) as gateway:
        with administration(gateway.port) as s3_client:
            s3_client.create_bucket(Bucket=s3_server.BUCKET)
        yield gateway.port


@pytest.fixture
def another(ceph: Ceph, port: int) -> Iterator[Gateway]:
    """A second gateway to the same bucket."""
    with Gateway.of(ceph) as gateway:
        yield gateway


@pytest.fixture
def folder() -> str:
    return f"test {next(_folders)} ü+%2F"  # characters that signatures and paths get wrong


@pytest.fixture
def client(port: int, folder: str) -> ObjectStoreClient:
    return at(port, folder)


def at(port: int, folder: str) -> ObjectStoreClient:
    """Return a client of a gateway, or of a proxy before it, without obstore's own retries."""
    return ObjectStoreClient(s3_server.store(port, retry_config={"max_retries": 0}), folder)


@contextmanager
def administration(port: int) -> Iterator[Any]:
    """Return Amazon's own client, for requests that obstore does not have."""
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    client = boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", **keys
    )
    try:
        yield client
    finally:
        client.close()
