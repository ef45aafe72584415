"""What flushes and cold reads cost: requests, bytes, and time in the store's answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar, cast

import pytest

from aiovblk.storage.objects import Limits, ObjectStoreDevice, create
from bench.object_store import (
    BLOCK,
    CHUNK,
    CountingStore,
    Counts,
    cold_reads,
    flushed_writes,
)

from ....support.virtual_time import VirtualTimeLoop

pytestmark = [pytest.mark.slow, pytest.mark.one_loop]

T = TypeVar("T")
MIB = 1 << 20


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it in virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)


def test_flush_of_a_block_is_one_put_and_one_answer_of_the_store() -> None:
    costs = run(flushed_writes(64 * MIB, 600))
    assert costs.record_puts <= 1.01  # two spills have a record of their own
    assert costs.answers <= 1.2
    assert max(costs.times) <= 3 * 0.02  # compaction is off the flush's path
    assert costs.before_compaction <= 1.5


@pytest.mark.deadline(300)
def test_compaction_stores_little_more_than_was_written() -> None:
    """The same share of all blocks is written as of 64 MiB with many writes."""
    costs = run(flushed_writes(8 * MIB, 5000, limits=Limits(segment_size=512 << 10)))
    assert costs.counts.puts["chunks"]
    assert costs.with_compaction <= 4


@pytest.mark.parametrize("compress", [False, True])
def test_cold_read_of_a_block_moves_little(compress: bool) -> None:
    requests, size = run(cold_reads(size=16 * MIB, compress=compress))
    assert size <= 128 << 10
    assert requests <= (2 if compress else 1)


def test_cold_sequential_reads_move_each_chunk_once() -> None:
    for length in (BLOCK, 128 << 10, 256 << 10):
        requests, size = run(cold_reads(size=16 * MIB, length=length, sequential=True))
        assert requests * 16 * MIB / length <= 16 + 2  # the first did not know that more would come
        assert size <= length * 1.01


async def opened(objects: dict[str, bytes], **limits: Any) -> ObjectStoreDevice:
    store = CountingStore(objects)
    if not objects:
        await create(store, "disk", size=64 * MIB, chunk_size=CHUNK)
    objects.pop("disk/lease", None)
    return await ObjectStoreDevice.open(store, "disk", limits=Limits(**limits))


async def write_at_random(device: ObjectStoreDevice, count: int) -> None:
    random = Random(1)
    for _ in range(count):
        await device.write(random.randrange(0, 64 * MIB, BLOCK), memoryview(b"x" * BLOCK))


def test_flush_of_many_blocks_is_segments_in_parallel_and_a_record() -> None:
    async def flush() -> tuple[dict[str, int], float]:
        objects: dict[str, bytes] = {}
        device = await opened(objects, segment_size=MIB)
        await write_at_random(device, 2000)
        begin = asyncio.get_running_loop().time()
        await device.flush()
        took = asyncio.get_running_loop().time() - begin
        folders = [name.split("/")[1] for name in objects]
        await device.unmount()
        return {each: folders.count(each) for each in folders}, took

    found, took = run(flush())
    assert found["segments"] == 8
    assert "chunks" not in found
    assert took <= 2 * 0.02 + 1e-6


def test_opening_after_a_crash_reads_a_bounded_number_of_objects() -> None:
    async def crash() -> int:
        objects: dict[str, bytes] = {}
        device = await opened(objects)
        random = Random(1)
        for _ in range(1500):
            await device.write(random.randrange(0, 64 * MIB, BLOCK), memoryview(b"x" * BLOCK))
            await device.flush()
        left = dict(objects)
        await device.unmount()
        store = CountingStore(left)
        reader = await ObjectStoreDevice.open(store, "disk", read_only=True)
        await reader.unmount()
        return store.counts.gets

    assert run(crash()) <= 256 + 20


def test_compaction_keeps_to_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rate, chunk, puts = 64 << 10, 64 << 10, list[tuple[float, int]]()

    def note(counts: Counts, path: str, size: int) -> None:
        if "/chunks/" in path:
            puts.append((asyncio.get_running_loop().time(), size))

    async def compact() -> None:
        store = CountingStore({})
        await create(store, "disk", size=4 * MIB, chunk_size=chunk)
        limits = Limits(compaction=rate, segment_size=chunk)
        device = await ObjectStoreDevice.open(store, "disk", limits=limits)
        random = Random(1)
        for _ in range(2000):
            await device.write(random.randrange(0, 4 * MIB, BLOCK), memoryview(b"x" * BLOCK))
            await device.flush()
        await asyncio.sleep(300)
        await device.unmount()

    monkeypatch.setattr(Counts, "put", note)
    run(compact())
    step = 8 * (chunk + 1000)  # chunks that are folded between two pauses
    for begin, _ in puts:
        assert sum(size for at, size in puts if begin <= at < begin + 20) <= 20 * rate + step
    assert sum(size for _, size in puts) > 20 * rate + 2 * step


def test_many_flushes_that_fail_take_no_more_memory_than_the_write_buffer() -> None:
    async def fail() -> int:
        objects: dict[str, bytes] = {}
        device = await opened(objects, inline_size=4 * BLOCK, unstored=CHUNK)
        store = CountingStore(objects)
        assert device._writer is not None

        async def broken(*arguments: Any) -> None:
            raise OSError("the store is away")

        log = cast("Any", device._writer._journal._objects)
        log.create = broken
        for number in range(50):
            await device.write(number * CHUNK, memoryview(b"x" * BLOCK))
            with pytest.raises(OSError, match="away"):
                await device.flush()
        unsaid = device._buffer.chunk_store.view.unsaid
        del log.create
        await device.unmount()
        again = await ObjectStoreDevice.open(store, "disk", read_only=True)
        for number in range(50):
            assert bytes(await again.read(number * CHUNK, BLOCK)) == b"x" * BLOCK
        await again.unmount()
        return unsaid

    assert run(fail()) <= 4 * BLOCK
