"""Media that crash, below and beside a Tracked layer, and what its bitmaps have to say."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterable
from random import Random

from aiovblk import BlockDevice

BLOCK = 512
SECTOR = 512


class WrongError(Exception):
    """The layer has said something that is not so."""


class Machine:
    """A machine that stops at a chosen step; its media share its fate.

    Args:
        random: of all choices.
        steps: after how many it stops.

    """

    def __init__(self, random: Random, steps: int) -> None:
        self.random = random
        self.steps = steps
        self.is_dead = False

    def step(self) -> bool:
        """Note a step; return whether the machine stops in the middle of it."""
        if self.is_dead:
            raise OSError(errno.EIO, "the machine has stopped")
        self.steps -= 1
        self.is_dead = self.steps < 0
        return self.is_dead

    def alive(self) -> None:
        """Take a step that changes nothing."""
        if self.step():
            raise OSError(errno.EIO, "the machine stops")


class Truth:
    """Which blocks have changed since which point, seen from the medium itself.

    A block has changed since a point if at any time since :meth:`point_added` its contents were
    others than the moment before: also if a power failure has brought back older ones.
    """

    def __init__(self) -> None:
        self.changed: dict[str, set[int]] = {}
        self.maybe: set[str] = set()
        """Points that were being added or dropped when the machine stopped."""
        self.unfinished: dict[object, range] = {}
        self.attempts: dict[str, set[int]] = {}
        self.doubts: set[int] = set()
        self.is_exact = True
        """Whether no power has failed: then only what was attempted may be dirty."""

    def note(self, blocks: Iterable[int]) -> None:
        """Note that the contents of blocks have changed."""
        found = set(blocks)
        for changed in self.changed.values():
            changed |= found

    def attempt(self, blocks: range) -> object:
        """Note that a request begins that may change these blocks."""
        for attempts in self.attempts.values():
            attempts.update(blocks)
        key = object()
        self.unfinished[key] = blocks
        return key

    def adding(self, name: str) -> None:
        """Note that a point is going to be added."""
        self.attempts[name] = {*self.doubts, *(b for r in self.unfinished.values() for b in r)}

    def point_added(self, name: str) -> None:
        """Note that a point was added."""
        self.changed[name] = set()

    def check(self, name: str, dirty: set[int], changed: set[int], size: int) -> None:
        """Compare what the layer says with what is so.

        Args:
            name: of the point.
            dirty: the blocks that the layer has as dirty.
            changed: those that had changed before it was asked.
            size: blocks of the device.

        """
        missing = {block for block in changed - dirty if block < size}
        if missing:
            raise WrongError(f"{sorted(missing)} have changed since {name}, and are not dirty")


class Medium:
    """The contents of a disk, as numbers, with a write cache: any block may be lost in a crash."""

    def __init__(self, blocks: int, random: Random, truth: Truth) -> None:
        self.random = random
        self.truth = truth
        self.blocks = self.durable_blocks = blocks
        self.versions: dict[int, list[int]] = {}
        self.late: list[range] = []
        self._next = 0

    def get(self, block: int) -> int:
        return self.versions.get(block, [0])[-1]

    def change(self, blocks: Iterable[int]) -> None:
        found = list(blocks)
        for block in found:
            self._next += 1
            self.versions.setdefault(block, [0]).append(self._next)
        self.truth.note(found)

    def flush(self) -> None:
        for block, versions in self.versions.items():
            self.versions[block] = versions[-1:]
        self.durable_blocks = self.blocks

    def resize(self, blocks: int) -> None:
        self.change(range(min(blocks, self.blocks), max(blocks, self.blocks)))
        self.blocks = blocks

    def land(self) -> None:
        """Make late changes, of requests that have failed long ago."""
        for blocks in self.late:
            self.change(block for block in blocks if self.random.random() < 0.7)
        self.late.clear()

    def lose_power(self) -> None:
        before = {block: versions[-1] for block, versions in self.versions.items()}
        for block, versions in self.versions.items():
            self.versions[block] = [self.random.choice(versions)]
        self.truth.note(block for block, old in before.items() if self.get(block) != old)
        if self.random.random() < 0.5 and self.blocks != self.durable_blocks:
            sizes = sorted((self.blocks, self.durable_blocks))
            self.truth.note(range(*sizes))
            self.blocks = self.durable_blocks


class Disk(BlockDevice):
    """A device on a medium: requests take their time, fail, and may be made late."""

    block_size = BLOCK

    def __init__(self, medium: Medium, machine: Machine, faults: float) -> None:
        self.medium = medium
        self.machine = machine
        self.faults = faults
        self.flushes = 0

    @property
    def blocks(self) -> int:
        return self.medium.blocks

    @blocks.setter
    def blocks(self, value: int) -> None:
        self.machine.alive()
        self.medium.resize(value)

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(length)

    async def write(self, offset: int, data: memoryview) -> None:
        await self._change(offset, len(data))

    async def trim(self, offset: int, length: int) -> None:
        await self._change(offset, length)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        await self._change(offset, length)

    async def flush(self) -> None:
        await self._wait()
        self.machine.alive()
        if self.machine.random.random() < self.faults:
            raise OSError(errno.EIO, "the flush has failed")
        self.medium.flush()
        self.flushes += 1
        await self._wait()

    async def _change(self, offset: int, length: int) -> None:
        random = self.machine.random
        blocks = range(offset // BLOCK, (offset + length) // BLOCK)
        try:
            await self._wait()
            if random.random() < self.faults:
                if random.random() < 0.7:
                    self.medium.late.append(blocks)
                raise OSError(errno.EIO, "the request has failed")
        except asyncio.CancelledError:
            self.medium.late.append(blocks)
            raise
        stops = self.machine.step()
        some = random.randint(0, len(blocks)) if stops else len(blocks)
        self.medium.change(blocks[:some])
        if stops:
            raise OSError(errno.EIO, "the machine stops")
        await self._wait()

    async def _wait(self) -> None:
        for _ in range(self.machine.random.randint(0, 3)):
            await asyncio.sleep(self.machine.random.choice([0, 0.001, 0.01]))


class Sectors:
    """The contents of a file whose sectors are written in any order, or not, before a flush."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.size = 0
        self.versions: dict[int, list[bytes]] = {}
        self.dropped: set[int] = set()
        """Sectors of a flush that has failed: the kernel may show what is on the disk."""

    def lose_power(self) -> None:
        for number, versions in self.versions.items():
            self.versions[number] = [self.random.choice(versions)]
        self.dropped.clear()

    def lose_process(self) -> None:
        for number in self.dropped:
            if self.random.random() < 0.5:
                self.versions[number] = [self.random.choice(self.versions[number])]
        self.dropped.clear()


class File:
    """What stands for an OpenFile: an open file on :class:`Sectors`."""

    def __init__(self, sectors: Sectors, machine: Machine, faults: float) -> None:
        self.sectors = sectors
        self.machine = machine
        self.faults = faults
        self.size = sectors.size
        self.flushes = 0
        self._has_failed = False

    def read(self, offset: int, length: int) -> bytes:
        first, behind = offset // SECTOR, -(-(offset + length) // SECTOR)
        data = b"".join(map(self._sector, range(first, behind)))
        return data[offset - first * SECTOR :][:length]

    def write(self, offset: int, data: memoryview) -> None:
        stops = self.machine.step()
        if stops:  # a page at a time is written, or not
            end = offset + self.machine.random.randint(0, len(data)) // 4096 * 4096
            data = data[: max(0, end - offset)]
        at = offset
        while data:
            number, within = divmod(at, SECTOR)
            count = min(SECTOR - within, len(data))
            held = self._sector(number)
            changed = held[:within] + bytes(data[:count]) + held[within + count :]
            self.sectors.versions.setdefault(number, [bytes(SECTOR)]).append(changed)
            self.sectors.dropped.discard(number)
            at += count
            data = data[count:]
        self.sectors.size = max(self.sectors.size, at)
        if stops:
            raise OSError(errno.EIO, "the machine stops")

    def write_few(self, offset: int, data: bytes) -> None:
        self.write(offset, memoryview(data))

    def allocate(self, modes: list[int], offset: int, length: int) -> bool:
        return False

    def flush(self) -> None:
        self.machine.alive()
        versions = self.sectors.versions
        if self._has_failed or self.machine.random.random() < self.faults:
            if not self._has_failed:
                self.sectors.dropped.update(each for each in versions if len(versions[each]) > 1)
                # The kernel says this once. What the layer does then is the only trace of it: a
                # kill within these microseconds is a second fault at the same time.
                self.machine.steps = max(self.machine.steps, 1)
            self._has_failed = True
            raise OSError(errno.EIO, "the flush has failed")
        for number, held in versions.items():
            versions[number] = held[-1:]
        self.flushes += 1

    def close(self) -> None:
        pass

    def _sector(self, number: int) -> bytes:
        return self.sectors.versions.get(number, [bytes(SECTOR)])[-1]
