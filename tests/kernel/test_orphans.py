"""Devices whose server is gone: who is named when they are wanted, and when they are freed."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from pathlib import Path

import pytest

import aiovblk
from aiovblk.kernel import status, sysfs

from .programs import Fork
from .support import Disk, becomes_free, becomes_true, command, program, pwrite

# Processes that are started, and the kernel: which loop runs makes little difference.
pytestmark = [pytest.mark.one_loop, pytest.mark.newest_python, pytest.mark.deadline(600)]

# Takes a name that it is not entitled to, and says so.
IMPOSTOR = """
import sys
open("/proc/self/comm", "w").write(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


def watchdog_of(server: int) -> int | None:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = (sysfs.read(entry) or "").split("\0")
        if "watchdog_process.py" in "".join(words[2:4]) and str(server) in words:
            return int(entry.parent.name)
    return None


async def kill_with_its_watchdog(server: asyncio.subprocess.Process | Fork) -> None:
    """As the end of a container does, or of a control group."""
    watchdog = await asyncio.to_thread(watchdog_of, server.pid)
    if watchdog is not None:
        os.kill(watchdog, 9)
    server.kill()
    await server.wait()


async def test_whoever_keeps_a_device_is_named_and_not_who_wants_it() -> None:
    async with command("memory:16M") as running:
        path = running.path
        holder = await asyncio.create_subprocess_shell(f"exec sleep 3600 < {path}")
        await becomes_true(lambda: os.path.exists(f"/proc/{holder.pid}/fd/0"))
        comm = Path(f"/proc/{holder.pid}/comm")
        await becomes_true(lambda: comm.read_text() == "sleep\n")
        running.process.kill()
        await running.process.wait()
    index = int(path.removeprefix("/dev/nbd"))
    await becomes_true(lambda: status.state(index) is status.DeviceState.DEAD)
    async with program("-m", "aiovblk", "mount", "memory:16M", path) as second:
        told = await second.rest()
        assert await second.end() == 1
    assert f"its server is gone, but it is still in use: opened by process {holder.pid}" in told
    assert "`aiovblk doctor --clean`" in told
    assert f"process {second.process.pid} " not in told
    holder.kill()
    await holder.wait()
    assert await becomes_free(path)


async def test_a_device_that_nobody_uses_nor_serves_is_freed_by_who_wants_it() -> None:
    async with command("memory:16M") as running:
        path = running.path
        await kill_with_its_watchdog(running.process)
    async with aiovblk.mounted(Disk(), path) as mount:
        assert mount.path == path
        await asyncio.to_thread(pwrite, path, 0, bytes(4096))


async def test_a_device_that_is_served_names_its_server() -> None:
    async with command("memory:16M") as running:
        with pytest.raises(aiovblk.DeviceBusyError) as caught:
            async with aiovblk.mounted(Disk(), running.path):
                pytest.fail("entered")
    assert caught.value.errno == errno.EBUSY
    name = Path(sys.executable).name
    (holder,) = caught.value.holders
    assert holder.startswith(f"served by process {running.process.pid} ({name[:6]}")
    assert await becomes_free(running.path)


async def test_a_process_that_calls_itself_a_receiver_of_the_kernels_is_none(attach: str) -> None:
    async with command("memory:16M") as running:
        path = running.path
        index = int(path.removeprefix("/dev/nbd"))
        assert status.count_receivers()[index] == 1
        async with program("-c", IMPOSTOR, f"u8:1+nbd{index}-recv") as impostor:
            assert await impostor.line() == "ready"
            assert status.count_receivers()[index] == 1
            await kill_with_its_watchdog(running.process)
            await becomes_true(lambda: not status.count_receivers()[index])
            if attach == "netlink":
                assert status.state(index) is status.DeviceState.DEAD
            async with aiovblk.mounted(Disk(), path):
                pass
