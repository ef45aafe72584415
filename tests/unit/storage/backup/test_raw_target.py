"""Backups in a raw file, and in a device with a folder beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aiovblk.storage import Layer, MemoryDevice, ReadOnly
from aiovblk.storage.backup import (
    BackupError,
    DeviceSource,
    DeviceTarget,
    FileTarget,
    Keep,
    backup,
    digests,
    raw_target,
    restore,
)
from aiovblk.storage.backup.running import BackupReport
from aiovblk.storage.backup.targets import Target

from ....support.backups import states_of
from ....support.bitmap_device import BLOCK, BitmapDevice

SIZE = 64 * BLOCK


@pytest.fixture(autouse=True)
def _small_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "PIECE", 4 * BLOCK)


@pytest.fixture
def source() -> BitmapDevice:
    return BitmapDevice(SIZE)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


async def back_up(source: BitmapDevice, target: Target, point: str | None = None) -> BackupReport:
    if point is not None:
        await source.add(point)
    return await backup(DeviceSource(source, identity="disk", point=point), target)


async def test_file_is_the_newest_backup(source: BitmapDevice, image: Path) -> None:
    await source.fill(3, b"a", 9)
    first = await back_up(source, FileTarget(image), "one")
    assert image.read_bytes() == await source.contents()
    assert image.stat().st_mode & 0o777 == 0o600
    await source.fill(5, b"b")
    await source.write_zeroes(9 * BLOCK, BLOCK, may_trim=True)
    second = await back_up(source, FileTarget(image), "two")
    assert image.read_bytes() == await source.contents()
    assert (second.base, second.read, second.written) == (first.backup.name, 2 * BLOCK, BLOCK)
    assert [each.name for each in await FileTarget(image).backups()] == [second.backup.name]
    assert sorted(os.listdir(f"{image}.backup")) == ["identity", "state"]


async def test_device_is_the_newest_backup(source: BitmapDevice, tmp_path: Path) -> None:
    device = MemoryDevice(2 * SIZE, block_size=512)
    await device.write(0, memoryview(b"x" * 2 * SIZE))
    target = DeviceTarget(device, folder=tmp_path / "state")
    for number in range(3):
        await source.fill(number, b"a", 2)
        await back_up(source, target, f"point-{number}")
        assert await device.read(0, SIZE) == await source.contents()
        assert await device.read(SIZE, SIZE) == b"x" * SIZE
        assert [*(await states_of(target)).values()] == [await source.contents()]


async def test_file_of_odd_size(image: Path) -> None:
    source = BitmapDevice(5 * 512 + 1, block_size=1)
    await source.write(2000, memoryview(b"a" * 500))
    await back_up(source, FileTarget(image), "one")
    await source.write(2499, memoryview(b"b" * 62))
    await back_up(source, FileTarget(image), "two")
    assert image.read_bytes() == await source.contents()


async def test_file_that_is_no_backup_is_left_alone(source: BitmapDevice, image: Path) -> None:
    image.write_bytes(b"mine")
    with pytest.raises(BackupError, match="exists and is no backup"):
        await back_up(source, FileTarget(image))
    assert image.read_bytes() == b"mine"


async def test_folder_in_another_file_system_is_refused(
    source: BitmapDevice, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw_target, "_file_system", lambda path: str(path).endswith(".backup"))
    with pytest.raises(BackupError, match="is in another file system"):
        await back_up(source, FileTarget(image))


async def test_file_that_is_missing_is_said(source: BitmapDevice, image: Path) -> None:
    await back_up(source, FileTarget(image))
    image.unlink()
    for attempt in (back_up(source, FileTarget(image)), states_of(FileTarget(image))):
        with pytest.raises(FileNotFoundError, match="put it back, or remove that folder"):
            await attempt


async def test_nothing_there_is_said(image: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no backup"):
        await FileTarget(image).backups()
    assert not os.path.exists(f"{image}.backup")


async def test_another_name_is_said(source: BitmapDevice, image: Path) -> None:
    await back_up(source, FileTarget(image))
    with pytest.raises(FileNotFoundError, match="there is no backup 'monday'; there is only"):
        async with FileTarget(image).read("monday"):
            pass


async def test_target_is_used_by_one_process(source: BitmapDevice, image: Path) -> None:
    target = FileTarget(image)
    geometry = await DeviceSource(source, identity="disk").geometry()
    async with target.open(geometry):
        with pytest.raises(BlockingIOError, match="another process uses this backup"):
            await back_up(source, FileTarget(image))


async def test_another_size_is_refused(source: BitmapDevice, image: Path) -> None:
    await back_up(source, FileTarget(image))
    with pytest.raises(BackupError, match="begin a new one elsewhere"):
        await back_up(BitmapDevice(2 * SIZE), FileTarget(image))


async def test_first_backup_that_was_interrupted_begins_anew_with_another_size(
    source: BitmapDevice, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await source.fill(0, b"a", 64)

    def fail(count: int) -> None:
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("aiovblk.storage.backup.running.counting", lambda *args: fail)
        with pytest.raises(OSError, match="interrupted"):
            await back_up(source, FileTarget(image), "one")
    larger = BitmapDevice(2 * SIZE)
    await larger.fill(0, b"a", 64)
    larger.points |= {"one": await larger.contents()}
    await back_up(larger, FileTarget(image), "two")
    assert image.read_bytes() == await larger.contents()


async def test_device_that_does_not_fit_is_refused(source: BitmapDevice, tmp_path: Path) -> None:
    for device, reason in (
        (MemoryDevice(SIZE // 2), "do not fit"),
        (ReadOnly(MemoryDevice(SIZE)), "read-only"),
    ):
        with pytest.raises(BackupError, match=reason):
            await back_up(source, DeviceTarget(device, folder=tmp_path / "state"))


async def test_retention_needs_history(source: BitmapDevice, image: Path) -> None:
    opened = DeviceSource(source, identity="disk")
    with pytest.raises(BackupError, match="newest backup only"):
        await backup(opened, FileTarget(image), keep=Keep(daily=7))
    assert not image.exists()


@pytest.mark.parametrize("block", [0, 7, 63])
async def test_damage_is_found(source: BitmapDevice, image: Path, block: int) -> None:
    await source.fill(0, b"a", 32)
    await back_up(source, FileTarget(image), "one")
    data = bytearray(image.read_bytes())
    data[block * BLOCK] ^= 1
    image.write_bytes(data)
    first = block // 4 * 4 * BLOCK
    expected = f"the bytes from {first} to {first + 4 * BLOCK} are damaged"
    assert await FileTarget(image).verify(lambda count: None) == [expected]
    if block < 32:  # what is known to be zeroes is not read
        with pytest.raises(OSError, match=expected):
            await restore(FileTarget(image), MemoryDevice(SIZE))
    # It is not carried over into the next backup as if it were right.
    await source.fill(block // 4 * 4 + 1, b"c")
    with pytest.raises(OSError, match=f"{expected}; begin a new one elsewhere"):
        await back_up(source, FileTarget(image), "two")


async def test_hole_in_place_of_data_is_found(source: BitmapDevice, image: Path) -> None:
    await source.fill(0, b"a", 64)
    await back_up(source, FileTarget(image), "one")
    image.write_bytes(b"")
    os.truncate(image, SIZE)
    assert len(await FileTarget(image).verify(lambda count: None)) == 16
    with pytest.raises(OSError, match="damaged"):
        await restore(FileTarget(image), MemoryDevice(SIZE))


@pytest.mark.parametrize("blocks", [1, 63])
async def test_image_that_has_become_shorter_is_an_error(
    source: BitmapDevice, image: Path, blocks: int
) -> None:
    await source.fill(0, b"a", 64)
    first = await back_up(source, FileTarget(image), "one")
    os.truncate(image, blocks * BLOCK)
    target = FileTarget(image)
    expected = f"has {blocks * BLOCK} bytes, fewer than the {SIZE} of its backup"
    with pytest.raises(OSError, match=expected):
        await target.verify(lambda count: None)
    with pytest.raises(OSError, match=expected):
        await restore(target, MemoryDevice(SIZE))
    with pytest.raises(OSError, match=expected):
        await back_up(source, target, "two")
    assert await target.backups() == [first.backup]  # no other one counts


@pytest.mark.parametrize("block", [0, 5, 63])
async def test_another_device_is_not_taken_for_the_target(
    source: BitmapDevice, tmp_path: Path, block: int
) -> None:
    await source.fill(block, b"a")
    await back_up(source, DeviceTarget(MemoryDevice(SIZE), folder=tmp_path / "state"), "one")
    another = MemoryDevice(SIZE)
    target = DeviceTarget(another, folder=tmp_path / "state")
    with pytest.raises(OSError, match="the target is not, or no longer, the backup"):
        await back_up(source, target, "two")
    assert not any(await another.read(0, SIZE))


class Full(Layer):
    """A device that has no space while ``is_full``."""

    is_full = False

    async def write(self, offset: int, data: memoryview) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, "no space")
        await super().write(offset, data)


async def test_backup_that_could_not_be_applied_is_applied_later(
    source: BitmapDevice, tmp_path: Path
) -> None:
    export = Full(MemoryDevice(SIZE))
    target = DeviceTarget(export, folder=tmp_path / "state")
    await source.fill(0, b"a", 8)
    first = await back_up(source, target, "one")
    await source.fill(3, b"b")
    export.is_full = True
    expected = rf"is whole in {tmp_path / 'state'}, but could not be written .*\(no space\)"
    with pytest.raises(OSError, match=expected):
        await back_up(source, target, "two")
    with pytest.raises(OSError, match=expected):
        await target.backups()
    export.is_full = False
    (second,) = await target.backups()
    assert second != first.backup
    assert bytes(await export.read(0, SIZE)) == await source.contents()


async def test_damaged_progress_is_an_error(source: BitmapDevice, image: Path) -> None:
    await back_up(source, FileTarget(image), "one")
    progress = Path(f"{image}.backup/progress")
    for data in (b"", b"{}", b'{"marks": [], "points": 1}'):
        progress.write_bytes(data)
        with pytest.raises(OSError, match=r"progress is damaged .*: delete it"):
            await back_up(source, FileTarget(image))
    progress.unlink()
    await source.fill(9, b"b")
    await back_up(source, FileTarget(image))
    assert image.read_bytes() == await source.contents()


async def test_damaged_state_is_an_error(source: BitmapDevice, image: Path) -> None:
    await back_up(source, FileTarget(image), "one")
    state = Path(f"{image}.backup/state")
    data = state.read_bytes()
    state.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(OSError, match="checksum does not match"):
        await FileTarget(image).backups()
    state.write_bytes(b"something else")
    with pytest.raises(BackupError, match="no state of a backup"):
        await FileTarget(image).backups()
