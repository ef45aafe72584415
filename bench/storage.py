"""Disks in object stores and caches: what they add to the time of the store.

    python -m bench.storage [--rounds 3]

The store is in memory and answers after 20 ms. Each pair is measured directly one after the other;
what is compared is the ratio of two neighbours, and the median of all.

* Random 4k reads of a warm cache, and of a MemoryDevice: the server's CPU time per request.
* A sequential read of 1 GiB through cache and disk, eight requests of 256k in flight, and the same
  chunks from the store itself, 16 in flight: MB/s.
* Writes of 4k, one at a time, with a flush each second: how long that takes, in the store's times.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from statistics import median

import uvloop
from obstore.store import MemoryStore

from aiovblk import BlockDevice
from aiovblk.protocol import Command, Request, serialize_request
from aiovblk.storage import Cache, MemoryDevice, ObjectStoreDevice
from aiovblk.storage.objects import ObjectInfo, ObjectStoreClient, create

from .dispatch import plain

LATENCY = 0.02
CHUNK = 1 << 20
DISK = 1 << 30
MEMORY = 64 << 20


class Slow:
    """A store that is 20 ms away."""

    def __init__(self, inner: ObjectStoreClient) -> None:
        self._inner = inner

    def subfolder(self, path: str) -> Slow:
        """See :class:`aiovblk.storage.objects.ObjectStore`; so for the others."""
        return Slow(self._inner.subfolder(path))

    async def get(self, path: str) -> memoryview:
        """Get."""
        await asyncio.sleep(LATENCY)
        return await self._inner.get(path)

    async def get_range(self, path: str, start: int, length: int) -> memoryview:
        """Get a part."""
        await asyncio.sleep(LATENCY)
        return await self._inner.get_range(path, start, length)

    async def put(self, path: str, data: bytes | bytearray | memoryview) -> None:
        """Put."""
        await asyncio.sleep(LATENCY)
        await self._inner.put(path, data)

    async def create(self, path: str, data: bytes | bytearray | memoryview) -> None:
        """Create."""
        await asyncio.sleep(LATENCY)
        await self._inner.create(path, data)

    async def delete(self, paths: Iterable[str]) -> None:
        """Delete."""
        await asyncio.sleep(LATENCY)
        await self._inner.delete(paths)

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        """Find."""
        await asyncio.sleep(LATENCY)
        return await self._inner.list_objects(folder, after=after)


async def warm_read(device: BlockDevice, count: int = 100_000, depth: int = 64) -> float:
    """Microseconds of CPU time for a random 4k read; the second time that each is read."""
    for offset in range(0, MEMORY, CHUNK):
        await device.read(offset, CHUNK)
    ours, theirs = socket.socketpair()
    if (process := os.fork()) == 0:
        ours.close()
        _read_at_random(theirs, count, depth)
        os._exit(0)
    theirs.close()
    dispatcher = plain(device)
    await dispatcher.connect(ours)
    begin = time.process_time()
    await dispatcher.run()
    used = time.process_time() - begin
    await dispatcher.close()
    await asyncio.to_thread(os.waitpid, process, 0)
    return used / count * 1e6


def _read_at_random(sock: socket.socket, count: int, depth: int) -> None:
    random = Random(1)
    reply = bytearray(depth * (16 + 4096))
    for first in range(0, count, depth):
        cookies = range(first, first + depth)
        offsets = [random.randrange(0, MEMORY, 4096) for _ in cookies]
        sock.sendall(
            b"".join(
                serialize_request(Request(0, Command.READ, cookie, offset, 4096))
                for cookie, offset in zip(cookies, offsets, strict=True)
            )
        )
        missing = memoryview(reply)
        while missing:
            missing = missing[sock.recv_into(missing) :]


async def warm(*, cached: bool) -> float:
    """Of one or the other."""
    memory = MemoryDevice(MEMORY)
    data = memoryview(os.urandom(CHUNK))
    for offset in range(0, MEMORY, CHUNK):
        await memory.write(offset, data)
    return await warm_read(Cache(memory, size=2 * MEMORY) if cached else memory)


async def fill(store: MemoryStore) -> None:
    """Make the disk that is read."""
    client = ObjectStoreClient(store)
    await create(client, "disk", size=DISK)
    device = await ObjectStoreDevice.open(client, "disk")
    random = Random(1)
    for offset in range(0, DISK, CHUNK):
        await device.write(offset, memoryview(random.randbytes(CHUNK)))
    await device.unmount()


async def in_flight(count: int, jobs: Iterable[Callable[[], Awaitable[object]]]) -> float:
    """Seconds for all, so many at a time."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(count)))
    return time.perf_counter() - begin


async def sequential(store: MemoryStore, *, through_disk: bool) -> float:
    """MB/s of one or the other."""
    client = Slow(ObjectStoreClient(store))
    if not through_disk:
        names = [found.path for found in await client.list_objects("disk/chunks")]
        seconds = await in_flight(16, (lambda name=name: client.get(name) for name in names))  # type: ignore[misc]  # a default argument
        return DISK / seconds / 1e6
    disk = await ObjectStoreDevice.open(client, "disk", read_only=True)
    device = Cache(disk, size=256 << 20)
    length = 256 << 10
    offsets = range(0, DISK, length)
    seconds = await in_flight(8, (lambda at=at: device.read(at, length) for at in offsets))  # type: ignore[misc]  # a default argument
    await device.unmount()
    return DISK / seconds / 1e6


async def flushes(seconds: float = 5) -> tuple[float, float]:
    """Median seconds of a flush after a second of 4k writes, and writes in a second."""
    client = Slow(ObjectStoreClient(MemoryStore()))
    await create(client, "disk", size=DISK)
    device = await ObjectStoreDevice.open(client, "disk")
    data, random, times, count = memoryview(bytes(range(256)) * 16), Random(1), [], 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        until = time.perf_counter() + 1
        while time.perf_counter() < until:
            await device.write(random.randrange(0, MEMORY, 4096), data)
            count += 1
            await asyncio.sleep(0)
        begin = time.perf_counter()
        await device.flush()
        times.append(time.perf_counter() - begin)
    await device.unmount()
    return median(times), count / seconds


async def measure(rounds: int) -> None:
    """Print all."""
    # More of them, for what is compared is microseconds.
    warm_times = [(await warm(cached=False), await warm(cached=True)) for _ in range(5 * rounds)]
    ratio = median(cached / memory for memory, cached in warm_times)
    print(f"4k read, memory {median(m for m, _ in warm_times):.2f} us,", end=" ")
    print(f"warm cache {median(c for _, c in warm_times):.2f} us, ratio {ratio:.2f}")
    store = MemoryStore()
    await fill(store)
    speeds = [
        (await sequential(store, through_disk=False), await sequential(store, through_disk=True))
        for _ in range(rounds)
    ]
    ratio = median(disk / direct for direct, disk in speeds)
    print(f"1 GiB, store itself {median(d for d, _ in speeds):.0f} MB/s,", end=" ")
    print(f"through cache and disk {median(d for _, d in speeds):.0f} MB/s, ratio {ratio:.2f}")
    flush, writes = await flushes()
    print(f"4k writes {writes:.0f}/s, flush {flush * 1e3:.0f} ms: {flush / LATENCY:.1f} requests")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
