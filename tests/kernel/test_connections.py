"""Several connections to one device."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

import aiovblk
from aiovblk import Mount
from aiovblk.kernel import status

from ..support.sizes import by_size
from .support import (
    MIB,
    PATIENCE,
    Disk,
    Done,
    assert_stored_and_said_goodbye,
    becomes_true,
    command,
    fio,
    leave_dirty_pages,
    pattern,
    pread,
    pwrite,
    sh,
    unmount,
)

pytestmark = [
    pytest.mark.deadline(600),
    pytest.mark.one_loop,
    pytest.mark.newest_python,
    pytest.mark.skipif(
        (os.cpu_count() or 1) < 2,
        reason="needs two processors",
    ),
]

VERIFY = "--rw=randwrite --bs=4k --iodepth=32 --ioengine=libaio --verify=crc32c --group_reporting"


def reads_and_writes(mount: Mount) -> list[int]:
    """How many requests each connection has served."""
    return [line.stats.reads + line.stats.writes for line in mount._lifecycle.connections.all()]


async def on_both_processors(path: str, options: str) -> None:
    await fio(
        path,
        "--numjobs=2 --offset_increment=8m --cpus_allowed=0,1 --cpus_allowed_policy=split"
        f" {VERIFY} {options}",
    )


@pytest.mark.core
@pytest.mark.slow
async def test_each_processor_uses_a_connection_of_its_own() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk, connections=2) as mount:
        await on_both_processors(mount.path, f"--size={by_size(1, 8)}m --fsync=64")
        assert min(reads_and_writes(mount)) > 125
        assert mount.stats.flushes == disk.events.count("flush")
        assert mount.stats.reads + mount.stats.writes == sum(reads_and_writes(mount))
        await leave_dirty_pages(mount.path)
    assert_stored_and_said_goodbye(disk)


async def test_handlers_of_all_connections_are_counted_together() -> None:
    class Alone(Disk):
        running = 0
        most = 0

        async def write(self, offset: int, data: memoryview) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0)
            await super().write(offset, data)
            self.running -= 1

    for limit in (1, 3):
        disk = Alone()
        async with aiovblk.mounted(disk, connections=2, concurrency=limit) as mount:
            await on_both_processors(mount.path, f"--size={by_size(1, 2)}m")
            assert min(reads_and_writes(mount)) > 150
        assert disk.most == limit


@pytest.mark.core
async def test_what_was_in_flight_on_a_lost_connection_is_sent_on_another(
    caplog: pytest.LogCaptureFixture, attach: str
) -> None:
    class Gated(Disk):
        full = asyncio.Event()

        async def write(self, offset: int, data: memoryview) -> None:
            if self.held == 63:
                self.full.set()
            await super().write(offset, data)

    disk = Gated()
    async with aiovblk.mounted(disk, connections=2, timeout=3) as mount:
        disk.gate.clear()
        working = asyncio.create_task(on_both_processors(mount.path, f"--size={by_size(2, 8)}m"))
        await disk.full.wait()
        lines = mount._lifecycle.connections.all()
        assert min(line.stats.in_flight for line in lines) == 32
        lines[0].abort()
        disk.gate.set()
        await working
        assert {
            "ioctl": "connection 1 of 2 is lost",
            "netlink": "connection 1 of 2 was lost (it was closed) and is reconnected",
        }[attach] in caplog.text
        await leave_dirty_pages(mount.path)
    assert_stored_and_said_goodbye(disk)


@pytest.mark.core
async def test_a_handler_that_outlasts_the_kernel_is_cancelled_and_called_again() -> None:
    class SlowOnce(Disk):
        calls = 0
        cancelled = 0

        async def write(self, offset: int, data: memoryview) -> None:
            self.calls += 1
            if self.calls == 1:
                try:
                    await asyncio.get_running_loop().create_future()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    raise
            await super().write(offset, data)

    disk = SlowOnce()
    async with aiovblk.mounted(disk, connections=2, timeout=2) as mount:
        assert await asyncio.to_thread(pwrite, mount.path, 0, pattern(4096)) == 4096
    assert (disk.calls, disk.cancelled) == (2, 1)
    assert disk.contents(0, 4096) == pattern(4096)


@asynccontextmanager
async def kernel_that_starts_threads_slowly() -> AsyncIterator[None]:
    """Keep all processors busy with what comes before what the kernel starts threads with."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, -20)  # or this thread would be as late; others inherit it
    script = "print(flush=True)\nwhile True: pass"
    busy = [
        await asyncio.create_subprocess_exec(sys.executable, "-Sc", script, stdout=PIPE)
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        for each in busy:
            assert each.stdout is not None
            await each.stdout.readline()
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)
        for each in busy:
            each.kill()
            await each.communicate()


def read_on(processor: int, path: str) -> bytes:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})  # of this thread
    try:
        return pread(path, 0, 4096)
    finally:
        os.sched_setaffinity(0, before)


async def test_every_connection_is_received_by_where_threads_start_late(
    attach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Here all takes as long as the others let it.
    for module, name in {
        ("attaching", "ATTACH_TIMEOUT"),
        ("lifecycle", "ATTACH_TIMEOUT"),
        ("recovery.receive_threads", "KERNEL_TIMEOUT"),
        ("recovery.replacement", "KERNEL_TIMEOUT"),
        ("unmounting", "KERNEL_TIMEOUT"),
        ("unmount_failures", "KERNEL_TIMEOUT"),
    }:
        monkeypatch.setattr(sys.modules[f"aiovblk.mounting.{module}"], name, PATIENCE)
    disk = Disk()
    async with AsyncExitStack() as stack:
        async with kernel_that_starts_threads_slowly():
            mount = await stack.enter_async_context(aiovblk.mounted(disk, connections=4))
            if attach == "netlink":
                await becomes_true(lambda: status.count_receivers()[mount.index] == 4)
        for processor in range(os.cpu_count() or 1):
            await asyncio.to_thread(read_on, processor, mount.path)
        await leave_dirty_pages(mount.path)
    assert_stored_and_said_goodbye(disk)


@pytest.mark.core
async def test_the_loss_of_all_connections_is_told() -> None:
    with pytest.raises(aiovblk.AttachError, match="connection was lost"):
        # By netlink they are made again.
        async with aiovblk.mounted(Disk(), connections=2, attach="ioctl") as mount:
            for line in mount._lifecycle.connections.all():
                line.abort()
            await mount.wait()


async def by_nbd_client(path: str) -> None:
    await sh(f"nbd-client -d {path}")


async def by_the_command(path: str) -> None:
    assert await unmount(path) == Done(0, "")


@pytest.mark.parametrize("disconnect", [by_nbd_client, by_the_command])
async def test_a_disconnect_from_outside_reaches_every_connection(
    disconnect: Callable[[str], Awaitable[None]],
) -> None:
    disk = Disk()
    async with aiovblk.mounted(disk, connections=2) as mount:
        await leave_dirty_pages(mount.path)
        await sh(f"sync {mount.path}")
        await disconnect(mount.path)
        await mount.wait()
    assert_stored_and_said_goodbye(disk)


async def test_the_command_with_more_connections_than_processors() -> None:
    async with command("memory:16M", "--connections=4") as running:
        await fio(running.path, f"--size=4m {VERIFY}")
        assert await running.end(signal.SIGTERM) == 0


def queue_of(path: str) -> dict[str, str]:
    directory = Path("/sys/block", Path(path).name, "queue")
    names = ("max_sectors_kb", "read_ahead_kb", "scheduler")
    return {name: (directory / name).read_text().strip() for name in names}


@pytest.mark.core
async def test_the_queue_is_set_and_put_back() -> None:
    path = "/dev/nbd5"
    before = queue_of(path)
    disk = Disk()
    async with aiovblk.mounted(disk, path) as mount:
        usual = queue_of(path)
        assert (usual["max_sectors_kb"], usual["read_ahead_kb"]) == ("1024", "4096")
        assert "[none]" in usual["scheduler"]
        await mount.resize(disk.blocks * 2)
        assert queue_of(path) == usual
        await asyncio.to_thread(pwrite, path, 0, pattern(4 * MIB))
        assert max(disk.lengths["write"]) == MIB
    assert queue_of(path) == before
    wanted = aiovblk.RequestQueue(max_sectors_kb=64, read_ahead_kb=0, scheduler="mq-deadline")
    async with aiovblk.mounted(Disk(), path, queue=wanted):
        chosen = queue_of(path)
        assert (chosen["max_sectors_kb"], chosen["read_ahead_kb"]) == ("64", "0")
        assert "[mq-deadline]" in chosen["scheduler"]
    assert queue_of(path) == before
    nothing = aiovblk.RequestQueue(max_sectors_kb=None, read_ahead_kb=None, scheduler=None)
    async with aiovblk.mounted(Disk(), path, queue=nothing):
        assert queue_of(path)["max_sectors_kb"] == before["max_sectors_kb"]
        assert queue_of(path)["scheduler"] == before["scheduler"]


@pytest.mark.core
async def test_a_scheduler_that_the_kernel_does_not_have_is_refused() -> None:
    path = "/dev/nbd5"
    before = queue_of(path)
    with pytest.raises(aiovblk.AttachError, match=r"refuses scheduler=cfq; it knows .*mq-deadline"):
        async with aiovblk.mounted(Disk(), path, queue=aiovblk.RequestQueue(scheduler="cfq")):
            pass
    assert queue_of(path) == before
