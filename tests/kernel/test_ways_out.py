"""Every way out: what was written is stored, and nothing remains (see `nothing_remains`)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
from pathlib import Path

import anyio
import pytest

import aiovblk

from .support import (
    MIB,
    Disk,
    Done,
    assert_stored_and_said_goodbye,
    becomes_free,
    file_system,
    kept_open,
    leave_dirty_pages,
    mounted_in_a_task,
    pread,
    program,
    sh,
    store,
    stored,
    unmount,
)

pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop]


@pytest.mark.core
async def test_unmount_then_return(tmp_path: Path) -> None:
    disk = Disk()
    async with anyio.create_task_group() as group:
        mount = await group.start(aiovblk.mount, disk)
        assert isinstance(mount, aiovblk.Mount)
        await leave_dirty_pages(mount.path)
        await mount.unmount()
        await mount.unmount()  # once more does no harm
        await mount.wait()
    assert_stored_and_said_goodbye(disk)
    async with aiovblk.mounted(Disk(), mount.path) as again:  # the index is free at once
        assert again.path == mount.path


async def test_leaving_the_block() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await leave_dirty_pages(mount.path)
    assert_stored_and_said_goodbye(disk)


@pytest.mark.core
async def test_an_exception_in_the_block_comes_out_bare() -> None:
    disk = Disk()
    failure = LookupError("of the application")
    with pytest.raises(LookupError) as caught:
        async with aiovblk.mounted(disk) as mount:
            await leave_dirty_pages(mount.path)
            raise failure
    assert caught.value is failure
    assert_stored_and_said_goodbye(disk)


@pytest.mark.core
async def test_cancelling_the_task() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk)
    await leave_dirty_pages(mount.path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert_stored_and_said_goodbye(disk)


@pytest.mark.core
async def test_cancelling_the_task_before_it_is_mounted() -> None:
    disk = Disk()
    task = asyncio.create_task(aiovblk.mount(disk))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert disk.events[-2:] == ["flush", "unmount"]


async def test_an_anyio_cancel_scope() -> None:
    disk = Disk()
    async with anyio.create_task_group() as group:
        mount = await group.start(aiovblk.mount, disk)
        await leave_dirty_pages(mount.path)
        group.cancel_scope.cancel()
    assert_stored_and_said_goodbye(disk)


@pytest.mark.core
async def test_a_mounted_file_system_is_refused_by_name_and_forced(tmp_path: Path) -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount, file_system(mount.path, tmp_path) as point:
        with pytest.raises(aiovblk.DeviceBusyError, match=str(point)) as caught:
            await mount.unmount()
        assert caught.value.holders == (f"mounted at {point}",)
        assert caught.value.errno == errno.EBUSY
        await store(point)  # not synced; and the device lives on
        await mount.unmount(force=True)
    assert disk.events[-2:] == ["flush", "unmount"]
    async with aiovblk.mounted(disk, mount.path) as mount:
        await sh(f"mount {mount.path} {tmp_path}/mnt")
        assert await stored(tmp_path / "mnt")
        await sh(f"umount {tmp_path}/mnt")


@pytest.mark.core
async def test_leaving_the_block_with_a_mounted_file_system_says_so(tmp_path: Path) -> None:
    disk = Disk()
    with pytest.raises(aiovblk.DeviceBusyError, match="mounted at"):
        async with aiovblk.mounted(disk) as mount:
            held = file_system(mount.path, tmp_path)
            point = await held.__aenter__()
            await store(point)
    await held.__aexit__(None, None, None)
    assert await becomes_free(mount.path)
    async with aiovblk.mounted(disk, mount.path) as mount:
        await sh(f"mount {mount.path} {tmp_path}/mnt")
        assert await stored(tmp_path / "mnt")
        await sh(f"umount {tmp_path}/mnt")


@pytest.mark.core
async def test_a_held_partition_is_refused() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"printf ',,\\n' | sfdisk -q {mount.path}; blockdev --rereadpt {mount.path}")
        holder = os.open(f"{mount.path}p1", os.O_RDONLY | os.O_EXCL)
        with pytest.raises(aiovblk.DeviceBusyError):
            await mount.unmount()
        os.close(holder)
        await mount.unmount()


@pytest.mark.core
async def test_requests_in_flight_are_answered() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
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


@pytest.mark.core
async def test_a_handler_that_never_returns_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    with pytest.raises(aiovblk.Error, match="nothing was answered for"):
        async with aiovblk.mounted(disk, unmount_timeout=1.0) as mount:
            disk.gate.clear()
            disk.arrived.clear()
            reading = asyncio.create_task(asyncio.to_thread(pread, mount.path, MIB, 4096))
            await disk.arrived.wait()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        await reading
    assert disk.events[-2:] == ["flush", "unmount"]


@pytest.mark.core
async def test_dirty_pages_of_a_hanging_device_do_not_hang_the_unmount() -> None:
    disk = Disk()
    async with contextlib.AsyncExitStack() as stack:
        with pytest.raises(aiovblk.Error):
            async with aiovblk.mounted(disk, unmount_timeout=1.0) as mount:
                await stack.enter_async_context(kept_open(mount.path))
                await leave_dirty_pages(mount.path)
                disk.gate.clear()
        assert disk.events[-2:] == ["flush", "unmount"]


@pytest.mark.core
async def test_force_ends_the_patience_of_an_unmount_under_way() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk, unmount_timeout=3600)
    async with kept_open(mount.path):
        await leave_dirty_pages(mount.path)
        disk.gate.clear()
        disk.arrived.clear()
        unmounting = asyncio.create_task(mount.unmount())
        await disk.arrived.wait()
        for attempt in (mount.unmount(force=True), unmounting, task):
            with pytest.raises(aiovblk.Error, match="forced"):
                await attempt


@pytest.mark.core
async def test_a_device_whose_first_read_hangs_is_not_mounted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules["aiovblk.mounting.lifecycle"], "ATTACH_TIMEOUT", 1.0)
    disk = Disk()
    disk.gate.clear()
    with pytest.raises(aiovblk.AttachError, match="did not come alive"):
        async with aiovblk.mounted(disk):
            pytest.fail("entered")


@pytest.mark.core
async def test_failing_last_handlers_are_told_and_all_called() -> None:
    class Failing(Disk):
        async def flush(self) -> None:
            self.events.append("flush")
            raise OSError(errno.EIO, "the far end is gone")

    disk = Failing()
    with pytest.raises(aiovblk.Error, match="the far end is gone"):
        async with aiovblk.mounted(disk):
            pass
    assert disk.events[-2:] == ["flush", "unmount"]


async def test_a_last_handler_that_cancels_itself_has_failed() -> None:
    class Confused(Disk):
        async def unmount(self) -> None:
            await super().unmount()
            raise asyncio.CancelledError

    disk = Confused()
    with pytest.raises(aiovblk.Error, match=r"its unmount\(\) failed: CancelledError"):
        async with aiovblk.mounted(disk):
            pass
    assert disk.events.count("unmount") == 1


@pytest.mark.core
async def test_without_privileges_the_socket_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    # As after setuid(): the kernel refuses the ioctl; nothing else depends on it.
    def refused(link: object) -> None:
        raise PermissionError(errno.EPERM, "NBD_DISCONNECT")

    disk = Disk()
    async with aiovblk.mounted(disk, unmount_timeout=3600) as mount:
        await leave_dirty_pages(mount.path)
        monkeypatch.setattr(aiovblk.kernel.Attachment, "disconnect", refused)
    assert_stored_and_said_goodbye(disk)


@pytest.mark.core
async def test_a_last_handler_that_never_returns_is_given_up() -> None:
    class Endless(Disk):
        async def unmount(self) -> None:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.events.append("cancelled")

    disk = Endless()
    with pytest.raises(aiovblk.Error, match=r"its unmount\(\) failed"):
        async with aiovblk.mounted(disk, unmount_timeout=0.5):
            pass
    assert disk.events[-2:] == ["flush", "cancelled"]


@pytest.mark.core
async def test_a_device_whose_node_was_removed_is_unmounted_in_order(tmp_path: Path) -> None:
    disk = Disk()
    node = tmp_path / "disk"
    await sh(f"cp -a /dev/nbd9 {node}")
    async with aiovblk.mounted(disk, node) as mount:
        assert (mount.index, mount.path) == (9, str(node))
        await leave_dirty_pages(mount.path)
        node.unlink()
    assert_stored_and_said_goodbye(disk)


@pytest.mark.core
async def test_write_back_that_fails_is_told() -> None:
    class Failing(Disk):
        async def write(self, offset: int, data: memoryview) -> None:
            raise OSError(errno.EIO, "no")

    async with contextlib.AsyncExitStack() as stack:
        with pytest.raises(aiovblk.Error, match="could not write back"):
            async with aiovblk.mounted(Failing()) as mount:
                await stack.enter_async_context(kept_open(mount.path))
                await leave_dirty_pages(mount.path)


async def test_unmount_command_from_outside_stores_dirty_pages(tmp_path: Path) -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk)
    await leave_dirty_pages(mount.path)
    assert await unmount(mount.path) == Done(0, "")
    await task
    assert_stored_and_said_goodbye(disk)


async def test_an_ioctl_disconnect_from_outside_stores_dirty_pages() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk)
    await leave_dirty_pages(mount.path)
    script = f"import os, fcntl; fcntl.ioctl(os.open({mount.path!r}, os.O_RDONLY), 0xab08)"
    async with program("-c", script) as disconnect:
        assert (await disconnect.rest(), await disconnect.end()) == ("", 0)
    await task
    assert_stored_and_said_goodbye(disk)


@pytest.mark.core
async def test_nbd_client_disconnects_by_netlink_after_a_sync() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk)
    await leave_dirty_pages(mount.path)
    await sh(f"dd if=/dev/null of={mount.path} conv=fsync,notrunc && nbd-client -d {mount.path}")
    await task
    assert_stored_and_said_goodbye(disk)


@pytest.mark.core
async def test_a_cleared_socket_is_a_lost_device() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk)
    script = f"import os, fcntl; fcntl.ioctl(os.open({mount.path!r}, os.O_RDONLY), 0xab04)"
    async with program("-c", script) as clear:
        assert (await clear.rest(), await clear.end()) == ("", 0)
    with pytest.raises(aiovblk.AttachError, match="another program took its socket away"):
        await task
    assert disk.events == ["flush", "unmount"]
