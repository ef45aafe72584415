"""Sizes of a disk in an object store that change: what was cut off is gone for good."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from aiovblk.storage.objects import ObjectStoreDevice, check

from ....support.object_store import (
    BLOCK,
    CHUNK,
    SIZE,
    Bucket,
    bucket_with_disk,
    contents,
    failing,
    open_disk,
    undisturbed,
    write,
)


@pytest.fixture
async def bucket() -> Bucket:
    return await bucket_with_disk()


def resize(device: ObjectStoreDevice, size: int) -> None:
    device.blocks = size // BLOCK


async def reopened(bucket: Bucket) -> bytes:
    assert (await check(bucket.client(), "disk")).problems == []
    return await contents(bucket)


@pytest.mark.parametrize("kept", [2 * CHUNK, 2 * CHUNK + BLOCK])
async def test_what_was_cut_off_between_two_flushes_reads_as_zeroes(
    bucket: Bucket, kept: int
) -> None:
    device = await open_disk(bucket.client())
    await write(device, 0, b"a" * SIZE)
    await device.flush()
    resize(device, kept)
    resize(device, SIZE)
    expected = b"b" * BLOCK + b"a" * (kept - BLOCK) + bytes(SIZE - kept)
    await write(device, 0, b"b" * BLOCK)
    assert bytes(await device.read(0, SIZE)) == expected
    await device.unmount()
    assert await reopened(bucket) == expected


@pytest.mark.parametrize("kept", [CHUNK, CHUNK + BLOCK])
async def test_what_was_cut_off_reads_as_zeroes_when_the_disk_is_larger_again(
    bucket: Bucket, kept: int
) -> None:
    for size in (SIZE, kept, SIZE):
        device = await open_disk(bucket.client())
        if size == SIZE == device.size:
            await write(device, 0, b"a" * SIZE)
        resize(device, size)
        await device.unmount()
    assert await reopened(bucket) == b"a" * kept + bytes(SIZE - kept)


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_cut_off_while_it_is_stored_does_not_come_back(
    bucket: Bucket, fails: bool
) -> None:
    client = bucket.client()
    device = await open_disk(client)
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        await goes_on.wait()
        if fails:
            client.before = undisturbed
            raise OSError(errno.EIO, "the store is away")

    def before(request: str, path: str) -> Any:
        return wait() if path.startswith("chunks/00000005") else None

    client.before = before
    await write(device, 5 * CHUNK, b"a" * CHUNK)
    flush = asyncio.create_task(device.flush())
    await begun.wait()
    resize(device, 2 * CHUNK)
    resize(device, SIZE)
    assert bytes(await device.read(0, SIZE)) == bytes(SIZE)
    goes_on.set()
    await asyncio.gather(flush, return_exceptions=True)
    assert bytes(await device.read(0, SIZE)) == bytes(SIZE)
    await device.unmount()
    assert await reopened(bucket) == bytes(SIZE)


async def test_what_is_cut_off_while_a_record_fails_does_not_come_back(bucket: Bucket) -> None:
    client = bucket.client()
    device = await open_disk(client)
    await write(device, 0, b"a" * SIZE)
    await device.flush()
    client.before = failing("create log")
    resize(device, CHUNK)
    with pytest.raises(OSError, match="away"):
        await device.flush()
    resize(device, SIZE)
    await device.unmount()
    assert await reopened(bucket) == b"a" * CHUNK + bytes(SIZE - CHUNK)


async def test_size_is_stored_although_the_response_to_another_was_lost(bucket: Bucket) -> None:
    client = bucket.client()
    device = await open_disk(client)
    client.lose_a_response()
    resize(device, 2 * SIZE)
    with pytest.raises(OSError, match="no response"):
        await device.flush()
    resize(device, SIZE)
    await device.unmount()
    assert len(await reopened(bucket)) == SIZE


async def test_handlers_of_what_is_cut_off_meanwhile_come_to_an_end(bucket: Bucket) -> None:
    device = await open_disk(bucket.client())
    resize(device, CHUNK)
    for offset in (SIZE - CHUNK, SIZE - BLOCK):
        await device.write_zeroes(offset, BLOCK, may_trim=True)
        await device.extents(offset, BLOCK)
        assert bytes(await device.read(offset, BLOCK)) == bytes(BLOCK)
    await device.unmount()
