"""One cluster for all tests here, and a folder of a bucket for each."""

from __future__ import annotations

import tempfile
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path

import obstore
import pytest

from aiovblk.storage.objects import ObjectStoreClient

from .. import s3
from .ceph import PATIENCE, Ceph, Gateway

_folders = count()


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    # Not below pytest's folder: that is kept, and a monitor's data is large.
    with tempfile.TemporaryDirectory(prefix="aiovblk-ceph-") as folder:
        ceph = Ceph(Path(folder))
        with ceph.running():
            yield ceph


@pytest.fixture(scope="session")
def port(ceph: Ceph) -> Iterator[int]:
    """Of a gateway, with a bucket."""
    with Gateway.of(ceph) as gateway:
        _make_bucket(gateway.port)
        yield gateway.port


@pytest.fixture
def another(ceph: Ceph, port: int) -> Iterator[Gateway]:
    """A second gateway to the same bucket."""
    with Gateway.of(ceph) as gateway:
        yield gateway


@pytest.fixture
def folder() -> str:
    return f"test {next(_folders)} ü+%2F"  # what a signature, or a path, could get wrong


@pytest.fixture
def client(port: int, folder: str) -> ObjectStoreClient:
    return at(port, folder)


def at(port: int, folder: str) -> ObjectStoreClient:
    """A client of a gateway, or of a proxy before it; what obstore tried again we would not see."""
    return ObjectStoreClient(s3.store(port, retry_config={"max_retries": 0}), folder)


def _make_bucket(port: int) -> None:
    url = obstore.sign(s3.store(port), "PUT", "", timedelta(minutes=1))
    urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=PATIENCE).close()
