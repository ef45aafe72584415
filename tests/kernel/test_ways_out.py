"""Every way out: what was written is stored, and nothing remains (see `nothing_remains`)."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import time
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskStatus

import aiovblk

from .support import (
    MIB,
    Disk,
    becomes_free,
    command,
    in_mounted_file_system,
    pattern,
    pread,
    program,
    pwrite,
    sh,
)

pytestmark = [pytest.mark.deadline(180), pytest.mark.one_loop]

DEVICES = f"{Path(__file__).parent}/devices.py"
DATA = pattern(MIB)


async def leave_dirty_pages(path: str) -> None:
    """Write through the page cache, as a program does that neither syncs nor waits."""
    assert await asyncio.to_thread(pwrite, path, 0, DATA, direct=False) == MIB


async def store(point: Path) -> None:
    """Write a file on a device of this process: in a thread, since it may wait for this loop."""
    assert await asyncio.to_thread((point / "file").write_bytes, DATA) == MIB


async def stored(point: Path) -> bool:
    return await asyncio.to_thread((point / "file").read_bytes) == DATA


def assert_stored_and_said_goodbye(disk: Disk) -> None:
    assert disk.contents(0, MIB) == DATA
    assert disk.events[-2:] == ["flush", "unmount"]
    assert disk.events.count("unmount") == 1


async def test_unmount_then_return(tmp_path: Path) -> None:
    disk = Disk()
    async with anyio.create_task_group() as group:
        mount = await group.start(aiovblk.mount, disk)
        assert isinstance(mount, aiovblk.Mount)
        await leave_dirty_pages(mount.path)
        begin = time.monotonic()
        await mount.unmount()
        seconds = time.monotonic() - begin
        await mount.unmount()  # once more does no harm
        await mount.wait()
    assert_stored_and_said_goodbye(disk)
    assert seconds < 10  # under a second on a real machine; this one may be emulated
    async with aiovblk.mounted(Disk(), mount.path) as again:  # the index is free at once
        assert again.path == mount.path


async def test_leaving_the_block() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await leave_dirty_pages(mount.path)
    assert_stored_and_said_goodbye(disk)


async def test_an_exception_in_the_block_comes_out_bare() -> None:
    disk = Disk()
    failure = LookupError("of the application")
    with pytest.raises(LookupError) as caught:
        async with aiovblk.mounted(disk) as mount:
            await leave_dirty_pages(mount.path)
            raise failure
    assert caught.value is failure
    assert_stored_and_said_goodbye(disk)


class Status(TaskStatus[aiovblk.Mount]):
    """Receives the mount of a task that no group has started."""

    def __init__(self) -> None:
        self.future: asyncio.Future[aiovblk.Mount] = asyncio.get_running_loop().create_future()

    def started(self, value: aiovblk.Mount | None = None) -> None:
        assert value is not None
        self.future.set_result(value)


async def mounted_in_a_task(
    disk: Disk, unmount_timeout: float = 30.0
) -> tuple[asyncio.Task[None], aiovblk.Mount]:
    status = Status()
    task = asyncio.create_task(
        aiovblk.mount(disk, unmount_timeout=unmount_timeout, task_status=status)
    )
    return task, await status.future


async def test_cancelling_the_task() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk)
    await leave_dirty_pages(mount.path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert_stored_and_said_goodbye(disk)


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


async def test_a_mounted_file_system_is_refused_by_name_and_forced(tmp_path: Path) -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount, in_mounted_file_system(mount, tmp_path) as point:
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


async def test_leaving_the_block_with_a_mounted_file_system_says_so(tmp_path: Path) -> None:
    disk = Disk()
    with pytest.raises(aiovblk.DeviceBusyError, match="mounted at"):
        async with aiovblk.mounted(disk) as mount:
            held = in_mounted_file_system(mount, tmp_path)
            point = await held.__aenter__()
            await store(point)
    await held.__aexit__(None, None, None)
    assert await becomes_free(mount.path)
    async with aiovblk.mounted(disk, mount.path) as mount:
        await sh(f"mount {mount.path} {tmp_path}/mnt")
        assert await stored(tmp_path / "mnt")
        await sh(f"umount {tmp_path}/mnt")


async def test_a_held_partition_is_refused() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"printf ',,\\n' | sfdisk -q {mount.path}; blockdev --rereadpt {mount.path}")
        holder = os.open(f"{mount.path}p1", os.O_RDONLY | os.O_EXCL)
        with pytest.raises(aiovblk.DeviceBusyError):
            await mount.unmount()
        os.close(holder)
        await mount.unmount()


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


async def test_dirty_pages_of_a_hanging_device_do_not_hang_the_unmount() -> None:
    disk = Disk()
    with pytest.raises(aiovblk.Error):
        async with aiovblk.mounted(disk, unmount_timeout=1.0) as mount:
            await leave_dirty_pages(mount.path)
            disk.gate.clear()
    assert disk.events[-2:] == ["flush", "unmount"]


async def test_force_ends_the_patience_of_an_unmount_under_way() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk, unmount_timeout=3600)
    await leave_dirty_pages(mount.path)
    disk.gate.clear()
    disk.arrived.clear()
    unmounting = asyncio.create_task(mount.unmount())
    await disk.arrived.wait()
    for attempt in (mount.unmount(force=True), unmounting, task):
        with pytest.raises(aiovblk.Error, match="forced"):
            await attempt


async def test_a_device_whose_first_read_hangs_is_not_mounted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.modules["aiovblk.mount.life"], "ATTACH_TIMEOUT", 1.0)
    disk = Disk()
    disk.gate.clear()
    with pytest.raises(aiovblk.AttachError, match="did not come alive"):
        async with aiovblk.mounted(disk):
            pytest.fail("entered")


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


async def test_a_device_whose_node_was_removed_is_unmounted_in_order(tmp_path: Path) -> None:
    disk = Disk()
    node = tmp_path / "disk"
    await sh(f"cp -a /dev/nbd9 {node}")
    async with aiovblk.mounted(disk, node) as mount:
        assert (mount.index, mount.path) == (9, str(node))
        await leave_dirty_pages(mount.path)
        node.unlink()
    assert_stored_and_said_goodbye(disk)


async def test_write_back_that_fails_is_told() -> None:
    class Failing(Disk):
        async def write(self, offset: int, data: memoryview) -> None:
            raise OSError(errno.EIO, "no")

    with pytest.raises(aiovblk.Error, match="could not write back"):
        async with aiovblk.mounted(Failing()) as mount:
            await leave_dirty_pages(mount.path)


# From outside


async def test_unmount_command_from_outside_stores_dirty_pages(tmp_path: Path) -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk)
    await leave_dirty_pages(mount.path)
    async with program("-m", "aiovblk", "unmount", mount.path) as unmount:
        assert (await unmount.rest(), await unmount.end()) == ("", 0)
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


async def test_nbd_client_disconnects_by_netlink_after_a_sync() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk)
    await leave_dirty_pages(mount.path)
    await sh(f"dd if=/dev/null of={mount.path} conv=fsync,notrunc && nbd-client -d {mount.path}")
    await task
    assert_stored_and_said_goodbye(disk)


async def test_a_cleared_socket_is_a_lost_device() -> None:
    disk = Disk()
    task, mount = await mounted_in_a_task(disk)
    script = f"import os, fcntl; fcntl.ioctl(os.open({mount.path!r}, os.O_RDONLY), 0xab04)"
    async with program("-c", script) as clear:
        assert (await clear.rest(), await clear.end()) == ("", 0)
    with pytest.raises(aiovblk.AttachError, match="somebody took its socket away"):
        await task
    assert disk.events == ["flush", "unmount"]


# Programs


def assert_image_stored(image: Path) -> None:
    assert image.read_bytes()[:MIB] == DATA
    assert Path(f"{image}.log").read_text().split()[-2:] == ["flush", "unmount"]


@pytest.mark.parametrize(
    ("signum", "loop"),
    [
        (signal.SIGINT, "uvloop"),
        (signal.SIGINT, "asyncio"),
        (signal.SIGTERM, "uvloop"),
        (signal.SIGHUP, "asyncio"),
    ],
)
async def test_a_signal_ends_the_command(signum: signal.Signals, loop: str, image: Path) -> None:
    async with command(f"{DEVICES}:Image", "--loop", loop, IMAGE=str(image)) as running:
        await leave_dirty_pages(running.path)
        assert await running.end(signum) == 0
        assert await running.rest() == ""
    assert_image_stored(image)


async def test_a_second_signal_forces_a_hanging_device(image: Path) -> None:
    options = ["--unmount-timeout", "3600"]
    async with command(f"{DEVICES}:Hanging", *options, IMAGE=str(image)) as running:
        await leave_dirty_pages(running.path)
        log = f"{image}.log"
        running.process.send_signal(signal.SIGINT)
        await sh(f"tail -n +1 --retry -f {log} 2>/dev/null | grep -q -m1 hanging")
        assert await running.end(signal.SIGINT) == 1
        assert "forced" in await running.rest()


async def test_ctrl_c_with_a_mounted_file_system_is_refused_then_forced(
    image: Path, tmp_path: Path
) -> None:
    async with command(f"{DEVICES}:make", IMAGE=str(image)) as running:
        point = tmp_path / "mnt"
        point.mkdir()
        await sh(f"mkfs.ext4 -q {running.path} && mount {running.path} {point}")
        running.process.send_signal(signal.SIGINT)
        refusal = await running.line()
        assert f"mounted at {point}" in refusal
        await store(point)
        assert await running.end(signal.SIGINT) == 0
        await sh(f"umount {point}")
    assert await becomes_free(running.path)
    await sh(f"fsck.ext4 -fp {image}; mount -o loop,ro {image} {point}")
    assert await stored(point)
    await sh(f"umount {point}")


async def test_a_killed_server_leaves_an_index_that_can_be_used(image: Path) -> None:
    async with command(f"{DEVICES}:Hanging", IMAGE=str(image)) as running:
        writing = asyncio.create_task(asyncio.to_thread(pwrite, running.path, 0, DATA))
        await sh(f"tail -n +1 --retry -f {image}.log 2>/dev/null | grep -q -m1 hanging")
        await running.end(signal.SIGKILL)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await writing
    assert await becomes_free(running.path)
    async with aiovblk.mounted(Disk(), running.path):
        await leave_dirty_pages(running.path)


async def test_ctrl_z_is_a_lost_device_and_no_zombie(image: Path) -> None:
    async with command(f"{DEVICES}:Image", IMAGE=str(image)) as running:
        running.process.send_signal(signal.SIGSTOP)
        _, status = await asyncio.to_thread(os.waitpid, running.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        assert await running.end(signal.SIGCONT) == 1
        assert "its thread was stopped" in await running.rest()
    assert Path(f"{image}.log").read_text().split()[-2:] == ["flush", "unmount"]


LOOP_ENDS = """
import asyncio, sys
sys.path.insert(0, {folder!r})
import aiovblk, devices, uvloop

async def main():
    live = asyncio.Event()
    async def serve():
        async with aiovblk.mounted(devices.Image()) as mount:
            print("mounted", mount.path, flush=True)
            live.set()
            await mount.wait()
    task = asyncio.create_task(serve())
    await live.wait()
    await asyncio.to_thread(sys.stdin.readline)

with asyncio.Runner(loop_factory={loop}.new_event_loop) as runner:
    runner.run(main())
print("ended", flush=True)
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_the_end_of_the_event_loop_unmounts_in_order(loop: str, image: Path) -> None:
    script = LOOP_ENDS.format(folder=str(Path(DEVICES).parent), loop=loop)
    async with program("-c", script, IMAGE=str(image)) as running:
        path = (await running.line()).split()[1]
        await leave_dirty_pages(path)
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert await running.rest() == "ended\n"
        assert await running.end() == 0
    assert_image_stored(image)


LOOP_DROPPED = """
import asyncio, gc, sys, warnings
sys.path.insert(0, {folder!r})
import aiovblk, devices, uvloop
from aiovblk.kernel.link import wait_until_free
warnings.simplefilter("ignore")

async def main():
    context = aiovblk.mounted(devices.Image())
    mount = await context.__aenter__()
    return mount.index

loop = {loop}.new_event_loop()
index = loop.run_until_complete(main())
loop.close()
del loop
gc.collect()
print(wait_until_free(index, 60), flush=True)
"""


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_loop_that_is_dropped_without_its_tasks_leaves_no_zombie(
    loop: str, image: Path
) -> None:
    script = LOOP_DROPPED.format(folder=str(Path(DEVICES).parent), loop=loop)
    async with program("-c", script, IMAGE=str(image)) as running:
        output = await running.rest()
        assert output.rstrip().endswith("True"), output


# Many


async def test_fifty_devices_in_one_process() -> None:
    disks = [Disk(MIB) for _ in range(50)]
    async with anyio.create_task_group() as group:
        mounts = [await group.start(aiovblk.mount, disk) for disk in disks]
        assert len({mount.index for mount in mounts}) == 50
        for number, mount in enumerate(mounts):
            await asyncio.to_thread(pwrite, mount.path, 0, pattern(4096, number + 1))
        await asyncio.gather(*(mount.unmount() for mount in mounts))
    for number, disk in enumerate(disks):
        assert disk.contents(0, 4096) == pattern(4096, number + 1)
        assert disk.events[-2:] == ["flush", "unmount"]


READER = """
import random, sys, time
random.seed(7)
path = sys.argv[1]
while True:
    try:
        with open(path, "rb", buffering=0) as node:
            node.seek(random.randrange(256) * 4096)
            node.read(4096)
    except OSError:
        pass
    time.sleep(random.random() * 0.02)
"""


async def test_200_mounts_of_one_index_with_a_reader_at_random() -> None:
    async with program("-c", READER, "/dev/nbd5") as reader:
        for _ in range(200):
            disk = Disk(MIB)
            async with aiovblk.mounted(disk, "/dev/nbd5"):
                pass
            assert disk.events[-2:] == ["flush", "unmount"]
        assert reader.process.returncode is None
        await reader.end(signal.SIGKILL)
