"""Sizes of a disk in an object store that change: what was cut off is gone for good."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from aiovblk.storage.objects import ObjectStoreDevice, check, create

from .objects import Bucket, Client

CHUNK = 16384
BLOCK = 4096
SIZE = 8 * CHUNK


@pytest.fixture
async def bucket() -> Bucket:
    bucket = Bucket()
    await create(bucket.client(), "disk", size=SIZE, chunk_size=CHUNK)
    return bucket


async def opened(client: Client) -> ObjectStoreDevice:
    return await ObjectStoreDevice.open(client, "disk")


async def write(device: ObjectStoreDevice, offset: int, data: bytes) -> None:
    await device.write(offset, memoryview(data))


def resize(device: ObjectStoreDevice, size: int) -> None:
    device.blocks = size // BLOCK


async def reopened(bucket: Bucket) -> bytes:
    assert (await check(bucket.client(), "disk")).problems == []
    device = await ObjectStoreDevice.open(bucket.client(), "disk", read_only=True)
    data = bytes(await device.read(0, device.size))
    await device.unmount()
    return data


@pytest.mark.parametrize("kept", [2 * CHUNK, 2 * CHUNK + BLOCK])
async def test_what_was_cut_off_between_two_flushes_reads_as_zeroes(
    bucket: Bucket, kept: int
) -> None:
    device = await opened(bucket.client())
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
        device = await opened(bucket.client())
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
    device = await opened(client)
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        await goes_on.wait()
        if fails:
            client.before = lambda request, path: None
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
    device = await opened(client)
    await write(device, 0, b"a" * SIZE)
    await device.flush()

    def before(request: str, path: str) -> None:
        if request == "create":
            raise OSError(errno.EIO, "the store is away")

    client.before = before
    resize(device, CHUNK)
    with pytest.raises(OSError, match="away"):
        await device.flush()
    client.before = lambda request, path: None
    resize(device, SIZE)
    await device.unmount()
    assert await reopened(bucket) == b"a" * CHUNK + bytes(SIZE - CHUNK)


async def test_size_is_stored_although_the_answer_to_another_was_lost(bucket: Bucket) -> None:
    client = bucket.client()
    device = await opened(client)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "create", _losing(Client.create))
        resize(device, 2 * SIZE)
        with pytest.raises(OSError, match="no answer"):
            await device.flush()
    resize(device, SIZE)
    await device.unmount()
    assert len(await reopened(bucket)) == SIZE


def _losing(create: Any) -> Any:
    async def lose(self: Client, path: str, data: bytes) -> None:
        await create(self, path, data)
        raise OSError(errno.EIO, "no answer")

    return lose


async def test_handlers_of_what_is_cut_off_meanwhile_come_to_an_end(bucket: Bucket) -> None:
    device = await opened(bucket.client())
    resize(device, CHUNK)
    for offset in (SIZE - CHUNK, SIZE - BLOCK):
        await device.write_zeroes(offset, BLOCK, may_trim=True)
        await device.extents(offset, BLOCK)
        assert bytes(await device.read(offset, BLOCK)) == bytes(BLOCK)
    await device.unmount()
