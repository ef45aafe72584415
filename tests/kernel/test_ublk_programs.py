"""Whole programs that serve devices by ublk: signals, kills, forks, dropped loops, other users."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from aiovblk.kernel import users

from .lost_devices import EIO, logged
from .support import (
    DATA,
    DEVICES,
    MIB,
    Disk,
    Program,
    becomes_true,
    command,
    fio,
    leave_dirty_pages,
    pread,
    program,
    pwrite,
    sh,
    stopped,
)
from .ublk_devices import mounted, nothing_is_left, remaining

# The programs have loops of their own.
pytestmark = [
    pytest.mark.ublk,
    pytest.mark.deadline(600),
    pytest.mark.one_loop,
    pytest.mark.usefixtures("by_ublk"),
]

FOLDER = str(Path(DEVICES).parent)


def assert_image_stored(image: Path) -> None:
    assert image.read_bytes()[:MIB] == DATA
    assert Path(f"{image}.log").read_text().split()[-2:] == ["flush", "unmount"]


# Signals


@pytest.mark.parametrize(
    ("signum", "loop"),
    [
        (signal.SIGTERM, "uvloop"),
        (signal.SIGTERM, "asyncio"),
        (signal.SIGINT, "uvloop"),
        (signal.SIGINT, "asyncio"),
    ],
)
async def test_a_signal_ends_the_command(signum: signal.Signals, loop: str, image: Path) -> None:
    async with command(f"{DEVICES}:Image", "--loop", loop, IMAGE=str(image)) as running:
        await leave_dirty_pages(running.path)
        assert await running.end(signum) == 0
        assert await running.rest() == ""
    assert remaining() == []
    assert_image_stored(image)


async def test_a_second_signal_forces_a_hanging_device(image: Path) -> None:
    options = ["--unmount-timeout", "3600"]
    async with command(f"{DEVICES}:Hanging", *options, IMAGE=str(image)) as running:
        leaving = asyncio.create_task(leave_dirty_pages(running.path))
        await logged(image, "hanging")
        running.process.send_signal(signal.SIGINT)
        # The second one counts once the unmount has begun: a process writes back.
        ours = {running.process.pid, os.getpid()}
        disk = running.path.removeprefix("/dev/")
        await becomes_true(lambda: bool({process for process, _ in users.openers(disk)} - ours))
        assert await running.end(signal.SIGINT) == 1
        await leaving
        assert "forced" in await running.rest()
    await nothing_is_left()


async def test_ctrl_z_is_a_pause(image: Path) -> None:
    async with command(f"{DEVICES}:Image", IMAGE=str(image)) as running:
        running.process.send_signal(signal.SIGSTOP)
        await stopped(running.process.pid)
        writing = asyncio.create_task(asyncio.to_thread(pwrite, running.path, 0, DATA))
        running.process.send_signal(signal.SIGCONT)
        assert await writing == len(DATA)
        assert await running.end(signal.SIGTERM) == 0
    assert_image_stored(image)


async def test_memory_safe_locks_the_memory_and_serves() -> None:
    async with command("memory:64M", "--memory-safe") as running:
        process = Path(f"/proc/{running.process.pid}")
        assert (process / "oom_score_adj").read_text() == "-1000\n"
        lines = (process / "status").read_text().splitlines()
        locked = next(int(line.split()[1]) for line in lines if line.startswith("VmLck:"))
        assert locked * 1024 > MIB
        await fio(running.path, "--rw=randwrite --bs=64k --size=4M --verify=crc32c")
        assert await running.end(signal.SIGTERM) == 0


# Forks and dropped loops

SERVER = """
import asyncio, gc, os, signal, sys
sys.path.insert(0, {folder!r})
import aiovblk, devices

def fork():
    child = os.fork()
    if child == 0:
        gc.collect()
        signal.pause()
    return child

async def main():
    async with aiovblk.mounted({device}, attach="ublk") as mount:
        print("mounted", mount.path, flush=True)
        child = {fork}
        print("child", child, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    print("unmounted", flush=True)

asyncio.run(main())
"""


class Server(Program):
    """One that has a child, by fork."""

    child = 0


@contextlib.asynccontextmanager
async def server(image: Path, device: str, fork: str = "fork()") -> AsyncIterator[Server]:
    script = SERVER.format(folder=FOLDER, device=device, fork=fork)
    # Since Python 3.12 it warns of any fork beside threads.
    async with program("-W", "ignore", "-c", script, IMAGE=str(image)) as running:
        forked = Server(running.process)
        forked.path = (await running.line()).removeprefix("mounted ")
        forked.child = int((await running.line()).removeprefix("child "))
        try:
            yield forked
            os.kill(forked.child, 0)
        finally:
            os.kill(forked.child, signal.SIGKILL)
        await forked.rest()  # until nothing has the pipe any more


# By another thread: in the child that of the loop has ended.
@pytest.mark.parametrize("fork", ["fork()", "await asyncio.to_thread(fork)"])
async def test_an_unmount_does_not_wait_for_a_child(fork: str, image: Path) -> None:
    async with server(image, "devices.Image()", fork) as forked:
        await leave_dirty_pages(forked.path)
        assert forked.process.stdin is not None
        forked.process.stdin.close()
        assert await forked.line() == "unmounted"  # and no warning before
        assert await forked.end() == 0
        assert remaining() == []
    assert image.read_bytes()[:MIB] == DATA


async def test_a_child_does_not_hide_the_death_of_its_parent(image: Path) -> None:
    async with server(image, "devices.Hanging()") as forked:
        writing = asyncio.create_task(asyncio.to_thread(pwrite, forked.path, 0, DATA))
        await logged(image, "hanging")
        await forked.end(signal.SIGKILL)
        with pytest.raises(OSError, match=EIO):
            await writing
        async with mounted(Disk(), forked.path) as mount:
            assert mount.path == forked.path


DROPPED = """
import asyncio, gc, logging, os, sys, time, warnings
from threading import Thread
sys.path.insert(0, {folder!r})
import aiovblk, devices, uvloop
warnings.simplefilter("ignore")
logging.disable()  # of tasks that are destroyed with their loop

async def main():
    context = aiovblk.mounted(devices.Image(), attach="ublk")
    mount = await context.__aenter__()
    return mount.path, context

loops = []

def serve():
    loop = {loop}.new_event_loop()
    path, context = loop.run_until_complete(main())
    print("mounted", path, flush=True)
    sys.stdin.readline()
    {end}

{start}
gc.collect()
print("dropped", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("loop", "end", "start"),
    [
        pytest.param("uvloop", "loop.close()", "serve()", marks=pytest.mark.core),
        ("asyncio", "loop.close()", "serve()"),
        # Its thread has ended, and the loop is still there.
        (
            "asyncio",
            "loops.append(loop)",
            "thread = Thread(target=serve); thread.start(); thread.join()",
        ),
    ],
    ids=["uvloop", "asyncio", "thread"],
)
async def test_a_loop_that_is_dropped_leaves_no_zombie(
    loop: str, end: str, start: str, image: Path
) -> None:
    script = DROPPED.format(folder=FOLDER, loop=loop, end=end, start=start)
    async with program("-c", script, IMAGE=str(image)) as running:
        path = (await running.line()).removeprefix("mounted ")
        assert running.process.stdin is not None
        reading = asyncio.create_task(asyncio.to_thread(pread, path, MIB, 4096))
        running.process.stdin.write(b"\n")
        assert await running.line() == "dropped"
        with pytest.raises(OSError, match=r"\[Errno"):
            await reading
        await nothing_is_left()  # although its process lives
        running.process.stdin.close()
        assert await running.end() == 0


# Other users

USER = 1000
# The interpreter may lie in a folder of root's, so everything is imported before.
UNPRIVILEGED = """
import asyncio, os, sys
import concurrent.futures.thread, ctypes, uvloop
import anyio._backends._asyncio
import aiovblk
from aiovblk import storage
os.setgroups([])
os.setresgid({user}, {user}, {user})
os.setresuid({user}, {user}, {user})

async def main():
    device = storage.MemoryDevice({size})
    async with aiovblk.mounted(device, "/dev/ublkb{number}", attach="ublk") as mount:
        print("mounted", mount.path, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(mount.stats.errors, "errors", flush=True)

with asyncio.Runner(loop_factory={loop}.new_event_loop) as runner:
    runner.run(main())
print("unmounted", flush=True)
"""


@contextlib.asynccontextmanager
async def udev(number: int) -> AsyncIterator[None]:
    """Give the nodes of a device to the user when they appear, as a rule of udev's does."""
    os.chown("/dev/ublk-control", USER, USER)

    async def give() -> None:
        for kind in ("c", "b"):
            node = f"/dev/ublk{kind}{number}"
            await becomes_true(partial(os.path.exists, node))
            os.chown(node, USER, USER)

    giving = asyncio.create_task(give())
    try:
        yield
        await giving
    finally:
        os.chown("/dev/ublk-control", 0, 0)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_a_user_without_capabilities_serves_and_leaves_nothing(loop: str) -> None:
    number = 7
    script = UNPRIVILEGED.format(user=USER, size=64 * MIB, number=number, loop=loop)
    async with udev(number), program("-c", script) as running:
        line = await running.line()
        assert line == f"mounted /dev/ublkb{number}", line + await running.rest()
        path = line.removeprefix("mounted ")
        status = Path(f"/proc/{running.process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000\n" in status
        as_user = (
            f"setpriv --reuid={USER} --regid={USER} --clear-groups env HOME=/ PATH=$PATH:/sbin"
        )
        await sh(
            f"cd / && {as_user} fio --name=t --filename={path} --direct=1 --ioengine=libaio"
            " --iodepth=32 --rw=randrw --bsrange=4k-256k --size=16M --verify=crc32c --minimal"
        )
        await sh(f"{as_user} mkfs.ext4 -q {path} && {as_user} e2fsck -fn {path}")
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert await running.rest() == "0 errors\nunmounted\n"
        assert await running.end() == 0


async def test_a_user_who_may_not_is_told_what_is_missing() -> None:
    script = UNPRIVILEGED.format(user=USER, size=MIB, number=3, loop="asyncio")
    async with program("-c", script) as running:
        output = await running.rest()
        assert "takes access to /dev/ublk-control: run as root, or" in output
        assert await running.end() == 1
