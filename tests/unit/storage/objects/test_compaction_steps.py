"""Steps of the compactor: what is damaged, how much is read at once, and that others run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aiovblk.errors import StorageBusyError
from aiovblk.storage.objects import Limits

from ....support.compacting_disk import Disk
from ....support.object_store import (
    BLOCK,
    CHUNK,
    Bucket,
    open_disk,
    undisturbed,
    write,
)


async def test_damaged_chunk_that_was_written_anew_is_compacted_again(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    disk = await Disk.open(bucket.client(), Limits(segment_size=4 * BLOCK, memory=0, inline_size=0))
    await disk.write(0, b"c", 4)
    await disk.device.flush()
    [damaged] = bucket.names("disk/chunks")
    bucket.objects[damaged] = b""
    await disk.flush(0)
    await disk.flush(1)
    await disk.compact()
    assert caplog.text.count("compaction leaves out what is damaged") == 1
    await disk.write(0, b"n", 4)
    await disk.device.flush()
    await disk.flush(0)
    await disk.flush(1)
    extents = disk.device._buffer.chunk_store.view.extents
    assert extents.count
    await disk.compact()
    assert not extents.count
    assert not disk.compactor._damaged_chunks
    await disk.verify(bucket)
    await disk.device.unmount()


async def test_what_another_writer_has_replaced_is_not_reported_as_damaged(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    disk = await Disk.open(bucket.client(), Limits(segment_size=4 * BLOCK, memory=0, inline_size=0))
    await disk.write(0, b"c", 4)
    await disk.device.flush()
    await disk.flush(0)
    await disk.flush(1)
    bucket.forget_lease()
    other = await open_disk(bucket.client())
    await write(other, 0, b"z" * CHUNK)
    await other.unmount()
    with pytest.raises(StorageBusyError, match="taken over"):
        await disk.compact()
    assert "damaged" not in caplog.text
    await disk.device.unmount()


async def test_segments_are_merged_a_few_at_a_time(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiovblk.storage.objects.compactor.UNUSED_RESERVE", 0)
    monkeypatch.setattr("aiovblk.storage.objects.compactor.UNUSED_SHARE", 1)
    monkeypatch.setattr("aiovblk.storage.objects.compactor._STEP_SEGMENTS", 2)
    client = bucket.client()
    disk = await Disk.open(client, Limits(segment_size=8 * BLOCK, inline_size=0, memory=0))
    for number in range(5):  # the first block of each segment stays
        await disk.flush(4 * number, 21, 25, 29, letter=b"%d" % number)
    assert len(bucket.names("disk/segments")) == 5
    reads = [0]

    def before(request: str, path: str) -> None:
        if request == "get" and path.startswith("segments"):
            reads[-1] += 1

    client.before = before
    while await disk.compactor.step():
        reads.append(0)
    assert reads == [2, 2, 0]
    client.before = undisturbed
    await disk.verify(bucket)
    await disk.device.unmount()
    assert len(bucket.names("disk/segments")) == 3


async def test_merged_blocks_do_not_keep_their_segments_in_memory(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = await Disk.open(bucket.client(), Limits(inline_size=0, memory=0))
    await disk.flush(*range(0, 32, 4))
    [entry] = disk.device._buffer.chunk_store.view.extents.sizes
    copied: list[Any] = []

    async def copy(pieces: list[Any], then: Any) -> None:
        copied.extend(data for _, (_, _, data) in pieces)

    monkeypatch.setattr(disk.compactor, "_copy", copy)
    await disk.compactor._merge([entry])
    assert copied == [b"a" * BLOCK] * 8
    assert all(isinstance(each, bytes) for each in copied)
    await disk.device.unmount()


async def test_others_run_while_the_compactor_looks_at_all_chunks(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiovblk.storage.objects.compactor._SLICE", 1)
    disk = await Disk.open(bucket.client(), Limits(inline_size=0))
    await disk.flush(*range(0, 32, 4))
    [entry] = disk.device._buffer.chunk_store.view.extents.sizes
    for search in (
        disk.compactor._to_fold,
        disk.compactor._spill,
        lambda: disk.compactor._merge([entry]),
    ):
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.ensure_future(count())
        await search()
        counting.cancel()
        assert turns >= 8
    await disk.verify(bucket)
    await disk.device.unmount()
