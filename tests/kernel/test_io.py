"""Bytes through the kernel and back."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk.events import (
    Attached,
    Event,
    RequestFailed,
    Resized,
    SlowRequest,
    Unmounted,
    Unmounting,
)
from aiovblk.storage import MemoryDevice

from .support import MIB, Disk, Plain, fio, pattern, pread, program, pwrite, sh

pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop]

BLKDISCARD = 0x1277  # include/uapi/linux/fs.h
BLKZEROOUT = 0x127F


@pytest.mark.core
async def test_direct_writes_and_reads_are_byte_exact_at_the_edges() -> None:
    disk = Disk(16 * MIB, block_size=512)
    async with aiovblk.mounted(disk) as mount:
        for number, (offset, length) in enumerate(
            [
                (0, 512),
                (512, 512),
                (disk.size - 512, 512),
                (disk.size - 4096, 4096),
                (4096 - 512, 1024),
                (MIB - 512, 2 * MIB),
                (0, disk.size),
            ]
        ):
            data = pattern(length, number + 1)
            assert await asyncio.to_thread(pwrite, mount.path, offset, data) == length
            assert disk.contents(offset, length) == data
            assert await asyncio.to_thread(pread, mount.path, offset, length) == data
        assert await asyncio.to_thread(pread, mount.path, disk.size, 512) == b""


@pytest.mark.parametrize("block_size", [512, 1024, 2048, 4096])
async def test_each_block_size_is_the_kernels(block_size: int) -> None:
    disk = Disk(4 * MIB, block_size=block_size)
    async with aiovblk.mounted(disk) as mount:
        queue = Path(f"/sys/block/nbd{mount.index}/queue")
        assert int((queue / "logical_block_size").read_text()) == block_size
        assert int((queue / "physical_block_size").read_text()) == block_size
        data = pattern(block_size)
        await asyncio.to_thread(pwrite, mount.path, 3 * block_size, data)
        assert disk.contents(3 * block_size, block_size) == data
        if block_size > 512:
            with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
                await asyncio.to_thread(pread, mount.path, 512, 512)


async def test_requests_of_up_to_32_mib_arrive_whole() -> None:
    disk = Disk(64 * MIB)
    async with aiovblk.mounted(disk) as mount:
        limit = f"/sys/block/nbd{mount.index}/queue/max_sectors_kb"
        usual = (await sh(f"cat {limit}; echo 32768 > {limit}")).output.strip()
        try:
            data = pattern(48 * MIB)
            await asyncio.to_thread(pwrite, mount.path, 0, data, direct=False)
            await sh(f"sync {mount.path}; blockdev --flushbufs --setra 65536 {mount.path}")
            assert disk.contents(0, len(data)) == data
            assert await asyncio.to_thread(pread, mount.path, 0, len(data), direct=False) == data
        finally:
            await sh(f"echo {usual} > {limit}")
    assert max(disk.lengths["write"]) == 32 * MIB
    assert max(disk.lengths["read"]) > 2 * MIB


async def test_a_sparse_device_of_5_tib_takes_no_memory() -> None:
    disk = MemoryDevice(5 << 40)
    async with aiovblk.mounted(disk) as mount:
        assert (await sh(f"blockdev --getsize64 {mount.path}")).output.strip() == str(5 << 40)
        data = pattern(4096)
        for offset in (0, 1 << 40, (5 << 40) - 4096):
            await asyncio.to_thread(pwrite, mount.path, offset, data)
            assert await asyncio.to_thread(pread, mount.path, offset, 4096) == data
        assert await asyncio.to_thread(pread, mount.path, 3 << 40, 4096) == bytes(4096)


@pytest.mark.core
async def test_slow_handlers_run_in_parallel() -> None:
    together = asyncio.Barrier(64)

    class Slow(Disk):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            if self.events:
                await together.wait()
            return await super().read(offset, length)

    disk = Slow()
    async with aiovblk.mounted(disk) as mount:
        disk.events.append("begin")
        # Each read waits for 63 others: one at a time, none would ever return.
        await fio(mount.path, "--rw=randread --bs=4k --ioengine=libaio --iodepth=64 --io_size=1M")
        disk.events.clear()


async def test_reads_of_50_ms_overlap_instead_of_adding_up() -> None:
    spans: list[tuple[float, float]] = []

    class Slow(Disk):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            begin = asyncio.get_running_loop().time()
            await asyncio.sleep(0.05)
            spans.append((begin, asyncio.get_running_loop().time()))
            return await super().read(offset, length)

    async with aiovblk.mounted(Slow()) as mount:
        spans.clear()
        await fio(mount.path, "--rw=randread --bs=4k --ioengine=libaio --iodepth=64 --io_size=1M")
    handlers = sum(end - begin for begin, end in spans)
    # Rounds: the time in which at least one handler ran.
    rounds, until = 0.0, 0.0
    for begin, end in sorted(spans):
        rounds += max(0.0, end - max(begin, until))
        until = max(until, end)
    assert handlers > 8 * rounds


@pytest.mark.core
async def test_fsync_reaches_flush_and_discard_reaches_trim() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        data = pattern(MIB)

        def write_and_sync() -> None:
            fd = os.open(mount.path, os.O_RDWR)
            os.pwrite(fd, data, 0)
            os.fsync(fd)
            os.close(fd)

        await asyncio.to_thread(write_and_sync)
        assert disk.events == ["flush"]
        assert disk.contents(0, MIB) == data

        def discard(request: int, offset: int, length: int) -> None:
            fd = os.open(mount.path, os.O_RDWR)
            fcntl.ioctl(fd, request, struct.pack("QQ", offset, length))
            os.close(fd)

        await asyncio.to_thread(discard, BLKDISCARD, 4096, 8192)
        assert disk.lengths["trim"] == [8192]
        await asyncio.to_thread(discard, BLKZEROOUT, 65536, 65536)
        assert disk.contents(4096, 8192) == bytes(8192)
        assert disk.contents(0, 4096) == data[:4096]
        assert disk.contents(65536, 65536) == bytes(65536)


async def test_a_forced_write_is_flushed_before_it_returns() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"dd if=/dev/urandom of={mount.path} bs=4k count=1 oflag=direct,sync")
        assert disk.events
        assert disk.lengths["write"] == [4096]


async def test_a_discard_of_gigabytes_is_a_few_trims() -> None:
    disk = Disk(10 << 30)
    async with aiovblk.mounted(disk) as mount:
        await sh(f"blkdiscard {mount.path}")
    assert sum(disk.lengths["trim"]) == 10 << 30
    assert max(disk.lengths["trim"]) < 1 << 32


@pytest.mark.core
async def test_write_zeroes_without_a_handler_becomes_writes() -> None:
    # Take a device that has been attached with WRITE_ZEROES before: Linux 6.12 remembers.
    async with aiovblk.mounted(Disk()) as earlier:
        path = earlier.path
    device = Plain()
    async with aiovblk.mounted(device, path):
        await sh(f"blkdiscard --zeroout --offset 4096 --length 1048576 {path}")
    assert device.memory[4096 : 4096 + MIB] == bytes(MIB)
    assert device.memory[:4096] == b"\xff" * 4096


@pytest.mark.core
async def test_a_read_only_device_refuses_at_once() -> None:
    class Zeroes(aiovblk.BlockDevice):
        blocks = 1024

        async def read(self, offset: int, length: int) -> bytes | memoryview:
            return bytes(length)

    async with aiovblk.mounted(Zeroes()) as mount:
        done = await sh(f"LC_ALL=C dd if=/dev/zero of={mount.path} bs=1k count=1", ok=False)
        assert done.status == 1
        assert "Operation not permitted" in done.output
        assert (await sh(f"blockdev --getro {mount.path}")).output == "1\n"
    # The flag outlives the attachment in the kernel; it must not outlive it for the next device.
    async with aiovblk.mounted(Disk(), mount.path):
        await sh(f"dd if=/dev/zero of={mount.path} bs=1k count=1")


async def test_a_device_without_write_that_lets_writes_come_fails_them() -> None:
    class Pretender(aiovblk.BlockDevice):
        blocks = 1024
        read_only = False

        async def read(self, offset: int, length: int) -> bytes | memoryview:
            return bytes(length)

    async with aiovblk.mounted(Pretender()) as mount:
        done = await sh(f"LC_ALL=C dd if=/dev/zero of={mount.path} oflag=dsync count=8", ok=False)
        assert "Input/output error" in done.output
        assert "0+0 records out" in done.output
        assert await asyncio.to_thread(pread, mount.path, 0, 4096) == bytes(4096)


@pytest.mark.core
async def test_errors_of_handlers_are_eio_and_the_device_lives_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Faulty(Disk):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            if offset == 1 * MIB:
                raise OSError(errno.ENOSPC, "no")
            if offset == 2 * MIB:
                raise ValueError("a bug of the device")
            if offset == 3 * MIB:
                return bytes(length - 1)
            if offset == 4 * MIB:
                return bytes(length + 1)
            return await super().read(offset, length)

    async with aiovblk.mounted(Faulty()) as mount:
        for number in (1, 2, 3, 4):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                await asyncio.to_thread(pread, mount.path, number * MIB, 4096)
            assert await asyncio.to_thread(pread, mount.path, 0, 4096) == bytes(4096)
        assert mount.stats.errors == 4
    assert "ValueError: a bug of the device" in caplog.text
    assert "Traceback" in caplog.text
    assert "read returned 4095 bytes where 4096 were asked for" in caplog.text
    assert "ENOSPC" not in caplog.text


async def test_events_and_stats_tell_what_the_kernel_asked_for() -> None:
    class Faulty(Disk):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            if offset == MIB:
                raise OSError(errno.ENOSPC, "no")
            return await super().read(offset, length)

    async def heard(kind: type[Event]) -> Any:
        return await anext(event async for event in listener if isinstance(event, kind))

    disk = Faulty()
    async with aiovblk.mounted(disk, slow_request=0.5) as mount:
        listener = mount.events()
        assert (await heard(Attached)).path == mount.path
        disk.gate.clear()
        reading = asyncio.create_task(asyncio.to_thread(pread, mount.path, 2 * MIB, 4096))
        slow = await heard(SlowRequest)
        assert (slow.command, slow.offset, slow.length) == ("read", 2 * MIB, 4096)
        async with program("-m", "aiovblk", "top", "--once", "--interval", "0.1") as top:
            assert f"{mount.path}   64M" in await top.rest()
            assert await top.end() == 0
        disk.gate.set()
        await reading
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await asyncio.to_thread(pread, mount.path, MIB, 4096)
        failed = await heard(RequestFailed)
        assert (failed.offset, failed.errno) == (MIB, errno.ENOSPC)
        await asyncio.to_thread(pwrite, mount.path, 0, bytes(4096))
        await mount.resize(1024)
        assert (await heard(Resized)).size == 4 * MIB
        reads = mount.stats.latency["read"]
        assert reads.count == mount.stats.reads + 1
        assert reads.quantile(1) >= slow.seconds
        assert mount.stats.errors_by_command == {"read": 1}
        assert mount.stats.latency["write"].count >= 1
    rest = [type(event) async for event in listener]
    assert rest == [Unmounting, Unmounted]


async def test_partitions_of_an_image_appear_and_leave() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"printf ',16M\\n,\\n' | sfdisk -q {mount.path}")
    async with aiovblk.mounted(disk, mount.path) as mount:
        name = f"nbd{mount.index}"
        assert os.path.exists(f"/dev/{name}p1")
        assert os.path.exists(f"/dev/{name}p2")
        data = pattern(4096)
        await asyncio.to_thread(pwrite, f"/dev/{name}p1", 0, data)
        assert disk.contents(MIB, 4096) == data
    assert not os.path.exists(f"/sys/block/{name}/{name}p1")


@pytest.mark.core
async def test_what_is_cached_for_a_partition_is_written_back() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"printf ',16M\\n,\\n' | sfdisk -q {mount.path}")
    data = pattern(4096)
    async with aiovblk.mounted(disk, mount.path):
        # Still open, so that no close has written it back.
        writer = os.open(f"{mount.path}p2", os.O_RDWR)
        await asyncio.to_thread(os.pwrite, writer, data, 0)
    os.close(writer)
    assert disk.contents(17 * MIB, 4096) == data


async def test_resize_grows_and_shrinks_the_live_device() -> None:
    disk = Disk(8 * MIB)
    async with aiovblk.mounted(disk) as mount:
        sizes = []
        for blocks in (1024, 2048):
            await mount.resize(blocks)
            sizes.append(int((await sh(f"blockdev --getsize64 {mount.path}")).output))
        assert sizes == [4 * MIB, 8 * MIB]
        assert disk.blocks == 2048
        with pytest.raises(ValueError, match="blocks must be at least 1, not 0"):
            await mount.resize(0)
