"""Stores that ignore conditional puts, and overwrite: no disk is created or written there."""

from __future__ import annotations

import pytest

from aiovblk.errors import StorageError
from aiovblk.storage.objects import (
    ObjectStoreDevice,
    clone,
    collect_garbage,
    create,
    drop_snapshot,
    snapshot,
)

from ....support.object_store import BLOCK, SIZE, Bucket, fill, make_disk, open_disk

REFUSED = r"overwrites what is to be created .*use one without it"


@pytest.fixture
async def bucket() -> Bucket:
    """A bucket with a disk and a snapshot, in a store that has ignored conditions since."""
    bucket = Bucket()
    await make_disk(bucket)
    device = await open_disk(bucket.client())
    await fill(device, 0, b"a")
    await device.unmount()
    await snapshot(bucket.client(), "disk", name="one")
    bucket.ignores_conditions = True
    return bucket


async def test_no_disk_is_made_there() -> None:
    bucket = Bucket()
    bucket.ignores_conditions = True
    with pytest.raises(StorageError, match=REFUSED):
        await create(bucket.client(), "disk", size=SIZE)
    assert bucket.objects == {}


async def test_a_disk_is_not_opened_for_writing_and_stays_as_it_is(bucket: Bucket) -> None:
    before = dict(bucket.objects)
    with pytest.raises(StorageError, match=REFUSED):
        await open_disk(bucket.client())
    assert bucket.objects == before


async def test_nothing_is_added_to_a_history(bucket: Bucket) -> None:
    before = dict(bucket.objects)
    store = bucket.client()
    for work in (
        snapshot(store, "disk", name="two"),
        drop_snapshot(store, "disk", name="one"),
        clone(store, "disk", name="one", target="copy"),
        collect_garbage(store, "disk"),
    ):
        with pytest.raises(StorageError, match=REFUSED):
            await work
    assert bucket.objects == before


@pytest.mark.parametrize("name", [None, "one"])
async def test_a_disk_can_be_read(bucket: Bucket, name: str | None) -> None:
    device = await ObjectStoreDevice.open(bucket.client(), "disk", snapshot=name, read_only=True)
    assert bytes(await device.read(0, BLOCK)) == b"a" * BLOCK
    await device.unmount()
