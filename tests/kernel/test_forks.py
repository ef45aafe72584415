"""Children that a mere fork has made keep no device attached, and free none of their parent's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import aiovblk
from aiovblk.kernel import status

from .devices import SIZE
from .support import (
    DATA,
    DEVICES,
    MIB,
    Disk,
    Program,
    becomes_free,
    leave_dirty_pages,
    pread,
    program,
    pwrite,
    sh,
)

# The programs have loops of their own.
pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]

SERVER = """
import asyncio, os, signal, sys
sys.path.insert(0, {folder!r})
import aiovblk, devices

async def main():
    async with aiovblk.mounted({device}, attach=os.environ["ATTACH"], {options}) as mount:
        print("mounted", mount.path, flush=True)
        child = os.fork()
        if child == 0:
            {child}
        print("child", child, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    print("unmounted", flush=True)

async def mount_and_die():
    async with aiovblk.mounted(devices.Image(), attach=os.environ["ATTACH"]) as mount:
        print("mounted", mount.path, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""

SLEEP = "signal.pause()"
MOUNT = "asyncio.run(mount_and_die())"


class Server(Program):
    """One that has a child, by fork."""

    child = 0


@contextlib.asynccontextmanager
async def server(
    image: Path, device: str = "devices.Image()", options: str = "", child: str = SLEEP, **env: str
) -> AsyncIterator[Server]:
    script = SERVER.format(
        folder=str(Path(DEVICES).parent), device=device, options=options, child=child
    )
    # Since Python 3.12 it warns of any fork beside threads.
    async with program("-W", "ignore", "-c", script, IMAGE=str(image), **env) as running:
        forked = Server(running.process)
        forked.path = (await running.line()).removeprefix("mounted ")
        forked.child = int((await running.line()).removeprefix("child "))
        try:
            yield forked
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(forked.child, signal.SIGKILL)
        await forked.rest()  # until nobody has the pipe any more
    assert await becomes_free(forked.path)


async def assert_free_although_the_child_lives(forked: Server) -> None:
    assert await becomes_free(forked.path)
    async with aiovblk.mounted(Disk(), forked.path):
        await leave_dirty_pages(forked.path)
    os.kill(forked.child, 0)


@pytest.mark.core
async def test_an_unmount_does_not_wait_for_a_child(image: Path) -> None:
    async with server(image) as forked:
        await leave_dirty_pages(forked.path)
        assert forked.process.stdin is not None
        forked.process.stdin.close()
        assert await forked.line() == "unmounted"  # and no warning before
        assert await forked.end() == 0
        await assert_free_although_the_child_lives(forked)
    assert image.read_bytes()[:MIB] == DATA


@pytest.mark.core
async def test_a_child_does_not_hide_the_death_of_its_parent(image: Path) -> None:
    async with server(image, "devices.Hanging()") as forked:
        writing = asyncio.create_task(asyncio.to_thread(pwrite, forked.path, 0, DATA))
        await sh(f"tail -n +1 --retry -f {image}.log 2>/dev/null | grep -q -m1 hanging")
        await forked.end(signal.SIGKILL)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await writing
        await assert_free_although_the_child_lives(forked)


@pytest.mark.parametrize(
    ("device", "options"),
    [
        ("devices.Image()", ""),
        ("devices.Shared", "workers=2"),
    ],
)
@pytest.mark.parametrize("replace", [False, True])
async def test_a_device_outlives_its_server_although_a_child_lives(
    device: str, options: str, replace: bool, image: Path
) -> None:
    options = f"identity='volume', survive=60, {options}"
    async with server(image, device, options, ATTACH="netlink") as forked:
        reading = asyncio.create_task(asyncio.to_thread(pread, forked.path, 0, MIB))
        assert await reading == bytes(MIB)
        await forked.end(signal.SIGKILL)
        reading = asyncio.create_task(asyncio.to_thread(pread, forked.path, 0, MIB))
        disk = Disk(SIZE)
        disk._memory[:MIB] = DATA
        async with aiovblk.mounted(
            disk, forked.path, attach="netlink", identity="volume", survive=60, replace=replace
        ):
            assert await reading == DATA
        os.kill(forked.child, 0)


async def test_a_child_that_mounts_and_dies_leaves_its_parent_alone(image: Path) -> None:
    async with server(image, child=MOUNT) as forked:
        path = (await forked.line()).removeprefix("mounted ")
        assert path != forked.path
        assert await becomes_free(path)
        assert status.count_receivers()[int(forked.path.removeprefix("/dev/nbd"))] == 1
        await leave_dirty_pages(forked.path)
        assert await forked.end(signal.SIGTERM) == -signal.SIGTERM
