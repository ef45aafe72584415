"""Small worlds of a disk in an object store, by seed, and a checker that knows what may be read.

    python -m tests.support.object_store_worlds 100000 [--first SEED] [--jobs N]

A world has a store whose requests fail before they are made, after it, or are made late when their
sender has given up; writers that crash, or are taken over while they still believe that they write;
their compactors; garbage collection, snapshots and clones at the same time. All of it runs in
virtual time, in one thread, so that a seed always shows the same world.

The checker is apart from the code: it knows which blocks were written, in which order, and when a
flush returned. Of each block it allows what was flushed last or was written later. In some worlds
all blocks that are written between two flushes are of one *generation*; there a state, after a
crash or in a snapshot, has to be one generation as a whole.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar
from unittest import mock

from aiovblk.aio.gather import gather_all
from aiovblk.storage.objects import (
    Limits,
    ObjectInfo,
    ObjectStoreDevice,
    check,
    clone,
    collect_garbage,
    create,
    drop_snapshot,
    snapshot,
)
from aiovblk.storage.objects.client import Buffer

from .virtual_time import VirtualTimeLoop

T = TypeVar("T")

BLOCK, CHUNK, CHUNKS = 512, 4096, 6
BLOCKS = CHUNKS * CHUNK // BLOCK
SIZE = CHUNKS * CHUNK
KEY = bytes(range(32))
_LATE = 90.0  # seconds until a request is made whose sender has given up


class WrongError(AssertionError):
    """Something was read that must not be there."""


class Bugs(logging.Handler):
    """Collect what is logged with a traceback: what no failure of the store explains."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


class WorldStore:
    """The store: objects, and requests that go wrong."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.objects: dict[str, bytes] = {}
        self.faults = 0.0  # probability of each request

    def client(self) -> WorldClient:
        return WorldClient(self, "", [])

    def drop_lease(self) -> None:
        self.objects.pop("disk/lease", None)


class WorldClient:
    """The store, as one process sees it."""

    def __init__(self, store: WorldStore, folder: str, dead: list[bool]) -> None:
        self.store = store
        self._folder = folder
        self._dead = dead  # shared by all clients of the process; empty while it lives

    def subfolder(self, path: str) -> WorldClient:
        return WorldClient(self.store, self._full(path), self._dead)

    def kill(self) -> None:
        self._dead.append(True)

    def _full(self, path: str) -> str:
        return f"{self._folder}/{path}".strip("/")

    async def get(self, path: str) -> memoryview:
        return await self._request(lambda: self._get(path))

    async def get_range(self, path: str, start: int, length: int) -> memoryview:
        return await self._request(lambda: self._get(path)[start : start + length])

    async def put(self, path: str, data: Buffer) -> None:
        full, copied = self._full(path), bytes(data)
        await self._request(lambda: self.store.objects.update({full: copied}), changes=True)

    async def create(self, path: str, data: Buffer) -> None:
        full, copied = self._full(path), bytes(data)

        def make() -> None:
            if full in self.store.objects:
                raise FileExistsError(errno.EEXIST, path)
            self.store.objects[full] = copied

        await self._request(make, changes=True)

    async def delete(self, paths: Iterable[str]) -> None:
        for full in [self._full(path) for path in paths]:
            await self._request(lambda full=full: self.store.objects.pop(full, None), changes=True)  # type: ignore[misc]  # a default argument

    async def list_objects(self, folder: str, *, after: str = "") -> list[ObjectInfo]:
        return await self._request(lambda: self._list(folder, after))

    def _get(self, path: str) -> memoryview:
        try:
            return memoryview(self.store.objects[self._full(path)])
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, path) from None

    def _list(self, folder: str, after: str) -> list[ObjectInfo]:
        own = len(self._folder) + 1 if self._folder else 0
        begin = self._full(folder) + "/"
        return [
            ObjectInfo(name[own:], len(self.store.objects[name]))
            for name in sorted(self.store.objects)
            if name.startswith(begin) and (not after or name > self._full(after))
        ]

    async def _request(self, make: Callable[[], T], *, changes: bool = False) -> T:
        random = self.store.random
        self._check_alive()
        await asyncio.sleep(random.random())
        if self._dead:
            # It was sent before: it is made or not, perhaps long after.
            if changes and random.random() < 0.7:
                self._make_late(make)
            self._check_alive()
        fault = random.choice(["before", "after", "late"])
        if random.random() >= self.store.faults:
            fault = ""
        if fault == "before":
            raise OSError(errno.EIO, "the request was not made")
        if fault == "late" and changes:
            self._make_late(make)
            raise OSError(errno.EIO, "no answer, and the request is on its way")
        result = make()
        await asyncio.sleep(random.random())
        self._check_alive()
        if fault:
            raise OSError(errno.EIO, "no answer")
        return result

    def _make_late(self, make: Callable[[], object]) -> None:
        def try_it() -> None:
            with suppress(OSError):
                make()

        delay = self.store.random.choice([0.0, 1.0, 5.0, _LATE]) * self.store.random.random()
        asyncio.get_running_loop().call_later(delay, try_it)

    def _check_alive(self) -> None:
        if self._dead:
            raise OSError(errno.EIO, "the process is dead")


def block_of(stamp: int) -> bytes:
    """Return a block that is full of a stamp; 0 is zeroes."""
    return stamp.to_bytes(8, "little") * (BLOCK // 8)


def stamps_of(data: bytes) -> list[int]:
    """Return the stamps of some blocks."""
    found = []
    for block in range(len(data) // BLOCK):
        content = data[block * BLOCK : (block + 1) * BLOCK]
        stamp = int.from_bytes(content[:8], "little")
        if content != block_of(stamp):
            raise WrongError(f"block {block} of these is torn")
        found.append(stamp)
    return found


@dataclass
class Model:
    """What each block may hold: what was written to it since the state that is known."""

    written: list[list[int]] = field(default_factory=lambda: [[0] for _ in range(BLOCKS)])
    returned: list[int] = field(default_factory=lambda: [0] * BLOCKS)
    """Of each block the place in ``written`` of the last write that has returned."""
    durable: list[int] = field(default_factory=lambda: [0] * BLOCKS)
    """Of each block the place in ``written`` of what was flushed last."""
    generations: list[list[int]] | None = None
    """All states, in order, if only one of these may be found."""
    generation: int = 0
    """The last one that was flushed."""

    def now(self) -> list[int]:
        return [each[-1] for each in self.written]

    def write(self, block: int, stamp: int) -> None:
        self.written[block].append(stamp)

    def end_generation(self) -> None:
        if self.generations is not None:
            self.generations.append(self.now())

    def flushed(self, places: list[int], generation: int) -> None:
        self.durable = [max(pair) for pair in zip(self.durable, places, strict=True)]
        self.generation = max(self.generation, generation)

    def begin(self) -> Window:
        return Window(self, self.written, list(self.durable), self.generation)

    def restart(self, found: list[int]) -> None:
        self.written = [[stamp] for stamp in found]
        self.returned, self.durable = [0] * BLOCKS, [0] * BLOCKS
        if self.generations is not None:
            self.generations, self.generation = [found], 0


@dataclass
class Window:
    """What a state may be that was made between two moments."""

    model: Model
    written: list[list[int]]
    durable: list[int]
    generation: int
    allowed: list[list[int]] = field(default_factory=list)
    generations: list[list[int]] | None = None

    @property
    def is_known(self) -> bool:
        """Whether there was the same writer all the time, which the model has followed."""
        return self.model.written is self.written

    def end(self) -> Window:
        pairs = zip(self.written, self.durable, strict=True)
        self.allowed = [written[first:] for written, first in pairs]
        if self.model.generations is not None:
            self.generations = [list(each) for each in self.model.generations[self.generation :]]
        return self

    def verify(self, found: list[int], what: str) -> None:
        for block, stamp in enumerate(found):
            if stamp not in self.allowed[block]:
                raise WrongError(f"{what}: block {block} is {stamp}, not {self.allowed[block]}")
        if self.generations is not None and found not in self.generations:
            raise WrongError(f"{what}: {found} is no generation")


class World:
    """One world."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.store = WorldStore(self.random)
        self.key = self.random.choice([None, None, KEY])
        self.atomic = self.random.random() < 0.4
        self.model = Model(generations=[[0] * BLOCKS] if self.atomic else None)
        self.faults = self.random.choice([0.0, 0.02, 0.1, 0.25])
        blocks = self.random.choice([1, 2, 8])
        self.limits = Limits(
            memory=self.random.choice([0, CHUNK, 16 * CHUNK]),
            unstored=self.random.choice([0, SIZE]) if not self.atomic else SIZE * 16,
            requests=self.random.choice([1, 4]),
            inline_size=1 << 20 if self.atomic else self.random.choice([0, 2, 4, 100]) * BLOCK,
            segment_size=blocks * BLOCK,
            extents=self.random.choice([4, 20, 1000]),
            compaction=self.random.choice([1, 100]) * CHUNK,
        )
        self.interval = self.random.choice([2, 5, 20])
        self.stamp = 0
        self.owner: object = None
        self.kept: dict[str, list[int]] = {}
        self.clones: dict[str, list[int]] = {}
        self.done = False

    # Writers

    async def write_some(self, device: ObjectStoreDevice, owner: object) -> None:
        """Write, zero or trim; never two requests for one chunk at a time."""
        count = self.random.randint(1, 4)
        chunks = self.random.sample(range(CHUNKS), count)
        await gather_all(self.request(device, chunk, owner) for chunk in chunks)
        if self.owner is owner:
            self.model.end_generation()

    async def request(self, device: ObjectStoreDevice, chunk: int, owner: object) -> None:
        per_chunk = CHUNK // BLOCK
        first = self.random.randrange(per_chunk)
        count = self.random.randint(1, per_chunk - first)
        kind = self.random.random()
        if kind < 0.15 and not self.atomic:
            first, count = 0, per_chunk
        begin = chunk * per_chunk + first
        zero = self.random.random() < 0.2 and not self.atomic
        stamps = [0] * count if zero else [self.next_stamp() for _ in range(count)]
        if self.atomic and count == per_chunk:
            begin, stamps = begin + 1, stamps[1:]
        written = self.model.written
        if self.owner is owner:
            for block, stamp in enumerate(stamps, begin):
                self.model.write(block, stamp)
        if zero and self.random.random() < 0.7:
            await device.write_zeroes(begin * BLOCK, count * BLOCK, may_trim=True)
        else:
            await device.write(begin * BLOCK, memoryview(b"".join(map(block_of, stamps))))
        if self.owner is owner and self.model.written is written:
            for block in range(begin, begin + len(stamps)):
                self.model.returned[block] = len(written[block]) - 1

    def next_stamp(self) -> int:
        self.stamp += 1
        return self.stamp

    async def write_and_flush(self, device: ObjectStoreDevice, owner: object, steps: int) -> None:
        """Be a writer for some steps, or until a request says that it is none any more."""
        for _ in range(steps):
            await asyncio.sleep(self.random.choice([0, 0, 1, 20]) * self.random.random())
            try:
                await self.write_some(device, owner)
                if self.random.random() < 0.6:
                    await self.flush(device, owner)
                if self.random.random() < 0.3:
                    await self.read_own(device, owner)
            except OSError as exc:
                if "taken over" in str(exc) or "dead" in str(exc):
                    return

    async def flush(self, device: ObjectStoreDevice, owner: object) -> None:
        is_owner, places = self.owner is owner, list(self.model.returned)
        generation = len(self.model.generations or [0]) - 1
        before = self.model.written
        if self.random.random() < 0.2 and not self.atomic:  # others at the same time
            more = self.write_some(device, owner)
            await gather_all([device.flush(), more])
        else:
            await device.flush()
        if is_owner and self.model.written is before:  # not taken over meanwhile
            self.model.flushed(places, generation)

    async def read_own(self, device: ObjectStoreDevice, owner: object) -> None:
        written, returned = self.model.written, list(self.model.returned)
        first, count = self.random.choice([(0, BLOCKS), (self.random.randrange(BLOCKS - 1), 2)])
        found = stamps_of(bytes(await device.read(first * BLOCK, count * BLOCK)))
        if self.owner is not owner or self.model.written is not written:
            return
        for block, stamp in enumerate(found, first):  # those of writes that failed may be there
            allowed = written[block][returned[block] :]
            if stamp not in allowed:
                raise WrongError(f"the writer reads {stamp} in block {block}, not {allowed}")

    async def open_writer(self, client: WorldClient) -> ObjectStoreDevice | None:
        """Open the disk, as whoever takes it over; verify what is there."""
        window = self.model.begin()
        try:
            device = await ObjectStoreDevice.open(
                client, "disk", key=self.key, limits=self.limits, lease=30
            )
        except OSError as exc:
            self.refuse_damage(exc)
            return None
        window.end()
        self.owner = device  # what others write from now on must not be found
        while True:
            try:
                found = stamps_of(bytes(await device.read(0, SIZE)))
                break
            except OSError as exc:
                self.refuse_damage(exc)
        window.verify(found, "after opening")
        self.model.restart(found)
        return device

    @staticmethod
    def refuse_damage(exc: OSError) -> None:
        if "damaged" in str(exc):
            raise WrongError(str(exc)) from exc

    # Others at the same time

    async def take_snapshots(self) -> None:
        number = 0
        while not self.done:
            await asyncio.sleep(30 * self.random.random())
            number += 1
            name, client = f"s{number}", self.store.client()
            action = self.random.random()
            with suppress(OSError):
                if action < 0.5:
                    await self.take_snapshot(client, name)
                elif action < 0.6 and self.kept:
                    name = self.random.choice(list(self.kept))
                    stamps = self.kept.pop(name)
                    try:
                        await drop_snapshot(client, "disk", name=name, key=self.key)
                    except OSError as exc:
                        if "needed by clones" in str(exc):
                            self.kept[name] = stamps
                        raise
                elif action < 0.75 and self.kept:
                    name = self.random.choice(list(self.kept))
                    stamps, target = self.kept[name], f"clone{number}"
                    await clone(client, "disk", name=name, target=target, key=self.key)
                    self.clones[target] = stamps
                elif self.kept:
                    name = self.random.choice(list(self.kept))
                    stamps = self.kept[name]
                    if await self.read(name) != stamps and self.kept.get(name) is stamps:
                        raise WrongError(f"the snapshot {name} has changed")

    async def take_snapshot(self, client: WorldClient, name: str) -> None:
        window, owner = self.model.begin(), self.owner
        await snapshot(client, "disk", name=name, key=self.key)
        is_known = window.is_known and self.owner is owner
        window.end()
        found = await self.read(name)
        if is_known:
            window.verify(found, f"snapshot {name}")
        self.kept[name] = found

    async def read(self, name: str | None = None, path: str = "disk") -> list[int]:
        device = await ObjectStoreDevice.open(
            self.store.client(), path, key=self.key, snapshot=name, read_only=True
        )
        try:
            return stamps_of(bytes(await device.read(0, SIZE)))
        except OSError as exc:
            if name is not None and name in self.kept:
                self.refuse_damage(exc)
            raise
        finally:
            await device.unmount()

    async def collect(self) -> None:
        while not self.done:
            await asyncio.sleep(40 * self.random.random())
            with suppress(OSError):
                await collect_garbage(self.store.client(), "disk", key=self.key)

    # All of it

    async def run(self) -> None:
        compress = self.random.random() < 0.2
        await create(
            self.store.client(), "disk", size=SIZE, block_size=BLOCK, chunk_size=CHUNK,
            compress=compress, key=self.key,
        )  # fmt: skip
        self.store.faults = self.faults
        others = [asyncio.create_task(self.take_snapshots()), asyncio.create_task(self.collect())]
        zombies: list[asyncio.Task[None]] = []
        for _ in range(self.random.randint(2, 5)):
            client = self.store.client()
            if self.random.random() < 0.5:
                self.store.drop_lease()
            device = await self.open_writer(client)
            if device is None:
                client.kill()
                continue
            steps = self.random.randint(1, 15)
            life = asyncio.create_task(self.live(device, client, steps, zombies))
            await life
        self.done = True
        for task in [*others, *zombies]:
            await task
        await self.verify_end()

    async def live(
        self,
        device: ObjectStoreDevice,
        client: WorldClient,
        steps: int,
        zombies: list[asyncio.Task[None]],
    ) -> None:
        """Be the writer, and then crash, end in order, or go on without knowing of the next."""
        end = self.random.choice(["crash", "crash in between", "unmount", "zombie"])
        writing = asyncio.create_task(self.write_and_flush(device, device, steps))
        if end == "zombie":
            await asyncio.sleep(steps * self.random.random())
            zombies.append(asyncio.create_task(self.end_zombie(writing, device)))
            return
        if end == "crash in between":
            await asyncio.sleep(3 * steps * self.random.random())
            client.kill()
        await writing
        if end == "crash":
            client.kill()
        try:
            await device.unmount()
        except OSError:
            return
        if end == "unmount" and self.owner is device:
            self.model.flushed(list(self.model.returned), len(self.model.generations or [0]) - 1)

    async def end_zombie(self, writing: asyncio.Task[None], device: ObjectStoreDevice) -> None:
        await writing
        with suppress(OSError):
            await device.unmount()

    async def verify_end(self) -> None:
        """Let everything arrive, and see that all is there, and that nothing else is."""
        self.store.faults = 0.0
        await asyncio.sleep(2 * _LATE)
        self.store.drop_lease()
        device = await self.open_writer(self.store.client())
        assert device is not None
        now = self.model.now()
        for name, stamps in self.kept.items():
            if await self.read(name) != stamps:
                raise WrongError(f"the snapshot {name} has changed")
        await device.unmount()
        await self.verify_intact()
        await collect_garbage(self.store.client(), "disk", key=self.key)
        await self.verify_intact()
        if await self.read() != now:
            raise WrongError("the disk has changed by garbage collection")
        for path, stamps in self.clones.items():
            if await self.read(path=path) != stamps:
                raise WrongError(f"{path} has changed")

    async def verify_intact(self) -> None:
        for path in ("disk", *self.clones):
            problems = (await check(self.store.client(), path, key=self.key)).problems
            if problems:
                raise WrongError(f"{path}: {problems}")


def run_world(seed: int) -> None:
    """Run a world; raise what is wrong with it.

    Raises:
        WrongError: data was lost, or something was read that must not be there.

    """
    world, bugs, log = World(seed), Bugs(), logging.getLogger("aiovblk")
    random = Random(seed)
    with (
        mock.patch("aiovblk.storage.objects.writer._CHECKPOINT_INTERVAL", world.interval),
        mock.patch(
            "aiovblk.storage.objects.lease.secrets.token_hex", lambda n: random.randbytes(n).hex()
        ),
        mock.patch("aiovblk.storage.objects.compactor.UNUSED_RESERVE", 1),
        mock.patch("aiovblk.storage.objects.frames.FRAME", 2 * BLOCK),
        mock.patch("aiovblk.storage.objects.object_reader.FRAME", 2 * BLOCK),
        mock.patch("aiovblk.storage.objects.object_reader._FIRST_READ", 3 * BLOCK),
        asyncio.Runner(loop_factory=VirtualTimeLoop) as runner,
    ):
        log.addHandler(bugs)
        log.propagate = False
        try:
            runner.run(world.run())
        finally:
            log.removeHandler(bugs)
            log.propagate = True
    if bugs.found:
        raise WrongError(bugs.found[0])


def _try_world(seed: int) -> tuple[int, str]:
    try:
        run_world(seed)
    except Exception as exc:
        return seed, f"{type(exc).__name__}: {exc}"
    return seed, ""


def main() -> None:
    """Run many worlds, and print those that have gone wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worlds", type=int)
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.worlds)
    begin, wrong = time.monotonic(), 0
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for number, (seed, problem) in enumerate(pool.map(_try_world, seeds, chunksize=20), 1):
            if problem:
                wrong += 1
                print(f"world {seed}: {problem}", flush=True)
            if not number % 1000:
                print(f"{number} worlds, {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{len(seeds)} worlds, {wrong} wrong, {time.monotonic() - begin:.0f} s")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
