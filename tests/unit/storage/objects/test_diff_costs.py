"""What it costs to find what differs between two states: requests, and turns of the loop."""

from __future__ import annotations

import asyncio

import pytest

from aiovblk.storage.objects import DiffTotals, create, diff, snapshot

from ....support.object_store import Bucket, open_disk
from ....support.sizes import by_size


async def changed_disk(chunk: int, hundredth: int) -> Bucket:
    """Return a disk of which a tenth is written, in two snapshots; a tenth of that has changed.

    Half of what has changed are whole chunks; the other half is a 16th of each of many chunks.

    Args:
        chunk: bytes of a chunk.
        hundredth: chunks of a hundredth of the disk, at least 2.

    """
    bucket = Bucket()
    size = 100 * hundredth * chunk
    await create(bucket.client(), "disk", size=size, chunk_size=chunk, compress=True)
    data, changed = memoryview(b"a" * chunk), memoryview(b"b" * chunk)
    device = await open_disk(bucket.client())
    for number in range(10 * hundredth):
        await device.write(10 * number * chunk, data)
    await device.flush()
    await snapshot(bucket.client(), "disk", name="one")
    for number in range(hundredth // 2):
        await device.write(10 * number * chunk, changed)
    for number in range(8 * hundredth):
        offset = 10 * (hundredth + number) * chunk + number % 16 * (chunk // 16)
        await device.write(offset, changed[: chunk // 16])
    await device.flush()
    await snapshot(bucket.client(), "disk", name="two")
    await device.unmount()
    return bucket


async def verify_costs(bucket: Bucket, chunk: int, hundredth: int) -> None:
    begin, kept = len(bucket.requests), len(bucket.objects)
    found = await diff(bucket.client(), "disk", since="one", snapshot="two")
    totals = await found.totals()
    asked = bucket.requests[begin:]
    assert {path.split("/")[1] for _, path in asked} <= {"disk.json", "log", "map"}
    assert {request for request, _ in asked} == {"get", "find"}
    assert len(asked) <= 10
    assert len(bucket.objects) == kept
    assert totals.changed == hundredth * chunk
    assert totals.by_chunk == hundredth * chunk // 2
    assert totals.extents == hundredth // 2 + 8 * hundredth


async def test_difference_costs_a_few_requests_for_records_and_maps() -> None:
    chunk, hundredth = 64 << 10, 16
    await verify_costs(await changed_disk(chunk, hundredth), chunk, hundredth)


@pytest.mark.long
@pytest.mark.one_loop
@pytest.mark.deadline(900)
async def test_difference_of_a_disk_of_100_gib_costs_no_more() -> None:
    chunk, hundredth = 1 << 20, 1024
    await verify_costs(await changed_disk(chunk, hundredth), chunk, hundredth)


async def test_search_of_a_huge_disk_lets_others_run() -> None:
    bucket = Bucket()
    count = by_size(300_000, 3_000_000)
    await create(bucket.client(), "huge", size=count * 4096, chunk_size=4096)
    await snapshot(bucket.client(), "huge", name="one")
    found = await diff(bucket.client(), "huge", since="one")
    totals, turns = asyncio.ensure_future(found.totals()), 0
    while not totals.done():
        await asyncio.sleep(0)
        turns += 1
    assert await totals == DiffTotals()
    assert turns > 1
