"""What a backup reads and stores: hardly more than what has changed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from aiovblk import BlockDevice
from aiovblk.storage.backup import DiskSource, ObjectTarget, backup, restore
from aiovblk.storage.backup.digests import data_in
from aiovblk.storage.backup.spans import merge
from aiovblk.storage.objects import ObjectStoreDevice, create
from aiovblk.storage.objects.client import Buffer
from aiovblk.storage.ranges import split_range

from ....support.object_store import Bucket, Client
from ....support.sizes import by_size

MIB = 1 << 20
SIZE = 100 << 30
DATA = by_size(10, 10240) * MIB
"""Bytes of data; a tenth of it changes."""
PIECE = 65536
"""Bytes of each change."""


@dataclass
class Bytes:
    """Bytes that have gone through the clients of stores."""

    got: int = 0
    put: int = 0

    def take(self) -> tuple[int, int]:
        """Return both counters, and begin anew."""
        found = self.got, self.put
        self.got = self.put = 0
        return found


@pytest.fixture
def transferred(monkeypatch: pytest.MonkeyPatch) -> Bytes:
    """Count the bytes of all requests."""
    counted = Bytes()
    get, put, create = Client.get, Client.put, Client.create

    async def counting_get(self: Client, path: str) -> memoryview:
        data = await get(self, path)
        counted.got += len(data)
        return data

    async def counting_range(self: Client, path: str, start: int, length: int) -> memoryview:
        data = (await get(self, path))[start : start + length]
        counted.got += len(data)
        return data

    async def counting_put(self: Client, path: str, data: Buffer) -> None:
        counted.put += len(data)
        await put(self, path, data)

    async def counting_create(self: Client, path: str, data: Buffer) -> None:
        counted.put += len(data)
        await create(self, path, data)

    monkeypatch.setattr(Client, "get", counting_get)
    monkeypatch.setattr(Client, "get_range", counting_range)
    monkeypatch.setattr(Client, "put", counting_put)
    monkeypatch.setattr(Client, "create", counting_create)
    return counted


def block_of(random: Random) -> memoryview:
    """Return a piece that zstd makes much smaller, and that no other is equal to."""
    return memoryview(random.randbytes(64) * (PIECE // 64))


async def write_data(device: BlockDevice, random: Random) -> None:
    """Fill ranges all over the disk, of 2 MiB each."""
    for number in range(DATA // (2 * MIB)):
        begin = number * (SIZE // (DATA // (2 * MIB))) // MIB * MIB
        for offset in range(begin, begin + 2 * MIB, PIECE):
            await device.write(offset, block_of(random))


def changed_pieces(random: Random) -> list[int]:
    """Return where a tenth of the data changes."""
    ranges = DATA // (2 * MIB)
    pieces = [
        number * (SIZE // ranges) // MIB * MIB + at
        for number in range(ranges)
        for at in range(0, 2 * MIB, PIECE)
    ]
    return random.sample(pieces, len(pieces) // 10)


@pytest.mark.one_loop
@pytest.mark.deadline(3600)
async def test_sparse_disk_of_which_a_tenth_of_the_data_has_changed(transferred: Bytes) -> None:
    random = Random(1)
    source, bucket = Bucket(), Bucket()
    await create(source.client(), "disk", size=SIZE, compress=DATA > 64 * MIB)
    device = await ObjectStoreDevice.open(source.client(), "disk")
    await write_data(device, random)
    await device.flush()
    target = ObjectTarget(bucket.client(), "disk", compress=DATA > 64 * MIB)
    first = await backup(DiskSource(source.client(), "disk"), target)
    assert (first.base, first.written) == (None, DATA)
    pieces = changed_pieces(random)
    for offset in pieces:
        await device.write(offset, block_of(random))
    await device.flush()
    changed = len(pieces) * PIECE
    transferred.take()
    second = await backup(DiskSource(source.client(), "disk"), target)
    got, put = transferred.take()
    print(f"\n{SIZE=} {DATA=} {changed=}: {second.read=} {second.written=} {got=} {put=}")
    assert second.read <= 1.05 * changed
    assert second.written <= 1.05 * changed
    assert got <= 1.05 * changed + MIB // 8  # maps and records, whatever has changed
    assert put <= 1.05 * changed + MIB // 8
    third = Bucket()
    await create(third.client(), "disk", size=SIZE, compress=DATA > 64 * MIB)
    restored = await ObjectStoreDevice.open(third.client(), "disk")
    report = await restore(target, restored)
    assert report.written == DATA
    assert await differences(device, restored) == 0
    for each in (device, restored):
        await each.unmount()


async def differences(one: BlockDevice, other: BlockDevice) -> int:
    """Return the pieces of a MiB in which two disks differ; all is read that either has."""
    ranges = merge([*await data_in(one, SIZE), *await data_in(other, SIZE)])
    pieces = [piece for begin, end in ranges for piece in split_range(begin, end, MIB)]
    assert sum(length for _, length in pieces) == DATA
    return sum([await one.read(*each) != await other.read(*each) for each in pieces])
