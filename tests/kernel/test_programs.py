"""The ways out of whole programs: signals, a stop, the end of their event loop."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from pathlib import Path

import pytest

import aiovblk

from .support import (
    DATA,
    DEVICES,
    MIB,
    Disk,
    becomes_free,
    command,
    executed,
    file_system,
    leave_dirty_pages,
    program,
    pwrite,
    sh,
    stopped,
    store,
    stored,
)

pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]


def assert_image_stored(image: Path) -> None:
    assert image.read_bytes()[:MIB] == DATA
    assert Path(f"{image}.log").read_text().split()[-2:] == ["flush", "unmount"]


@pytest.mark.parametrize(
    ("signum", "loop", "fresh"),
    [
        (signal.SIGINT, "uvloop", True),
        (signal.SIGINT, "asyncio", True),
        pytest.param(signal.SIGTERM, "uvloop", False, marks=pytest.mark.core),
        (signal.SIGHUP, "asyncio", False),
    ],
)
async def test_a_signal_ends_the_command(
    signum: signal.Signals, loop: str, fresh: bool, image: Path
) -> None:
    words = [f"{DEVICES}:Image", "--loop", loop]
    async with command(*words, fresh=fresh, IMAGE=str(image)) as running:
        await leave_dirty_pages(running.path)
        assert await running.end(signum) == 0
        assert await running.rest() == ""
    assert_image_stored(image)


async def test_the_installed_command_serves() -> None:
    script = str(Path(sys.executable).with_name("aiovblk"))
    async with executed(script, "mount", "memory:1M") as running:
        path = (await running.line()).removeprefix("mounted ")
        await leave_dirty_pages(path)
        assert await running.end(signal.SIGTERM) == 0
        assert await running.rest() == ""


@pytest.mark.core
async def test_a_second_signal_forces_a_hanging_device(image: Path, attach: str) -> None:
    options = ["--unmount-timeout", "3600"]
    async with command(f"{DEVICES}:Hanging", *options, IMAGE=str(image)) as running:
        # By netlink the close of the node writes them back, and hangs until it is forced.
        leaving = asyncio.create_task(leave_dirty_pages(running.path))
        log = f"{image}.log"
        if attach == "ioctl":
            await leaving
        else:
            await sh(f"tail -n +1 --retry -f {log} 2>/dev/null | grep -q -m1 hanging")
        running.process.send_signal(signal.SIGINT)
        await sh(f"tail -n +1 --retry -f {log} 2>/dev/null | grep -q -m1 hanging")
        assert await running.end(signal.SIGINT) == 1
        await leaving
        assert "forced" in await running.rest()


async def test_ctrl_c_with_a_mounted_file_system_is_refused_then_forced(
    image: Path, tmp_path: Path
) -> None:
    async with (
        command(f"{DEVICES}:make", IMAGE=str(image)) as running,
        file_system(running.path, tmp_path) as point,
    ):
        running.process.send_signal(signal.SIGINT)
        refusal = await running.line()
        assert f"mounted at {point}" in refusal
        await store(point)
        # The file system is still mounted, and keeps the index: that is no success.
        assert await running.end(signal.SIGINT) == 1
    assert await becomes_free(running.path)
    await sh(f"fsck.ext4 -fp {image}; mount -o loop,ro {image} {point}")
    assert await stored(point)
    await sh(f"umount {point}")


@pytest.mark.core
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


@pytest.mark.core
async def test_ctrl_z_is_a_pause_for_a_device_that_was_attached_by_netlink(image: Path) -> None:
    async with command(f"{DEVICES}:Image", "--attach=netlink", IMAGE=str(image)) as running:
        running.process.send_signal(signal.SIGSTOP)
        await stopped(running.process.pid)
        writing = asyncio.create_task(asyncio.to_thread(pwrite, running.path, 0, DATA))
        running.process.send_signal(signal.SIGCONT)
        assert await writing == len(DATA)
        assert await running.end(signal.SIGTERM) == 0
    assert_image_stored(image)


@pytest.mark.core
async def test_ctrl_z_is_a_lost_device_and_no_zombie(image: Path) -> None:
    async with command(f"{DEVICES}:Image", "--attach=ioctl", IMAGE=str(image)) as running:
        running.process.send_signal(signal.SIGSTOP)
        await stopped(running.process.pid)
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


@pytest.mark.parametrize("loop", [pytest.param("uvloop", marks=pytest.mark.core), "asyncio"])
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
from aiovblk.kernel.sysfs import wait_until_free
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


@pytest.mark.parametrize("loop", [pytest.param("uvloop", marks=pytest.mark.core), "asyncio"])
async def test_a_loop_that_is_dropped_without_its_tasks_leaves_no_zombie(
    loop: str, image: Path
) -> None:
    script = LOOP_DROPPED.format(folder=str(Path(DEVICES).parent), loop=loop)
    async with program("-c", script, IMAGE=str(image)) as running:
        output = await running.rest()
        assert output.rstrip().endswith("True"), output
