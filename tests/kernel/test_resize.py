"""A live device that becomes larger and smaller."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import aiovblk
from aiovblk import DeviceBusyError, Mount

from .support import (
    MIB,
    Disk,
    file_system,
    fio,
    mounted_in_a_task,
    pattern,
    pread,
    pwrite,
    sh,
    store,
    stored,
)

pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]

BLOCKS = MIB // 4096  # of a mebibyte
CYCLES = 15  # of one grow and one shrink each

several = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two processors")


async def size_of(path: str) -> int:
    return int((await sh(f"blockdev --getsize64 {path}")).output)


async def keep_resizing(mount: Mount, until: asyncio.Task[object], low: int, high: int) -> int:
    """Grow and shrink until a task is done, but CYCLES times at least; sizes in MiB."""
    cycles = 0
    while not until.done() or cycles < CYCLES:
        for size in (high, low):
            await mount.resize(size * BLOCKS)
            assert mount.device.size == size * MIB
        cycles += 1
    return cycles


def growing(mebibytes: int) -> Disk:
    """A disk that has room for 64 MiB, and shows some of them."""
    disk = Disk(64 * MIB)
    disk.blocks = mebibytes * BLOCKS
    return disk


@pytest.mark.parametrize("connections", [1, pytest.param(2, marks=several)])
async def test_no_write_is_lost_while_the_device_grows_and_shrinks(connections: int) -> None:
    disk = growing(16)
    async with aiovblk.mounted(disk, connections=connections) as mount:
        # Each block is read back and compared when all are written.
        writing = asyncio.create_task(
            fio(
                mount.path,
                "--rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio --size=4m --fsync=64"
                " --verify=crc32c",
            )
        )
        assert await keep_resizing(mount, writing, low=16, high=64) >= CYCLES
        await writing
        assert await size_of(mount.path) == 16 * MIB
        assert mount.stats.errors == 0
    assert disk.events[-2:] == ["flush", "unmount"]


async def keep_writing(
    path: str, offset: int, begun: asyncio.Event, stop: asyncio.Event
) -> tuple[int, int | None]:
    """Write until an error; how many writes were acknowledged, and the error's number."""
    count = 0
    while not stop.is_set():
        try:
            await asyncio.to_thread(pwrite, path, offset, pattern(4096, count + 1))
        except OSError as exc:
            return count, exc.errno
        count += 1
        begun.set()
    return count, None


@pytest.mark.core
async def test_writes_beyond_the_new_end_fail_and_those_below_are_kept() -> None:
    disk = Disk(32 * MIB)
    last = 8 * MIB - 4096
    async with aiovblk.mounted(disk) as mount:
        events = [asyncio.Event() for _ in range(3)]
        *begun, stop = events
        below = asyncio.create_task(keep_writing(mount.path, last, begun[0], stop))
        beyond = asyncio.create_task(keep_writing(mount.path, 16 * MIB, begun[1], stop))
        for event in begun:
            await event.wait()
        await mount.resize(8 * BLOCKS)
        assert (await beyond)[1] in (errno.EIO, errno.ENOSPC)
        stop.set()
        count, error = await below
        assert error is None
        assert disk.contents(last, 4096) == pattern(4096, count)


@pytest.mark.core
async def test_what_is_cached_beyond_the_new_end_is_written_before() -> None:
    disk = Disk(16 * MIB)
    data = pattern(MIB)
    async with aiovblk.mounted(disk) as mount:
        await asyncio.to_thread(pwrite, mount.path, 12 * MIB, data, direct=False)
        await asyncio.to_thread(pwrite, mount.path, 8 * MIB - 4096, data, direct=False)
        await mount.resize(8 * BLOCKS)
        assert disk.contents(12 * MIB, MIB) == data
        assert disk.contents(8 * MIB - 4096, MIB) == data
        await mount.resize(16 * BLOCKS)
        # Not from the cache of before.
        assert await asyncio.to_thread(pread, mount.path, 12 * MIB, MIB, direct=False) == data


async def test_a_file_system_grows_while_it_is_mounted(tmp_path: Path) -> None:
    disk = growing(16)
    async with aiovblk.mounted(disk) as mount, file_system(mount.path, tmp_path) as point:
        await store(point)
        before = os.statvfs(point).f_blocks
        await mount.resize(64 * BLOCKS)
        await sh(f"resize2fs {mount.path}")
        assert os.statvfs(point).f_blocks > 3 * before
        assert await stored(point)


@pytest.mark.core
async def test_a_mounted_file_system_is_not_cut(tmp_path: Path) -> None:
    disk = growing(32)
    async with aiovblk.mounted(disk) as mount, file_system(mount.path, tmp_path) as point:
        await store(point)
        with pytest.raises(DeviceBusyError, match="while what lies beyond is in use") as caught:
            await mount.resize(16 * BLOCKS)
        assert caught.value.holders == (f"mounted at {point}",)
        assert await size_of(mount.path) == disk.size == 32 * MIB
        await mount.resize(64 * BLOCKS)  # more is never refused
        await mount.resize(48 * BLOCKS, force=True)
        assert await size_of(mount.path) == disk.size == 48 * MIB
        assert await stored(point)
    async with aiovblk.mounted(disk) as mount:
        await sh(f"e2fsck -fn {mount.path}")


async def test_a_program_that_has_the_device_for_itself_is_not_cut() -> None:
    async with aiovblk.mounted(growing(32)) as mount:
        other = await asyncio.to_thread(os.open, mount.path, os.O_RDONLY | os.O_EXCL)
        with pytest.raises(DeviceBusyError, match="opened by this process"):
            await mount.resize(16 * BLOCKS)
        os.close(other)
        reader = await asyncio.to_thread(os.open, mount.path, os.O_RDONLY)
        await mount.resize(16 * BLOCKS)
        os.close(reader)
        # Nobody is kept from it afterwards.
        await sh(f"mkfs.ext4 -q {mount.path}")


@asynccontextmanager
async def two_partitions() -> AsyncIterator[tuple[Disk, Mount]]:
    """One from 1 to 17 MiB, the other from 17 to 64 MiB."""
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"printf ',16M\\n,\\n' | sfdisk -q {mount.path}")
    async with aiovblk.mounted(disk, mount.path, partitions=True) as mount:
        yield disk, mount


async def test_a_mounted_partition_that_stays_is_no_reason_to_refuse(tmp_path: Path) -> None:
    async with two_partitions() as (disk, mount), file_system(f"{mount.path}p1", tmp_path) as point:
        await store(point)
        await mount.resize(32 * BLOCKS)
        assert disk.size == 32 * MIB
        with pytest.raises(DeviceBusyError, match=re.escape(f"mounted at {point}")):
            await mount.resize(17 * BLOCKS - 1)
        await mount.resize(17 * BLOCKS)
        assert await stored(point)


async def test_a_mounted_partition_that_ends_beyond_is_not_cut(tmp_path: Path) -> None:
    async with two_partitions() as (disk, mount), file_system(f"{mount.path}p2", tmp_path) as point:
        with pytest.raises(DeviceBusyError) as caught:
            await mount.resize(32 * BLOCKS)
        assert caught.value.holders == (f"mounted at {point}",)
        assert disk.size == 64 * MIB


async def test_both_partitions_in_use_only_the_one_beyond_is_named(tmp_path: Path) -> None:
    async with two_partitions() as (_, mount), file_system(f"{mount.path}p1", tmp_path):
        second = await asyncio.to_thread(os.open, f"{mount.path}p2", os.O_RDONLY | os.O_EXCL)
        with pytest.raises(DeviceBusyError, match="opened by this process"):
            await mount.resize(32 * BLOCKS)
        os.close(second)
        await mount.resize(32 * BLOCKS)


class Hanging(Disk):
    """Reads that begin at a mebibyte never return."""

    hangs = True

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        if offset == MIB and self.hangs:
            self.arrived.set()
            await asyncio.get_running_loop().create_future()
        return await super().read(offset, length)


def freezes() -> bool:
    """Whether a resize waits for requests in flight."""
    release = [int(number) for number in re.findall(r"\d+", os.uname().release)[:2]]
    return release >= [6, 12]


@pytest.mark.parametrize("mebibytes", [pytest.param(8, marks=pytest.mark.core), 32])
async def test_a_handler_that_hangs_does_not_hang_a_resize(mebibytes: int) -> None:
    disk = Hanging(16 * MIB)
    async with aiovblk.mounted(disk, unmount_timeout=3) as mount:
        reading = asyncio.create_task(asyncio.to_thread(pread, mount.path, MIB, 4096))
        await disk.arrived.wait()
        await mount.resize(mebibytes * BLOCKS)
        assert await size_of(mount.path) == disk.size == mebibytes * MIB
        disk.hangs = False
        if not freezes():
            for line in mount._lifecycle.connections.all():
                line.fail_running(asyncio.get_running_loop().time())
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await reading
        assert await asyncio.to_thread(pread, mount.path, MIB, 4096) == bytes(4096)


@pytest.mark.core
async def test_an_unmount_by_force_ends_a_resize_that_waits() -> None:
    disk = Hanging(16 * MIB)
    task, mount = await mounted_in_a_task(disk, unmount_timeout=3600)
    reading = asyncio.create_task(asyncio.to_thread(pread, mount.path, MIB, 4096))
    await disk.arrived.wait()
    resizing = asyncio.create_task(mount.resize(32 * BLOCKS))
    if freezes():
        await sh("until cat /proc/[0-9]*/task/*/wchan | grep -q blk_mq_freeze; do :; done")
    for _ in range(2):
        unmounting = asyncio.create_task(mount.unmount(force=True))
        await asyncio.sleep(0)
    for step in (unmounting, task):
        with pytest.raises(aiovblk.Error, match="forced"):
            await step
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        await reading
    await asyncio.wait([resizing])
    resizing.exception()
    with pytest.raises(aiovblk.AttachError, match="is unmounted"):
        await mount.resize(8 * BLOCKS)
