"""The dirty bitmaps of an open disk, or snapshot: what differs from each snapshot."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from aiovblk.bitmaps import DirtyExtent, SupportsDirtyBitmaps
from aiovblk.storage.extents import MAX_EXTENTS
from aiovblk.storage.objects import (
    Limits,
    ObjectStoreDevice,
    collect_garbage,
    create,
    drop_snapshot,
    snapshot,
)
from aiovblk.storage.objects.journal import FencedError

from ....support.diff_histories import all_dirty
from ....support.object_store import (
    BLOCK,
    CHUNK,
    SIZE,
    Bucket,
    fill,
    open_disk,
    opened,
    write,
)

pytestmark = pytest.mark.slow


@pytest.fixture
async def device(bucket: Bucket) -> AsyncIterator[ObjectStoreDevice]:
    """A disk that is open for writing, whose snapshot ``one`` has data in its first chunk."""
    async with opened(bucket.client()) as device:
        await fill(device, 0, b"a")
        await device.flush()
        await snapshot(bucket.client(), "disk", name="one")
        yield device


async def dirty(device: ObjectStoreDevice, name: str) -> list[tuple[int, int]]:
    """Return the ranges that are dirty: offset and length."""
    found, offset = [], 0
    for each in await all_dirty(device, name):
        if each.dirty:
            found.append((offset, each.length))
        offset += each.length
    return found


async def test_snapshot_says_what_differs_from_an_earlier_one(
    bucket: Bucket, device: ObjectStoreDevice
) -> None:
    await write(device, BLOCK, b"b" * BLOCK)
    await fill(device, 2, b"b")
    await device.flush()
    await snapshot(bucket.client(), "disk", name="two")
    await fill(device, 3, b"c")
    await device.flush()
    async with opened(bucket.client(), snapshot="two") as two:
        assert isinstance(two, SupportsDirtyBitmaps)
        assert await two.dirty_bitmaps() == ["one", "two"]
        assert await dirty(two, "one") == [(BLOCK, BLOCK), (2 * CHUNK, CHUNK)]
        assert await two.dirty_extents("two", 0, SIZE) == [DirtyExtent(SIZE, dirty=False)]
    async with opened(bucket.client(), read_only=True) as present:
        assert await dirty(present, "two") == [(3 * CHUNK, CHUNK)]


async def test_extents_cover_what_was_asked_for(device: ObjectStoreDevice) -> None:
    await write(device, CHUNK, b"b" * 2 * BLOCK)
    assert await device.dirty_extents("one", CHUNK - BLOCK, 2 * BLOCK) == [
        DirtyExtent(BLOCK, dirty=False),
        DirtyExtent(BLOCK, dirty=True),
    ]
    assert await device.dirty_extents("one", CHUNK + BLOCK, BLOCK) == [
        DirtyExtent(BLOCK, dirty=True)
    ]


# A disk that is written to


async def test_block_is_dirty_as_soon_as_it_is_written(device: ObjectStoreDevice) -> None:
    assert await dirty(device, "one") == []
    await write(device, BLOCK, b"b" * BLOCK)
    assert await dirty(device, "one") == [(BLOCK, BLOCK)]
    await device.trim(0, CHUNK)
    assert await dirty(device, "one") == [(0, CHUNK)]
    await device.flush()
    assert await dirty(device, "one") == [(0, CHUNK)]


async def test_block_is_dirty_while_it_is_flushed(bucket: Bucket) -> None:
    """Whatever the flush waits for, in each of its steps."""
    client = bucket.client()
    async with opened(client, limits=Limits(inline_size=0)) as device:
        await snapshot(bucket.client(), "disk", name="one")
        assert await dirty(device, "one") == []
        for number in range(7):
            await fill(device, number, b"b")
        await write(device, 7 * CHUNK, b"b" * BLOCK)
        seen: dict[str, list[list[tuple[int, int]]]] = {}

        async def look(request: str, path: str) -> None:
            if request in ("put", "create"):
                seen.setdefault(path.partition("/")[0], []).append(await dirty(device, "one"))

        client.before = look
        await device.flush()
        assert seen.keys() >= {"chunks", "segments", "log"}
        for found in seen.values():
            assert all(each == [(0, 7 * CHUNK + BLOCK)] for each in found)


async def test_snapshot_of_another_process_is_found(
    bucket: Bucket, device: ObjectStoreDevice
) -> None:
    assert await device.dirty_bitmaps() == ["one"]
    await snapshot(bucket.client(), "disk", name="another")
    assert await device.dirty_bitmaps() == ["another", "one"]
    await write(device, 0, b"b" * BLOCK)
    assert await dirty(device, "another") == [(0, BLOCK)]


async def test_snapshot_that_was_dropped_is_none_any_more(
    bucket: Bucket, device: ObjectStoreDevice
) -> None:
    assert await dirty(device, "one") == []
    await drop_snapshot(bucket.client(), "disk", name="one")
    assert await device.dirty_bitmaps() == []
    with pytest.raises(KeyError, match="one"):
        await device.dirty_extents("one", 0, SIZE)


async def test_name_that_is_taken_anew_means_the_new_snapshot(
    bucket: Bucket, device: ObjectStoreDevice
) -> None:
    await write(device, 0, b"b" * BLOCK)
    await device.flush()
    assert await dirty(device, "one") == [(0, BLOCK)]
    await drop_snapshot(bucket.client(), "disk", name="one")
    await snapshot(bucket.client(), "disk", name="one")
    await device.dirty_bitmaps()
    assert await dirty(device, "one") == []


async def test_writer_that_has_lost_the_disk_says_nothing(bucket: Bucket) -> None:
    device = await open_disk(bucket.client())
    await snapshot(bucket.client(), "disk", name="one")
    bucket.forget_lease()
    other = await open_disk(bucket.client())
    with pytest.raises(FencedError, match="taken over"):
        await device.dirty_bitmaps()
    with pytest.raises(FencedError, match="taken over"):
        await device.dirty_extents("one", 0, SIZE)
    await device.unmount()
    await other.unmount()


# A snapshot that is dropped while another one is read


async def test_snapshot_that_is_dropped_meanwhile_is_known_while_its_map_is_in_memory(
    bucket: Bucket, device: ObjectStoreDevice
) -> None:
    await snapshot(bucket.client(), "disk", name="two")
    await fill(device, 1, b"b")
    await device.flush()
    await snapshot(bucket.client(), "disk", name="three")
    async with opened(bucket.client(), snapshot="three") as three:
        assert await dirty(three, "one") == [(CHUNK, CHUNK)]
        for name in ("one", "two"):
            await drop_snapshot(bucket.client(), "disk", name=name)
        await fill(device, 2, b"b")
        await device.flush()
        await collect_garbage(bucket.client(), "disk")
        assert await dirty(three, "one") == [(CHUNK, CHUNK)]
        with pytest.raises(KeyError, match="two"):
            await three.dirty_extents("two", 0, SIZE)
    with pytest.raises(KeyError):
        await device.dirty_extents("no such", 0, SIZE)


# What it costs


async def test_only_the_first_call_makes_a_request(
    bucket: Bucket, device: ObjectStoreDevice
) -> None:
    await snapshot(bucket.client(), "disk", name="two")
    async with opened(bucket.client(), snapshot="two") as two:
        begin = len(bucket.requests)
        await asyncio.gather(*(two.dirty_extents("one", 0, SIZE) for _ in range(10)))
        (request,) = bucket.requests[begin:]
        assert request[0] == "get"
        assert request[1].startswith("disk/map/")
        for _ in range(10):
            await two.dirty_bitmaps()
            await two.dirty_extents("one", 0, SIZE)
        assert len(bucket.requests) == begin + 1


async def test_maps_of_eight_snapshots_are_kept(bucket: Bucket, device: ObjectStoreDevice) -> None:
    names = [f"s{number}" for number in range(9)]
    for name in names:
        await snapshot(bucket.client(), "disk", name=name)
    await device.dirty_bitmaps()

    async def requests(asked: list[str]) -> int:
        begin = len(bucket.requests)
        for name in asked:
            await device.dirty_extents(name, 0, SIZE)
        return len(bucket.requests) - begin

    assert await requests(names[:8]) == 8
    assert await requests(names[:8] * 2) == 0
    assert await requests([names[8]]) == 1  # in place of the first, which is the oldest
    assert await requests(names[1:]) == 0
    assert await requests(names[:1]) == 1


async def test_one_call_returns_a_bounded_number_of_extents(bucket: Bucket) -> None:
    size = 40_000 * BLOCK
    await create(bucket.client(), "large", size=size, chunk_size=1 << 20)
    await snapshot(bucket.client(), "large", name="one")
    async with opened(bucket.client(), path="large") as device:
        for block in range(0, 40_000, 4):
            await write(device, block * BLOCK, b"a" * BLOCK)
        for _ in range(2):
            first = await device.dirty_extents("one", 0, size)
            assert len(first) == MAX_EXTENTS
            expected = [(block * BLOCK, BLOCK) for block in range(0, 40_000, 4)]
            assert await dirty(device, "one") == expected
            await device.flush()


async def test_one_call_looks_up_a_bounded_number_of_chunks(bucket: Bucket) -> None:
    count = 300_000
    await create(bucket.client(), "huge", size=count * 4096, chunk_size=4096)
    await snapshot(bucket.client(), "huge", name="one")
    async with opened(bucket.client(), path="huge") as device:
        assert len(await device.dirty_extents("one", 0, device.size)) == 1
        (first,) = await device.dirty_extents("one", 0, device.size)
        assert 0 < first.length < device.size
        assert await dirty(device, "one") == []
