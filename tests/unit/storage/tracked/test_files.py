"""The file of a Tracked layer: kept, locked, lost, damaged, of another device, and its flushes."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from unittest import mock

import pytest

from aiovblk.errors import StorageError
from aiovblk.storage import MemoryDevice, Tracked

from .test_tracked import BLOCK, DATA, SIZE, dirty

pytestmark = pytest.mark.either_loop


class Disk(MemoryDevice):
    """A disk that counts its flushes."""

    flushes = 0

    async def flush(self) -> None:
        self.flushes += 1


async def made(path: Path) -> None:
    """Make a file with a point since which block 1 is dirty."""
    tracked = Tracked(MemoryDevice(SIZE), path)
    await tracked.add("a")
    await tracked.write(BLOCK, DATA)
    await tracked.add("b")
    await tracked.unmount()


async def test_points_outlive_the_process(tmp_path: Path) -> None:
    await made(tmp_path / "bitmaps")
    tracked = Tracked(MemoryDevice(SIZE), tmp_path / "bitmaps")
    assert await dirty(tracked, "a") == [(1, 2)]
    assert await dirty(tracked, "b") == []
    await tracked.write(3 * BLOCK, DATA)
    assert await dirty(tracked, "a") == [(1, 2), (3, 4)]
    await tracked.unmount()


async def test_file_is_private_and_small(tmp_path: Path) -> None:
    await made(tmp_path / "bitmaps")
    status = (tmp_path / "bitmaps").stat()
    assert status.st_mode & 0o777 == 0o600
    assert status.st_blocks * 512 <= 4 * 65536


async def test_file_in_use_is_locked(tmp_path: Path) -> None:
    tracked = Tracked(MemoryDevice(SIZE), tmp_path / "bitmaps")
    with pytest.raises(BlockingIOError, match="is in use"):
        Tracked(MemoryDevice(SIZE), tmp_path / "bitmaps")
    await tracked.unmount()
    await Tracked(MemoryDevice(SIZE), tmp_path / "bitmaps").unmount()


async def test_lost_file_has_no_points(tmp_path: Path) -> None:
    await made(tmp_path / "bitmaps")
    (tmp_path / "bitmaps").unlink()
    tracked = Tracked(MemoryDevice(SIZE), tmp_path / "bitmaps")
    assert await tracked.dirty_bitmaps() == []
    with pytest.raises(KeyError):
        await tracked.dirty_extents("a", 0, SIZE)
    await tracked.unmount()


async def test_empty_file_is_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "bitmaps").touch()
    await made(tmp_path / "bitmaps")


@pytest.mark.parametrize("content", [b"x" * 300_000, b"disk", bytes(100)])
def test_foreign_file_is_refused_and_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bitmaps"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="is no file of bitmaps: name another one"):
        Tracked(MemoryDevice(SIZE), path)
    assert path.read_bytes() == content


async def test_damaged_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bitmaps"
    await made(path)
    with path.open("r+b") as file:
        for at in (100, 65536 + 100):
            file.seek(at)
            file.write(b"damage")
    with pytest.raises(StorageError, match=r"no intact header\. Delete it: .* copy everything"):
        Tracked(MemoryDevice(SIZE), path)


async def test_one_damaged_copy_of_the_header_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "bitmaps"
    await made(path)
    with path.open("r+b") as file:
        file.seek(max((0, 65536), key=lambda at: os.pread(file.fileno(), 32, at)[24:32]))
        file.write(bytes(200))
    tracked = Tracked(MemoryDevice(SIZE), path)
    assert (1, 2) in await dirty(tracked, "a")
    await tracked.unmount()


async def test_damaged_bitmaps_are_found(tmp_path: Path) -> None:
    path = tmp_path / "bitmaps"
    await made(path)
    clean = path.read_bytes()
    path.write_bytes(clean[: 2 * 65536] + b"\0" + clean[2 * 65536 + 1 :])  # of the frozen one
    tracked = Tracked(MemoryDevice(SIZE), path)
    with pytest.raises(StorageError, match="wrong checksum"):
        await tracked.dirty_extents("a", 0, SIZE)
    assert await dirty(tracked, "b") == []
    await tracked.unmount()
    path.write_bytes(clean[: 3 * 65536] + b"\1" + clean[3 * 65536 + 1 :])  # of the present one
    with pytest.raises(StorageError, match="wrong checksum"):
        Tracked(MemoryDevice(SIZE), path)


async def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bitmaps"
    await made(path)
    os.truncate(path, 3 * 65536)
    with pytest.raises(StorageError, match="is damaged: it has 196608 bytes"):
        Tracked(MemoryDevice(SIZE), path)


async def test_later_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bitmaps"
    await made(path)
    content = bytearray(path.read_bytes())
    content[16] = content[65536 + 16] = 9
    path.write_bytes(content)
    with pytest.raises(StorageError, match="format 9 of a later version"):
        Tracked(MemoryDevice(SIZE), path)


async def test_device_of_another_size_is_all_dirty(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await made(tmp_path / "bitmaps")
    tracked = Tracked(MemoryDevice(2 * SIZE), tmp_path / "bitmaps")
    assert "everything counts as changed" in caplog.text
    assert await dirty(tracked, "a", 2 * SIZE) == await dirty(tracked, "b", 2 * SIZE) == [(0, 512)]
    await tracked.add("c")
    assert await dirty(tracked, "c", 2 * SIZE) == []
    await tracked.unmount()


async def test_other_granularity_and_larger_blocks_are_refused(tmp_path: Path) -> None:
    await made(tmp_path / "bitmaps")
    with pytest.raises(StorageError, match="has a granularity of 4096, not 8192"):
        Tracked(MemoryDevice(SIZE), tmp_path / "bitmaps", granularity=8192)
    with pytest.raises(StorageError, match="open the device with smaller blocks"):
        Tracked(MemoryDevice(SIZE, block_size=8192), tmp_path / "bitmaps")
    await Tracked(MemoryDevice(SIZE, block_size=512), tmp_path / "bitmaps").unmount()


async def test_power_failure_makes_open_regions_dirty(tmp_path: Path) -> None:
    path, after = tmp_path / "bitmaps", tmp_path / "after"
    tracked = Tracked(MemoryDevice(SIZE), path)
    await tracked.add("a")
    await tracked.write(BLOCK, DATA)
    after.write_bytes(path.read_bytes())
    killed = Tracked(MemoryDevice(SIZE), after)  # as kill -9 leaves it
    assert await dirty(killed, "a") == [(1, 2)]
    await killed.unmount()
    after.write_bytes(path.read_bytes())
    with mock.patch("aiovblk.storage.tracked.opening.boot_id", return_value="another"):
        failed = Tracked(MemoryDevice(SIZE), after)
        assert await dirty(failed, "a") == [(0, 256)]
        await failed.unmount()
    await tracked.unmount()


async def test_writes_at_random_cost_no_flush(tmp_path: Path) -> None:
    random, disk = Random(1), Disk(64 << 20)
    tracked = Tracked(disk, tmp_path / "bitmaps")
    await tracked.add("a")
    await tracked.write(0, DATA)
    disk.flushes = 0
    with mock.patch("os.fdatasync") as syncs:
        for number in range(4000):
            await tracked.write(random.randrange(64 << 8) * BLOCK, DATA)
            if number % 4 == 3:
                await tracked.flush()
    assert disk.flushes == 1000
    assert syncs.call_count == 0
    await tracked.unmount()


async def test_writes_in_one_place_let_a_power_failure_cost_little(tmp_path: Path) -> None:
    path, after = tmp_path / "bitmaps", tmp_path / "after"
    random, disk = Random(1), Disk(64 << 20)
    tracked = Tracked(disk, path)
    await tracked.add("a")
    await tracked.write(0, DATA)
    disk.flushes = 0
    with mock.patch("os.fdatasync", wraps=os.fdatasync) as syncs:
        for _ in range(1000):
            await tracked.write((8000 + random.randrange(100)) * BLOCK, DATA)
            await tracked.flush()
    assert disk.flushes == 1000
    assert 0 < syncs.call_count <= 1000 * 8 // 32
    after.write_bytes(path.read_bytes())
    with mock.patch("aiovblk.storage.tracked.opening.boot_id", return_value="another"):
        failed = Tracked(MemoryDevice(64 << 20), after)
        found = await dirty(failed, "a", 64 << 20)
        assert sum(behind - first for first, behind in found) < 200
        await failed.unmount()
    await tracked.unmount()


async def test_changes_fail_once_the_file_cannot_be_flushed(tmp_path: Path) -> None:
    path = tmp_path / "bitmaps"
    tracked = Tracked(MemoryDevice(SIZE), path)
    await tracked.add("a")
    await tracked.write(BLOCK, DATA)
    with (
        mock.patch("os.fdatasync", side_effect=OSError(5, "Input/output error")),
        pytest.raises(OSError, match="Input/output"),
    ):
        await tracked.add("b")
    with pytest.raises(OSError, match=r"cannot be recorded in .* any more"):
        await tracked.write(2 * BLOCK, DATA)
    assert await tracked.read(0, BLOCK) == DATA
    await tracked.unmount()
    tracked = Tracked(MemoryDevice(SIZE), path)  # as after a power failure
    assert await dirty(tracked, "a") == [(0, 256)]
    await tracked.unmount()
