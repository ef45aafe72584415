"""Many devices, and one device many times."""

from __future__ import annotations

import asyncio
import signal

import anyio
import pytest

import aiovblk

from .support import (
    MIB,
    Disk,
    pattern,
    program,
    pwrite,
)

pytestmark = [pytest.mark.deadline(1800), pytest.mark.one_loop, pytest.mark.newest_python]


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
    # The other device keeps the watchdog, of which each mount would start one.
    async with (
        program("-c", READER, "/dev/nbd5") as reader,
        aiovblk.mounted(Disk(MIB), "/dev/nbd6"),
    ):
        for _ in range(200):
            disk = Disk(MIB)
            async with aiovblk.mounted(disk, "/dev/nbd5"):
                pass
            assert disk.events[-2:] == ["flush", "unmount"]
        assert reader.process.returncode is None
        await reader.end(signal.SIGKILL)
