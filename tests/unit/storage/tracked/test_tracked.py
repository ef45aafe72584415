"""Tracked: what is dirty since which point, with all that a device may do."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest

from aiovblk import BlockDevice
from aiovblk.bitmaps import SupportsDirtyBitmaps
from aiovblk.device import can
from aiovblk.errors import StorageError
from aiovblk.storage import Fault, Faults, FileDevice, MemoryDevice, ReadOnly, Tracked
from aiovblk.testing import CrashableDisk, check_block_device

from ....support.sizes import by_size

pytestmark = pytest.mark.either_loop

BLOCK = 4096
SIZE = 1 << 20
DATA = memoryview(bytes(BLOCK))


@pytest.fixture
async def tracked(tmp_path: Path) -> AsyncIterator[Tracked]:
    device = Tracked(MemoryDevice(SIZE), tmp_path / "bitmaps")
    yield device
    await device.unmount()


async def dirty(device: SupportsDirtyBitmaps, name: str, size: int = SIZE) -> list[tuple[int, int]]:
    """The first block of each dirty extent, and the one after it."""
    found, at = [], 0
    while at < size:
        for length, is_dirty in await device.dirty_extents(name, at, size - at):
            if is_dirty:
                found.append((at // BLOCK, -(-(at + length) // BLOCK)))
            at += length
    return found


async def test_what_is_written_after_a_point_is_dirty_since_then(tracked: Tracked) -> None:
    await tracked.write(0, DATA)
    await tracked.add("monday")
    await tracked.write(3 * BLOCK, DATA)
    await tracked.add("tuesday")
    await tracked.write(7 * BLOCK, memoryview(bytes(2 * BLOCK)))
    assert await tracked.dirty_bitmaps() == ["monday", "tuesday"]
    assert await dirty(tracked, "monday") == [(3, 4), (7, 9)]
    assert await dirty(tracked, "tuesday") == [(7, 9)]
    assert [(each.name, each.dirty) for each in await tracked.points()] == [
        ("monday", 3 * BLOCK),
        ("tuesday", 2 * BLOCK),
    ]


async def test_trims_and_zeroes_are_changes(tracked: Tracked) -> None:
    await tracked.add("a")
    await tracked.trim(BLOCK, BLOCK)
    await tracked.write_zeroes(8 * BLOCK, 100 * BLOCK, may_trim=False)
    assert await dirty(tracked, "a") == [(1, 2), (8, 108)]


async def test_reads_and_flushes_are_none(tracked: Tracked) -> None:
    await tracked.add("a")
    await tracked.read(0, SIZE)
    await tracked.flush()
    assert await dirty(tracked, "a") == []


async def test_failed_write_may_have_changed_something(tmp_path: Path) -> None:
    failing = Faults(MemoryDevice(SIZE), Fault("write", error=errno.EIO))
    tracked = Tracked(failing, tmp_path / "bitmaps")
    await tracked.add("before")
    with pytest.raises(OSError, match="on purpose"):
        await tracked.write(BLOCK, DATA)
    await tracked.add("after")  # the request may be made late
    assert await dirty(tracked, "before") == await dirty(tracked, "after") == [(1, 2)]
    await tracked.unmount()


class Held(MemoryDevice):
    """A disk whose writes wait."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.go = asyncio.Event()

    async def write(self, offset: int, data: memoryview) -> None:
        await self.go.wait()
        await super().write(offset, data)


@pytest.mark.parametrize("end", ["returns", "is cancelled"])
async def test_write_in_flight_is_dirty_since_a_point_that_is_added_meanwhile(
    end: str, tmp_path: Path
) -> None:
    disk = Held()
    tracked = Tracked(disk, tmp_path / "bitmaps")
    writing = asyncio.create_task(tracked.write(5 * BLOCK, DATA))
    await asyncio.sleep(0)
    if end == "is cancelled":
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    await tracked.add("meanwhile")
    disk.go.set()
    if end == "returns":
        await writing
    assert await dirty(tracked, "meanwhile") == [(5, 6)]
    await tracked.unmount()


async def test_point_is_dropped_and_the_others_stay_as_they_are(tracked: Tracked) -> None:
    for number, name in enumerate("abcd"):
        await tracked.add(name)
        await tracked.write(2 * number * BLOCK, DATA)
    await tracked.drop("b")
    assert await dirty(tracked, "a") == [(0, 1), (2, 3), (4, 5), (6, 7)]
    await tracked.drop("a")
    assert await dirty(tracked, "c") == [(4, 5), (6, 7)]
    assert await tracked.dirty_bitmaps() == ["c", "d"]
    await tracked.drop("c")
    await tracked.drop("d")
    await tracked.write(0, DATA)
    with pytest.raises(KeyError, match="no point 'd'; there are: none"):
        await tracked.dirty_extents("d", 0, SIZE)
    with pytest.raises(KeyError):
        await tracked.drop("d")


async def test_merged_point_has_what_any_of_them_has(tracked: Tracked) -> None:
    for number, name in enumerate("abc"):
        await tracked.add(name)
        await tracked.write(2 * number * BLOCK, DATA)
    await tracked.merge("c", "b")
    assert await dirty(tracked, "c") == await dirty(tracked, "b") == [(2, 3), (4, 5)]
    await tracked.drop("b")
    assert await dirty(tracked, "c") == [(2, 3), (4, 5)]


async def test_any_number_of_points_one_after_the_other(tracked: Tracked) -> None:
    await tracked.add("first")
    await tracked.write(0, DATA)
    for number in range(50):
        await tracked.add(str(number))
        await tracked.write((number + 1) * BLOCK, DATA)
        if number >= 3:
            await tracked.drop(str(number - 3))
    assert await dirty(tracked, "first") == [(0, 51)]
    assert await dirty(tracked, "48") == [(49, 51)]


async def test_too_many_points_are_refused(tracked: Tracked) -> None:
    for number in range(16):
        await tracked.add(str(number))
        await tracked.write(0, DATA)
    with pytest.raises(StorageError, match="drop one that is old"):
        await tracked.add("16")
    assert await dirty(tracked, "0") == [(0, 1)]
    await tracked.drop("0")
    await tracked.add("16")


@pytest.mark.parametrize("name", ["", "a\n", "x" * 201])
async def test_name_that_cannot_be_is_refused(name: str, tracked: Tracked) -> None:
    with pytest.raises(ValueError, match="1 to 200 bytes"):
        await tracked.add(name)


async def test_name_is_unique(tracked: Tracked) -> None:
    await tracked.add("a")
    with pytest.raises(ValueError, match="a point 'a' already"):
        await tracked.add("a")


async def test_device_may_be_resized(tracked: Tracked) -> None:
    await tracked.add("a")
    await tracked.write(BLOCK, DATA)
    tracked.blocks += 10
    assert await dirty(tracked, "a", tracked.size) == [(1, 2), (256, 266)]
    await tracked.add("b")
    tracked.blocks -= 20
    tracked.blocks += 5
    assert await dirty(tracked, "b", tracked.size) == [(246, 251)]


async def test_larger_granularity_rounds(tmp_path: Path) -> None:
    tracked = Tracked(MemoryDevice(SIZE), tmp_path / "bitmaps", granularity=4 * BLOCK)
    await tracked.add("a")
    await tracked.write(6 * BLOCK, DATA)
    assert await dirty(tracked, "a") == [(4, 8)]
    assert await tracked.dirty_extents("a", 7 * BLOCK, 2 * BLOCK) == [(BLOCK, True), (BLOCK, False)]
    await tracked.unmount()


async def test_many_extents_come_in_parts(tmp_path: Path) -> None:
    tracked = Tracked(MemoryDevice(32 << 20), tmp_path / "bitmaps")
    await tracked.add("a")
    for block in range(0, 8192, 2):
        await tracked.write(block * BLOCK, DATA)
    assert len(await tracked.dirty_extents("a", 0, 32 << 20)) <= 1024
    assert await dirty(tracked, "a", 32 << 20) == [(at, at + 1) for at in range(0, 8192, 2)]
    await tracked.unmount()


async def test_device_that_only_reads_has_its_points(tmp_path: Path) -> None:
    inner = MemoryDevice(SIZE)
    tracked = Tracked(inner, tmp_path / "bitmaps")
    await tracked.add("a")
    await tracked.write(BLOCK, DATA)
    await tracked.unmount()
    readers = [Tracked(ReadOnly(inner), tmp_path / "bitmaps") for _ in range(2)]
    for reader in readers:
        assert await dirty(reader, "a") == [(1, 2)]
        assert not can(reader, "write")
        with pytest.raises(StorageError, match="read-only"):
            await reader.add("b")
    for reader in readers:
        await reader.unmount()
    with pytest.raises(StorageError, match="does not exist, and the device is read-only"):
        Tracked(ReadOnly(inner), tmp_path / "none")


@pytest.mark.parametrize("seed", range(2))
async def test_layer_keeps_the_contract(seed: int, tmp_path: Path) -> None:
    size = 256 * 1024
    medium, files = CrashableDisk(size, seed=seed), count()

    def crash(device: BlockDevice) -> None:
        assert isinstance(device, Tracked)
        medium.crash()
        device._recorder.file.close()  # as the end of its process does

    await check_block_device(
        lambda: Tracked(medium.open(), tmp_path / str(next(files))),
        crash=crash,
        seed=seed,
        rounds=by_size(30, 60),
    )


async def test_upper_layers_write_through_it(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    tracked = Tracked(FileDevice.create(path, SIZE), tmp_path / "bitmaps")
    assert tracked.multi_conn is False
    assert isinstance(tracked, SupportsDirtyBitmaps)
    await tracked.unmount()


def test_impossible_granularity_is_refused(tmp_path: Path) -> None:
    for granularity in (512, 5000, 1 << 30):
        with pytest.raises(ValueError, match="granularity must be a power of two from 4096"):
            Tracked(MemoryDevice(SIZE), tmp_path / "bitmaps", granularity=granularity)


class Huge(BlockDevice):
    """A disk of 16 TiB."""

    block_size = 512
    blocks = (16 << 40) // 512

    async def write(self, offset: int, data: memoryview) -> None:
        """Forget it."""


def test_bitmap_that_would_not_fit_in_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use granularity=16384, or more"):
        Tracked(Huge(), tmp_path / "bitmaps")
