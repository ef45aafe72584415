"""Sizes of a disk in an object store that change: what was cut off is gone for good."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

import pytest

from aiovblk.storage.objects import Limits, ObjectStoreDevice, check

from ....support.object_store import (
    BLOCK,
    CHUNK,
    SIZE,
    Bucket,
    Client,
    bucket_with_disk,
    contents,
    failing,
    fill,
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


class Held:
    """Requests that are held back until they are let go."""

    def __init__(self, client: Client, word: str) -> None:
        self.begun, self.let_go = asyncio.Event(), asyncio.Event()
        self._word = word
        client.before = self._before

    async def _wait(self) -> None:
        self.begun.set()
        await self.let_go.wait()

    def _before(self, request: str, path: str) -> Any:
        return self._wait() if self._word in f"{request} {path}" else None


async def store_in_background(device: ObjectStoreDevice, index: int, held: Held) -> None:
    """Fill a chunk, and wait until it is being stored."""
    for each in (index, 0, 1, 2, 3, 4):
        await fill(device, each, b"n")
    await held.begun.wait()


LAST = SIZE // CHUNK - 1


@pytest.mark.parametrize("said", [True, False])
async def test_blocks_under_a_chunk_that_is_cut_off_while_it_is_stored_do_not_come_back(
    bucket: Bucket, said: bool
) -> None:
    client = bucket.client()
    device = await open_disk(client)
    await write(device, LAST * CHUNK, b"o" * BLOCK)
    if said:
        await device.flush()
    else:  # the next record says it again
        client.before = failing("create log")
        with pytest.raises(OSError, match="away"):
            await device.flush()
    held = Held(client, f"put chunks/{LAST:08x}")
    await store_in_background(device, LAST, held)
    resize(device, LAST * CHUNK)
    held.let_go.set()
    await device.flush()
    resize(device, SIZE)
    assert bytes(await device.read(LAST * CHUNK, CHUNK)) == bytes(CHUNK)
    await device.unmount()
    assert (await reopened(bucket))[LAST * CHUNK :] == bytes(CHUNK)


async def test_flush_does_not_wait_for_extents_that_were_cut_off(bucket: Bucket) -> None:
    client = bucket.client()
    limits = Limits(extents=1, inline_size=0, segment_size=BLOCK)
    device = await open_disk(client, limits=limits)
    assert device._writer is not None
    assert device._writer._compaction is not None
    device._writer._compaction.cancel()
    for block in (0, 1, 3):
        await write(device, LAST * CHUNK + block * BLOCK, b"o" * BLOCK)
        await device.flush()
    extents = device._buffer.chunk_store.view.extents
    assert extents.count > 2 * limits.extents
    held = Held(client, f"put chunks/{LAST:08x}")
    await store_in_background(device, LAST, held)
    resize(device, LAST * CHUNK)
    held.let_go.set()
    assert not extents.count
    await device.flush()
    await device.unmount()
    assert len(await reopened(bucket)) == LAST * CHUNK


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
