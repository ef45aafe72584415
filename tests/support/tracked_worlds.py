"""Small worlds of a Tracked layer, by seed: does a bitmap ever lack a block that has changed?

    python -m tests.support.tracked_worlds 10000 [--first SEED] [--jobs N]

A world has a device and a file of bitmaps, both with a write cache that a power failure loses in
part, in any order; requests that fail, are made late, or are cancelled; points that are added,
merged and dropped meanwhile; a machine that stops at any step, by kill -9 or by losing its power,
several times. The checker is :class:`.tracked_model.Truth`, which sees the medium and not the code.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from random import Random
from typing import Any
from unittest import mock

from aiovblk.storage import Tracked

from .tracked_model import BLOCK, Disk, File, Machine, Medium, Sectors, Truth, WrongError
from .virtual_time import VirtualTimeLoop

TRACKED = "aiovblk.storage.tracked"


class WorldLoop(VirtualTimeLoop):
    """What is for threads takes a while, at a random time of which it is done."""

    random: Random

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._run_later(func, *args), loop=self)

    async def _run_later(self, func: Callable[..., Any], *args: Any) -> Any:
        await asyncio.sleep(self.random.choice([0, 0, 0.001, 0.02]))
        result = func(*args)
        await asyncio.sleep(self.random.choice([0, 0, 0.001, 0.02]))
        return result


class World:
    """One world: several lives of a machine, one after the other."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        blocks = self.random.choice([40, 200, 1000])
        self.granularity = BLOCK * self.random.choice([1, 1, 1, 4])
        self.faults = self.random.choice([0.0, 0.0, 0.02, 0.1])
        self.file_faults = self.random.choice([0.0, 0.0, 0.0, 0.02])
        self.max_doubts = self.random.choice([20, 8192])
        self.is_local = self.random.random() < 0.6
        # Many flushes, and few regions at a time: these are closed and opened again and again.
        self.is_calm = self.is_local and self.random.random() < 0.6
        self.center = 0
        self.truth = Truth()
        self.medium = Medium(blocks, self.random, self.truth)
        self.sectors = Sectors(self.random)
        self.names = map("p{}".format, count())
        self.boot = 0
        self.seen: Counter[str] = Counter()

    async def run(self) -> None:
        for _ in range(self.random.randint(1, 5)):
            await Life(self).run()

    @contextmanager
    def patched(self, machine: Machine) -> Iterator[None]:
        """Let the layer use the media of this world, with limits that are soon reached."""

        def open_medium(path: str, *, read_only: bool) -> File:
            self.file = File(self.sectors, machine, self.file_faults)
            self.file.size = self.sectors.size = max(self.sectors.size, 2 * 64 * 1024)
            return self.file

        with ExitStack() as stack:
            for name, value in {
                "file.open_medium": open_medium,
                "opening.boot_id": lambda: f"boot {self.boot}",
                "regions._CALM": 2,
                "recorder.STRIPE_BITS": 64,
                "recorder._MAX_DOUBTS": self.max_doubts,
                "reading._WINDOW": 16,
            }.items():
                stack.enter_context(mock.patch(f"{TRACKED}.{name}", value))
            yield


class Life:
    """One life of the machine, from opening the layer to the end of the process."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = world.random
        self.truth = world.truth
        self.machine = Machine(self.random, self.random.choice([20, 100, 400, 1 << 30]))
        self.editing: dict[str, str] = {}

    async def run(self) -> None:
        with self.world.patched(self.machine):
            self.disk = Disk(self.world.medium, self.machine, self.world.faults)
            try:
                self.tracked = Tracked(self.disk, "bitmaps", granularity=self.world.granularity)
            except OSError:
                if self.machine.is_dead:
                    self.end()
                    return
                if self.world.file_faults:  # told that it has lost data: that ends this file
                    self.lose_file()
                    return
                raise
            await self.reconcile()
            await self.live()
            header = self.tracked._recorder.header
            self.world.seen["lives with closed regions"] += header.open != ((0, header.regions),)

    async def live(self) -> None:
        tasks = [asyncio.create_task(self.work()) for _ in range(self.random.randint(1, 4))]
        tasks.append(asyncio.create_task(self.edit()))
        await asyncio.wait(tasks)
        if not self.machine.is_dead and self.random.random() < 0.7:
            with suppress(OSError):
                await self.check()
                await self.tracked.unmount()
                self.world.seen["clean ends"] += 1
        self.machine.is_dead = True
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        results = await asyncio.gather(*others, *tasks, return_exceptions=True)
        for each in results:
            if isinstance(each, Exception) and not isinstance(each, OSError):
                raise each
        self.end()

    def end(self) -> None:
        """End the process, or with it the power."""
        self.world.medium.land()
        self.truth.unfinished.clear()
        self.truth.doubts.clear()
        if self.random.random() < 0.5:
            self.world.seen["power failures"] += 1
            self.world.boot += 1
            self.truth.is_exact = False
            self.world.medium.lose_power()
            self.world.sectors.lose_power()
        else:
            self.world.seen["kills"] += 1
            self.world.sectors.lose_process()

    def lose_file(self) -> None:
        self.world.sectors = Sectors(self.random)
        self.truth.changed.clear()
        self.truth.attempts.clear()
        self.truth.maybe.clear()

    async def reconcile(self) -> None:
        """Compare the points with those that there must be."""
        names = set(await self.tracked.dirty_bitmaps())
        truth = self.truth
        if missing := truth.changed.keys() - names - truth.maybe:
            raise WrongError(f"{missing} are gone")
        for name in list(truth.changed):
            if name not in names:
                del truth.changed[name]
        for name in names - truth.changed.keys():
            if name not in truth.maybe:
                raise WrongError(f"{name} is back")
            truth.changed[name] = set()
        truth.maybe.clear()
        await self.check()

    async def check(self) -> None:
        """Ask for all that is dirty."""
        for name in list(self.truth.changed):
            changed = set(self.truth.changed.get(name, ()))
            size = self.world.medium.blocks
            if self.tracked.size != size * BLOCK or name in self.truth.maybe:
                continue
            dirty: set[int] = set()
            at = 0
            while at < size * BLOCK:
                try:
                    extents = await self.tracked.dirty_extents(name, at, size * BLOCK - at)
                except KeyError:
                    if name in self.truth.changed and name not in self.truth.maybe:
                        raise
                    break
                if self.world.medium.blocks != size:
                    break
                for length, is_dirty in extents:
                    if is_dirty:
                        dirty.update(range(at // BLOCK, (at + length) // BLOCK))
                    at += length
            else:
                self.truth.check(name, dirty, changed, min(size, self.world.medium.blocks))
                self.check_exactness(name, dirty, size)
                self.world.seen["answers"] += 1
                self.world.seen["partial answers"] += len(dirty) < size

    def check_exactness(self, name: str, dirty: set[int], size: int) -> None:
        """Without a power failure nothing is dirty that nobody has tried to change."""
        unit = self.world.granularity // BLOCK
        allowed = {block // unit for block in self.truth.attempts.get(name, range(size))}
        surplus = {block for block in dirty if block // unit not in allowed}
        is_rounded = self.truth.doubts and self.world.max_doubts < 8192
        if surplus and self.truth.is_exact and not self.world.file_faults and not is_rounded:
            raise WrongError(f"{sorted(surplus)} are dirty since {name} for no reason")

    async def work(self) -> None:
        """Make requests."""
        for _ in range(self.random.choice([5, 30, 100])):
            if self.machine.is_dead:
                return
            what = self.random.random()
            if what < (0.4 if self.world.is_calm else 0.7):
                await self.change()
            elif what < 0.95:
                with suppress(OSError):
                    await self.tracked.flush()
            elif what < 0.98:
                with suppress(OSError):
                    await self.check()
            else:
                self.world.center = self.random.randrange(self.world.medium.blocks)
            await asyncio.sleep(self.random.choice([0, 0, 0.01]))

    async def change(self) -> None:
        """Make one request that changes something, and perhaps cancel it."""
        size = self.world.medium.blocks
        if self.world.is_local and self.random.random() < 0.95:
            first = (self.world.center + self.random.randrange(30)) % size
        else:
            first = self.random.randrange(size)
        longest = 9 if self.world.is_calm else size
        length = min(self.random.choice([1, 1, 1, 2, 9, longest]), size - first)
        key = self.truth.attempt(range(first, first + length))
        request = asyncio.create_task(self.request(first * BLOCK, length * BLOCK))
        if self.random.random() < 0.05:
            await asyncio.sleep(self.random.choice([0, 0.001, 0.01]))
            request.cancel()
        try:
            await request
        except (OSError, asyncio.CancelledError):
            self.truth.doubts.update(range(first, first + length))
            if self.random.random() < 0.3:
                self.world.medium.land()
        finally:
            self.truth.unfinished.pop(key, None)

    async def request(self, offset: int, length: int) -> None:
        kind = self.random.choice(["write", "write", "trim", "zeroes"])
        if kind == "write":
            await self.tracked.write(offset, memoryview(bytes(length)))
        elif kind == "trim":
            await self.tracked.trim(offset, length)
        else:
            await self.tracked.write_zeroes(offset, length, may_trim=True)

    async def edit(self) -> None:
        """Add, merge and drop points, and resize the device."""
        for _ in range(self.random.choice([1, 4, 12])):
            await asyncio.sleep(self.random.choice([0, 0.01, 0.1]))
            if self.machine.is_dead:
                return
            what = self.random.random()
            names = sorted(self.truth.changed)
            with suppress(OSError):
                if what < 0.5 or not names:
                    await self.add()
                elif what < 0.75:
                    await self.drop(self.random.choice(names))
                elif what < 0.9:
                    await self.merge(*self.random.sample(names, min(2, len(names))))
                else:
                    self.resize()

    async def add(self) -> None:
        name = next(self.world.names)
        self.truth.adding(name)
        self.truth.maybe.add(name)
        await self.tracked.add(name)
        self.truth.point_added(name)
        self.truth.maybe.discard(name)
        self.world.seen["points"] += 1

    async def drop(self, name: str) -> None:
        self.truth.maybe.add(name)
        await self.tracked.drop(name)
        self.truth.maybe.discard(name)
        del self.truth.changed[name], self.truth.attempts[name]

    async def merge(self, name: str, *sources: str) -> None:
        for each in sources:
            self.truth.attempts[name] |= self.truth.attempts[each]
        await self.tracked.merge(name, *sources)
        for each in sources:
            self.truth.changed[name] |= self.truth.changed[each]

    def resize(self) -> None:
        blocks = self.world.medium.blocks
        wanted = max(16, blocks + self.random.choice([-8, 8, blocks, -(blocks // 2) // 4 * 4]))
        wanted = min(wanted, 4000) // 4 * 4
        changed = range(min(blocks, wanted), max(blocks, wanted))
        for attempts in self.truth.attempts.values():
            attempts.update(changed)
        was_exact, self.truth.is_exact = self.truth.is_exact, False
        self.tracked.blocks = wanted
        self.truth.is_exact = was_exact  # it was not interrupted
        self.world.seen["resizes"] += 1


def run_world(seed: int) -> Counter[str]:
    """Run one world; raise what is wrong; return what was seen in it."""
    world = World(seed)
    loop = WorldLoop()
    loop.random = world.random
    logging.getLogger("aiovblk").disabled = True
    try:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(world.run())
    finally:
        logging.getLogger("aiovblk").disabled = False
        asyncio.set_event_loop(None)
        loop.close()
    return world.seen


def _run(seeds: range) -> tuple[Counter[str], list[str]]:
    seen: Counter[str] = Counter()
    wrong = []
    for seed in seeds:
        try:
            seen += run_world(seed)
        except Exception as exc:
            wrong.append(f"world {seed}: {exc!r}")
    return seen, wrong


def main() -> int:
    """Run many worlds, in several processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worlds", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    begin = time.monotonic()
    end = arguments.first + arguments.worlds
    parts = [range(at, min(at + 50, end)) for at in range(arguments.first, end, 50)]
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for found, errors in pool.map(_run, parts):
            seen += found
            wrong += errors
    print(*wrong, sep="\n")
    print(f"{arguments.worlds} worlds in {time.monotonic() - begin:.0f} s: {dict(seen)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
