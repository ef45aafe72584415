"""A device outlives its server, by netlink: killed, replaced, or only its connection lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import aiovblk
from aiovblk import AttachError, DeviceBusyError, Error, Mount, kernel
from aiovblk.device import DeviceFactory
from aiovblk.dispatch import Dispatcher
from aiovblk.events import ConnectionLost, ConnectionRestored, Detached
from aiovblk.kernel import status, sysfs

from ..support.sizes import by_size
from .handing_over import hand_over
from .support import (
    DATA,
    DEVICES,
    MIB,
    Disk,
    Program,
    becomes_free,
    becomes_true,
    file_system,
    fio,
    leave_dirty_pages,
    pread,
    program,
    pwrite,
    sh,
)

pytestmark = [pytest.mark.deadline(1200), pytest.mark.one_loop, pytest.mark.newest_python]

MOUNT = ["mount", "--attach=netlink", "--identity=volume", "--survive=60", f"{DEVICES}:Image"]
# What is killed twenty times in all tests is killed often enough to see it at all in the core.
KILLS = pytest.mark.parametrize(
    ("kills", "mebibytes"),
    [pytest.param(3, 1, marks=(pytest.mark.core, pytest.mark.slow)), (20, 4)],
)
LONG = 2400.0  # seconds for what goes on while servers are killed


async def verify(path: str, mebibytes: int = 4) -> None:
    """Write all over a part of a device, and read it back, twice."""
    await fio(
        path,
        f"--rw=randwrite --bs=4k --iodepth=32 --ioengine=libaio --size={mebibytes}M "
        "--verify=crc32c --verify_fatal=1 --loops=2",
        patience=LONG,
    )


class Servers:
    """One server after another of the same image."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self._server = AsyncExitStack()
        self._running: Program
        self.path = ""

    async def start(self) -> None:
        server = program("-m", "aiovblk", *MOUNT, IMAGE=str(self._image))
        self._running = await self._server.enter_async_context(server)
        line = await self._running.line()
        assert line.startswith("mounted /dev/nbd"), line
        assert self.path in ("", line.split()[1])
        self.path = line.split()[1]

    async def end(self, signum: signal.Signals) -> int:
        status = await self._running.end(signum)
        await self._server.aclose()
        return status

    async def restart(self, writes: int, working: asyncio.Task[Any]) -> None:
        """Kill it, after so many more writes of what goes on meanwhile, and start it again."""
        enough = self._writes() + writes
        await becomes_true(lambda: self._writes() >= enough or working.done())
        if working.done():  # it failed
            await working
        assert await self.end(signal.SIGKILL) == -signal.SIGKILL
        await self.start()

    def _writes(self) -> int:
        return status.io_counters(int(self.path.removeprefix("/dev/nbd")))[4]


@asynccontextmanager
async def servers(image: Path) -> AsyncIterator[Servers]:
    """The first server of an image; what is attached at the end is unmounted in order."""
    these = Servers(image)
    await these.start()
    try:
        yield these
    except BaseException:
        await these.end(signal.SIGKILL)
        raise
    assert await these.end(signal.SIGTERM) == 0
    assert await becomes_free(these.path)


@KILLS
@pytest.mark.deadline(3000)
async def test_killed_servers_are_missed_by_nobody(kills: int, mebibytes: int, image: Path) -> None:
    enough = asyncio.Event()

    async def verify_again_and_again(path: str) -> None:
        while not enough.is_set():
            await verify(path, mebibytes)

    async with servers(image) as these:
        working = asyncio.create_task(verify_again_and_again(these.path))
        for _ in range(kills):
            await these.restart(50, working)
        enough.set()
        await working
    assert sysfs.queue_attribute(int(these.path.removeprefix("/dev/nbd")), "io_timeout") == "30000"


@pytest.mark.deadline(3000)
async def test_a_file_system_outlives_killed_servers(image: Path, tmp_path: Path) -> None:
    async with servers(image) as these:
        async with file_system(these.path, tmp_path) as point:
            script = (
                f"n=0; while [ ! -e {tmp_path}/stop ]; do n=$((n + 1));"
                f" head -c 70000 /dev/urandom > {point}/$((n % 50)) || exit 1;"
                f" (cd {point} && md5sum $((n % 50))) > {tmp_path}/sum.$((n % 50)) || exit 1;"
                f" sync {point}/$((n % 50)) || exit 1; done"
            )
            working = asyncio.create_task(sh(script, patience=LONG))
            for _ in range(20):
                await these.restart(8, working)
            (tmp_path / "stop").touch()
            await working
            await sh("echo 3 > /proc/sys/vm/drop_caches")
            await sh(f"cd {point} && cat {tmp_path}/sum.* | md5sum -c --quiet")
        await sh(f"e2fsck -fn {these.path}")


@pytest.mark.parametrize("spec", [f"{DEVICES}:Image", "file:{image}"])  # which is locked
async def test_a_server_is_replaced_while_it_serves(image: Path, spec: str) -> None:
    words = ["-m", "aiovblk", *MOUNT[:-1], spec.format(image=image)]
    async with program(*words, IMAGE=str(image)) as first:
        path = (await first.line()).removeprefix("mounted ")
        await sh("dmesg --clear")
        working = asyncio.create_task(verify(path))
        async with program(*words, "--replace", IMAGE=str(image)) as second:
            assert await second.line() == f"mounted {path}"
            assert await first.end() == 0
            # By itself, at a signal: the successor prints where this one did.
            second.process.send_signal(signal.SIGUSR2)
            assert await second.line() == f"mounted {path}"
            assert await second.end() == 0
            await working
            holder = status.holder(int(path.removeprefix("/dev/nbd")))
            assert holder is not None
            os.kill(holder[0], signal.SIGTERM)
            assert await second.rest() == ""
    assert await becomes_free(path)
    log = (await sh("dmesg")).output
    assert "NBD_DISCONNECT" in log  # at the end
    assert "reconnected" not in log
    assert "Receive control failed" not in log.partition("NBD_DISCONNECT")[0]


@pytest.mark.core
@pytest.mark.slow
@pytest.mark.parametrize("live", [False, True])  # taken over from a dead server, or a live one
async def test_what_was_taken_over_is_unmounted_from_outside_in_order(
    live: bool, image: Path
) -> None:
    async with AsyncExitStack() as ends:
        first = await ends.enter_async_context(program("-m", "aiovblk", *MOUNT, IMAGE=str(image)))
        path = (await first.line()).removeprefix("mounted ")
        if not live:
            await first.end(signal.SIGKILL)
        words = [*MOUNT, "--replace"] if live else MOUNT
        second = await ends.enter_async_context(program("-m", "aiovblk", *words, IMAGE=str(image)))
        assert await second.line() == f"mounted {path}"
        await first.end()
        await leave_dirty_pages(path)
        await asyncio.to_thread(kernel.unmount, path)
        assert await second.rest() == ""  # nothing is lost, nor said to be
        assert await second.end() == 0
    assert await becomes_free(path)
    assert image.read_bytes()[: len(DATA)] == DATA


@pytest.mark.core
@pytest.mark.slow
async def test_what_no_server_comes_for_fails_in_the_end(image: Path) -> None:
    words = ["mount", "--attach=netlink", "--identity=volume", "--survive=3", f"{DEVICES}:Hanging"]
    async with program("-m", "aiovblk", *words, IMAGE=str(image)) as server:
        path = (await server.line()).removeprefix("mounted ")
        writing = asyncio.ensure_future(asyncio.to_thread(pwrite, path, 0, bytes(4096)))
        await sh(f"tail -F {image}.log 2> /dev/null | grep -q -m1 hanging")
        await server.end(signal.SIGKILL)
        with pytest.raises(OSError, match="Input/output error"):
            await writing
    assert await becomes_free(path)


# In one process


@asynccontextmanager
async def surviving(disk: Disk | DeviceFactory, **options: object) -> AsyncIterator[Mount]:
    options = {"identity": "disk", "survive": 30, "attach": "netlink"} | options
    async with aiovblk.mounted(disk, **options) as mount:  # type: ignore[arg-type]  # any of them
        yield mount


@pytest.mark.parametrize("connections", [1, pytest.param(2, marks=pytest.mark.core)])
async def test_a_connection_that_breaks_is_made_again(connections: int) -> None:
    disk = Disk()
    async with aiovblk.mounted(disk, attach="netlink", connections=connections, timeout=5) as mount:
        heard = mount.events()
        working = asyncio.create_task(
            fio(
                mount.path,
                "--rw=randwrite --bs=4k --iodepth=16 --ioengine=libaio "
                f"--size={by_size(1, 4)}M "
                "--verify=crc32c --verify_fatal=1 --loops=3",
            )
        )
        await becomes_true(lambda: mount.stats.writes >= 50)
        line = mount._lifecycle.connections.all()[-1]
        assert isinstance(line, Dispatcher)
        line._stream.transport.abort()
        async for event in heard:
            if isinstance(event, ConnectionRestored):
                assert (event.connection, event.connections) == (connections, connections)
                break
        await working
    assert disk.events[-2:] == ["flush", "unmount"]


async def test_a_handler_that_outlasts_the_kernel_is_called_again() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk, attach="netlink", timeout=2) as mount:
        disk.gate.clear()
        reading = asyncio.ensure_future(asyncio.to_thread(pread, mount.path, 0, 4096))
        await disk.arrived.wait()
        heard = mount.events()
        async for event in heard:
            if isinstance(event, ConnectionLost):
                disk.gate.set()
                break
        assert await reading == bytes(4096)


@pytest.mark.core
async def test_a_device_is_left_and_taken_over(tmp_path: Path) -> None:
    disk = Disk()
    async with surviving(disk, connections=2) as mount:
        path, heard = mount.path, mount.events()
        await asyncio.to_thread(pwrite, path, 0, DATA)
        await mount.detach()
        await mount.wait()
        await mount.unmount()  # nothing is left to do
        assert [type(event) for event in heard.drain()][-2:-1] == [Detached]
    assert disk.events == ["flush", "unmount"]
    assert status.state(int(path.removeprefix("/dev/nbd"))) is status.DeviceState.LOST
    reading = asyncio.ensure_future(asyncio.to_thread(pread, path, 0, MIB))
    with pytest.raises(AttachError, match="is attached with 67108864 bytes, and this device has"):
        async with surviving(Disk(MIB)):
            pass
    with pytest.raises(DeviceBusyError, match=f"'disk' is attached at {path}; mount it there"):
        async with surviving(disk, path="/dev/nbd9"):
            pass
    with pytest.raises(DeviceBusyError, match="it has lost its server, and waits for another"):
        async with aiovblk.mounted(disk, path, attach="netlink"):
            pass
    async with surviving(disk) as again:
        assert again.path == path
        assert len(again._lifecycle.connections.all()) == 2
        assert await reading == DATA
        with pytest.raises(DeviceBusyError, match="already attached, served by process"):
            async with surviving(disk):
                pass
        await asyncio.to_thread(pwrite, path, MIB, DATA)
    assert disk.contents(MIB, MIB) == DATA


@pytest.mark.core
async def test_a_successor_in_the_same_process_is_handed_the_device() -> None:
    def check_alive(mount: Mount) -> None:
        assert status.state(mount.index) is status.DeviceState.ALIVE

    disk = await hand_over(surviving, check_alive)
    assert disk.events[:2] == ["flush", "unmount"]


@pytest.mark.core
async def test_a_successor_that_makes_another_device_leaves_it_to_a_third() -> None:
    disk = Disk()
    async with surviving(disk) as first:
        with pytest.raises(AttachError, match=r"was handed over, and .* was made"):
            async with surviving(lambda: Disk(MIB), replace=True):
                pass
        await first.wait()
    assert disk.events[-2:] == ["flush", "unmount"]
    reading = asyncio.ensure_future(asyncio.to_thread(pread, first.path, 0, MIB))
    async with surviving(lambda: disk, replace=True) as third:
        assert third.path == first.path
        assert third.device is disk
        assert await reading == bytes(MIB)


async def test_without_survive_nothing_can_be_left() -> None:
    async with aiovblk.mounted(Disk(), attach="netlink", identity="disk") as mount:
        assert status.identity(mount.index) == "disk"
        with pytest.raises(Error, match="has to be mounted with survive="):
            await mount.detach()
