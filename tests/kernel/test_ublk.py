"""Devices served by ublk, while they live: bytes, requests, failures, settings, sizes.

How they end is in test_ublk_ways_out.py; what becomes of whole programs in test_ublk_programs.py.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import mmap
import os
import struct
from pathlib import Path

import pytest

import aiovblk
from aiovblk import DeviceBusyError, RequestQueue
from aiovblk.ublk import attaching
from aiovblk.ublk.commands import Feature

from .support import MIB, Disk, Plain, fio, pattern, pread, pwrite, sh
from .ublk_devices import mounted

pytestmark = [
    pytest.mark.ublk,
    pytest.mark.deadline(600),
    pytest.mark.usefixtures("by_ublk"),
]

BLKDISCARD = 0x1277  # include/uapi/linux/fs.h
BLKZEROOUT = 0x127F
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2  # include/uapi/linux/falloc.h


def without_user_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have data go by a buffer for each tag, as that of ordinary users does."""
    monkeypatch.setattr(attaching, "is_privileged", lambda: False)


# Bytes


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("way", "block_size"),
    [pytest.param("copied", 4096, marks=pytest.mark.core), ("buffers", 512)],
)
async def test_bytes_are_exact_at_the_edges(
    way: str, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "buffers":
        without_user_copy(monkeypatch)
    disk = Disk(8 * MIB, block_size=block_size)
    async with mounted(disk) as mount:
        last = disk.size - block_size
        places = [(0, block_size), (last, block_size), (MIB - block_size, 2 * MIB), (0, disk.size)]
        for number, (offset, length) in enumerate(places):
            data = pattern(length, number + 1)
            assert await asyncio.to_thread(pwrite, mount.path, offset, data) == length
            assert disk.contents(offset, length) == data
            assert await asyncio.to_thread(pread, mount.path, offset, length) == data
        assert await asyncio.to_thread(pread, mount.path, disk.size, block_size) == b""
        assert mount.stats.errors == 0


@pytest.mark.newest_python
@pytest.mark.parametrize(("block", "size"), [("4k", "8M"), ("128k", "32M")])
async def test_fio_verifies_random_mixed_io_at_depth_32(block: str, size: str) -> None:
    async with mounted(Disk()) as mount:
        await fio(
            mount.path,
            f"--ioengine=libaio --iodepth=32 --rw=randrw --bs={block} --size={size}"
            " --verify=crc32c --verify_fatal=1 --randseed=7",
        )
        assert mount.stats.errors == 0
        assert mount.stats.writes > 100


@pytest.mark.newest_python
@pytest.mark.one_loop
async def test_fio_verifies_what_goes_by_a_buffer_for_each_tag(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_user_copy(monkeypatch)
    async with mounted(Disk()) as mount:
        await fio(
            mount.path,
            "--ioengine=libaio --iodepth=128 --rw=randrw --bsrange=4k-512k --size=32M"
            " --verify=crc32c --verify_fatal=1 --randseed=7",
        )
        assert mount.stats.errors == 0


@pytest.mark.newest_python
@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("mkfs", "fsck", "size"),
    [("mkfs.ext4 -q", "e2fsck -fn", 64 * MIB), ("mkfs.xfs -q", "xfs_repair -n", 320 * MIB)],
    ids=["ext4", "xfs"],
)
async def test_a_file_system_is_made_filled_checked_and_mounted_again(
    mkfs: str, fsck: str, size: int, tmp_path: Path
) -> None:
    disk = Disk(size)
    point = tmp_path / "mnt"
    point.mkdir()
    async with mounted(disk) as mount:
        await sh(f"{mkfs} {mount.path} && mount {mount.path} {point}")
        await sh(f"mkdir {point}/d && cp {Path(__file__).parent}/*.py {point}/d && sync -f {point}")
        await sh(f"cd {point} && sha256sum d/* > {tmp_path}/sums")
        await sh(f"umount {point} && {fsck} {mount.path}")
    async with mounted(disk, mount.path) as mount:
        await sh(f"mount {mount.path} {point}")
        await sh(f"cd {point} && sha256sum --quiet -c {tmp_path}/sums && cd / && umount {point}")
        assert mount.stats.errors == 0
    assert disk.events[-2:] == ["flush", "unmount"]


@pytest.mark.one_loop
async def test_two_devices_on_one_loop_keep_their_bytes_apart() -> None:
    first, second = Disk(16 * MIB), Disk(16 * MIB)
    async with mounted(first) as one, mounted(second) as two:
        assert one.path != two.path
        writes = [
            asyncio.to_thread(pwrite, mount.path, MIB * number, pattern(MIB, seed + number))
            for number in range(8)
            for mount, seed in ((one, 10), (two, 50))
        ]
        await asyncio.gather(*writes)
    for number in range(8):
        assert first.contents(MIB * number, MIB) == pattern(MIB, 10 + number)
        assert second.contents(MIB * number, MIB) == pattern(MIB, 50 + number)


# Requests


class Noting(Disk):
    """Notes whether zeroes may become holes."""

    def __init__(self) -> None:
        super().__init__()
        self.may_trim: list[bool] = []

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        self.may_trim.append(may_trim)
        await super().write_zeroes(offset, length, may_trim=may_trim)


@pytest.mark.core
@pytest.mark.one_loop
async def test_each_kind_of_request_arrives_as_such() -> None:
    disk = Noting()
    async with mounted(disk) as mount:
        await asyncio.to_thread(pwrite, mount.path, 0, pattern(MIB))
        assert disk.events == []

        def ask() -> None:
            fd = os.open(mount.path, os.O_RDWR | os.O_DIRECT)
            with mmap.mmap(-1, 4096) as page:
                os.fsync(fd)
                assert disk.events == ["flush"]
                os.pwritev(fd, [page], 0, os.RWF_DSYNC)
                # One for the FUA of the write, one for the fsync that the kernel has follow it.
                assert disk.events == ["flush"] * 3
            fcntl.ioctl(fd, BLKDISCARD, struct.pack("QQ", 4096, 8192))
            fcntl.ioctl(fd, BLKZEROOUT, struct.pack("QQ", 65536, 65536))
            os.close(fd)

        await asyncio.to_thread(ask)
        assert mount.stats.flushes == 2
        assert mount.stats.trims == 1
        assert disk.lengths["trim"][0] == 8192  # it trims what becomes zeroes as well
        await sh(f"fallocate --punch-hole --offset 196608 --length 4096 {mount.path}")
        assert disk.lengths["zeroes"] == [65536, 4096]
        assert disk.may_trim == [False, True]
        for offset, length in ((0, 12288), (65536, 65536), (196608, 4096)):
            assert disk.contents(offset, length) == bytes(length)
        assert disk.contents(131072, 65536) == pattern(MIB)[131072:196608]


@pytest.mark.one_loop
async def test_a_device_that_cannot_flush_or_trim_is_not_asked_to() -> None:
    device = Plain()
    async with mounted(device) as mount:
        await sh(f"blkdiscard --zeroout --offset 4096 --length 1048576 {mount.path}")
        refused = await sh(f"LC_ALL=C blkdiscard {mount.path}", ok=False)
        assert "not supported" in refused.output
        await sh(f"dd if=/dev/zero of={mount.path} bs=4k count=1 seek=512 oflag=direct,sync")
        assert mount.stats.errors == 0
        assert mount.stats.flushes == 0
    assert device.memory[4096 : 4096 + MIB] == bytes(MIB)
    assert device.memory[:4096] == b"\xff" * 4096


@pytest.mark.one_loop
async def test_a_read_only_device_refuses_at_once() -> None:
    class Zeroes(aiovblk.BlockDevice):
        blocks = 1024

        async def read(self, offset: int, length: int) -> bytes | memoryview:
            return bytes(length)

    async with mounted(Zeroes()) as mount:
        done = await sh(f"LC_ALL=C dd if=/dev/zero of={mount.path} bs=1k count=1", ok=False)
        assert "Operation not permitted" in done.output
        assert (await sh(f"blockdev --getro {mount.path}")).output == "1\n"
        assert await asyncio.to_thread(pread, mount.path, 0, 4096) == bytes(4096)
        assert mount.stats.errors == 0


# Failures


class Faulty(Disk):
    """Fails, each in its own way, what begins at the first mebibytes."""

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        if offset == 1 * MIB:
            raise OSError(errno.ENOSPC, "no")
        if offset == 2 * MIB:
            raise ValueError("a bug of the device")
        if offset == 3 * MIB:
            return bytes(length - 1)
        if offset == 4 * MIB:
            await asyncio.get_running_loop().create_future()
        return await super().read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        if offset == 1 * MIB:
            raise OSError(errno.ENOSPC, "no")
        await super().write(offset, data)


@pytest.mark.one_loop
async def test_errors_of_handlers_reach_the_program_and_the_device_lives_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with mounted(Faulty(), handler_timeout=1.0) as mount:
        for number, error in enumerate((errno.ENOSPC, errno.EIO, errno.EIO, errno.EIO), start=1):
            with pytest.raises(OSError, match=os.strerror(error)):
                await asyncio.to_thread(pread, mount.path, number * MIB, 4096)
            assert await asyncio.to_thread(pread, mount.path, 0, 4096) == bytes(4096)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            await asyncio.to_thread(pwrite, mount.path, MIB, bytes(4096))
        assert mount.stats.errors == 5
    assert "ValueError: a bug of the device" in caplog.text
    assert "not done in 1.0 s (handler_timeout)" in caplog.text


class Unreadable(Disk):
    """Fails all reads."""

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        raise OSError(errno.EIO, "the far end is gone")


@pytest.mark.one_loop
async def test_a_first_read_that_fails_matters_only_to_those_who_wait_for_partitions() -> None:
    disk = Unreadable()
    async with mounted(disk) as mount:
        await asyncio.to_thread(pwrite, mount.path, 0, pattern(4096))
    assert disk.contents(0, 4096) == pattern(4096)
    with pytest.raises(aiovblk.AttachError, match=r"partition table cannot be read: .*Input"):
        async with mounted(disk, partitions=True):
            pytest.fail("entered")
    assert disk.events[-2:] == ["flush", "unmount"]


@pytest.mark.one_loop
async def test_a_path_that_is_taken_is_refused_with_its_server() -> None:
    async with mounted(Disk()) as mount:
        with pytest.raises(DeviceBusyError, match=f"served by process {os.getpid()} ") as caught:
            async with mounted(Disk(), mount.path):
                pytest.fail("entered")
        assert caught.value.errno == errno.EBUSY
        await asyncio.to_thread(pwrite, mount.path, 0, pattern(4096))  # it is served as before
    async with mounted(Disk(), mount.path) as again:
        assert again.path == mount.path


@pytest.mark.one_loop
async def test_of_those_who_want_one_path_at_once_one_gets_it() -> None:
    path = "/dev/ublkb5"
    is_over = asyncio.Event()

    async def attempt() -> str:
        try:
            async with mounted(Disk(), path) as mount:
                await asyncio.to_thread(pwrite, mount.path, 0, pattern(4096))
                await is_over.wait()
                return mount.path
        except DeviceBusyError as exc:
            return exc.reason

    attempts = [asyncio.create_task(attempt()) for _ in range(4)]
    ended = asyncio.as_completed(attempts)
    refused = [await next(ended) for _ in range(3)]
    is_over.set()
    assert all("the device exists" in each for each in refused)
    assert path in [await each for each in attempts]


# Settings


def setting(mount: aiovblk.Mount, name: str) -> str:
    return Path(f"/sys/block/ublkb{mount.index}/queue/{name}").read_text().strip()


@pytest.mark.one_loop
async def test_the_request_queue_is_as_it_was_asked_for() -> None:
    queue = RequestQueue(max_sectors_kb=64, read_ahead_kb=32, scheduler="mq-deadline")
    disk = Disk()
    async with mounted(disk, queue=queue) as mount:
        assert setting(mount, "max_sectors_kb") == "64"
        assert setting(mount, "read_ahead_kb") == "32"
        assert "[mq-deadline]" in setting(mount, "scheduler")
        await asyncio.to_thread(pwrite, mount.path, 0, pattern(MIB))
        assert disk.lengths["write"] == [65536] * 16
    disk.lengths["write"].clear()
    async with mounted(disk, mount.path) as mount:
        assert setting(mount, "max_sectors_kb") == "1024"
        assert setting(mount, "read_ahead_kb") == "4096"
        assert setting(mount, "scheduler").startswith("[none]")
        await asyncio.to_thread(pwrite, mount.path, 0, pattern(MIB))
        assert max(disk.lengths["write"]) > 65536


@pytest.mark.one_loop
async def test_partitions_are_there_on_entering_and_leave_with_the_device() -> None:
    disk = Disk()
    async with mounted(disk, partitions=True) as mount:
        assert not os.path.exists(f"{mount.path}p1")
        await sh(f"printf ',16M\\n,\\n' | sfdisk -q {mount.path}")
    async with mounted(disk, mount.path, partitions=True) as mount:
        nodes = [f"{mount.path}p1", f"{mount.path}p2"]
        assert all(os.path.exists(node) for node in nodes)
        # Still open, so that no close has written it back.
        writer = os.open(nodes[1], os.O_RDWR)
        await asyncio.to_thread(os.pwrite, writer, pattern(4096), 0)
        exclusive = os.open(nodes[0], os.O_RDONLY | os.O_EXCL)
        with pytest.raises(DeviceBusyError):
            await mount.unmount()
        os.close(exclusive)
    os.close(writer)
    assert not any(os.path.exists(node) for node in nodes)
    assert disk.contents(17 * MIB, 4096) == pattern(4096)


async def size_of(path: str) -> int:
    return int((await sh(f"blockdev --getsize64 {path}")).output)


@pytest.mark.one_loop
async def test_a_live_device_grows_and_shrinks(ublk_driver: Feature) -> None:
    if Feature.UPDATE_SIZE not in ublk_driver:
        pytest.skip("this kernel's ublk driver has no UPDATE_SIZE (Linux 6.16)")
    disk = Disk(16 * MIB)
    disk.blocks = 8 * MIB // 4096
    async with mounted(disk) as mount:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            await asyncio.to_thread(pwrite, mount.path, 12 * MIB, pattern(4096))
        await mount.resize(16 * MIB // 4096)
        assert await size_of(mount.path) == 16 * MIB
        await asyncio.to_thread(pwrite, mount.path, 12 * MIB, pattern(4096))
        await mount.resize(4 * MIB // 4096)
        assert await size_of(mount.path) == 4 * MIB == disk.size
        assert await asyncio.to_thread(pread, mount.path, 4 * MIB, 4096) == b""
        assert mount.stats.errors == 0
    assert disk.contents(12 * MIB, 4096) == pattern(4096)


@pytest.mark.one_loop
async def test_a_resize_that_the_driver_cannot_do_is_refused(ublk_driver: Feature) -> None:
    if Feature.UPDATE_SIZE in ublk_driver:
        pytest.skip("this kernel's ublk driver can resize live devices")
    disk = Disk(16 * MIB)
    async with mounted(disk) as mount:
        for blocks in (1024, 8192):
            with pytest.raises(OSError, match=r"cannot resize .* takes Linux 6\.16") as caught:
                await mount.resize(blocks)
            assert caught.value.errno == errno.EOPNOTSUPP
            assert disk.size == await size_of(mount.path) == 16 * MIB
        end = 16 * MIB - 4096
        await asyncio.to_thread(pwrite, mount.path, end, pattern(4096))  # it is served as before
    assert disk.contents(end, 4096) == pattern(4096)
