"""What differs between two states of a disk, or of disks that share an origin."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from aiovblk.errors import StorageError
from aiovblk.storage.objects import (
    ChangedExtent,
    DiffTotals,
    Limits,
    clone,
    collect_garbage,
    convert,
    diff,
    drop_snapshot,
    snapshot,
)

from ....support.object_store import (
    BLOCK,
    CHUNK,
    SIZE,
    Bucket,
    failing,
    fill,
    make_disk,
    once,
    open_disk,
    opened,
    write,
)

KEY = bytes(range(32))


async def take(bucket: Bucket, name: str, path: str = "disk", **options: Any) -> None:
    await snapshot(bucket.client(), path, name=name, **options)


async def extents(bucket: Bucket, path: str = "disk", **options: Any) -> list[ChangedExtent]:
    return [each async for each in await diff(bucket.client(), path, **options)]


def whole(index: int, count: int = 1, *, zero: bool = False) -> ChangedExtent:
    return ChangedExtent(index * CHUNK, count * CHUNK, zero, CHUNK)


def part(offset: int, blocks: int = 1, *, zero: bool = False) -> ChangedExtent:
    return ChangedExtent(offset, blocks * BLOCK, zero, BLOCK)


# What is found


async def test_blocks_and_whole_chunks_are_told_apart(bucket: Bucket) -> None:
    async with opened(bucket.client()) as device:
        for index in range(5):
            await fill(device, index, b"a")
        await device.flush()
        await take(bucket, "one")
        await write(device, 2 * BLOCK, b"b" * 2 * BLOCK)
        await fill(device, 1, b"b")
        await fill(device, 2, b"b")
        await device.trim(3 * CHUNK, CHUNK)
        await device.write_zeroes(4 * CHUNK, BLOCK, may_trim=True)
        await write(device, 7 * CHUNK, b"b" * BLOCK)
        await device.flush()
        await take(bucket, "two")
        await fill(device, 6, b"c")
    expected = [
        part(2 * BLOCK, 2),
        whole(1, 2),
        whole(3, zero=True),
        part(4 * CHUNK, zero=True),
        part(7 * CHUNK),
    ]
    assert await extents(bucket, since="one", snapshot="two") == expected
    expected.insert(4, whole(6))
    assert await extents(bucket, since="one") == expected
    found = await diff(bucket.client(), "disk", since="one")
    assert await found.totals() == DiffTotals(
        6, data=3 * BLOCK + 3 * CHUNK, zero=CHUNK + BLOCK, by_chunk=4 * CHUNK
    )
    assert (await found.totals()).changed == 3 * BLOCK + 3 * CHUNK + CHUNK + BLOCK


async def test_earlier_state_may_be_compared_with_a_later_one(bucket: Bucket) -> None:
    async with opened(bucket.client()) as device:
        await fill(device, 0, b"a")
        await device.flush()
        await take(bucket, "one")
        await write(device, BLOCK, b"b" * BLOCK)
        await fill(device, 1, b"b")
        await device.flush()
        await take(bucket, "two")
    assert await extents(bucket, snapshot="one", since="two") == [
        part(BLOCK),
        whole(1, zero=True),
    ]


async def test_same_state_does_not_differ(bucket: Bucket) -> None:
    async with opened(bucket.client()) as device:
        await fill(device, 0, b"a")
        await write(device, CHUNK, b"b" * BLOCK)
        await device.flush()
        await take(bucket, "one")
    assert await extents(bucket, since="one") == []
    found = await diff(bucket.client(), "disk", since_path="/disk/")
    assert await found.totals() == DiffTotals()


async def test_data_in_records_is_compared(bucket: Bucket) -> None:
    async with opened(bucket.client()) as device:
        await write(device, 0, b"a" * 3 * BLOCK)
        await device.flush()
        await take(bucket, "one")
        await write(device, 0, b"a" * BLOCK + b"b" * BLOCK + b"a" * BLOCK)
        await device.flush()
        assert await extents(bucket, since="one") == [part(BLOCK)]


async def test_what_is_not_flushed_is_not_part_of_the_present_state(bucket: Bucket) -> None:
    device = await open_disk(bucket.client())
    await take(bucket, "one")
    await write(device, 0, b"a" * BLOCK)
    assert await extents(bucket, since="one") == []
    await device.flush()
    assert await extents(bucket, since="one") == [part(0)]
    await device.unmount()


async def test_chunk_that_the_compactor_has_folded_is_known_as_a_whole(bucket: Bucket) -> None:
    async with opened(bucket.client()) as device:
        await fill(device, 0, b"a")
        await device.flush()
        await take(bucket, "one")
        await write(device, BLOCK, b"b" * 2 * BLOCK)
        await device.flush()
        assert await extents(bucket, since="one") == [part(BLOCK, 2)]
        assert device._writer is not None
        while await device._writer._compactor.step():
            pass
        assert await extents(bucket, since="one") == [whole(0)]


async def test_what_a_larger_disk_has_behind_the_smaller_one_differs_unless_it_is_zeroes(
    bucket: Bucket,
) -> None:
    async with opened(bucket.client()) as device:
        await fill(device, 7, b"a")
        await device.flush()
        await take(bucket, "large")
        device.blocks = (7 * CHUNK + BLOCK) // BLOCK
        await device.flush()
        await take(bucket, "small")
        device.blocks = 10 * CHUNK // BLOCK
        await fill(device, 9, b"b")
        await device.flush()
        await take(bucket, "larger")
    found = await diff(bucket.client(), "disk", snapshot="small", since="large")
    assert (found.since_size, found.size) == (SIZE, 7 * CHUNK + BLOCK)
    assert [each async for each in found] == []
    found = await diff(bucket.client(), "disk", snapshot="larger", since="small")
    assert (found.since_size, found.size) == (7 * CHUNK + BLOCK, 10 * CHUNK)
    assert [each async for each in found] == [whole(9)]
    assert await extents(bucket, snapshot="larger", since="large") == [
        part(7 * CHUNK + BLOCK, 3, zero=True),
        whole(9),
    ]


# Clones


async def make_clones(bucket: Bucket, **options: Any) -> None:
    """Make two clones of a snapshot, and one of a clone; write a chunk of each."""
    client = bucket.client()
    async with opened(client, **options) as device:
        await fill(device, 0, b"a")
        await write(device, CHUNK, b"a" * BLOCK)
        limits = Limits(inline_size=0)
        await device.flush()
        await take(bucket, "base", **options)
        await fill(device, 2, b"a")
    await clone(client, "disk", name="base", target="first", **options)
    await clone(client, "disk", name="base", target="second", **options)
    async with opened(client, path="first", limits=limits, **options) as device:
        await write(device, 3 * CHUNK, b"b" * BLOCK)
        await device.flush()
        await take(bucket, "base", "first", **options)
    await clone(client, "first", name="base", target="third", **options)
    async with opened(client, path="second", **options) as device:
        await fill(device, 4, b"c")
    async with opened(client, path="third", **options) as device:
        await write(device, 0, b"d" * BLOCK)


@pytest.mark.parametrize("options", [{}, {"key": KEY}], ids=["plain", "encrypted"])
async def test_disks_that_share_an_origin_are_compared(options: dict[str, Any]) -> None:
    bucket = Bucket()
    await make_disk(bucket, **options)
    await make_clones(bucket, **options)

    async def found(path: str, since_path: str, **more: Any) -> list[ChangedExtent]:
        return await extents(bucket, path, since_path=since_path, **options, **more)

    assert await found("first", "disk", since="base") == [part(3 * CHUNK)]
    assert await found("first", "disk") == [whole(2, zero=True), part(3 * CHUNK)]
    assert await found("disk", "first") == [
        whole(2),
        ChangedExtent(3 * CHUNK, BLOCK, zero=True, granularity=BLOCK),
    ]
    assert await found("second", "first") == [
        part(3 * CHUNK, zero=True),
        whole(4),
    ]
    assert await found("third", "first", since="base") == [part(0)]
    assert await found("third", "disk", since="base") == [part(0), part(3 * CHUNK)]
    assert await found("third", "second") == [
        part(0),
        part(3 * CHUNK),
        whole(4, zero=True),
    ]


async def test_disks_without_a_common_origin_are_refused(bucket: Bucket) -> None:
    await make_disk(bucket, "other")
    with pytest.raises(StorageError, match="other and disk share no origin: neither is a clone"):
        await diff(bucket.client(), "disk", since_path="other")


async def test_copy_of_a_folder_is_refused_since_its_objects_may_be_others(bucket: Bucket) -> None:
    """It has the same identity, and gives the same names to what is written to it."""
    for name, data in list(bucket.objects.items()):
        bucket.objects[name.replace("disk/", "copy/", 1)] = data
    for path, letter in (("disk", b"a"), ("copy", b"b")):
        async with opened(bucket.client(), path=path) as device:
            await fill(device, 0, letter)
    with pytest.raises(StorageError, match="copy and disk share no origin"):
        await diff(bucket.client(), "disk", since_path="copy")


# Errors


async def test_caller_has_to_say_since_what(bucket: Bucket) -> None:
    with pytest.raises(ValueError, match="since what"):
        await diff(bucket.client(), "disk")


async def test_snapshot_that_does_not_exist_is_named(bucket: Bucket) -> None:
    options: list[dict[str, Any]] = [{"since": "one"}, {"since_path": "disk", "snapshot": "one"}]
    for each in options:
        with pytest.raises(FileNotFoundError, match="there is no snapshot 'one'; there are: none"):
            await diff(bucket.client(), "disk", **each)


async def test_snapshot_that_is_dropped_meanwhile_is_named(bucket: Bucket) -> None:
    async with opened(bucket.client()) as device:
        await take(bucket, "one")
        await fill(device, 0, b"a")
        await device.flush()
    await (await open_disk(bucket.client())).unmount()  # which stores a newer map

    async def drop() -> None:
        await drop_snapshot(bucket.client(), "disk", name="one")
        await collect_garbage(bucket.client(), "disk")

    client, gets = bucket.client(), 0

    async def before(request: str, path: str) -> None:
        nonlocal gets
        if (request, path.partition("/")[0]) == ("get", "map"):
            gets += 1
            if gets == 2:
                await drop()

    client.before = before
    with pytest.raises(FileNotFoundError, match="'one' is missing; it was dropped meanwhile"):
        await diff(client, "disk", since="one")


async def test_encrypted_disk_needs_its_key() -> None:
    bucket = Bucket()
    await make_disk(bucket, key=KEY)
    await take(bucket, "one", key=KEY)
    with pytest.raises(StorageError, match="is encrypted; give its key"):
        await diff(bucket.client(), "disk", since="one")
    assert await extents(bucket, since="one", key=KEY) == []


async def test_snapshot_of_a_process_that_died_is_compared(bucket: Bucket) -> None:
    """It had added the record, and not stored the state yet."""
    async with opened(bucket.client()) as device:
        await fill(device, 0, b"a")
        await device.flush()
        dying = bucket.client()
        dying.before = failing("put map")
        with pytest.raises(OSError, match="away"):
            await snapshot(dying, "disk", name="one")
        assert await extents(bucket, since="one") == []
        async with opened(bucket.client(), snapshot="one") as reader:
            (found,) = await reader.dirty_extents("one", 0, SIZE)
            assert found == (SIZE, False)


# Earlier formats


@pytest.mark.parametrize("kind", ["plain", "compressed", "encrypted"])
@pytest.mark.parametrize("is_converted", [False, True])
async def test_disk_of_an_earlier_format_is_compared_by_chunks(
    kind: str, *, is_converted: bool
) -> None:
    bucket, key = Bucket(), KEY if kind == "encrypted" else None
    stored = json.loads(Path(__file__).with_name("earlier_formats.json").read_bytes())
    for name, data in stored[kind].items():
        bucket.objects[name] = zlib.decompress(base64.b64decode(data))
    if is_converted:
        bucket.forget_lease()
        await convert(bucket.client(), "disk", key=key)
    async with opened(bucket.client(), read_only=True, key=key) as device:
        (name,) = await device.dirty_bitmaps()
    assert await extents(bucket, since=name, key=key) == [whole(0), whole(2, 3)]


async def test_records_that_another_process_replaces_meanwhile_are_read_anew(
    bucket: Bucket,
) -> None:
    async with opened(bucket.client()) as device:
        await take(bucket, "one")
        await fill(device, 0, b"a")
        await device.flush()
    client = bucket.client()

    async def go_on() -> None:
        await (await open_disk(bucket.client())).unmount()  # stores a map, deletes the records

    once(client, "get log", go_on)
    found = await diff(client, "disk", since="one")
    assert [each async for each in found] == [whole(0)]
