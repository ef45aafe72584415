"""Compaction: records into segments, segments into chunks; what is written meanwhile, failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from aiovblk.errors import StorageBusyError, StorageError
from aiovblk.storage.objects import (
    Limits,
    check,
    clone,
    collect_garbage,
    snapshot,
)

from ....support.compacting_disk import LITTLE, Disk
from ....support.object_store import (
    BLOCK,
    CHUNK,
    SIZE,
    Bucket,
    contents,
    failing,
    make_disk,
    once,
    open_disk,
    undisturbed,
    write,
)


async def test_data_in_records_becomes_a_segment_and_a_checkpoint(bucket: Bucket) -> None:
    disk = await Disk.open(bucket.client())
    for block in (0, 5, 9, 13):  # of four chunks
        await disk.flush(block)
    assert len(bucket.names("disk/log")) == 5
    await disk.compact()
    assert len(bucket.names("disk/segments")) == 1
    assert len(bucket.names("disk/log")) == 1
    assert bucket.names("disk/chunks") == []
    await disk.verify(bucket)
    await disk.device.unmount()
    assert await contents(bucket) == disk.expected


async def test_chunk_half_of_which_is_in_segments_is_stored_anew(bucket: Bucket) -> None:
    disk = await Disk.open(bucket.client())
    await disk.write(0, b"c", 4)
    await disk.flush(5)
    before = bucket.names("disk/chunks")
    for block in (0, 2, 9, 13):
        await disk.flush(block, letter=b"n")
    await disk.compact()
    await disk.verify(bucket)
    await disk.device.unmount()
    after = bucket.names("disk/chunks")
    assert len(after) == 1
    assert before != after
    assert (await check(bucket.client(), "disk")).problems == []


Change = Callable[[Disk], Awaitable[object]]


async def _write(disk: Disk) -> None:
    await disk.write(1, b"z")


async def _write_and_flush(disk: Disk) -> None:
    await disk.flush(1, letter=b"z")


async def _fill(disk: Disk) -> None:
    await disk.write(0, b"z", 4)
    await disk.device.flush()


async def _drop(disk: Disk) -> None:
    disk.expected[:CHUNK] = bytes(CHUNK)
    await disk.device.write_zeroes(0, CHUNK, may_trim=True)


async def _resize(disk: Disk) -> None:
    disk.expected[BLOCK:] = bytes(SIZE - BLOCK)
    disk.device.blocks = 1
    disk.device.blocks = SIZE // BLOCK


@pytest.mark.parametrize("change", [_write, _write_and_flush, _fill, _drop, _resize])
@pytest.mark.parametrize("request_", ["get chunks", "put chunks", "put segments", "create log"])
async def test_what_is_written_during_compaction_is_kept(
    bucket: Bucket, request_: str, change: Change
) -> None:
    client = bucket.client()
    disk = await Disk.open(client, Limits(segment_size=4 * BLOCK, memory=0))
    await disk.write(0, b"c", 4)
    await disk.device.flush()
    for block in (0, 1, 9, 13):
        await disk.flush(block, letter=b"n")
    happened = False

    async def happen() -> None:
        nonlocal happened
        happened = True
        if change is _write_and_flush or change is _fill:  # it may wait for the record of this
            flushes.append(asyncio.ensure_future(change(disk)))
        else:
            await change(disk)

    flushes: list[asyncio.Future[object]] = []
    once(client, request_, happen)
    await disk.compact()
    client.before = undisturbed
    assert happened
    for each in flushes:
        await each
    assert bytes(await disk.device.read(0, SIZE)) == disk.expected
    await disk.device.flush()
    await disk.verify(bucket)
    await disk.compact()
    await disk.verify(bucket)
    await disk.device.unmount()
    assert (await check(bucket.client(), "disk")).problems == []
    assert await contents(bucket) == disk.expected


@pytest.mark.parametrize("request_", ["put segments", "put chunks", "create log", "put map"])
async def test_step_that_fails_is_done_again(bucket: Bucket, request_: str) -> None:
    client = bucket.client()
    disk = await Disk.open(client)
    for block in (0, 1, 9, 13):
        await disk.flush(block)
    client.before = failing(request_)
    with pytest.raises(OSError, match="away"):
        await disk.compact()
    await disk.verify(bucket)
    await disk.compact()
    await disk.verify(bucket)
    await disk.device.unmount()
    await (await open_disk(bucket.client())).unmount()
    await collect_garbage(bucket.client(), "disk")
    report = await check(bucket.client(), "disk")
    assert report.problems == []
    assert len(bucket.names("disk/chunks")) == report.chunks == 1
    assert len(bucket.names("disk/segments")) == report.segments == 1


async def test_compactor_goes_on_after_a_failure(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aiovblk.storage.objects.compactor._RETRY_PAUSE", 0)
    client = bucket.client()
    device = await open_disk(client, limits=LITTLE)
    checkpointed = asyncio.Event()
    fail = failing("put segments")

    def before(request: str, path: str) -> None:
        fail(request, path)
        if (request, path.partition("/")[0]) == ("put", "map"):
            checkpointed.set()

    client.before = before
    for block in (0, 5, 9, 13):
        await write(device, block * BLOCK, b"a" * BLOCK)
        await device.flush()
    await checkpointed.wait()
    await device.unmount()
    assert "compaction failed, tried again in" in caplog.text
    assert (await contents(bucket)).count(b"a") == 4 * BLOCK


@pytest.mark.parametrize("request_", ["put segments", "put chunks", "create log"])
async def test_compactor_of_a_writer_that_lost_the_disk_changes_nothing(
    bucket: Bucket, request_: str
) -> None:
    client = bucket.client()
    disk = await Disk.open(client, lease=3600)
    for block in (0, 1, 9, 13):
        await disk.flush(block)

    async def take_over() -> None:
        bucket.forget_lease()
        other = await open_disk(bucket.client())
        await write(other, 0, b"z" * BLOCK)
        await other.unmount()

    once(client, request_, take_over)
    with pytest.raises(StorageBusyError, match="taken over"):
        await disk.compact()
    disk.expected[:BLOCK] = b"z" * BLOCK
    assert await contents(bucket) == disk.expected
    await disk.device.unmount()
    await collect_garbage(bucket.client(), "disk")
    assert await contents(bucket) == disk.expected
    assert (await check(bucket.client(), "disk")).problems == []


async def test_flush_that_waits_while_another_task_finds_a_new_writer_adds_nothing(
    bucket: Bucket,
) -> None:
    client = bucket.client()
    disk = await Disk.open(client, lease=3600)
    for block in (0, 5, 9, 13):
        await disk.flush(block)
    flushes: list[asyncio.Future[None]] = []

    async def take_over() -> None:
        bucket.forget_lease()
        await (await open_disk(bucket.client())).unmount()
        await write(disk.device, 0, b"late" * (BLOCK // 4))
        flushes.append(asyncio.ensure_future(disk.device.flush()))  # waits for this record

    once(client, "create log", take_over)
    with pytest.raises(StorageBusyError, match="taken over"):
        await disk.compact()
    with pytest.raises(StorageBusyError, match="taken over"):
        await flushes[0]
    await disk.device.unmount()
    assert await contents(bucket) == disk.expected


async def test_with_too_many_extents_chunks_are_folded_and_flushes_wait(bucket: Bucket) -> None:
    limits = Limits(segment_size=4 * BLOCK, inline_size=0, extents=2)
    disk = await Disk.open(bucket.client(), limits)
    for number in range(8):  # one block of each chunk
        await disk.flush(4 * number)
    extents = disk.device._buffer.chunk_store.view.extents
    assert extents.count <= 2 * 2 + 1
    await disk.compact()
    assert extents.count <= 2
    await disk.verify(bucket)
    await disk.device.unmount()


async def test_segments_that_are_mostly_unused_are_merged(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiovblk.storage.objects.compactor.UNUSED_RESERVE", 0)
    monkeypatch.setattr("aiovblk.storage.objects.compactor.UNUSED_SHARE", 2)
    limits = Limits(segment_size=8 * BLOCK, inline_size=0)
    disk = await Disk.open(bucket.client(), limits)
    for letter in (b"a", b"b", b"c", b"d", b"e"):  # the first block of each segment stays
        await disk.write(4 * (letter[0] - 97), letter)
        for number in range(5, 8):
            await disk.write(4 * number + 1, letter)
        await disk.device.flush()
    before = bucket.names("disk/segments")
    assert len(before) == 5
    await disk.compact()
    await disk.verify(bucket)
    await disk.device.unmount()
    assert len(bucket.names("disk/segments")) < 5
    assert (await check(bucket.client(), "disk")).problems == []


async def test_damaged_chunk_keeps_others_from_being_compacted_no_more_than_flushes(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    disk = await Disk.open(bucket.client(), Limits(segment_size=4 * BLOCK, memory=0, extents=2))
    await disk.write(0, b"c", 8)
    await disk.device.flush()
    damaged = bucket.names("disk/chunks")[0]
    bucket.objects[damaged] = bucket.objects[damaged][:-1] + b"x"
    for block in (0, 1, 4, 5, 9, 13, 17, 21, 25, 29):
        await disk.flush(block)
    await disk.compact()
    assert caplog.text.count(f"compaction leaves out what is damaged: the object {damaged}") == 1
    assert bytes(await disk.device.read(0, 2 * BLOCK)) == b"a" * 2 * BLOCK
    with pytest.raises(StorageError, match=f"{damaged} is damaged"):
        await disk.device.read(0, CHUNK)
    found = {name.partition("-")[0] for name in bucket.names("disk/chunks")}
    assert {f"disk/chunks/{index:08x}" for index in (2, 4, 6)} & found
    await disk.device.unmount()
    device = await open_disk(bucket.client())
    assert bytes(await device.read(CHUNK, SIZE - CHUNK)) == disk.expected[CHUNK:]
    await device.unmount()


async def test_damaged_segment_is_not_merged(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aiovblk.storage.objects.compactor.UNUSED_RESERVE", 0)
    monkeypatch.setattr("aiovblk.storage.objects.compactor.UNUSED_SHARE", 1)
    disk = await Disk.open(bucket.client(), Limits(segment_size=8 * BLOCK, inline_size=0, memory=0))
    for letter in (b"a", b"b", b"c"):
        await disk.write(4 * (letter[0] - 97), letter)
        await disk.write(21, letter)
        await disk.device.flush()
    damaged, *_ = bucket.names("disk/segments")
    del bucket.objects[damaged]
    await disk.compact()
    assert f"compaction leaves out what is damaged: the object {damaged}" in caplog.text
    assert bytes(await disk.device.read(BLOCK, SIZE - BLOCK)) == disk.expected[BLOCK:]
    await disk.device.unmount()


@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["plain", "encrypted"])
@pytest.mark.parametrize("spilled", [False, True])
async def test_snapshot_and_clone_have_what_is_in_records_and_segments(
    spilled: bool, key: bytes | None
) -> None:
    bucket = Bucket()
    await make_disk(bucket, key=key)
    disk = await Disk.open(bucket.client(), key=key)
    for block in (0, 5, 9, 13):
        await disk.flush(block)
    if spilled:
        await disk.compact()
    await snapshot(bucket.client(), "disk", name="one", key=key)
    await clone(bucket.client(), "disk", name="one", target="clone", key=key)
    kept = bytes(disk.expected)
    for letter in (b"x", b"y"):  # nothing of the snapshot stays valid
        for block in (0, 1, 5, 6, 9, 10, 13, 14):
            await disk.flush(block, letter=letter)
        await disk.compact()
    await disk.device.unmount()
    copy = await open_disk(bucket.client(), "clone", key=key, limits=LITTLE)
    assert bytes(await copy.read(0, SIZE)) == kept
    for block in range(0, 16, 2):
        await write(copy, block * BLOCK, b"k" * BLOCK)
        await copy.flush()
    await copy.unmount()
    for path in ("disk", "clone"):
        await (await open_disk(bucket.client(), path, key=key)).unmount()
        await collect_garbage(bucket.client(), path, key=key)
        assert (await check(bucket.client(), path, key=key)).problems == []
    old = await open_disk(bucket.client(), key=key, snapshot="one")
    assert bytes(await old.read(0, SIZE)) == kept
    await old.unmount()
    if key is not None:
        assert all(b"a" * 64 not in data for data in bucket.objects.values())


async def test_identity_is_the_same_after_compaction(bucket: Bucket) -> None:
    disk = await Disk.open(bucket.client())
    for block in (0, 1, 9, 13):
        await disk.flush(block)
    before = disk.device.identity
    await disk.compact()
    assert bucket.names("disk/chunks")
    assert disk.device.identity == before
    await disk.device.unmount()
    device = await open_disk(bucket.client(), read_only=True)
    assert device.identity == before
    await device.unmount()
