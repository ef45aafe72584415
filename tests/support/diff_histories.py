"""Random histories of disks in a bucket, and a checker of what differs between their states.

The checker is apart from the code: it knows the bytes of each state, and by a *stamp* for each
block when it was written, or moved by the compactor, last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from random import Random
from typing import Any
from unittest import mock

from aiovblk.bitmaps import DirtyExtent
from aiovblk.storage.objects import (
    ChangedExtent,
    Limits,
    ObjectStoreDevice,
    clone,
    create,
    diff,
    snapshot,
)
from aiovblk.storage.objects.view import DiskView

from .object_store import Bucket

BLOCK, CHUNK, CHUNKS = 512, 4096, 6
PER_CHUNK = CHUNK // BLOCK
KEY = bytes(range(32))

_MOVE = DiskView.move


@dataclass
class State:
    """What is known of a state of a disk."""

    path: str
    snapshot: str | None
    data: bytes
    stamps: list[int]
    """Of all blocks of the chunks; those behind the end of the disk become zeroes by a resize."""


@dataclass
class Disk:
    """A disk that is open for writing."""

    path: str
    device: ObjectStoreDevice
    stamps: list[int]
    """See :class:`State`."""
    names: list[str] = field(default_factory=list)


class History:
    """One history.

    Args:
        seed: of what happens.
        compacts: whether the compactor moves data.

    """

    def __init__(self, seed: int, *, compacts: bool) -> None:
        self.random = Random(seed)
        self.bucket = Bucket()
        self.compacts = compacts
        self.key = self.random.choice([None, KEY])
        self.limits = Limits(
            memory=self.random.choice([0, CHUNK, 16 * CHUNK]),
            inline_size=self.random.choice([0, 4 * BLOCK, 1 << 20]),
            segment_size=self.random.choice([2, 8]) * BLOCK if compacts else 1 << 20,
            extents=self.random.choice([4, 20]) if compacts else 1 << 17,
        )
        self.disks: list[Disk] = []
        self.states: list[State] = []
        self.opening: list[int] = []
        """The stamps of the disk that is being opened."""
        self.now = 0

    def stamp(self) -> int:
        self.now += 1
        return self.now

    async def run(self, steps: int) -> None:
        """Let it happen, and compare states from time to time."""
        writes = [self.write, self.write, self.write, self.zero, self.trim, self.flush]
        others = [self.snapshot, self.resize, self.compact, self.reopen, self.clone]
        actions = writes + others
        with (
            mock.patch.object(DiskView, "move", self._noting(_MOVE)),
            mock.patch.object(DiskView, "end_fold", self._noting(DiskView.end_fold)),
        ):
            await self._create()
            for _ in range(steps):
                await self.random.choice(actions)(self.random.choice(self.disks))
                if self.random.random() < 0.3:
                    await self.compare()
            for disk in self.disks:
                await self.compare_open(disk)
                await disk.device.unmount()

    async def _create(self) -> None:
        size = CHUNKS * CHUNK - self.random.choice([0, 3 * BLOCK])
        await create(
            self.bucket.client(), "disk", size=size, block_size=BLOCK, chunk_size=CHUNK,
            compress=self.random.random() < 0.3, key=self.key,
        )  # fmt: skip
        await self._open("disk", [0] * CHUNKS * PER_CHUNK)

    async def _open(self, path: str, stamps: list[int]) -> Disk:
        self.opening = stamps
        device = await ObjectStoreDevice.open(
            self.bucket.client(), path, key=self.key, limits=self.limits
        )
        self.disks.append(Disk(path, device, stamps))
        return self.disks[-1]

    # What the compactor moves

    def _noting(self, moves: Any) -> Any:
        """Give new stamps to the blocks that a method of the view is about, if not to others."""

        def note(view: DiskView, first: int, *rest: Any) -> Any:
            places = [(first, 0, PER_CHUNK)]
            if moves is _MOVE:
                places = [(index, run.first, run.blocks) for index, run in rest[1]]
            known = (each.stamps for each in self.disks if each.device._buffer._view is view)
            stamps = next(known, self.opening)
            for index, block, count in places:
                self._touch(stamps, index * PER_CHUNK + block, count)
            return moves(view, first, *rest)

        return note

    def _touch(self, stamps: list[int], first: int, count: int) -> None:
        stamp = self.stamp()
        for block in range(first, min(first + count, len(stamps))):
            stamps[block] = stamp

    # What happens

    def _some(self, disk: Disk) -> tuple[int, int]:
        first = self.random.randrange(disk.device.blocks)
        longest = disk.device.blocks - first
        return first, self.random.randint(1, min(longest, self.random.choice([1, 3, 20])))

    async def write(self, disk: Disk) -> None:
        first, count = self._some(disk)
        letter = self.random.choice([b"a", b"b", b"\0", bytes([self.random.randrange(256)])])
        self._touch(disk.stamps, first, count)
        await disk.device.write(first * BLOCK, memoryview(letter * count * BLOCK))

    async def zero(self, disk: Disk) -> None:
        first, count = self._some(disk)
        self._touch(disk.stamps, first, count)
        await disk.device.write_zeroes(first * BLOCK, count * BLOCK, may_trim=True)

    async def trim(self, disk: Disk) -> None:
        first, count = self._some(disk)
        for index in range(-(-first // PER_CHUNK), (first + count) // PER_CHUNK):
            self._touch(disk.stamps, index * PER_CHUNK, PER_CHUNK)
        await disk.device.trim(first * BLOCK, count * BLOCK)

    async def flush(self, disk: Disk) -> None:
        await disk.device.flush()

    async def resize(self, disk: Disk) -> None:
        before = disk.device.blocks
        size = max(1, before + self.random.randint(-2 * PER_CHUNK, 2 * PER_CHUNK))
        disk.device.blocks = size
        chunks = -(-size // PER_CHUNK)
        kept = disk.stamps[: min(before, size)]
        disk.stamps[:] = kept + [self.stamp()] * (chunks * PER_CHUNK - len(kept))

    async def compact(self, disk: Disk) -> None:
        writer = disk.device._writer
        assert writer is not None
        if self.compacts:
            await writer._compactor.step()

    async def reopen(self, disk: Disk) -> None:
        await disk.device.unmount()
        self.disks.remove(disk)
        new = await self._open(disk.path, disk.stamps)
        new.names = disk.names

    async def snapshot(self, disk: Disk) -> None:
        before = list(disk.stamps)
        await disk.device.flush()
        name = f"s{len(self.states)}"
        await snapshot(self.bucket.client(), disk.path, name=name, key=self.key)
        data = await self.read(disk.path, name)
        # What the compactor has moved meanwhile is in one place or the other.
        pairs = zip(before, disk.stamps, strict=True)
        stamps = [stamp if stamp == now else self.stamp() for stamp, now in pairs]
        self.states.append(State(disk.path, name, data, stamps))
        disk.names.append(name)

    async def read(self, path: str, name: str) -> bytes:
        device = await ObjectStoreDevice.open(
            self.bucket.client(), path, snapshot=name, read_only=True, key=self.key
        )
        data = bytes(await device.read(0, device.size))
        await device.unmount()
        return data

    async def clone(self, disk: Disk) -> None:
        if not self.states or len(self.disks) > 3:
            return
        origin = self.random.choice(self.states)
        assert origin.snapshot is not None
        path = f"clone{len(self.disks)}"
        await clone(
            self.bucket.client(), origin.path, name=origin.snapshot, target=path, key=self.key
        )
        await self._open(path, list(origin.stamps))

    # What is right

    async def compare(self) -> None:
        """Compare two states of any disks, and an open disk with its snapshots."""
        disk = self.random.choice(self.disks)
        await self.compare_open(disk)
        await disk.device.flush()
        data = bytes(await disk.device.read(0, disk.device.size))
        present = State(disk.path, None, data, disk.stamps)
        states = [*self.states, present]
        old, new = self.random.choice(states), self.random.choice([states[-1], *states])
        client, requests = self.bucket.client(), list[tuple[str, str]]()
        client.before = lambda *request: requests.append(request)
        found = await diff(
            client, new.path, snapshot=new.snapshot, since=old.snapshot, since_path=old.path,
            key=self.key,
        )  # fmt: skip
        assert (found.since_size, found.size) == (len(old.data), len(new.data))
        extents = [each async for each in found]
        for request, path in requests:
            assert request in ("get", "find")
            assert path.partition("/")[0] in ("disk.json", "log", "map")
        verify(extents, old, new)
        if new.snapshot is not None and new.path == old.path and old.snapshot is not None:
            await self.compare_bitmap(new, old.snapshot, extents)

    async def compare_bitmap(
        self, new: State, since: str, extents: Iterable[ChangedExtent]
    ) -> None:
        """Compare what a snapshot's device says with what was found."""
        device = await ObjectStoreDevice.open(
            self.bucket.client(), new.path, snapshot=new.snapshot, key=self.key
        )
        assert since in await device.dirty_bitmaps()
        dirty = dirty_blocks(await all_dirty(device, since))
        await device.unmount()
        assert dirty == {block for each in extents for block in blocks_of(each)}

    async def compare_open(self, disk: Disk) -> None:
        """Compare an open disk, of which not all is flushed, with its snapshots."""
        assert await disk.device.dirty_bitmaps() == sorted(disk.names)
        for old in self.states:
            if old.path == disk.path:
                data = bytes(await disk.device.read(0, disk.device.size))
                assert old.snapshot is not None
                dirty = dirty_blocks(await all_dirty(disk.device, old.snapshot))
                new = State(disk.path, None, data, disk.stamps)
                assert different(old, new) <= dirty
                touched = touched_between(old, new)
                chunks = {block // PER_CHUNK for block in touched}
                assert {block // PER_CHUNK for block in dirty} <= chunks


def blocks_of(extent: ChangedExtent) -> range:
    return range(extent.offset // BLOCK, (extent.offset + extent.length) // BLOCK)


def different(old: State, new: State) -> set[int]:
    """Return the blocks whose bytes differ; what the old state lacks counts as zeroes."""
    before = old.data.ljust(len(new.data), b"\0")
    return {
        at // BLOCK
        for at in range(0, len(new.data), BLOCK)
        if before[at : at + BLOCK] != new.data[at : at + BLOCK]
    }


def touched_between(old: State, new: State) -> set[int]:
    """Return the blocks that were written, or moved, and those that only one of the states has."""
    pairs = enumerate(zip_longest(old.stamps, new.stamps))
    return {block for block, (before, now) in pairs if before != now}


def verify(extents: list[ChangedExtent], old: State, new: State) -> None:
    """Verify that nothing that differs is missing, and that what is there was written, or moved."""
    touched = touched_between(old, new)
    found: set[int] = set()
    end = 0
    last: ChangedExtent | None = None
    for each in extents:
        blocks = blocks_of(each)
        assert each.offset >= end
        assert each.length
        assert (each.offset % BLOCK, each.length % BLOCK) == (0, 0)
        assert last is None or each.offset > end or each[2:] != last[2:]
        if each.granularity == BLOCK:
            assert touched.issuperset(blocks)
        else:
            assert each.granularity == CHUNK
            chunks = {block // PER_CHUNK for block in touched}
            assert chunks.issuperset(block // PER_CHUNK for block in blocks)
        if each.zero:
            assert not any(new.data[each.offset : each.offset + each.length])
        found.update(blocks)
        end, last = each.offset + each.length, each
    assert end <= len(new.data)
    assert different(old, new) <= found


async def all_dirty(device: ObjectStoreDevice, name: str) -> list[DirtyExtent]:
    """Return all of a bitmap, asked for as often as needed."""
    found: list[DirtyExtent] = []
    offset = 0
    while offset < device.size:
        part = await device.dirty_extents(name, offset, device.size - offset)
        assert part
        found += part
        offset += sum(each.length for each in part)
    assert offset == device.size
    return found


def dirty_blocks(extents: Iterable[DirtyExtent]) -> set[int]:
    found: set[int] = set()
    block = 0
    for each in extents:
        assert each.length
        assert not each.length % BLOCK
        if each.dirty:
            found.update(range(block, block + each.length // BLOCK))
        block += each.length // BLOCK
    return found
