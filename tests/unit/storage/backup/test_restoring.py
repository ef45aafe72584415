"""Restore a backup into a device: a new one, another one, or the source itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aiovblk.bitmaps import DirtyExtent
from aiovblk.storage import FileDevice, MemoryDevice, ReadOnly
from aiovblk.storage.backup import (
    BackupError,
    DeviceSource,
    DiskSource,
    FileTarget,
    ObjectTarget,
    backup,
    restore,
)
from aiovblk.storage.backup.sources import identity_of
from aiovblk.storage.backup.targets import Target
from aiovblk.storage.objects import drop_snapshot, snapshot

from ....support.backups import Buckets, in_small_pieces, read_all, states_of
from ....support.bitmap_device import BLOCK, BitmapDevice
from ....support.object_store import CHUNK, SIZE, Bucket, contents, make_disk, open_disk

BLOCKS = SIZE // BLOCK

Make = Callable[[Path], Target]


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with in_small_pieces():
        yield


def _object_target(folder: Path) -> Target:
    return ObjectTarget(Bucket().client(), "disk", chunk_size=CHUNK)


def _file_target(folder: Path) -> Target:
    return FileTarget(folder / "image")


@pytest.fixture(params=[_object_target, _file_target])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    make: Make = request.param
    return make(tmp_path)


@pytest.fixture
async def source(target: Target) -> BitmapDevice:
    """A disk that was backed up at the point ``one``."""
    device = BitmapDevice(SIZE)
    await device.fill(2, b"a", 10)
    await device.add("one")
    await backup(DeviceSource(device, identity="disk", point="one"), target)
    return device


async def test_new_device_gets_what_is_not_zeroes(
    target: Target, source: BitmapDevice, tmp_path: Path
) -> None:
    for device in (MemoryDevice(SIZE), FileDevice.create(tmp_path / "new", SIZE)):
        report = await restore(target, device)
        contents = await read_all(device)
        await device.unmount()
        assert contents == await source.contents()
        assert (report.base, report.compared) == (None, 0)
        assert report.written == 10 * BLOCK


async def test_other_device_gets_what_differs(target: Target, source: BitmapDevice) -> None:
    device = MemoryDevice(SIZE)
    await device.write(0, memoryview(await source.contents()))
    await device.write(4 * BLOCK, memoryview(b"x" * BLOCK))
    await device.write((BLOCKS - 1) * BLOCK, memoryview(b"y" * BLOCK))
    report = await restore(target, device)
    assert await read_all(device) == await source.contents()
    assert report.written == BLOCK  # and zeroes at the end
    assert report.compared


async def test_larger_device_keeps_the_rest(target: Target, source: BitmapDevice) -> None:
    device = MemoryDevice(2 * SIZE)
    await device.write(0, memoryview(b"x" * 2 * SIZE))
    await restore(target, device)
    assert await read_all(device) == await source.contents() + b"x" * SIZE


async def test_source_itself_is_read_only_where_it_has_changed(
    target: Target, source: BitmapDevice
) -> None:
    before = await source.contents()
    await source.fill(3, b"b", 2)
    await source.fill(20, b"c")
    report = await restore(target, source, identity="disk")
    assert await source.contents() == before
    assert (report.base, report.compared) == (report.backup.name, 0)
    assert report.read == 3 * BLOCK


async def test_bitmaps_of_another_device_are_not_relied_on(
    target: Target, source: BitmapDevice
) -> None:
    other = BitmapDevice(SIZE)
    await other.fill(0, b"z", BLOCKS)
    await other.add("one")
    report = await restore(target, other, identity="another")
    assert await other.contents() == await source.contents()
    assert report.base is None
    await source.fill(0, b"x")
    del source.points["one"]
    assert (await restore(target, source, identity="disk")).base is None


async def test_bitmap_that_is_dropped_meanwhile_is_not_needed(
    target: Target, source: BitmapDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await source.contents()
    await source.fill(3, b"b")

    async def dropped(name: str, offset: int, length: int) -> list[DirtyExtent]:
        raise KeyError(name)

    monkeypatch.setattr(source, "dirty_extents", dropped)
    report = await restore(target, source, identity="disk")
    assert (report.base, await source.contents()) == (None, before)
    await source.fill(3, b"b")
    await source.add("two")
    again = await backup(DeviceSource(source, identity="disk", point="two"), target)
    assert (again.compared > 0, again.written) == (True, BLOCK)


async def test_earlier_backup_by_the_snapshots_of_both_sides() -> None:
    buckets = Buckets()
    await make_disk(buckets.source)
    states = []
    for _ in range(3):
        states.append(await buckets.write())
        await buckets.backup()
    target = ObjectTarget(buckets.target.client(), "disk")
    earliest, *_, newest = await target.backups()
    await buckets.write()
    device = await open_disk(buckets.source.client())
    # The source has the snapshot of the newest only; the target has all.
    report = await restore(target, device, name=earliest.name)
    await device.unmount()
    assert (report.base, report.compared) == (newest.name, 0)
    assert await contents(buckets.source) == states[0]
    await buckets.backup()
    assert [*(await states_of(target)).values()] == [*states, states[0]]


async def test_snapshot_of_the_device_that_was_taken_again_is_not_relied_on() -> None:
    buckets = Buckets()
    await make_disk(buckets.source)
    target = ObjectTarget(buckets.target.client(), "disk")
    state = await buckets.write()
    await snapshot(buckets.source.client(), "disk", name="nightly")
    source = await open_disk(buckets.source.client(), snapshot="nightly")
    identity = identity_of(source)
    await backup(DeviceSource(source, identity=identity, point="nightly"), target)
    await source.unmount()
    await buckets.write()
    await drop_snapshot(buckets.source.client(), "disk", name="nightly")
    await snapshot(buckets.source.client(), "disk", name="nightly")
    device = await open_disk(buckets.source.client())
    report = await restore(target, device)
    await device.unmount()
    assert (report.base, report.compared > 0) == (None, True)
    assert await contents(buckets.source) == state


async def test_restore_that_was_interrupted_is_run_again(
    target: Target, source: BitmapDevice
) -> None:
    device = MemoryDevice(SIZE)
    await device.write(0, memoryview(b"x" * SIZE))

    def fail(done: int, total: int) -> None:
        if done:
            raise OSError("interrupted")

    with pytest.raises(OSError, match="interrupted"):
        await restore(target, device, advance=fail, requests=1)
    assert (await restore(target, device)).backup
    assert await read_all(device) == await source.contents()


async def test_device_that_does_not_fit_is_refused(target: Target, source: BitmapDevice) -> None:
    with pytest.raises(BackupError, match="do not fit"):
        await restore(target, MemoryDevice(SIZE // 2))
    with pytest.raises(BackupError, match="read-only"):
        await restore(target, ReadOnly(MemoryDevice(SIZE)))
    small = BitmapDevice(SIZE + 512, block_size=512)
    odd = _object_target(Path())
    await backup(DeviceSource(small, identity="disk"), odd)
    with pytest.raises(BackupError, match="no multiple"):
        await restore(odd, MemoryDevice(2 * SIZE))


async def test_name_that_is_not_there_is_said(target: Target, source: BitmapDevice) -> None:
    with pytest.raises(FileNotFoundError, match="there is no backup 'monday'; there are: 2"):
        await restore(target, MemoryDevice(SIZE), name="monday")


async def test_progress_and_rate(target: Target, source: BitmapDevice) -> None:
    seen: list[tuple[int, int]] = []
    await restore(target, MemoryDevice(SIZE), rate=1 << 40, advance=lambda *each: seen.append(each))
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] > 0


async def test_disk_source_reads_at_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    def limited(device: object, rate: object) -> object:
        rates.append(rate)
        return device

    monkeypatch.setattr("aiovblk.storage.backup.running.RateLimited", limited)
    bucket = Bucket()
    await make_disk(bucket)
    await backup(DiskSource(bucket.client(), "disk"), _object_target(Path()), rate=20e6)
    assert [getattr(each, "bytes", None) for each in rates] == [20e6]


async def test_point_that_is_not_there_is_said() -> None:
    target = _object_target(Path())
    device = BitmapDevice(SIZE)
    await device.add("a")
    with pytest.raises(ValueError, match="no bitmap 'b'; there are: a"):
        await backup(DeviceSource(device, identity="disk", point="b"), target)
    with pytest.raises(ValueError, match="no bitmap 'b'; there are: none"):
        await backup(DeviceSource(MemoryDevice(SIZE), identity="disk", point="b"), target)
