"""Crashes of processes and gateways, and a bad network: no flushed write is lost in Ceph."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from aiovblk.storage.objects import (
    ObjectStoreClient,
    ObjectStoreDevice,
    check,
    collect_garbage,
    create,
)

from ..support import s3_server
from ..support.object_store import BLOCK, CHUNK
from ..support.object_store_workload import BLOCKS, LIMITS, Model, Workload
from .ceph import Gateway
from .conftest import at
from .dying_process import CrashingStore, ProcessLife

pytestmark = [pytest.mark.one_loop, pytest.mark.deadline(200)]

CRASHES = 15
KILLS = 6
LEASE = 2.0  # seconds


class Disk:
    """One disk, and what each of its blocks may hold."""

    def __init__(self, client: ObjectStoreClient, seed: int) -> None:
        self.random = Random(seed)
        self.model = Model()
        self._client = client
        self._stamps = 0

    async def create(self) -> None:
        await create(self._client, "disk", size=BLOCKS * BLOCK, chunk_size=CHUNK)

    async def crash(self, seen: ObjectStoreClient, life: ProcessLife) -> None:
        """Run a process that verifies the disk, writes and flushes until it crashes."""
        # Another machine would wait for as long as the lease is valid.
        await self._client.delete(["disk/lease"])
        # A crashed process takes it over, if its request to open it arrives late.
        with pytest.raises(OSError, match=r"crashed|not stored yet|taken over"):
            device = await ObjectStoreDevice.open(
                CrashingStore(seen, life), "disk", limits=LIMITS, lease=LEASE
            )
            try:
                await self.model.verify(device)
                await self._work(device).run()
            finally:
                life.end()
                await device.unmount()

    async def work_for(self, device: ObjectStoreDevice, seconds: float) -> None:
        """Write and flush, which must not fail; unmount the device."""
        work = self._work(device)
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        while clock() < end:
            chunks = self.random.sample(range(BLOCKS * BLOCK // CHUNK), 3)
            await asyncio.gather(*(work.request(chunk) for chunk in chunks))
            if self.random.random() < 0.4:
                await device.flush()
                self.model.flushed()
        await device.unmount()
        self.model.flushed()

    def _work(self, device: ObjectStoreDevice) -> Workload:
        self._stamps += 1
        return Workload(device, self.model, self.random, self._stamps << 20)

    async def finish(self) -> None:
        """Verify the disk, and that no garbage is left after a collection."""
        assert (await check(self._client, "disk")).problems == []
        await self._client.delete(["disk/lease"])
        device = await ObjectStoreDevice.open(self._client, "disk")
        await self.model.verify(device)
        await device.unmount()
        await collect_garbage(self._client, "disk")
        report = await check(self._client, "disk")
        assert len(await self._client.list_objects("disk/chunks")) == report.chunks
        assert len(await self._client.list_objects("disk/map")) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_crashes_lose_nothing_that_was_flushed(client: ObjectStoreClient, seed: int) -> None:
    """Requests of a crashed process may arrive when the next one has begun."""
    disk = Disk(client, seed)
    await disk.create()
    lives = []
    for _ in range(CRASHES):
        lives.append(ProcessLife(disk.random, disk.random.randint(0, 30)))
        await disk.crash(client, lives[-1])
        if disk.random.random() < 0.2:
            await collect_garbage(client, "disk")
    for life in lives:
        await life.settle()
    await disk.finish()


@pytest.mark.parametrize("seed", range(2))
async def test_crashes_on_a_bad_network_lose_nothing_that_was_flushed(
    port: int, folder: str, seed: int
) -> None:
    disk = Disk(at(port, folder), seed)
    await disk.create()
    faults = s3_server.NetworkFaults(
        disk.random, delay=0.002, errors=0.04, throttled=0.04, resets=0.08
    )
    lives = []
    async with s3_server.proxy(port, faults) as outside:
        for _ in range(CRASHES):
            lives.append(ProcessLife(disk.random, disk.random.randint(0, 30)))
            await disk.crash(at(outside, folder), lives[-1])
        for life in lives:
            await life.settle()
    assert set(faults.counts) == {"passed", "errors", "throttled", "resets"}
    await disk.finish()


async def test_bad_network_makes_a_disk_slow_and_nothing_else(port: int, folder: str) -> None:
    disk = Disk(at(port, folder), 1)
    await disk.create()
    faults = s3_server.NetworkFaults(
        disk.random, delay=0.002, errors=0.05, throttled=0.05, resets=0.1
    )
    async with s3_server.proxy(port, faults) as outside:
        for _ in range(2):
            device = await ObjectStoreDevice.open(at(outside, folder), "disk", limits=LIMITS)
            await disk.model.verify(device)
            await disk.work_for(device, 5)
    assert min(faults.counts.values()) > 5
    await disk.finish()


async def test_gateway_that_is_killed_makes_a_disk_slow_and_nothing_else(
    client: ObjectStoreClient, folder: str, another: Gateway
) -> None:
    """It leaves changes of the index half done, which a list has to complete."""
    disk = Disk(client, 1)
    await disk.create()
    for number in range(KILLS):
        device = await ObjectStoreDevice.open(at(another.port, folder), "disk", limits=LIMITS)
        await disk.model.verify(device)
        work = asyncio.create_task(disk.work_for(device, 3))
        await asyncio.sleep(disk.random.uniform(0.2, 1))
        another.kill()
        # Another gateway sees now what the killed one has left.
        assert (await check(client, "disk")).problems == [], number
        await asyncio.to_thread(another.start)
        await work
    await disk.finish()
