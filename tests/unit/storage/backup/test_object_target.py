"""Backups of a disk in one bucket to a disk in another."""

from __future__ import annotations

import secrets

import pytest

from aiovblk.errors import StorageBusyError, StorageError
from aiovblk.storage import objects
from aiovblk.storage.backup import (
    BackupError,
    DeviceSource,
    DiskSource,
    Keep,
    ObjectTarget,
    backup,
)
from aiovblk.storage.backup.running import BackupReport
from aiovblk.storage.backup.sources import Geometry

from ....support.backups import Buckets, states_of
from ....support.bitmap_device import BitmapDevice
from ....support.object_store import BLOCK, CHUNK, SIZE, Bucket, contents, make_disk, open_disk

pytestmark = pytest.mark.slow

BLOCKS = SIZE // BLOCK


class Disk:
    """A disk with bitmaps, and its backups in a bucket."""

    def __init__(self, size: int = SIZE) -> None:
        self.source = BitmapDevice(size)
        self.bucket = Bucket()

    def target(self, **options: object) -> ObjectTarget:
        return ObjectTarget(self.bucket.client(), "disk", chunk_size=CHUNK, **options)  # type: ignore[arg-type]  # as they come

    async def backup(self, point: str | None = None, **options: object) -> BackupReport:
        if point is not None:
            await self.source.add(point)
        source = DeviceSource(self.source, identity="disk", point=point)
        return await backup(source, self.target(), **options)  # type: ignore[arg-type]  # as they come


async def test_first_backup_copies_data_and_the_next_what_has_changed() -> None:
    disk = Disk()
    await disk.source.fill(0, b"a", 4)
    await disk.source.fill(20, b"b")
    first = await disk.backup("one")
    assert (first.base, first.compared) == (None, 0)
    assert first.written == SIZE  # zeroes between data of less than 256 KiB are written
    before = await disk.source.contents()
    await disk.source.fill(21, b"c", 2)
    await disk.source.write_zeroes(0, BLOCK, may_trim=True)
    second = await disk.backup("two")
    assert (second.base, second.compared) == (first.backup.name, 0)
    assert (second.read, second.written) == (3 * BLOCK, 2 * BLOCK)
    assert disk.source.asked == ["one"] * len(disk.source.asked)
    states = await states_of(disk.target())
    after = await disk.source.contents()
    assert states == {first.backup.name: before, second.backup.name: after}
    third = await disk.backup("three")
    assert (third.read, third.written, third.base) == (0, 0, second.backup.name)


async def test_source_without_bitmaps_is_compared_and_only_differences_are_stored() -> None:
    disk = Disk()
    await disk.source.fill(0, b"a", BLOCKS)
    assert (await disk.backup()).written == SIZE
    await disk.source.fill(3, b"b")
    report = await disk.backup()
    assert (report.compared, report.read, report.written) == (SIZE, SIZE, BLOCK)
    assert [*(await states_of(disk.target())).values()][-1] == await disk.source.contents()


async def test_bitmap_that_is_gone_or_of_another_disk_is_not_relied_on() -> None:
    disk = Disk()
    await disk.source.fill(0, b"a", BLOCKS)
    await disk.backup("one")
    await disk.source.fill(3, b"b")
    del disk.source.points["one"]
    assert (await disk.backup("two")).compared == SIZE
    other = BitmapDevice(SIZE)
    await other.fill(5, b"c")
    await other.add("two")
    source = DeviceSource(other, identity="another", point="two")
    assert (await backup(source, disk.target())).written == BLOCK
    assert [*(await states_of(disk.target())).values()][-1] == await other.contents()


async def test_disk_that_something_else_has_written_to_is_compared() -> None:
    disk = Disk()
    await disk.source.fill(0, b"a", BLOCKS)
    await disk.backup("one")
    device = await open_disk(disk.bucket.client())
    await device.write(7 * BLOCK, memoryview(b"x" * BLOCK))
    await device.unmount()
    report = await disk.backup("two")
    assert (report.compared, report.written) == (SIZE, BLOCK)
    assert (await disk.backup("three")).compared == 0


async def test_live_disk_is_backed_up_as_it_was_flushed() -> None:
    buckets = Buckets()
    await make_disk(buckets.source)
    device = await open_disk(buckets.source.client())
    await device.write(0, memoryview(b"a" * BLOCK))
    await device.flush()
    await device.write(BLOCK, memoryview(b"b" * BLOCK))
    await buckets.backup()
    assert await buckets.verify(b"a" * BLOCK + bytes(SIZE - BLOCK))
    await device.flush()
    await buckets.backup()
    assert await buckets.verify(b"a" * BLOCK + b"b" * BLOCK + bytes(SIZE - 2 * BLOCK))
    await device.unmount()


async def test_snapshots_of_other_targets_stay() -> None:
    buckets = Buckets()
    await make_disk(buckets.source)
    await objects.snapshot(buckets.source.client(), "disk", name="backup-mine")
    other = ObjectTarget(Bucket().client(), "disk")
    for _ in range(2):
        await buckets.write()
        for target in (other, ObjectTarget(buckets.target.client(), "disk")):
            await backup(DiskSource(buckets.source.client(), "disk"), target)
    names = [*await objects.snapshots(buckets.source.client(), "disk")]
    assert len(names) == 3
    assert "backup-mine" in names


async def test_what_only_the_last_base_needed_is_deleted_from_the_source() -> None:
    buckets = Buckets()
    await make_disk(buckets.source)
    for letter in (b"a", b"b", b"c", b"d"):
        device = await open_disk(buckets.source.client())
        await device.write(0, memoryview(letter * SIZE))
        await device.unmount()
        await buckets.backup()
    # The present one and that of the snapshot are the same.
    assert len(buckets.source.names("disk/chunks")) == SIZE // CHUNK


async def test_retention_drops_backups_and_what_they_needed() -> None:
    disk = Disk()
    names = []
    for number, letter in enumerate((b"a", b"b", b"c")):
        await disk.source.fill(0, letter, BLOCKS)
        report = await disk.backup(f"point-{number}", keep=Keep(last=2))
        names.append(report.backup.name)
    assert report.dropped == (names[0],)
    assert report.freed > SIZE
    assert [*await states_of(disk.target())] == names[1:]
    assert len(disk.bucket.names("disk/chunks")) == 2 * SIZE // CHUNK
    assert len(disk.bucket.names("disk/backups")) == 2


async def test_backup_that_has_a_clone_is_kept_until_that_is_deleted() -> None:
    disk = Disk()
    first = await disk.backup("one")
    client = disk.bucket.client()
    await objects.clone(client, "disk", name=first.backup.name, target="clone")
    second = await disk.backup("two", keep=Keep(last=1))
    assert second.dropped == ()
    third = await disk.backup("three", keep=Keep(last=1))
    assert third.dropped == (second.backup.name,)
    assert await disk.target().backups() == [first.backup, third.backup]
    await objects.delete(client, "clone")
    assert (await disk.backup("four", keep=Keep(last=1))).dropped == (
        first.backup.name,
        third.backup.name,
    )


async def test_state_of_the_source_that_has_a_clone_stays() -> None:
    buckets = Buckets()
    await make_disk(buckets.source)
    await buckets.backup()
    client = buckets.source.client()
    (first,) = await objects.snapshots(client, "disk")
    await objects.clone(client, "disk", name=first, target="clone")
    await buckets.backup()
    names = [*await objects.snapshots(client, "disk")]
    assert (len(names), names[0]) == (2, first)
    await buckets.backup(keep=Keep(last=1))
    assert len(await ObjectTarget(buckets.target.client(), "disk").backups()) == 1


async def test_own_snapshots_of_the_target_are_no_backups_and_are_kept() -> None:
    disk = Disk()
    await disk.source.fill(0, b"a")
    await disk.backup("one")
    await objects.snapshot(disk.bucket.client(), "disk", name="mine")
    await disk.source.fill(0, b"b")
    await disk.backup("two", keep=Keep(last=1))
    assert len(await disk.target().backups()) == 1
    assert "mine" in await objects.snapshots(disk.bucket.client(), "disk")


async def test_own_snapshot_may_have_the_name_of_the_note_of_a_run() -> None:
    disk = Disk()
    await disk.source.fill(0, b"a")
    first = await disk.backup("one")
    await objects.snapshot(disk.bucket.client(), "disk", name="unfinished")
    async with disk.target().open(Geometry(SIZE, BLOCK)) as opened:
        await opened.note(opened.progress.begin("disk", "two"))
    assert await disk.target().backups() == [first.backup]
    second = await disk.backup("two")
    assert await disk.target().backups() == [first.backup, second.backup]


@pytest.mark.parametrize("encrypts", ["source", "target", "both"])
async def test_source_and_target_are_encrypted_each_for_itself(encrypts: str) -> None:
    key = secrets.token_bytes(32) if encrypts != "target" else None
    backup_key = secrets.token_bytes(32) if encrypts != "source" else None
    source, target = Bucket(), Bucket()
    await make_disk(source, key=key)
    device = await open_disk(source.client(), key=key)
    await device.write(0, memoryview(b"secret  " * 512))
    await device.unmount()
    backups = ObjectTarget(target.client(), "disk", key=backup_key)
    for _ in range(2):
        await backup(DiskSource(source.client(), "disk", key=key), backups)
    for state in (await states_of(backups)).values():
        assert state[:BLOCK] == b"secret  " * 512
    stored = b"".join(target.objects.values())
    assert (b"secret  " in stored) == (b'"point"' in stored) == (backup_key is None)
    if backup_key is not None:
        with pytest.raises(StorageError, match="encrypted"):
            await ObjectTarget(target.client(), "disk").backups()


async def test_disk_that_no_backup_has_made_is_left_alone() -> None:
    disk = Disk()
    await make_disk(disk.bucket)
    device = await open_disk(disk.bucket.client())
    await device.write(0, memoryview(b"a" * BLOCK))
    await device.unmount()
    before = await contents(disk.bucket)
    with pytest.raises(BackupError, match="no backup has made"):
        await disk.backup("one")
    assert await contents(disk.bucket) == before


async def test_disk_that_is_empty_becomes_a_target() -> None:
    disk = Disk()
    await make_disk(disk.bucket)
    await disk.source.fill(0, b"a")
    await disk.backup("one")
    assert [*(await states_of(disk.target())).values()] == [await disk.source.contents()]


async def test_target_that_is_in_use_is_refused() -> None:
    disk = Disk()
    await disk.backup("one")
    target = disk.target()
    geometry = await DeviceSource(disk.source, identity="disk").geometry()
    async with target.open(geometry):
        with pytest.raises(StorageBusyError):
            await disk.backup("two")


async def test_source_is_not_its_own_target() -> None:
    disk = Disk()
    report = await disk.backup("one")
    client = disk.bucket.client()
    with pytest.raises(BackupError, match="same disk"):
        await backup(DiskSource(client, "disk"), ObjectTarget(client, "disk"))
    assert [*await objects.snapshots(client, "disk")] == [report.backup.name]  # none was left


@pytest.mark.parametrize("sizes", [(4, 8, 6), (8, 4, 8)])
async def test_source_is_resized_between_backups(sizes: tuple[int, ...]) -> None:
    bucket = Bucket()
    await make_disk(bucket, size=sizes[0] * CHUNK)
    target = ObjectTarget(Bucket().client(), "disk", chunk_size=CHUNK)
    expected = []
    for size in sizes:
        device = await open_disk(bucket.client())
        device.blocks = size * CHUNK // BLOCK
        await device.write((size - 1) * CHUNK, memoryview(bytes([size]) * CHUNK))
        await device.unmount()
        await backup(DiskSource(bucket.client(), "disk"), target)
        expected.append(await contents(bucket))
    assert [*(await states_of(target)).values()] == expected


@pytest.mark.parametrize("sizes", [(4, 8, 4), (8, 4, 8)])
async def test_source_is_resized_and_not_written(sizes: tuple[int, ...]) -> None:
    bucket = Bucket()
    await make_disk(bucket, size=sizes[0] * CHUNK)
    target = ObjectTarget(Bucket().client(), "disk", chunk_size=CHUNK)
    for size in sizes:
        device = await open_disk(bucket.client())
        device.blocks = size * CHUNK // BLOCK
        await device.unmount()
        await backup(DiskSource(bucket.client(), "disk"), target)
    assert [*(await states_of(target)).values()] == [bytes(size * CHUNK) for size in sizes]


async def test_damaged_backup_is_found() -> None:
    disk = Disk()
    await disk.source.fill(0, b"a", BLOCKS)
    await disk.backup("one")
    assert await disk.target().verify(lambda count: None) == []
    name = disk.bucket.names("disk/chunks")[0]
    disk.bucket.objects[name] = disk.bucket.objects[name][:-1] + b"x"
    (problem,) = await disk.target().verify(lambda count: None)
    assert "checksum" in problem
    with pytest.raises(StorageError, match="checksum"):
        await states_of(disk.target())


async def test_damaged_description_is_an_error() -> None:
    disk = Disk()
    await disk.backup("one")
    (name,) = disk.bucket.names("disk/backups")
    disk.bucket.objects[name] = b"x" * 40
    with pytest.raises(StorageError, match="damaged"):
        await disk.target().backups()


async def test_deleted_target_leaves_nothing() -> None:
    disk = Disk()
    await disk.source.fill(0, b"a")
    await disk.backup("one")
    await objects.delete(disk.bucket.client(), "disk")
    assert disk.bucket.objects == {}
    with pytest.raises(FileNotFoundError):
        await disk.target().backups()
