"""Buckets with versioning, where Ceph ignores If-None-Match: every conditional put succeeds.

Disks there are read-only, since two writers would not notice each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from aiovblk.errors import StorageError
from aiovblk.storage.objects import (
    ObjectStoreClient,
    ObjectStoreDevice,
    check,
    create,
    snapshot,
)
from aiovblk.storage.objects.opening import from_url

from .conftest import administration

pytestmark = [pytest.mark.one_loop, pytest.mark.deadline(60)]

SIZE = 1 << 20
_buckets = count()


class Bucket:
    """A bucket, whose versioning is "Enabled" or "Suspended", or neither as long as it is new."""

    def __init__(self, administration: Any, port: int) -> None:
        self._administration = administration
        self._name = f"versions-{next(_buckets)}"
        administration.create_bucket(Bucket=self._name)
        self.client: ObjectStoreClient
        self.client, _ = from_url(
            f"s3://{self._name}",
            endpoint=f"http://127.0.0.1:{port}",
            access_key_id="key",
            secret_access_key="secret",
            client_options={"allow_http": True},
        )

    async def set_versioning(self, status: str) -> None:
        await asyncio.to_thread(
            self._administration.put_bucket_versioning,
            Bucket=self._name,
            VersioningConfiguration={"Status": status},
        )


@pytest.fixture
def bucket(port: int) -> Iterator[Bucket]:
    with administration(port) as client:
        yield Bucket(client, port)


async def enable(bucket: Bucket) -> None:
    """Enable versioning; skip the test if that does no harm here."""
    await bucket.set_versioning("Enabled")
    await bucket.client.create("probe", b"first")
    try:
        await bucket.client.create("probe", b"second")
    except FileExistsError:
        pytest.skip("this Ceph honours If-None-Match in buckets with versioning too")


async def test_disk_is_not_created_in_a_bucket_with_versioning(bucket: Bucket) -> None:
    await enable(bucket)
    with pytest.raises(StorageError, match="If-None-Match"):
        await create(bucket.client, "disk", size=SIZE)
    assert await bucket.client.list_objects("disk") == []


async def test_disk_that_is_there_is_not_replaced(bucket: Bucket) -> None:
    await create(bucket.client, "disk", size=SIZE)
    [before] = await bucket.client.list_objects("disk")
    await enable(bucket)
    with pytest.raises(FileExistsError):
        await create(bucket.client, "disk", size=2 * SIZE)
    assert await bucket.client.list_objects("disk") == [before]


async def test_disk_is_only_read_when_its_bucket_gets_versioning(bucket: Bucket) -> None:
    """Otherwise two writers could both flush, and one would lose its data."""
    await create(bucket.client, "disk", size=SIZE)
    await enable(bucket)
    with pytest.raises(StorageError, match="If-None-Match"):
        await ObjectStoreDevice.open(bucket.client, "disk")
    with pytest.raises(StorageError, match="If-None-Match"):
        await snapshot(bucket.client, "disk", name="one")
    reader = await ObjectStoreDevice.open(bucket.client, "disk", read_only=True)
    assert await reader.read(0, SIZE) == bytes(SIZE)
    await reader.unmount()


async def test_disk_is_written_again_when_versioning_is_suspended(bucket: Bucket) -> None:
    await create(bucket.client, "disk", size=SIZE)
    for status in ("Enabled", "Suspended"):
        await bucket.set_versioning(status)
    for letter in (b"a", b"b"):
        device = await ObjectStoreDevice.open(bucket.client, "disk")
        await device.write(0, memoryview(letter * SIZE))
        await device.unmount()
    reader = await ObjectStoreDevice.open(bucket.client, "disk", read_only=True)
    assert await reader.read(0, SIZE) == b"b" * SIZE
    await reader.unmount()
    assert (await check(bucket.client, "disk")).problems == []
