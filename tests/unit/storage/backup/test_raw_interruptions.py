"""Backups to a file or a device are interrupted at every change: earlier state, or later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random

import pytest

from aiovblk import BlockDevice
from aiovblk.storage import Intercept, MemoryDevice
from aiovblk.storage.backup import (
    DeviceSource,
    DeviceTarget,
    FileTarget,
    ObjectTarget,
    backup,
)
from aiovblk.storage.backup.targets import Target

from ....support.backups import States, change, in_small_pieces, states_of
from ....support.bitmap_device import BLOCK, BitmapDevice
from ....support.dying_files import Calls, dying_after
from ....support.object_store import Bucket
from ....support.sizes import by_size

pytestmark = [pytest.mark.slow, pytest.mark.either_loop, pytest.mark.deadline(600)]

SIZE = 24 * BLOCK
STEP = by_size(3, 1)
"""Every so many changes are tried."""


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with in_small_pieces():
        yield


class Dying(Intercept):
    """A device of another machine, whose client is the process that dies."""

    calls: Calls | None = None

    async def intercept(self, command, offset, length, call):  # type: ignore[no-untyped-def]
        if self.calls is not None and command in ("write", "write_zeroes", "flush"):
            self.calls.step()
        return await call()


class World:
    """A disk with bitmaps, and a raw target."""

    def __init__(self, folder: Path, kind: str, seed: int) -> None:
        self.random = Random(seed)
        self.source = BitmapDevice(SIZE)
        self.export = Dying(MemoryDevice(SIZE))
        self.folder = folder
        self.is_file = kind == "file"
        self.states: States = {}
        self.points = 0
        folder.mkdir()

    @property
    def target(self) -> Target:
        """The target, as another process opens it."""
        if self.is_file:
            return FileTarget(self.folder / "image")
        return DeviceTarget(self.export, folder=self.folder / "state")

    async def write(self) -> bytes:
        """Change the disk, and begin a bitmap; return what it holds."""
        await change(self.source, self.random)
        self.points += 1
        await self.source.add(f"point-{self.points}")
        return await self.source.contents()

    async def backup(self, dies_after: int | None = None) -> Calls:
        """Back up, in a process that dies after so many changes; return how many it made."""
        source = DeviceSource(self.source, identity="disk", point=f"point-{self.points}")
        with dying_after(dies_after) as calls:
            self.export.calls = calls
            try:
                await backup(source, self.target, requests=1)
            except OSError:
                assert calls.is_dead
            finally:
                self.export.calls = None
        return calls

    async def verify(self, present: bytes) -> bool:
        """Verify that the target is what it was, or ``present``; return whether it is that."""
        try:
            found = await states_of(self.target)
        except FileNotFoundError:
            found = {}
        assert found == self.states or [*found.values()] == [present]
        is_new = found != self.states
        self.states = found
        if found:
            assert await self.target.verify(lambda count: None) == []
        return is_new


@pytest.mark.parametrize("backups", [0, 1])
@pytest.mark.parametrize("kind", ["file", "device"])
async def test_process_dies_at_every_change(tmp_path: Path, kind: str, backups: int) -> None:
    for changes in count(0, STEP):
        world = World(tmp_path / str(changes), kind, seed=changes)
        for _ in range(backups):
            present = await world.write()
            await world.backup()
            assert await world.verify(present)
        present = await world.write()
        calls = await world.backup(dies_after=changes)
        is_new = await world.verify(present)
        present = await world.write()
        await world.backup()
        assert await world.verify(present)
        if not calls.is_dead:
            assert is_new
            assert changes > 15
            break


@pytest.mark.parametrize("kind", ["file", "device"])
async def test_process_dies_while_it_finishes_what_another_has_left(
    tmp_path: Path, kind: str
) -> None:
    world = World(tmp_path / "counted", kind, seed=1)
    for _ in range(2):
        await world.write()
        calls = await world.backup()
    for first in range(max(calls.made - 12, 0), calls.made, STEP):
        world = World(tmp_path / str(first), kind, seed=1)
        await world.write()
        await world.backup()
        await world.verify(await world.source.contents())
        present = await world.write()
        await world.backup(dies_after=first)
        for second in range(6):
            with dying_after(second) as calls:
                world.export.calls = calls
                try:
                    await world.target.backups()
                except OSError:
                    assert calls.is_dead
                world.export.calls = None
        await world.verify(present)


def _object_target(folder: Path) -> Callable[[], Target]:
    bucket = Bucket()

    def open_target() -> Target:
        bucket.forget_lease()
        return ObjectTarget(bucket.client(), "disk", chunk_size=4 * BLOCK)

    return open_target


def _file_target(folder: Path) -> Callable[[], Target]:
    return lambda: FileTarget(folder / "image")


def _device_target(folder: Path) -> Callable[[], Target]:
    device = MemoryDevice(SIZE)
    return lambda: DeviceTarget(device, folder=folder / "state")


class SourceAwayError(OSError):
    """The source is away."""


class Giving(Intercept):
    """A source that fails for good after so many reads."""

    passes_bitmaps = True

    def __init__(self, inner: BitmapDevice, reads: int) -> None:
        super().__init__(inner)
        self.left = reads

    async def intercept(self, command, offset, length, call):  # type: ignore[no-untyped-def]
        if command == "read":
            self.left -= 1
            if self.left < 0:
                raise SourceAwayError
        return await call()


@pytest.mark.parametrize("make", [_object_target, _file_target, _device_target])
@pytest.mark.parametrize("seed", range(by_size(8, 100)))
async def test_runs_that_fail_at_random_and_a_source_that_forgets(
    tmp_path: Path, make: Callable[[Path], Callable[[], Target]], seed: int
) -> None:
    random = Random(seed)
    open_target = make(tmp_path)
    source = BitmapDevice(SIZE)
    expected: bytes | None = None  # what the newest backup holds
    for number in range(12):
        await change(source, random)
        point = await source.add(f"point-{number}") if random.random() < 0.8 else None
        if random.random() < 0.2:
            source.points.pop(random.choice([*source.points, ""]), None)
            point = point if point in source.points else None
        reads = random.choice([0, 1, 2, 3, 5, 1000])
        device: BlockDevice = Giving(source, reads)
        identity = "disk" if random.random() < 0.9 else "another"
        with suppress(SourceAwayError):
            made = DeviceSource(device, identity=identity, point=point)
            await backup(made, open_target(), requests=1)
            expected = await source.contents()
        try:
            found = [*(await states_of(open_target())).values()]
        except FileNotFoundError:
            found = []
        assert found[-1:] == ([] if expected is None else [expected])
