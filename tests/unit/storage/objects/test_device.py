"""A disk in an object store: what it stores, and what it promises."""

from __future__ import annotations

import asyncio
import errno
from random import Random
from typing import Any

import pytest

from aiovblk.storage.objects import Limits, snapshot
from aiovblk.storage.objects.journal import FencedError

from ....support.object_store import (
    BLOCK,
    CHUNK,
    Bucket,
    make_disk,
    open_disk,
    opened,
    undisturbed,
    write,
)

SIZE = 20 * CHUNK + 2 * BLOCK


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


async def make(bucket: Bucket, **options: Any) -> None:
    await make_disk(bucket, size=SIZE, **options)


async def test_new_disk_is_one_object_and_all_zeroes(bucket: Bucket) -> None:
    await make(bucket)
    assert list(bucket.objects) == ["disk/disk.json"]
    async with opened(bucket.client()) as device:
        assert device.size == SIZE
        assert bytes(await device.read(0, SIZE)) == bytes(SIZE)
    assert not bucket.names("disk/chunks")


async def test_what_was_flushed_is_there_when_the_disk_is_opened_again(bucket: Bucket) -> None:
    await make(bucket)
    data = Random(1).randbytes(3 * CHUNK)
    async with opened(bucket.client()) as device:
        await write(device, BLOCK, data)
        await device.flush()
        assert bytes(await device.read(BLOCK, len(data))) == data
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(BLOCK, len(data))) == data
        assert bytes(await device.read(0, BLOCK)) == bytes(BLOCK)


async def test_identity_differs_for_all_that_was_and_is_stored(bucket: Bucket) -> None:
    await make(bucket)
    await make_disk(bucket, "other", size=SIZE)
    async with opened(bucket.client()) as device:
        seen = [device.identity]
        await write(device, 0, b"a" * BLOCK)
        assert device.identity == seen[0]
        await device.flush()
        seen.append(device.identity)
        await device.flush()
        await snapshot(bucket.client(), "disk", name="here")
        assert device.identity == seen[1]
        device.blocks += 1
        await device.flush()
        seen.append(device.identity)
    other = await open_disk(bucket.client(), "other")
    await other.unmount()
    assert len({*seen, other.identity}) == 4
    async with opened(bucket.client()) as device:
        assert device.identity == seen[2]
    async with opened(bucket.client(), read_only=True) as device:
        assert device.identity == seen[2]
    async with opened(bucket.client(), snapshot="here") as device:
        assert device.identity == seen[1]


async def test_identity_knows_nothing_of_another_writers_flushes(bucket: Bucket) -> None:
    await make(bucket)
    device = await open_disk(bucket.client())
    await write(device, 0, b"a" * BLOCK)
    await device.flush()
    before = device.identity
    bucket.forget_lease()
    async with opened(bucket.client()) as other:
        await write(other, 0, b"b" * BLOCK)
    await write(device, 0, b"c" * BLOCK)
    with pytest.raises(FencedError):
        await device.flush()
    assert device.identity == before
    await device.unmount()


async def test_write_is_not_stored_before_a_flush_and_is_after_it(bucket: Bucket) -> None:
    await make(bucket)
    client = bucket.client()
    device = await open_disk(client)
    await write(device, 0, b"a" * BLOCK)
    assert not bucket.names("disk/chunks")
    await device.flush()
    await write(device, 0, b"b" * BLOCK)
    client.crash()
    with pytest.raises(OSError, match="crashed"):
        await device.unmount()
    bucket.forget_lease()
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(0, BLOCK)) == b"a" * BLOCK


async def test_flush_of_nothing_asks_the_store_for_nothing(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        bucket.requests.clear()
        await device.flush()
        assert not bucket.requests


async def test_flushes_at_the_same_time_share_one_record(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * BLOCK)
        bucket.requests.clear()
        await asyncio.gather(*(device.flush() for _ in range(10)))
        assert [path for request, path in bucket.requests if request == "create"] == [
            "disk/log/000000000002"
        ]


async def test_writes_to_parts_of_a_chunk_are_merged_with_what_is_stored(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * CHUNK)
        await device.flush()
    async with opened(bucket.client()) as device:
        await write(device, BLOCK, b"b" * BLOCK)
        assert bytes(await device.read(0, CHUNK)) == b"a" * BLOCK + b"b" * BLOCK + b"a" * 2 * BLOCK
        await device.flush()
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(0, CHUNK)) == b"a" * BLOCK + b"b" * BLOCK + b"a" * 2 * BLOCK


async def test_replaced_chunks_are_deleted(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        for letter in b"abcdef":
            await write(device, 0, bytes([letter]) * CHUNK)
            await device.flush()
        await write(device, CHUNK, b"z" * BLOCK)
    assert len(bucket.names("disk/chunks")) == 1


@pytest.mark.parametrize("command", ["trim", "write_zeroes", "write"])
async def test_chunk_that_becomes_zeroes_is_deleted(bucket: Bucket, command: str) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * 2 * CHUNK)
        await device.flush()
        if command == "trim":
            await device.trim(0, CHUNK)
        elif command == "write_zeroes":
            await device.write_zeroes(0, CHUNK, may_trim=True)
        else:
            await write(device, 0, bytes(CHUNK))
        assert bytes(await device.read(0, CHUNK + BLOCK)) == bytes(CHUNK) + b"a" * BLOCK
    assert [name[:20] for name in bucket.names("disk/chunks")] == ["disk/chunks/00000001"]


async def test_trim_of_a_part_leaves_it(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * CHUNK)
        await device.trim(BLOCK, BLOCK)
        assert bytes(await device.read(0, CHUNK)) == b"a" * CHUNK


async def test_extents_report_the_chunks_that_are_not_there(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        await write(device, CHUNK, b"a" * BLOCK)
        expected = [(CHUNK - BLOCK, True), (CHUNK, False), (2 * CHUNK, True)]
        found = await device.extents(BLOCK, 4 * CHUNK - BLOCK)
        assert [(each.length, each.zero) for each in found] == expected
        await device.flush()
        found = await device.extents(BLOCK, 4 * CHUNK - BLOCK)
        assert [(each.length, each.zero) for each in found] == expected


async def test_readers_of_one_chunk_share_one_request(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * CHUNK)
    async with opened(bucket.client()) as device:
        bucket.requests.clear()
        reads = [device.read(BLOCK * block, BLOCK) for block in range(4)]
        assert all(bytes(each) == b"a" * BLOCK for each in await asyncio.gather(*reads))
        assert len(bucket.requests) == 1


async def test_read_that_is_cancelled_does_not_fail_the_others(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * CHUNK)
    client = bucket.client()
    goes_on = asyncio.Event()
    async with opened(client) as device:
        client.before = lambda request, path: goes_on.wait() if path.startswith("chunks") else None
        first, second = (asyncio.ensure_future(device.read(0, BLOCK)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        goes_on.set()
        assert bytes(await second) == b"a" * BLOCK
        with pytest.raises(asyncio.CancelledError):
            await first


@pytest.mark.parametrize("cached", [True, False])
async def test_chunk_half_of_which_is_written_is_stored_as_a_chunk_if_the_rest_is_in_memory(
    bucket: Bucket, cached: bool
) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * CHUNK)
    async with opened(bucket.client(), limits=Limits(inline_size=0)) as device:
        if cached:
            await device.read(0, CHUNK)
        await write(device, 0, b"b" * 2 * BLOCK)
        await write(device, CHUNK, b"c" * 2 * BLOCK)  # the rest is zeroes
        await device.flush()
        found = [name.partition("-")[0] for name in bucket.names("disk/chunks")]
        assert found.count("disk/chunks/00000001") == 1
        assert len(bucket.names("disk/segments")) == (not cached)
    expected = b"b" * 2 * BLOCK + b"a" * 2 * BLOCK + b"c" * 2 * BLOCK + bytes(2 * BLOCK)
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(0, 2 * CHUNK)) == expected


@pytest.mark.parametrize(("folder", "blocks"), [("chunks", 4), ("segments", 1), ("log", 2)])
async def test_write_while_its_chunk_is_stored_is_kept_for_the_next_flush(
    bucket: Bucket, folder: str, blocks: int
) -> None:
    await make(bucket)
    client = bucket.client()
    goes_on, begun = asyncio.Event(), asyncio.Event()

    def before(request: str, path: str) -> Any:
        if request in ("put", "create") and path.startswith(folder):
            begun.set()
            return goes_on.wait()
        return None

    limits = Limits(inline_size=0) if folder == "segments" else Limits()
    async with opened(client, limits=limits) as device:
        client.before = before
        await write(device, 0, b"a" * blocks * BLOCK)
        flush = asyncio.create_task(device.flush())
        await begun.wait()
        await write(device, BLOCK, b"b" * BLOCK)
        both = b"a" * BLOCK + b"b" * BLOCK
        assert bytes(await device.read(0, 2 * BLOCK)) == both
        goes_on.set()
        await flush
        assert bytes(await device.read(0, 2 * BLOCK)) == both
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(0, 2 * BLOCK)) == both


@pytest.mark.parametrize(("folder", "blocks"), [("chunks", 4), ("segments", 1), ("log", 1)])
async def test_flush_that_fails_keeps_what_was_written_for_the_next(
    bucket: Bucket, folder: str, blocks: int
) -> None:
    await make(bucket)
    client = bucket.client()

    def before(request: str, path: str) -> None:
        if path.startswith(folder):
            raise OSError(errno.EIO, "the store is away")

    limits = Limits(inline_size=0) if folder == "segments" else Limits()
    async with opened(client, limits=limits) as device:
        client.before = before
        await write(device, 0, b"a" * blocks * BLOCK)
        for _ in range(2):
            with pytest.raises(OSError, match="away"):
                await device.flush()
            assert bytes(await device.read(0, BLOCK)) == b"a" * BLOCK
        client.before = undisturbed
        await device.flush()
        client.crash()
        with pytest.raises(OSError, match="crashed"):
            await write(device, 0, b"b" * blocks * BLOCK)
            await device.flush()
        client.process.has_crashed = False
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(0, BLOCK))[:1] == b"b"


async def test_commit_whose_response_was_lost_counts_once(bucket: Bucket) -> None:
    await make(bucket)
    client = bucket.client()
    device = await open_disk(client)
    await write(device, 0, b"a" * BLOCK)
    client.lose_a_response()
    with pytest.raises(OSError, match="no response"):
        await device.flush()
    await device.flush()
    await device.unmount()
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(0, BLOCK)) == b"a" * BLOCK


async def test_too_much_that_is_unstored_makes_writes_wait_for_the_store(bucket: Bucket) -> None:
    await make(bucket)
    limits = Limits(memory=CHUNK, unstored=4 * BLOCK, inline_size=0)
    async with opened(bucket.client(), limits=limits) as device:
        for index in range(20):
            await write(device, index * CHUNK, bytes([index + 1]) * BLOCK)
        stored = sum(len(bucket.objects[name]) for name in bucket.names("disk/segments"))
        assert stored >= 10 * BLOCK  # there is room for two chunks, however small the limit is
        for index in range(20):
            assert bytes(await device.read(index * CHUNK, BLOCK)) == bytes([index + 1]) * BLOCK


async def test_full_chunks_of_a_stream_are_stored_before_the_flush(bucket: Bucket) -> None:
    await make(bucket)
    client = bucket.client()
    async with opened(client) as device:
        sixth = asyncio.Event()

        def before(request: str, path: str) -> None:
            if path.startswith("chunks/00000005"):
                sixth.set()

        client.before = before
        for offset in range(0, 10 * CHUNK, BLOCK):
            await write(device, offset, b"a" * BLOCK)
        await sixth.wait()
        assert not bucket.names("disk/log")[1:]


# Sizes


async def test_new_size_is_stored_by_the_next_flush(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client()) as device:
        await write(device, SIZE - BLOCK, b"a" * BLOCK)
        device.blocks *= 2
        await write(device, 2 * SIZE - BLOCK, b"b" * BLOCK)
        await device.flush()
    async with opened(bucket.client()) as device:
        assert device.size == 2 * SIZE
        assert bytes(await device.read(2 * SIZE - BLOCK, BLOCK)) == b"b" * BLOCK
        device.blocks //= 4
    async with opened(bucket.client()) as device:
        assert device.size == SIZE // 2 // BLOCK * BLOCK
        device.blocks *= 4
        assert bytes(await device.read(SIZE, BLOCK)) == bytes(BLOCK)
    assert not bucket.names("disk/chunks")
