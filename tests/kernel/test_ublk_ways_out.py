"""Every way out of a mount by ublk: what was written is stored, and no device remains."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import anyio
import pytest

import aiovblk

from ..support.sizes import by_size
from .lost_devices import EIO
from .support import (
    DATA,
    MIB,
    Disk,
    assert_stored_and_said_goodbye,
    file_system,
    kept_open,
    leave_dirty_pages,
    mounted_in_a_task,
    pread,
    program,
    pwrite,
    sh,
    store,
    stored,
)
from .ublk_devices import assert_lost, mounted, nothing_is_left, remaining

pytestmark = [
    pytest.mark.ublk,
    pytest.mark.deadline(600),
    pytest.mark.usefixtures("by_ublk"),
]


# In order


async def leave(disk: Disk) -> str:
    async with mounted(disk) as mount:
        await leave_dirty_pages(mount.path)
    return mount.path


async def fail(disk: Disk) -> str:
    failure = LookupError("of the application")
    with pytest.raises(LookupError) as caught:
        async with mounted(disk) as mount:
            await leave_dirty_pages(mount.path)
            raise failure
    assert caught.value is failure
    return mount.path


async def cancel(disk: Disk) -> str:
    task, mount = await mounted_in_a_task(disk, attach="ublk")
    await leave_dirty_pages(mount.path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return mount.path


async def cancel_scope(disk: Disk) -> str:
    async with anyio.create_task_group() as group:
        mount = await group.start(partial(aiovblk.mount, attach="ublk"), disk)
        assert isinstance(mount, aiovblk.Mount)
        await leave_dirty_pages(mount.path)
        group.cancel_scope.cancel()
    return str(mount.path)


async def unmount(disk: Disk) -> str:
    async with anyio.create_task_group() as group:
        mount = await group.start(partial(aiovblk.mount, attach="ublk"), disk)
        assert isinstance(mount, aiovblk.Mount)
        await leave_dirty_pages(mount.path)
        await mount.unmount()
        await mount.unmount()  # once more does no harm
        await mount.wait()
    return str(mount.path)


@pytest.mark.parametrize("way", [leave, fail, cancel, cancel_scope, unmount])
async def test_what_was_written_is_stored_and_the_path_free_at_once(
    way: Callable[[Disk], Awaitable[str]],
) -> None:
    disk = Disk()
    path = await way(disk)
    assert remaining() == []
    assert_stored_and_said_goodbye(disk)
    async with mounted(Disk(), path) as again:
        assert again.path == path


@pytest.mark.core
@pytest.mark.one_loop
async def test_what_is_cached_under_an_open_descriptor_is_stored() -> None:
    disk = Disk()
    async with AsyncExitStack() as stack:
        async with mounted(disk) as mount:
            fd = await stack.enter_async_context(kept_open(mount.path))
            await leave_dirty_pages(mount.path)
        assert_stored_and_said_goodbye(disk)
        await assert_lost(fd)
    await nothing_is_left()


async def test_cancelling_the_task_before_it_is_mounted() -> None:
    disk = Disk()
    for steps in range(4):
        task = asyncio.create_task(aiovblk.mount(disk, attach="ublk"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await nothing_is_left()


@pytest.mark.one_loop
async def test_cancelling_the_task_while_the_kernel_reads_the_device() -> None:
    disk = Disk()
    disk.gate.clear()
    task = asyncio.create_task(aiovblk.mount(disk, attach="ublk", unmount_timeout=1.0))
    await disk.arrived.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert disk.events[-2:] == ["flush", "unmount"]
    await nothing_is_left()


@pytest.mark.one_loop
async def test_a_mounted_file_system_is_refused_by_name_and_forced(tmp_path: Path) -> None:
    disk = Disk()
    async with mounted(disk) as mount, file_system(mount.path, tmp_path) as point:
        with pytest.raises(aiovblk.DeviceBusyError, match=str(point)) as caught:
            await mount.unmount()
        assert caught.value.holders == (f"mounted at {point}",)
        assert caught.value.errno == errno.EBUSY
        await store(point)  # not synced; and the device lives on
        await mount.unmount(force=True)
    assert disk.events[-2:] == ["flush", "unmount"]
    await nothing_is_left()
    async with mounted(disk, mount.path) as mount:
        await sh(f"mount {mount.path} {tmp_path}/mnt")
        assert await stored(tmp_path / "mnt")
        await sh(f"umount {tmp_path}/mnt && e2fsck -fn {mount.path}")


@pytest.mark.one_loop
async def test_leaving_the_block_with_a_mounted_file_system_says_so(tmp_path: Path) -> None:
    disk = Disk()
    with pytest.raises(aiovblk.DeviceBusyError, match="mounted at"):
        async with mounted(disk) as mount:
            held = file_system(mount.path, tmp_path)
            point = await held.__aenter__()
            await store(point)
    await held.__aexit__(None, None, None)
    await nothing_is_left()
    async with mounted(disk, mount.path) as mount:
        await sh(f"mount {mount.path} {tmp_path}/mnt")
        assert await stored(tmp_path / "mnt")
        await sh(f"umount {tmp_path}/mnt")


STOP = """
from aiovblk.ublk import control
control.ControlledDevice({number}, control.info({number}).flags).stop(60)
"""


@pytest.mark.one_loop
async def test_a_stop_by_another_process_stores_dirty_pages() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk, attach="ublk")
    async with kept_open(mount.path):
        await leave_dirty_pages(mount.path)
        async with program("-c", STOP.format(number=mount.index)) as stop:
            assert (await stop.rest(), await stop.end()) == ("", 0)
        await task
        assert_stored_and_said_goodbye(disk)
    await nothing_is_left()


@pytest.mark.one_loop
async def test_a_device_whose_node_was_removed_is_unmounted_in_order() -> None:
    disk = Disk()
    async with mounted(disk) as mount:
        await leave_dirty_pages(mount.path)
        os.unlink(mount.path)
    assert_stored_and_said_goodbye(disk)


@pytest.mark.one_loop
async def test_requests_in_flight_are_answered() -> None:
    disk = Disk()
    async with mounted(disk) as mount:
        disk.gate.clear()
        disk.arrived.clear()
        reading = asyncio.create_task(asyncio.to_thread(pread, mount.path, MIB, 4096))
        await disk.arrived.wait()
        unmounting = asyncio.create_task(mount.unmount())
        await asyncio.sleep(0)
        disk.gate.set()
        assert await reading == bytes(4096)
        await unmounting
    assert mount.stats.errors == 0
    await nothing_is_left()


# Handlers that hang or fail


@pytest.mark.core
async def test_a_handler_that_never_returns_is_given_up() -> None:
    disk = Disk()
    with pytest.raises(aiovblk.Error, match="nothing was answered for"):
        async with mounted(disk, unmount_timeout=1.0) as mount:
            disk.gate.clear()
            disk.arrived.clear()
            reading = asyncio.create_task(asyncio.to_thread(pread, mount.path, MIB, 4096))
            await disk.arrived.wait()
    with pytest.raises(OSError, match=EIO):
        await reading
    assert disk.events[-2:] == ["flush", "unmount"]
    await nothing_is_left()


@pytest.mark.one_loop
async def test_dirty_pages_of_a_hanging_device_do_not_hang_the_unmount() -> None:
    disk = Disk()
    async with AsyncExitStack() as stack:
        with pytest.raises(aiovblk.Error):
            async with mounted(disk, unmount_timeout=1.0) as mount:
                await stack.enter_async_context(kept_open(mount.path))
                await leave_dirty_pages(mount.path)
                disk.gate.clear()
        assert disk.events[-2:] == ["flush", "unmount"]
    await nothing_is_left()


@pytest.mark.one_loop
async def test_force_ends_the_patience_of_an_unmount_under_way() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk, unmount_timeout=3600, attach="ublk")
    async with kept_open(mount.path):
        await leave_dirty_pages(mount.path)
        disk.gate.clear()
        disk.arrived.clear()
        unmounting = asyncio.create_task(mount.unmount())
        await disk.arrived.wait()
        for attempt in (mount.unmount(force=True), unmounting, task):
            with pytest.raises(aiovblk.Error, match="forced"):
                await attempt
    await nothing_is_left()


@pytest.mark.one_loop
async def test_a_device_whose_first_read_hangs_is_not_mounted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules["aiovblk.mounting.lifecycle"], "ATTACH_TIMEOUT", 1.0)
    disk = Disk()
    disk.gate.clear()
    with pytest.raises(aiovblk.AttachError, match="did not come alive"):
        async with mounted(disk):
            pytest.fail("entered")
    assert disk.events[-2:] == ["flush", "unmount"]
    await nothing_is_left()


@pytest.mark.one_loop
async def test_write_back_and_last_handlers_that_fail_are_reported() -> None:
    class Failing(Disk):
        async def write(self, offset: int, data: memoryview) -> None:
            raise OSError(errno.EIO, "no")

        async def unmount(self) -> None:
            await super().unmount()
            raise OSError(errno.EIO, "the far end is gone")

    disk = Failing()
    async with AsyncExitStack() as stack:
        with pytest.raises(aiovblk.Error, match=r"could not write back.*the far end is gone"):
            async with mounted(disk) as mount:
                await stack.enter_async_context(kept_open(mount.path))
                await leave_dirty_pages(mount.path)
    assert disk.events.count("unmount") == 1
    await nothing_is_left()


# Often


@pytest.mark.newest_python
@pytest.mark.one_loop
@pytest.mark.deadline(3600)  # in its long form, beside other guests
async def test_mounts_in_a_row_leave_nothing() -> None:
    disk = Disk(4 * MIB)
    paths = set()
    for number in range(by_size(10, 200)):
        async with mounted(disk, f"/dev/ublkb{number % 3}" if number % 2 else None) as mount:
            paths.add(mount.path)
            await asyncio.to_thread(pwrite, mount.path, 0, DATA[: 4096 * (number + 1)])
        assert remaining() == []
    assert disk.events.count("unmount") == by_size(10, 200)
    assert paths == {f"/dev/ublkb{number}" for number in range(3)}
