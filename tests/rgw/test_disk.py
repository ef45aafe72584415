"""Disks in Ceph: the contract of a block device, one writer, snapshots, garbage, checks."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.errors import StorageBusyError, StorageError
from aiovblk.storage.objects import (
    Limits,
    ObjectStoreClient,
    ObjectStoreDevice,
    check,
    clone,
    collect_garbage,
    create,
    drop_snapshot,
    snapshot,
    snapshots,
)
from aiovblk.storage.objects.journal import FencedError
from aiovblk.testing import check_block_device

from .dying_process import CrashingStore, ProcessLife

pytestmark = [pytest.mark.one_loop, pytest.mark.deadline(120)]

CHUNK = 1 << 16
SIZE = 64 * CHUNK + 3 * 4096
KEY = bytes(range(32))


class Bench:
    """A disk whose writer crashes now and then."""

    def __init__(self, client: ObjectStoreClient, **options: Any) -> None:
        self._client = client
        self._options = options
        self._random = Random(1)
        self._lives: list[ProcessLife] = []

    async def check(self, seed: int) -> None:
        key = self._options.get("key")
        await create(self._client, "disk", size=SIZE, chunk_size=CHUNK, **self._options)
        await check_block_device(self.open, crash=self.crash, seed=seed, rounds=30)
        for life in self._lives:
            await life.settle()
        assert (await check(self._client, "disk", key=key)).problems == []

    async def open(self) -> ObjectStoreDevice:
        await forget_lease(self._client)
        self._lives.append(ProcessLife(self._random))
        return await ObjectStoreDevice.open(
            CrashingStore(self._client, self._lives[-1]),
            "disk",
            key=self._options.get("key"),
            limits=Limits(memory=8 * CHUNK, unstored=16 * CHUNK),
            lease=5,
        )

    async def crash(self, device: BlockDevice) -> None:
        self._lives[-1].end()
        with suppress(OSError):  # only so that its tasks end
            await device.unmount()


async def forget_lease(client: ObjectStoreClient) -> None:
    """Make the lease expire: delete it."""
    await client.delete(["disk/lease"])


@pytest.mark.parametrize(
    "options", [{}, {"compress": True, "key": KEY}], ids=["plain", "compressed and encrypted"]
)
async def test_disk_keeps_the_contract(client: ObjectStoreClient, options: dict[str, Any]) -> None:
    await Bench(client, **options).check(seed=len(options))


# One writer


async def test_disk_is_created_once(client: ObjectStoreClient) -> None:
    sizes = [number * CHUNK for number in range(1, 9)]
    results = await asyncio.gather(
        *(create(client, "disk", size=size) for size in sizes), return_exceptions=True
    )
    assert results.count(None) == 1
    assert sum(isinstance(each, FileExistsError) for each in results) == 7
    device = await ObjectStoreDevice.open(client, "disk", read_only=True)
    assert device.blocks * device.block_size == sizes[results.index(None)]
    await device.unmount()


async def test_second_writer_is_refused_while_the_first_lives(client: ObjectStoreClient) -> None:
    await create(client, "disk", size=SIZE)
    device = await ObjectStoreDevice.open(client, "disk", lease=3)
    with pytest.raises(StorageBusyError, match="in use: process"):
        await ObjectStoreDevice.open(client, "disk", lease=3)
    await write(device, 0, b"a")
    await device.unmount()
    second = await ObjectStoreDevice.open(client, "disk", lease=3)
    assert await second.read(0, CHUNK) == b"a" * CHUNK
    await second.unmount()


async def test_of_many_who_open_a_disk_at_once_one_writes(client: ObjectStoreClient) -> None:
    """The lease is free at first, so the history decides."""
    await create(client, "disk", size=SIZE)
    results = await asyncio.gather(
        *(ObjectStoreDevice.open(client, "disk", lease=3) for _ in range(8)),
        return_exceptions=True,
    )
    devices = [each for each in results if isinstance(each, ObjectStoreDevice)]
    refused = [each for each in results if isinstance(each, BaseException)]
    assert all(isinstance(each, StorageBusyError) for each in refused), refused
    written = 0
    for number, device in enumerate(devices):
        with suppress(FencedError):
            await write(device, 0, bytes([number]))
            await device.flush()
            written += 1
    assert written == 1
    for device in devices:
        with suppress(FencedError):
            await device.unmount()
    assert (await check(client, "disk")).problems == []


async def test_late_flush_of_a_fenced_writer_fails_and_changes_nothing(
    client: ObjectStoreClient,
) -> None:
    await create(client, "disk", size=SIZE, chunk_size=CHUNK)
    first = await ObjectStoreDevice.open(client, "disk", lease=3600)
    await write(first, 0, b"a")
    await first.flush()
    await write(first, 0, b"b")
    await forget_lease(client)
    second = await ObjectStoreDevice.open(client, "disk", lease=3600)
    results = await asyncio.gather(first.flush(), second.flush(), return_exceptions=True)
    assert isinstance(results[0], FencedError), results
    assert results[1] is None
    with pytest.raises(FencedError, match="taken over by process"):
        await first.flush()
    await first.unmount()
    assert await second.read(0, CHUNK) == b"a" * CHUNK
    await write(second, 1, b"c")
    await second.unmount()
    await verify(client, b"a", b"c")
    await collect_garbage(client, "disk")
    assert (await check(client, "disk")).problems == []
    assert len(await client.list_objects("disk/chunks")) == 2


# Snapshots, garbage collection, checks


async def test_snapshots_clones_and_garbage(client: ObjectStoreClient) -> None:
    await create(client, "disk", size=SIZE, chunk_size=CHUNK)
    device = await ObjectStoreDevice.open(client, "disk")
    await write(device, 0, b"a")
    await device.flush()
    await snapshot(client, "disk", name="one")  # while another writes
    await write(device, 0, b"b")
    await write(device, 1, b"b")
    await device.flush()
    await clone(client, "disk", name="one", target="clone")
    copy = await ObjectStoreDevice.open(client, "clone")
    await write(copy, 1, b"c")
    await copy.unmount()
    with pytest.raises(StorageError, match="needed by clones: "):
        await drop_snapshot(client, "disk", name="one")
    await collect_garbage(client, "disk")
    await device.unmount()
    await verify(client, b"b", b"b")
    await verify(client, b"a", b"\0", snapshot="one")
    await verify(client, b"a", b"c", path="clone")
    for path in ("disk", "clone"):
        assert (await check(client, path)).problems == []


async def test_what_a_dropped_snapshot_kept_is_collected(client: ObjectStoreClient) -> None:
    await create(client, "disk", size=SIZE, chunk_size=CHUNK)
    for letter in (b"a", b"b"):
        device = await ObjectStoreDevice.open(client, "disk")
        await write(device, 0, letter)
        await device.unmount()
        await snapshot(client, "disk", name=letter.decode())
    assert len(await client.list_objects("disk/chunks")) == 2
    await drop_snapshot(client, "disk", name="a")
    await (await ObjectStoreDevice.open(client, "disk")).unmount()
    await collect_garbage(client, "disk")
    assert len(await client.list_objects("disk/chunks")) == 1
    assert set(await snapshots(client, "disk")) == {"b"}
    assert (await check(client, "disk")).problems == []
    await verify(client, b"b", b"\0")


async def test_check_finds_what_is_missing(client: ObjectStoreClient) -> None:
    await create(client, "disk", size=SIZE, chunk_size=CHUNK)
    device = await ObjectStoreDevice.open(client, "disk")
    await write(device, 0, b"a")
    await device.unmount()
    [chunk] = await client.list_objects("disk/chunks")
    await client.delete([chunk.path])
    assert (await check(client, "disk")).problems == [
        f"{chunk.path.removeprefix('disk/')} is missing"
    ]


async def write(device: ObjectStoreDevice, index: int, letter: bytes) -> None:
    await device.write(index * CHUNK, memoryview(letter * CHUNK))


async def verify(
    client: ObjectStoreClient,
    *letters: bytes,
    path: str = "disk",
    snapshot: str | None = None,
) -> None:
    device = await ObjectStoreDevice.open(client, path, snapshot=snapshot, read_only=True)
    for index, letter in enumerate(letters):
        assert await device.read(index * CHUNK, CHUNK) == letter * CHUNK
    await device.unmount()
