"""What is refused when a disk is created or opened: existing ones, sizes, keys, damage."""

from __future__ import annotations

import errno
from random import Random
from typing import Any

import pytest

from aiovblk.errors import StorageError
from aiovblk.storage.objects import Limits, clone, create, snapshot

from ....support.object_store import (
    BLOCK,
    CHUNK,
    Bucket,
    make_disk,
    open_disk,
    opened,
    write,
)

SIZE = 20 * CHUNK + 2 * BLOCK
KEY = bytes(range(32))


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


async def make(bucket: Bucket, **options: Any) -> None:
    await make_disk(bucket, size=SIZE, **options)


async def test_there_is_no_disk(bucket: Bucket) -> None:
    with pytest.raises(FileNotFoundError, match="there is no disk in disk; create one"):
        await open_disk(bucket.client())


async def test_disk_that_is_there_is_not_made_again(bucket: Bucket) -> None:
    await make(bucket)
    before = dict(bucket.objects)
    with pytest.raises(FileExistsError, match="there is a disk already"):
        await make(bucket)
    assert bucket.objects == before


@pytest.mark.parametrize("folder", ["chunks", "log", "map"])
async def test_disk_is_not_made_over_the_remains_of_another(bucket: Bucket, folder: str) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * SIZE)
    await make_disk(bucket, "other", size=SIZE)
    await snapshot(bucket.client(), "other", name="one")
    for name in [*bucket.objects]:
        if name.startswith("disk/") and not name.startswith(f"disk/{folder}/"):
            del bucket.objects[name]
    before = dict(bucket.objects)
    with pytest.raises(FileExistsError, match=rf"remains .* \({folder}/\); delete its"):
        await make(bucket)
    with pytest.raises(FileExistsError, match=rf"remains .* \({folder}/\); delete its"):
        await clone(bucket.client(), "other", name="one", target="disk")
    assert bucket.objects == before


async def test_disk_is_made_where_something_else_lies(bucket: Bucket) -> None:
    bucket.objects["disk/log/readme"] = bucket.objects["disk/notes"] = b"mine"
    await make(bucket)
    async with opened(bucket.client()) as device:
        assert device.size == SIZE


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": 4095}, "multiple of 4096"),
        ({"size": 4096, "block_size": 1000}, "block_size must be a power of two"),
        ({"size": 1 << 30, "chunk_size": 3 << 20}, "chunk_size must be a power of two"),
        ({"size": 1 << 50, "chunk_size": 1 << 20}, "choose a larger chunk_size"),
        ({"size": 1 << 20, "key": b"short"}, "a key has 32 bytes, not 5"),
    ],
)
async def test_impossible_disk_is_refused(
    bucket: Bucket, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        await create(bucket.client(), "disk", **options)
    assert not bucket.objects


async def test_format_of_a_later_version_is_refused(bucket: Bucket) -> None:
    await make(bucket)
    text = bucket.objects["disk/disk.json"].replace(b'"version": 3', b'"version": 5')
    bucket.objects["disk/disk.json"] = text
    with pytest.raises(StorageError, match="has format 5, this aiovblk knows 1 to 4 only; upgra"):
        await open_disk(bucket.client())


@pytest.mark.parametrize("damage", ["flip", "cut", "swap", "missing"])
@pytest.mark.parametrize("options", [{}, {"compress": True}, {"key": KEY}])
async def test_damaged_chunk_is_an_error_and_not_garbage(
    bucket: Bucket, damage: str, options: dict[str, Any]
) -> None:
    await make(bucket, **options)
    key = options.get("key")
    async with opened(bucket.client(), key=key) as device:
        await write(device, 0, Random(1).randbytes(2 * CHUNK))
    first, second = bucket.names("disk/chunks")
    data = bytearray(bucket.objects[first])
    if damage == "flip":
        data[-1] ^= 1
    elif damage == "cut":
        del data[-1:]
    elif damage == "swap":
        data[:] = bucket.objects[second]
    bucket.objects[first] = bytes(data)
    if damage == "missing":
        del bucket.objects[first]
    async with opened(bucket.client(), key=key) as device:
        with pytest.raises(StorageError, match=r"chunks/00000000-\w+ is damaged") as caught:
            await device.read(0, BLOCK)
        assert caught.value.errno == errno.EIO
        await device.read(CHUNK, BLOCK)


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "give its key"), (bytes(32), "not the key of the disk")]
)
async def test_encrypted_disk_needs_its_key(bucket: Bucket, key: bytes | None, reason: str) -> None:
    await make(bucket, key=KEY)
    with pytest.raises(StorageError, match=reason) as caught:
        await open_disk(bucket.client(), key=key)
    assert caught.value.errno == errno.EACCES


async def test_key_of_a_disk_without_encryption_is_refused(bucket: Bucket) -> None:
    await make(bucket)
    with pytest.raises(StorageError, match="not encrypted; give no key"):
        await open_disk(bucket.client(), key=KEY)


async def test_nothing_that_was_written_can_be_read_in_the_store_of_an_encrypted_disk(
    bucket: Bucket,
) -> None:
    await make(bucket, key=KEY)
    async with opened(bucket.client(), key=KEY) as device:
        await write(device, 0, b"secret--" * (CHUNK // 8))
    assert all(b"secret" not in each for each in bucket.objects.values())
    assert all(KEY not in each for each in bucket.objects.values())


async def test_compressed_chunks_are_small(bucket: Bucket) -> None:
    await make(bucket, compress=True)
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * CHUNK)
    [name] = bucket.names("disk/chunks")
    assert len(bucket.objects[name]) < 100


@pytest.mark.parametrize("lease", [0, -1, 1e6, float("nan")])
async def test_lease_that_would_not_be_honoured_is_refused(bucket: Bucket, lease: float) -> None:
    await make(bucket)
    with pytest.raises(ValueError, match="a lease has at most 86400 seconds"):
        await open_disk(bucket.client(), lease=lease)


def test_limits_with_which_nothing_would_end_are_refused() -> None:
    with pytest.raises(ValueError, match="requests must be at least 1, not 0"):
        Limits(requests=0)


@pytest.mark.parametrize("name", ["inline_size", "segment_size", "extents"])
def test_limits_with_which_a_disk_could_not_be_opened_again_are_refused(name: str) -> None:
    longest = {"extents": 1 << 22}.get(name, 64 << 20)
    Limits(**{name: longest})
    with pytest.raises(ValueError, match=f"{name} must be from . to {longest}, not {longest + 1}"):
        Limits(**{name: longest + 1})
