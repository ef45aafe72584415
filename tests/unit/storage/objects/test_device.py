"""A disk in an object store: what it stores, and what it promises."""

from __future__ import annotations

import asyncio
import errno
from random import Random
from typing import Any

import pytest

from aiovblk.errors import StorageBusyError, StorageError
from aiovblk.storage.objects import Limits, ObjectStoreDevice, clone, create, snapshot
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
KEY = bytes(range(32))


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


async def test_identity_tells_what_is_stored_from_all_that_was_and_is(bucket: Bucket) -> None:
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
    assert len(bucket.names("disk/chunks")) == 2


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


async def test_extents_tell_the_chunks_that_are_not_there(bucket: Bucket) -> None:
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


async def test_write_while_its_chunk_is_stored_is_kept_for_the_next_flush(bucket: Bucket) -> None:
    await make(bucket)
    client = bucket.client()
    goes_on, begun = asyncio.Event(), asyncio.Event()

    def before(request: str, path: str) -> Any:
        if request == "put" and path.startswith("chunks"):
            begun.set()
            return goes_on.wait()
        return None

    async with opened(client) as device:
        client.before = before
        await write(device, 0, b"a" * 2 * BLOCK)
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


async def test_flush_that_fails_keeps_what_was_written_for_the_next(bucket: Bucket) -> None:
    await make(bucket)
    client = bucket.client()

    def before(request: str, path: str) -> None:
        if path.startswith(failing):
            raise OSError(errno.EIO, "the store is away")

    async with opened(client) as device:
        client.before = before
        for part in ("chunks", "log"):
            failing = part
            await write(device, 0, b"a" * BLOCK)
            with pytest.raises(OSError, match="away"):
                await device.flush()
            assert bytes(await device.read(0, BLOCK)) == b"a" * BLOCK
        failing = "nothing"
        await device.flush()
        client.crash()
        with pytest.raises(OSError, match="crashed"):
            await write(device, 0, b"b" * BLOCK)
            await device.flush()
        client.life.is_over = False
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(0, BLOCK))[:1] == b"b"


async def test_commit_whose_answer_was_lost_counts_once(bucket: Bucket) -> None:
    await make(bucket)
    client = bucket.client()
    device = await open_disk(client)
    await write(device, 0, b"a" * BLOCK)
    client.lose_an_answer()
    with pytest.raises(OSError, match="no answer"):
        await device.flush()
    await device.flush()
    await device.unmount()
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(0, BLOCK)) == b"a" * BLOCK


async def test_too_much_that_is_unstored_makes_writes_wait_for_the_store(bucket: Bucket) -> None:
    await make(bucket)
    limits = Limits(memory=CHUNK, unstored=4 * CHUNK)
    async with opened(bucket.client(), limits=limits) as device:
        for index in range(20):
            await write(device, index * CHUNK, bytes([index + 1]) * BLOCK)
        assert len(bucket.names("disk/chunks")) >= 16
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


# One writer


async def test_second_writer_is_refused_while_the_first_lives(bucket: Bucket) -> None:
    await make(bucket)
    async with opened(bucket.client(), lease=0.03):
        with pytest.raises(StorageBusyError, match=r"in use: process \d+ on .* writes to it"):
            await open_disk(bucket.client(), lease=0.03)


async def test_disk_of_a_writer_that_crashed_is_free_when_its_lease_is_over(
    bucket: Bucket,
) -> None:
    await make(bucket)
    client = bucket.client()
    crashed = await open_disk(client, lease=0.05)
    client.crash()
    async with opened(bucket.client(), lease=0.05):
        pass
    with pytest.raises(OSError, match="crashed"):
        await write(crashed, 0, bytes(BLOCK))
        await crashed.unmount()


async def test_writer_that_lost_the_disk_can_not_change_it(bucket: Bucket) -> None:
    await make(bucket)
    old = await open_disk(bucket.client(), lease=3600)
    await write(old, 0, b"a" * BLOCK)
    await old.flush()
    bucket.forget_lease()  # it slept for an hour
    async with opened(bucket.client()) as new:
        await write(new, BLOCK, b"n" * BLOCK)
        await new.flush()
        await write(old, 0, b"late" * (BLOCK // 4))
        with pytest.raises(FencedError, match="taken over by process"):
            await old.flush()
        for request in (old.read(0, BLOCK), old.flush(), old.trim(0, CHUNK)):
            with pytest.raises(StorageBusyError, match="what was not flushed is lost"):
                await request
        await old.unmount()
        assert bytes(await new.read(0, 2 * BLOCK)) == b"a" * BLOCK + b"n" * BLOCK
    async with opened(bucket.client()) as device:
        assert bytes(await device.read(0, 2 * BLOCK)) == b"a" * BLOCK + b"n" * BLOCK


async def test_writer_that_slept_through_many_others_is_fenced(bucket: Bucket) -> None:
    await make(bucket)
    old = await open_disk(bucket.client(), lease=3600)
    await write(old, 0, b"a" * BLOCK)
    for _ in range(3):
        bucket.forget_lease()
        async with opened(bucket.client()) as new:
            for letter in b"xyz":
                await write(new, 0, bytes([letter]) * BLOCK)
                await new.flush()
    with pytest.raises(FencedError):
        await old.flush()
    await old.unmount()


async def test_writer_notices_when_it_renews_the_lease_that_the_disk_is_lost(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    await make(bucket)
    old = await open_disk(bucket.client(), lease=0.03)
    bucket.forget_lease()
    async with opened(bucket.client(), lease=3600):
        with pytest.raises(StorageBusyError, match="taken over"):
            while True:
                await old.read(0, BLOCK)
                await asyncio.sleep(0.001)
        await old.unmount()
    assert "taken over by process" in caplog.text


async def test_of_two_that_open_at_the_same_time_one_is_refused(bucket: Bucket) -> None:
    await make(bucket)
    clients = [bucket.client(), bucket.client()]
    meeting = asyncio.Event()
    there: list[str] = []

    async def meet(request: str, path: str) -> None:
        if request != "create" or not path.startswith("log/"):
            return
        there.append(path)
        if len(there) == 2:
            meeting.set()
        await meeting.wait()

    for client in clients:
        client.before = meet
    results = await asyncio.gather(
        *(open_disk(client) for client in clients), return_exceptions=True
    )
    devices = [each for each in results if isinstance(each, ObjectStoreDevice)]
    assert len(devices) == 1
    assert sum(isinstance(each, FencedError) for each in results) == 1
    await devices[0].unmount()


# Errors


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
    text = bucket.objects["disk/disk.json"].replace(b'"version": 1', b'"version": 3')
    bucket.objects["disk/disk.json"] = text
    with pytest.raises(StorageError, match="has format 3, this aiovblk knows 1 and 2 only; upgra"):
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


# Large ones


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


async def test_extents_of_a_huge_disk_are_told_piece_by_piece(bucket: Bucket) -> None:
    size = 100_000 * 4096
    await create(bucket.client(), "disk", size=size, chunk_size=4096)
    async with opened(bucket.client()) as device:
        position = 0
        while position < size:
            found = await device.extents(position, size - position)
            told = sum(each.length for each in found)
            assert 0 < told <= 1 << 28
            position += told
        assert position == size


async def test_write_that_waits_for_room_does_not_start_to_store_all(bucket: Bucket) -> None:
    await create(bucket.client(), "disk", size=1000 * CHUNK, chunk_size=CHUNK)
    limits = Limits(unstored=500 * CHUNK, requests=2)
    async with opened(bucket.client(), limits=limits) as device:
        for index in range(500):
            await write(device, index * CHUNK, b"a" * BLOCK)
        tasks = len(asyncio.all_tasks())
        waiting = asyncio.create_task(write(device, 500 * CHUNK, b"a" * BLOCK))
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) - tasks < 10
        await waiting


async def test_flush_of_much_fails_as_soon_as_one_request_does(bucket: Bucket) -> None:
    await create(bucket.client(), "disk", size=1000 * CHUNK, chunk_size=CHUNK)
    client = bucket.client()
    async with opened(client, limits=Limits(requests=2)) as device:
        for index in range(500):
            await write(device, index * CHUNK, b"a" * BLOCK)
        tried: list[str] = []

        def before(request: str, path: str) -> None:
            if request == "put":
                tried.append(path)
                raise OSError(errno.EIO, "the store is away")

        client.before = before
        with pytest.raises(OSError, match="away"):
            await device.flush()
        assert len(tried) < 10
        client.before = undisturbed
    assert len(bucket.names("disk/chunks")) == 500
