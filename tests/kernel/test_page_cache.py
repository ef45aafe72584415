"""What was written below the page cache of a node is what the next program reads from the node."""

from __future__ import annotations

import asyncio
import os

import pytest

import aiovblk
from aiovblk.kernel import sysfs

from .stacked_devices import mapped
from .support import Disk, becomes_true, command, pattern, pread, pwrite, sh

# Processes that are started, and the kernel: which loop runs makes little difference.
pytestmark = [
    pytest.mark.one_loop,
    pytest.mark.newest_python,
    pytest.mark.deadline(600),
    pytest.mark.usefixtures("stacking_modules"),
]

SOMETHING, ELSE = pattern(4096, 1), pattern(4096, 2)


async def read(path: str) -> bytes:
    return await asyncio.to_thread(pread, path, 0, 4096, direct=False)


async def write_below(path: str, data: bytes) -> None:
    async with mapped(path) as above:
        await asyncio.to_thread(pwrite, above, 0, data)


async def test_the_look_for_partitions_leaves_nothing_in_the_cache() -> None:
    async with aiovblk.mounted(Disk()) as mount:
        await write_below(mount.path, SOMETHING)
        assert await read(mount.path) == SOMETHING


async def test_a_table_that_was_waited_for_does_not_either() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"printf ',,\\n' | sfdisk -q {mount.path}")
    async with aiovblk.mounted(disk, mount.path, partitions=True) as mount:
        await write_below(mount.path, SOMETHING)
        assert await read(mount.path) == SOMETHING


async def test_what_a_program_has_read_is_dropped_when_it_closes_the_node(attach: str) -> None:
    async with aiovblk.mounted(Disk()) as mount:
        for data in (SOMETHING, ELSE):
            await read(mount.path)
            await write_below(mount.path, data)
            if attach == "ioctl":  # the thread in NBD_DO_IT has the node open
                await sh(f"blockdev --flushbufs {mount.path}")
            assert await read(mount.path) == data


async def test_what_a_program_has_written_is_sent_when_it_closes_the_node(attach: str) -> None:
    if attach == "ioctl":
        pytest.skip("the thread in NBD_DO_IT has the node open")
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await asyncio.to_thread(pwrite, mount.path, 0, SOMETHING, direct=False)
        assert disk.contents(0, 4096) == SOMETHING


async def test_no_descriptor_of_a_netlink_device_is_kept_and_no_close_disconnects_it(
    attach: str,
) -> None:
    async with command("memory:16M") as running:
        folder = f"/proc/{running.process.pid}/fd"
        links = [os.readlink(entry.path) for entry in os.scandir(folder)]
        assert links.count(running.path) == (attach == "ioctl")
        for _ in range(3):
            await sh(f"exec < {running.path}")
        assert await read(running.path) == bytes(4096)
        running.process.kill()
        index = int(running.path.removeprefix("/dev/nbd"))
        await becomes_true(lambda: sysfs.is_free(index))
