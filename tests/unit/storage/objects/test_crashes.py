"""Crashes at every point: no flushed write is lost, and no writer undoes what another has done."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random

import pytest

from aiovblk.storage.objects import (
    Limits,
    ObjectStoreDevice,
    check,
    clone,
    collect_garbage,
    drop_snapshot,
    snapshot,
    snapshots,
)
from aiovblk.storage.objects.journal import FencedError

from ....support.object_store import BLOCK, CHUNK, Bucket, Client, contents, make_disk, open_disk
from ....support.sizes import by_size

pytestmark = pytest.mark.either_loop

BLOCKS = 48
LIMITS = Limits(memory=2 * CHUNK, unstored=4 * CHUNK)


class Model:
    """What each block may be after a crash."""

    def __init__(self) -> None:
        self.now = [0] * BLOCKS
        self.allowed = [{0} for _ in range(BLOCKS)]

    def written(self, block: int, stamp: int) -> None:
        self.now[block] = stamp
        self.allowed[block].add(stamp)

    def flushed(self) -> None:
        self.allowed = [{stamp} for stamp in self.now]

    async def verify(self, device: ObjectStoreDevice) -> None:
        data = bytes(await device.read(0, BLOCKS * BLOCK))
        for block in range(BLOCKS):
            found = data[block * BLOCK : (block + 1) * BLOCK]
            stamp = int.from_bytes(found[:8], "little")
            assert found == block_of(stamp), f"block {block} is torn"
            assert stamp in self.allowed[block], f"block {block} has {stamp}"
            self.now[block] = stamp
            self.allowed[block] = {stamp}


def block_of(stamp: int) -> bytes:
    return stamp.to_bytes(8, "little") * (BLOCK // 8)


class Life:
    """A process that writes, flushes and trims, until it crashes."""

    def __init__(self, device: ObjectStoreDevice, model: Model, random: Random, first: int) -> None:
        self.device = device
        self.model = model
        self.random = random
        self.stamp = first

    async def go_on(self) -> None:
        while True:
            # Not two for one block at a time: either could be the last.
            chunks = self.random.sample(range(BLOCKS // 4), self.random.randint(1, 4))
            await asyncio.gather(*(self.request(chunk) for chunk in chunks))
            if self.random.random() < 0.4:
                await self.device.flush()
                self.model.flushed()

    async def request(self, chunk: int) -> None:
        self.stamp += 1
        stamp = self.stamp
        if self.random.random() < 0.75:
            block = chunk * 4 + self.random.randrange(4)
            self.model.written(block, stamp)
            await self.device.write(block * BLOCK, memoryview(block_of(stamp)))
        else:
            for each in range(chunk * 4, chunk * 4 + 4):
                self.model.written(each, 0)
            await self.device.write_zeroes(chunk * CHUNK, CHUNK, may_trim=True)


@pytest.mark.parametrize("seed", range(10))
async def test_crashes_in_a_row_lose_nothing_that_was_flushed(seed: int) -> None:
    random = Random(seed)
    bucket, model = Bucket(), Model()
    await make_disk(bucket, size=BLOCKS * BLOCK)
    for number in range(by_size(40, 100)):
        bucket.forget_lease()
        client = bucket.client(lives=random.randint(0, 30))
        with pytest.raises(OSError, match=r"crashed|not stored yet"):
            device = await open_disk(client, limits=LIMITS)
            try:
                await model.verify(device)
                await Life(device, model, random, number << 20).go_on()
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
    """Several believe to be the writer; what the last one is told is true, stays true."""
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
        with suppress(FencedError):  # what it had not flushed is lost, and it says so
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
        client = bucket.client(lives=random.randint(5, 60))
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
        other = bucket.client(lives=random.randint(0, 8))
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
