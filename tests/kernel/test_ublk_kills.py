"""Servers of ublk devices that are killed: nothing hangs, and their paths can be mounted again."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from aiovblk import DeviceBusyError

from ..support.sizes import by_size
from .lost_devices import EIO, logged
from .support import (
    DATA,
    DEVICES,
    Disk,
    becomes_true,
    command,
    files_of,
    kept_open,
    leave_dirty_pages,
    pwrite,
    sh,
)
from .ublk_devices import assert_lost, is_gone, mounted

# The servers have loops of their own.
pytestmark = [
    pytest.mark.ublk,
    pytest.mark.deadline(600),
    pytest.mark.one_loop,
    pytest.mark.usefixtures("by_ublk"),
]


@pytest.mark.core
async def test_a_kill_fails_programs_at_once_and_the_path_can_be_mounted_again(
    image: Path,
) -> None:
    async with command(f"{DEVICES}:Hanging", IMAGE=str(image)) as running:
        path = running.path
        async with kept_open(path) as fd:
            writing = asyncio.create_task(asyncio.to_thread(pwrite, path, 0, DATA))
            await logged(image, "hanging")
            await running.end(signal.SIGKILL)
            with pytest.raises(OSError, match=EIO):
                await writing
            await assert_lost(fd)
            await is_gone(path)
    async with mounted(Disk(), path) as mount:
        assert mount.path == path
        await leave_dirty_pages(path)


@pytest.mark.core
async def test_a_server_that_is_killed_while_the_kernel_writes_back_ends(image: Path) -> None:
    async with command(f"{DEVICES}:Hanging", IMAGE=str(image)) as running:
        path = running.path
        async with kept_open(path) as fd:
            await leave_dirty_pages(path)
            running.process.send_signal(signal.SIGTERM)
            await logged(image, "hanging")
            await becomes_true(lambda: path in files_of(running.process.pid))
            await running.end(signal.SIGKILL)
            await assert_lost(fd)
            await is_gone(path)
    async with mounted(Disk(), path) as mount:
        assert mount.path == path


def is_being_stopped() -> bool:
    """Whether a server has begun to have its device stopped, by another process."""
    commands = (each / "cmdline" for each in Path("/proc").glob("[0-9]*"))
    for each in commands:
        with suppress(OSError):
            if b"\0STOP_DEV\0" in each.read_bytes():
                return True
    return False


@pytest.mark.core
async def test_a_server_that_is_killed_while_the_kernel_stops_its_device_ends(image: Path) -> None:
    """STOP_DEV waits for a handler that hangs; a thread of the server that did so would not end."""
    async with command(f"{DEVICES}:Hanging", IMAGE=str(image)) as running:
        path = running.path
        writing = asyncio.create_task(asyncio.to_thread(pwrite, path, 0, DATA))
        await logged(image, "hanging")
        running.process.send_signal(signal.SIGTERM)
        await becomes_true(is_being_stopped)
        await running.end(signal.SIGKILL)
        with pytest.raises(OSError, match=EIO):
            await writing
        await is_gone(path)
    async with mounted(Disk(), path) as mount:
        assert mount.path == path


async def test_an_idle_server_that_is_killed_leaves_a_path_for_the_next_at_once() -> None:
    path: tuple[str, ...] = ()
    for _ in range(by_size(5, 50)):
        async with command("memory:16M", *path) as running:
            path = (running.path,)
            await running.end(signal.SIGKILL)
    async with mounted(Disk(), *path) as mount:
        assert mount.path == path[0]


async def test_a_dead_device_that_is_open_keeps_its_path() -> None:
    async with command("memory:16M") as running:
        path = running.path
        async with kept_open(path):
            await running.end(signal.SIGKILL)
            with pytest.raises(DeviceBusyError, match="the device exists"):
                async with mounted(Disk(), path):
                    pytest.fail("entered")
            async with mounted(Disk()) as other:  # and nothing else
                assert other.path != path
    async with mounted(Disk(), path) as mount:
        assert mount.path == path


LOAD = "--iodepth=32 --rw=randrw --bs=4k --size=16M --time_based --runtime=3600 --eta=never"


async def fio_that_fails(path: str) -> str:
    options = f"--filename={path} --direct=1 --ioengine=libaio {LOAD}"
    done = await sh(f"LC_ALL=C fio --name=t {options}", ok=False)
    assert done.status != 0
    return done.output


async def is_written_to(path: str) -> None:
    stat = Path(f"/sys/block/{path.removeprefix('/dev/')}/stat")
    await becomes_true(lambda: int(stat.read_text().split()[4]) > 200)


@pytest.mark.newest_python
async def test_a_server_that_is_killed_under_load_hangs_nothing() -> None:
    path: tuple[str, ...] = ()
    for _ in range(by_size(2, 10)):
        async with command("memory:16M", *path) as running:
            path = (running.path,)
            failing = asyncio.create_task(fio_that_fails(running.path))
            await is_written_to(running.path)
            await running.end(signal.SIGKILL)
            assert "Input/output error" in await failing
            await is_gone(running.path)
    async with mounted(Disk(), *path) as mount:
        assert mount.path == path[0]


async def test_a_server_that_is_killed_with_all_requests_in_flight_hangs_nothing(
    image: Path,
) -> None:
    async with command(f"{DEVICES}:Hanging", IMAGE=str(image)) as running:
        path = running.path
        options = "--rw=randwrite --bs=4k --size=16M --iodepth=256 --direct=1 --ioengine=libaio"
        failing = asyncio.create_task(sh(f"fio --name=t --filename={path} {options}", ok=False))
        log = Path(f"{image}.log")
        # One tag stays with the kernel: see UblkAttachment.wait_until_live.
        await becomes_true(lambda: log.exists() and log.read_text().count("hanging") == 127)
        await running.end(signal.SIGKILL)
        assert (await failing).status != 0
        await is_gone(path)
    async with mounted(Disk(), path) as mount:
        assert mount.path == path


@pytest.mark.newest_python
async def test_a_server_that_is_killed_under_a_file_system_fails_it(tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    async with command("memory:64M") as running:
        path = running.path
        await sh(f"mkfs.ext4 -q {path} && mount {path} {point}")
        await sh(f"cp /etc/passwd {point} && sync -f {point}")
        await running.end(signal.SIGKILL)
    failed = await sh(
        f"LC_ALL=C dd if=/dev/zero of={point}/file bs=4k conv=fsync count=1", ok=False
    )
    assert failed.status != 0
    await sh(f"umount {point}")
    async with mounted(Disk(), path) as mount:
        assert mount.path == path
