"""What a disk in an object store costs: requests, bytes and time, counted in virtual time.

    python -m bench.object_store [--large]

The store is in memory, and each request takes 20 ms of a clock that goes on when everything waits
for it; what the processor needs is not counted. So the figures are the same on every machine.

* Random 4k writes with a flush each, over 64 MiB: puts and time of a flush, bytes put before
  compaction, and with it. With ``--large`` over 10 GiB too: a tenth of that, and of the extents.
* Cold random 4k reads: requests and bytes of each.
* A cold sequential read, of 256k at a time: requests and bytes.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from statistics import median

from aiovblk.storage.objects import Limits, ObjectInfo, ObjectStoreDevice, create
from aiovblk.storage.objects.client import Buffer
from tests.support.virtual_time import VirtualTimeLoop

LATENCY = 0.02
BLOCK = 4096
CHUNK = 1 << 20
MIB = 1 << 20


@dataclass
class Counts:
    """Requests and bytes of them."""

    puts: dict[str, int] = field(default_factory=dict)
    """By folder."""
    gets: int = 0
    put_bytes: dict[str, int] = field(default_factory=dict)
    got_bytes: int = 0

    def put(self, path: str, size: int) -> None:
        """Count a put."""
        folder = path.split("/")[-2]
        self.puts[folder] = self.puts.get(folder, 0) + 1
        self.put_bytes[folder] = self.put_bytes.get(folder, 0) + size


class CountingStore:
    """A store in memory, 20 ms away, that counts."""

    def __init__(
        self, objects: dict[str, bytes], counts: Counts | None = None, folder: str = ""
    ) -> None:
        self.counts = counts or Counts()
        self._objects = objects
        self._folder = folder

    def subfolder(self, path: str) -> CountingStore:
        """See :class:`aiovblk.storage.objects.ObjectStore`; so for the others."""
        return CountingStore(self._objects, self.counts, self._full(path))

    def _full(self, path: str) -> str:
        return f"{self._folder}/{path}".strip("/")

    async def get(self, path: str) -> memoryview:
        """Get."""
        return await self.get_range(path, 0, 1 << 40)

    async def get_range(self, path: str, start: int, length: int) -> memoryview:
        """Get a part."""
        await asyncio.sleep(LATENCY)
        try:
            data = memoryview(self._objects[self._full(path)])[start : start + length]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, path) from None
        self.counts.gets += 1
        self.counts.got_bytes += len(data)
        return data

    async def put(self, path: str, data: Buffer) -> None:
        """Put."""
        await asyncio.sleep(LATENCY)
        self._objects[self._full(path)] = bytes(data)
        self.counts.put(self._full(path), len(data))

    async def create(self, path: str, data: Buffer) -> None:
        """Create."""
        await asyncio.sleep(LATENCY)
        if self._full(path) in self._objects:
            raise FileExistsError(errno.EEXIST, path)
        self._objects[self._full(path)] = bytes(data)
        self.counts.put(self._full(path), len(data))

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete."""
        await asyncio.sleep(LATENCY)
        for path in paths:
            self._objects.pop(self._full(path), None)

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        """List."""
        await asyncio.sleep(LATENCY)
        own, begin = len(self._folder) + 1, self._full(folder) + "/"
        return [
            ObjectInfo(name[own:], len(data))
            for name, data in sorted(self._objects.items())
            if name.startswith(begin) and (not after or name > self._full(after))
        ]


@dataclass
class WriteCosts:
    """What random writes with a flush each have cost."""

    writes: int
    counts: Counts
    times: list[float]
    """Seconds of each flush."""

    @property
    def record_puts(self) -> float:
        """Puts of records for each flush."""
        return self.counts.puts["log"] / self.writes

    @property
    def answers(self) -> float:
        """The median time of a flush, in the store's answers."""
        return median(self.times) / LATENCY

    @property
    def before_compaction(self) -> float:
        """Bytes of records for each byte written."""
        return self.counts.put_bytes["log"] / self.writes / BLOCK

    @property
    def with_compaction(self) -> float:
        """All bytes put for each byte written."""
        return sum(self.counts.put_bytes.values()) / self.writes / BLOCK


async def flushed_writes(area: int, writes: int, *, limits: Limits = Limits()) -> WriteCosts:  # noqa: B008  # immutable
    """Write random blocks of an area that was written before, with a flush after each.

    Args:
        area: bytes.
        writes: how many.
        limits: of the disk.

    """
    objects: dict[str, bytes] = {}
    store = CountingStore(objects)
    await create(store, "disk", size=area, chunk_size=CHUNK)
    device = await ObjectStoreDevice.open(store, "disk", limits=limits)
    random, times = Random(1), []
    store.counts.__init__()  # type: ignore[misc]  # only what follows counts
    loop = asyncio.get_running_loop()
    for _ in range(writes):
        await device.write(random.randrange(0, area, BLOCK), memoryview(random.randbytes(BLOCK)))
        begin = loop.time()
        await device.flush()
        times.append(loop.time() - begin)
    await asyncio.sleep(60)  # until the compactor has nothing to do
    await device.unmount()
    store.counts.puts.pop("disk", None)  # the lease
    store.counts.put_bytes.pop("disk", None)
    return WriteCosts(writes, store.counts, times)


async def cold_reads(
    *, size: int = 64 * MIB, length: int = BLOCK, compress: bool = False, sequential: bool = False
) -> tuple[float, float]:
    """Read a disk that is not in memory.

    Args:
        size: bytes of the disk.
        length: bytes of a read.
        compress: whether the disk is compressed.
        sequential: whether to read all of it in order, rather than 200 random places.

    Returns:
        Requests and bytes of each read.

    """
    objects: dict[str, bytes] = {}
    store = CountingStore(objects)
    await create(store, "disk", size=size, chunk_size=CHUNK, compress=compress)
    device = await ObjectStoreDevice.open(store, "disk")
    random = Random(1)
    for offset in range(0, size, CHUNK):
        data = b"".join(random.randbytes(32) * 2 for _ in range(CHUNK // 64))
        await device.write(offset, memoryview(data))
    await device.unmount()
    reader = CountingStore(objects)
    device = await ObjectStoreDevice.open(
        reader, "disk", read_only=True, limits=Limits(memory=8 * MIB)
    )
    reader.counts.__init__()  # type: ignore[misc]  # only what follows counts
    offsets: Iterable[int] = range(0, size, length)
    if not sequential:
        offsets = [random.randrange(0, size, length) for _ in range(200)]
    count = 0
    for offset in offsets:
        await device.read(offset, length)
        count += 1
    await device.unmount()
    return reader.counts.gets / count, reader.counts.got_bytes / count


async def measure(*, large: bool) -> None:
    """Print all."""
    areas = [(64 * MIB, 60_000, Limits())]
    if large:
        areas.append((1 << 30, 60_000, Limits(extents=Limits().extents // 10)))
    for area, writes, limits in areas:
        costs = await flushed_writes(area, writes, limits=limits)
        shares = ", ".join(
            f"{folder} {size / writes / BLOCK:.2f} ({costs.counts.puts[folder]})"
            for folder, size in costs.counts.put_bytes.items()
        )
        print(f"{writes} writes of 4k over {area >> 20} MiB, a flush each:")
        print(f"  a flush: {costs.record_puts:.3f} records, {costs.answers:.2f} answers")
        print(f"  bytes put per byte written: {costs.before_compaction:.2f} before compaction,")
        print(f"  {costs.with_compaction:.2f} with it: {shares}; gets {costs.counts.gets}")
    for compress in (False, True):
        requests, size = await cold_reads(compress=compress)
        print(f"cold random 4k read, compress={compress}: {requests:.2f} gets, {size:.0f} bytes")
    requests, size = await cold_reads(length=256 << 10, sequential=True)
    print(f"cold sequential read of 256k: {requests:.2f} gets, {size:.0f} bytes")
    requests, size = await cold_reads(sequential=True)
    print(f"cold sequential read of 4k: {requests:.3f} gets, {size:.0f} bytes")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true")
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(measure(large=parser.parse_args().large))


if __name__ == "__main__":
    main()
