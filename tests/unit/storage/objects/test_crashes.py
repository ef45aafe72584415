"""Crashes at every point: no flushed write is lost, and no writer undoes what another has done."""

from __future__ import annotations

from contextlib import suppress
from random import Random

import pytest

from aiovblk.storage.objects import (
    ObjectStoreDevice,
    check,
    clone,
    collect_garbage,
    drop_snapshot,
    snapshot,
    snapshots,
)
from aiovblk.storage.objects.journal import FencedError

from ....support.object_store import BLOCK, Bucket, Client, contents, make_disk, open_disk
from ....support.object_store_workload import BLOCKS, LIMITS, Model, Workload, block_of
from ....support.sizes import by_size

pytestmark = [pytest.mark.slow, pytest.mark.either_loop]


@pytest.mark.parametrize("seed", range(10))
async def test_crashes_in_a_row_lose_nothing_that_was_flushed(seed: int) -> None:
    random = Random(seed)
    bucket, model = Bucket(), Model()
    await make_disk(bucket, size=BLOCKS * BLOCK)
    for number in range(by_size(40, 100)):
        bucket.forget_lease()
        client = bucket.client(crash_after=random.randint(0, 30))
        with pytest.raises(OSError, match=r"crashed|not stored yet"):
            device = await open_disk(client, limits=LIMITS)
            try:
                await model.verify(device)
                await Workload(device, model, random, number << 20).run()
            finally:
                client.crash()
                await device.unmount()
        if random.random() < 0.1:
            await collect_garbage(bucket.client(), "disk")
    assert not (await check(bucket.client(), "disk")).problems
    bucket.forget_lease()
    device = await open_disk(bucket.client())
    await model.verify(device)
    await device.unmount()
    await collect_garbage(bucket.client(), "disk")
    report = await check(bucket.client(), "disk")
    assert len(bucket.names("disk/chunks")) == report.chunks
    assert len(bucket.names("disk/map")) == 1


@pytest.mark.parametrize("seed", range(10))
async def test_writers_that_do_not_know_that_they_are_fenced_change_nothing(seed: int) -> None:
    """Several believe that they are the writer; what the last one has flushed stays."""
    random = Random(seed)
    bucket, model = Bucket(), Model()
    await make_disk(bucket, size=BLOCKS * BLOCK)
    stale: list[ObjectStoreDevice] = []
    for number in range(1, 30):
        bucket.forget_lease()
        device = await open_disk(bucket.client(), lease=3600, limits=LIMITS)
        await model.verify(device)
        for step in range(random.randint(0, 5)):
            block = random.randrange(BLOCKS)
            model.written(block, stamp := number * 100 + step)
            await device.write(block * BLOCK, memoryview(block_of(stamp)))
            if random.random() < 0.5:
                await device.flush()
                model.flushed()
            if stale and random.random() < 0.7:
                await late_write(random.choice(stale), random)
            if random.random() < 0.1:
                await collect_garbage(bucket.client(), "disk")
        stale.append(device)
    bucket.forget_lease()
    last = await open_disk(bucket.client())
    await model.verify(last)
    for each in stale:
        with suppress(FencedError):  # as it must: what it had not flushed is lost
            await each.unmount()
    await last.unmount()
    assert not (await check(bucket.client(), "disk")).problems


async def late_write(device: ObjectStoreDevice, random: Random) -> None:
    with pytest.raises(FencedError, match="taken over"):
        await device.write(random.randrange(BLOCKS) * BLOCK, memoryview(b"late" * (BLOCK // 4)))
        await device.flush()


@pytest.mark.parametrize("seed", range(6))
async def test_snapshots_and_clones_stay_what_they_were_whatever_crashes(seed: int) -> None:
    random = Random(seed)
    bucket = Bucket()
    await make_disk(bucket, size=BLOCKS * BLOCK)
    kept: dict[str, bytes] = {}
    clones: dict[str, bytes] = {}
    for number in range(40):
        bucket.forget_lease()
        client = bucket.client(crash_after=random.randint(5, 60))
        try:
            device = await open_disk(client, limits=LIMITS)
            try:
                for step in range(random.randint(0, 12)):
                    block = random.randrange(BLOCKS)
                    stamp = block_of(number * 100 + step)
                    await device.write(block * BLOCK, memoryview(stamp))
                    if random.random() < 0.5:
                        await device.flush()
                    if random.random() < 0.2:
                        await device.flush()
                        now = bytes(await device.read(0, BLOCKS * BLOCK))
                        # Another process takes it, and may crash as well.
                        await snapshot(bucket.client(), "disk", name=f"s{number}.{step}")
                        kept[f"s{number}.{step}"] = now
            finally:
                client.crash()
                await device.unmount()
        except OSError:
            pass
        other = bucket.client(crash_after=random.randint(0, 8))
        await one_of_many(other, random, kept, clones, f"clone{number}")
        if random.random() < 0.3:
            await collect_garbage(bucket.client(), "disk")
    assert set(kept) <= set(await snapshots(bucket.client(), "disk"))
    for name, data in kept.items():
        assert await contents(bucket, snapshot=name) == data
    for path, data in clones.items():
        assert await contents(bucket, path) == data
        assert not (await check(bucket.client(), path)).problems


async def one_of_many(
    client: Client, random: Random, kept: dict[str, bytes], clones: dict[str, bytes], path: str
) -> None:
    if not kept:
        return
    name = random.choice(list(kept))
    try:
        if random.random() < 0.5:
            await clone(client, "disk", name=name, target=path)
            clones[path] = kept[name]
        else:
            data = kept.pop(name)
            try:
                await drop_snapshot(client, "disk", name=name)
            except OSError as exc:
                if "needed by clones" in str(exc):
                    kept[name] = data
    except OSError:
        pass
