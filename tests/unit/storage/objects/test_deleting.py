"""Deleting a disk, and describing one."""

from __future__ import annotations

import errno
import json
import time
from secrets import token_hex

import pytest

from aiovblk.errors import StorageBusyError, StorageError
from aiovblk.storage.objects import (
    clone,
    collect_garbage,
    create,
    delete,
    describe,
    drop_snapshot,
    lease,
    snapshot,
    snapshots,
)

from ....support.object_store import (
    BLOCK,
    CHUNK,
    SIZE,
    Bucket,
    DeadError,
    bucket_with_disk,
    contents,
    fill,
    make_disk,
    open_disk,
    opened,
)

KEY = bytes(range(32))


@pytest.fixture
async def bucket() -> Bucket:
    """A bucket with a disk that has some data and a snapshot, and with an object beside it."""
    bucket = await bucket_with_disk()
    await store(bucket)
    await snapshot(bucket.client(), "disk", name="one")
    await store(bucket, b"b")
    bucket.objects["disk/notes.txt"] = b"mine"
    return bucket


async def store(bucket: Bucket, letter: bytes = b"a") -> None:
    async with opened(bucket.client()) as device:
        for index in range(4):
            await fill(device, index, letter)


async def test_deleted_disk_is_gone_and_objects_of_others_stay(bucket: Bucket) -> None:
    stored = dict(bucket.objects)
    del stored["disk/notes.txt"]
    deleted = await delete(bucket.client(), "disk")
    assert list(bucket.objects) == ["disk/notes.txt"]
    # The fence of the deletion itself is one object more.
    assert deleted.objects == len(stored) + 1
    assert deleted.size > 8 * CHUNK
    with pytest.raises(FileNotFoundError, match="there is no disk in disk"):
        await delete(bucket.client(), "disk")
    await make_disk(bucket)


@pytest.mark.parametrize("changes", range(0, 14, 3))
async def test_interrupted_deletion_is_completed_by_the_next_without_a_key(changes: int) -> None:
    bucket = Bucket()
    await make_disk(bucket, key=KEY)
    async with opened(bucket.client(), key=KEY) as device:
        for index in range(8):
            await fill(device, index, b"a")
    with pytest.raises(DeadError):
        await delete(bucket.client(crash_after=changes), "disk", key=KEY)
    try:
        await describe(bucket.client(), "disk", key=KEY)
    except FileNotFoundError:
        with pytest.raises(FileExistsError, match="remains of a deleted disk"):
            await create(bucket.client(), "disk", size=SIZE)
        await delete(bucket.client(), "disk")
    else:  # before the manifest was gone
        assert await contents_of(bucket) == b"a" * SIZE
        await delete(bucket.client(), "disk", key=KEY)
    assert bucket.objects == {}


async def contents_of(bucket: Bucket) -> bytes:
    async with opened(bucket.client(), key=KEY) as device:
        return bytes(await device.read(0, device.size))


async def test_disk_that_a_process_writes_to_is_kept_unless_forced(bucket: Bucket) -> None:
    device = await open_disk(bucket.client(), lease=0.1)
    await fill(device, 0, b"c")

    def renew(request: str, path: str) -> None:
        if (request, path) == ("get", "lease"):
            record = json.loads(bucket.objects["disk/lease"])
            bucket.objects["disk/lease"] = json.dumps(record | {"nonce": token_hex(8)}).encode()

    client = bucket.client()
    client.before = renew
    with pytest.raises(StorageBusyError, match=r"is in use: process .* unmount it first"):
        await delete(client, "disk")
    await device.flush()
    await delete(bucket.client(), "disk", force=True)
    assert list(bucket.objects) == ["disk/notes.txt"]
    await device.unmount()


async def test_disk_whose_snapshot_a_clone_needs_is_kept(bucket: Bucket) -> None:
    await clone(bucket.client(), "disk", name="one", target="copy")
    with pytest.raises(StorageError, match="a clone, copy, needs the snapshot 'one'") as caught:
        await delete(bucket.client(), "disk")
    assert caught.value.errno == errno.EBUSY
    assert (await contents(bucket, "copy"))[:CHUNK] == b"a" * CHUNK
    del bucket.objects["copy/disk.json"]
    await delete(bucket.client(), "disk")


async def test_deleted_clone_lets_go_of_its_snapshot_at_once(bucket: Bucket) -> None:
    await clone(bucket.client(), "disk", name="one", target="copy")
    await delete(bucket.client(), "copy")
    assert (await snapshots(bucket.client(), "disk"))["one"].clones == {}
    await drop_snapshot(bucket.client(), "disk", name="one")


async def test_clone_of_a_disk_that_cannot_be_read_is_deleted_all_the_same(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    await clone(bucket.client(), "disk", name="one", target="copy")
    manifest = bucket.objects["disk/disk.json"]
    bucket.objects["disk/disk.json"] = b"damaged"
    await delete(bucket.client(), "copy")
    assert not bucket.names("copy")
    bucket.objects["disk/disk.json"] = manifest
    # Garbage collection notices, a day later.
    tomorrow = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    await collect_garbage(bucket.client(), "disk")
    assert (await snapshots(bucket.client(), "disk"))["one"].clones == {}


async def test_description_has_sizes_snapshots_and_no_writer(bucket: Bucket) -> None:
    found = await describe(bucket.client(), "disk")
    assert (found.size, found.block_size, found.chunk_size) == (SIZE, BLOCK, CHUNK)
    assert (found.compressed, found.encrypted, found.origins) == (False, False, ())
    assert list(found.snapshots) == ["one"]
    assert found.writer is None


async def test_description_names_the_writer_and_what_a_clone_reads_from(bucket: Bucket) -> None:
    await clone(bucket.client(), "disk", name="one", target="copy")
    async with opened(bucket.client(), path="copy"):
        found = await describe(bucket.client(), "copy")
    assert found.writer == lease.Holder.this_process()
    assert found.origins == ("disk",)


async def test_writer_that_is_known_dead_is_none(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await open_disk(bucket.client())
    monkeypatch.setattr(lease.Holder, "is_known_dead", lambda holder: True)
    assert (await describe(bucket.client(), "disk")).writer is None
    await device.unmount()


async def test_description_of_an_encrypted_disk_needs_its_key() -> None:
    bucket = Bucket()
    await make_disk(bucket, key=KEY, compress=True)
    found = await describe(bucket.client(), "disk", key=KEY)
    assert (found.encrypted, found.compressed) == (True, True)
    with pytest.raises(StorageError, match="key"):
        await describe(bucket.client(), "disk")
