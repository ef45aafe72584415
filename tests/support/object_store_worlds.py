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
import logging
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from random import Random
from unittest import mock

from aiovblk.aio.gather import gather_all
from aiovblk.storage.objects import (
    Limits,
    ObjectStoreDevice,
    check,
    collect_garbage,
    create,
)

from .virtual_time import VirtualTimeLoop
from .world_diffs import States, verify_diffs
from .world_model import BLOCK, BLOCKS, CHUNK, EMPTY, SIZE, Model, WrongError, block_of, stamps_of
from .world_others import Others, refuse_damage, state_of
from .world_store import LATE, WorldClient, WorldStore

KEY = bytes(range(32))


class Bugs(logging.Handler):
    """Collect what is logged with a traceback: what no failure of the store explains."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


class World:
    """One world."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.store = WorldStore(self.random)
        self.key = self.random.choice([None, None, KEY])
        self.atomic = self.random.random() < 0.4
        self.model = Model(generations=[list(EMPTY)] if self.atomic else None)
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
        self.background = 4 if self.atomic else self.random.choice([0, 4])
        self.stamp = 0
        self.owner: object = None
        self.others = Others(self)

    # Writers

    async def write_some(self, device: ObjectStoreDevice, owner: object) -> None:
        """Write, zero or trim; never two requests for one chunk at a time."""
        existing = range(-(-device.size // CHUNK))
        chunks = self.random.sample(existing, min(self.random.randint(1, 4), len(existing)))
        await gather_all(self.request(device, chunk, owner) for chunk in chunks)
        if self.owner is owner:
            self.model.end_generation()

    async def request(self, device: ObjectStoreDevice, chunk: int, owner: object) -> None:
        per_chunk = min(CHUNK, device.size - chunk * CHUNK) // BLOCK
        # A complete chunk may be durable before the flush, be it complete by writes of several
        # generations whose flushes failed: where these count, a block of each chunk is spared.
        first = self.random.randrange(int(self.atomic), per_chunk)
        count = self.random.randint(1, per_chunk - first)
        kind = self.random.random()
        if kind < 0.15 and not self.atomic:
            first, count = 0, per_chunk
        begin = chunk * CHUNK // BLOCK + first
        zero = self.random.random() < 0.2 and not self.atomic
        stamps = [0] * count if zero else [self.next_stamp() for _ in range(count)]
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
                if self.random.random() < 0.3:
                    self.resize(device, owner)
                if self.random.random() < 0.6:
                    await self.flush(device, owner)
                if self.random.random() < 0.3:
                    await self.read_own(device, owner)
            except OSError as exc:
                if "taken over" in str(exc) or "dead" in str(exc):
                    return

    def resize(self, device: ObjectStoreDevice, owner: object) -> None:
        """Shrink or grow the disk; not where states are generations: it may be durable early."""
        if self.atomic:
            return
        device.blocks = self.random.choice([BLOCKS, self.random.randint(1, BLOCKS)])
        if self.owner is owner:
            self.model.resize(device.blocks)

    async def resize_soon(self, device: ObjectStoreDevice, owner: object) -> None:
        await asyncio.sleep(2 * self.random.random())
        self.resize(device, owner)

    async def flush(self, device: ObjectStoreDevice, owner: object) -> None:
        is_owner, places = self.owner is owner, list(self.model.returned)
        generation = len(self.model.generations or [0]) - 1
        before = self.model.written
        meanwhile = self.random.random() if not self.atomic else 1.0
        if meanwhile < 0.2:
            await gather_all([device.flush(), self.write_some(device, owner)])
        elif meanwhile < 0.4:
            await gather_all([device.flush(), self.resize_soon(device, owner)])
        else:
            await device.flush()
        if is_owner and self.model.written is before:  # not taken over meanwhile
            self.model.flushed(places, generation)

    async def read_own(self, device: ObjectStoreDevice, owner: object) -> None:
        written, returned = self.model.written, list(self.model.returned)
        blocks = device.blocks
        first = self.random.randrange(blocks)
        first, count = self.random.choice([(0, blocks), (first, min(2, blocks - first))])
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
            refuse_damage(exc)
            return None
        window.end()
        self.owner = device  # what others write from now on must not be found
        while True:
            try:
                found = await state_of(device)
                break
            except OSError as exc:
                refuse_damage(exc)
        window.verify(found, "after opening")
        self.model.restart(found)
        return device

    # All of it

    async def run(self) -> None:
        compress = self.random.random() < 0.2
        await create(
            self.store.client(), "disk", size=SIZE, block_size=BLOCK, chunk_size=CHUNK,
            compress=compress, key=self.key,
        )  # fmt: skip
        self.store.faults = self.faults
        others = self.others.start()
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
        self.others.done = True
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
        await asyncio.sleep(2 * LATE)
        self.store.drop_lease()
        device = await self.open_writer(self.store.client())
        assert device is not None
        now = self.model.now()
        for name, stamps in self.others.kept.items():
            if await self.others.read(name) != stamps:
                raise WrongError(f"the snapshot {name} has changed")
        await device.unmount()
        await self.verify_intact()
        await collect_garbage(self.store.client(), "disk", key=self.key)
        await self.verify_intact()
        if await self.others.read() != now:
            raise WrongError("the disk has changed by garbage collection")
        for path, stamps in self.others.clones.items():
            if await self.others.read(path=path) != stamps:
                raise WrongError(f"{path} has changed")
        states: States = {("disk", None): now}
        states |= {("disk", name): self.others.kept[name] for name in list(self.others.kept)[-3:]}
        states |= {(path, None): self.others.clones[path] for path in list(self.others.clones)[-1:]}
        await verify_diffs(self.store.client(), self.key, states)

    async def verify_intact(self) -> None:
        for path in ("disk", *self.others.clones):
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
        mock.patch("aiovblk.storage.objects.write_buffer._BACKGROUND_STORE_AT", world.background),
        mock.patch("aiovblk.storage.objects.compactor.UNUSED_RESERVE", 1),
        mock.patch("aiovblk.storage.objects.compactor._SLICE", 1),
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
