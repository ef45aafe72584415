"""Huge disks: long requests let other tasks run, and reply piece by piece."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Generator
from typing import Any

import pytest

from aiovblk.storage.objects import Limits, create
from aiovblk.storage.objects.segments import SegmentPart, divide

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


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


async def test_trim_of_a_huge_disk_lets_others_run(bucket: Bucket) -> None:
    size = 100_000 * 4096
    await create(bucket.client(), "disk", size=size, chunk_size=4096)
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * 4096)
        for request in (device.trim(0, size), device.write_zeroes(0, size, may_trim=True)):
            running, turns = asyncio.ensure_future(request), 0
            while not running.done():
                await asyncio.sleep(0)
                turns += 1
            assert turns > 20
        assert bytes(await device.read(0, 4096)) == bytes(4096)


async def test_extents_of_a_huge_disk_are_reported_piece_by_piece(bucket: Bucket) -> None:
    size = 100_000 * 4096
    await create(bucket.client(), "disk", size=size, chunk_size=4096)
    async with opened(bucket.client()) as device:
        position = 0
        while position < size:
            found = await device.extents(position, size - position)
            covered = sum(each.length for each in found)
            assert 0 < covered <= 1 << 28
            position += covered
        assert position == size


async def test_write_that_waits_for_room_does_not_start_to_store_all(bucket: Bucket) -> None:
    await create(bucket.client(), "disk", size=1000 * CHUNK, chunk_size=CHUNK)
    limits = Limits(unstored=500 * BLOCK, requests=2, inline_size=0, segment_size=CHUNK)
    async with opened(bucket.client(), limits=limits) as device:
        for index in range(500):
            await write(device, index * CHUNK, b"a" * BLOCK)
        tasks = len(asyncio.all_tasks())
        waiting = asyncio.create_task(write(device, 500 * CHUNK, b"a" * BLOCK))
        most = 0
        while not waiting.done():
            await asyncio.sleep(0)
            most = max(most, len(asyncio.all_tasks()) - tasks)
        assert most < 10


async def test_flush_makes_one_segment_at_a_time_and_lets_others_run(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, made = 0, []

    def noting(*arguments: Any) -> Generator[SegmentPart, None, None]:
        for part in divide(*arguments):
            made.append(turn)
            yield part

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr("aiovblk.storage.objects.write_buffer.divide", noting)
    await make_disk(bucket)
    device = await open_disk(bucket.client(), limits=Limits(segment_size=BLOCK, inline_size=0))
    for index in range(8):
        await write(device, index * CHUNK, b"a" * BLOCK)
    counting = asyncio.ensure_future(count())
    await device.flush()
    counting.cancel()
    assert len(made) == len(set(made)) == 8
    await device.unmount()


async def test_flush_of_much_fails_as_soon_as_one_request_does(bucket: Bucket) -> None:
    await create(bucket.client(), "disk", size=1000 * CHUNK, chunk_size=CHUNK)
    client = bucket.client()
    limits = Limits(requests=2, inline_size=0, segment_size=CHUNK)
    async with opened(client, limits=limits) as device:
        tried: list[str] = []

        def before(request: str, path: str) -> None:
            if request == "put":
                tried.append(path)
                raise OSError(errno.EIO, "the store is away")

        client.before = before
        for index in range(500):
            await write(device, index * CHUNK, b"a" * BLOCK)
        with pytest.raises(OSError, match="away"):
            await device.flush()
        assert len(tried) < 10
        client.before = undisturbed
    assert len(bucket.names("disk/segments")) == 125
