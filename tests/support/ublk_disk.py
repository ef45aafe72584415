"""What a device that is served by ublk leaves in the log of a fake driver."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import aiovblk
from aiovblk import Mount

from .fake_ublk import PAGE, FakeUblk
from .noting_disk import LAST, STORED, Disk
from .polling import until

BEGUN = ["ADD_DEV", "SET_PARAMS", "START_DEV", "live"]
GONE = ["STOP_DEV", "the queue is closed", "DEL_DEV_ASYNC", "free"]


@pytest.fixture
def ublk_disk(ublk_kernel: FakeUblk) -> Disk:
    return Disk(ublk_kernel)


async def begin(kernel: FakeUblk, disk: Disk, **options: Any) -> tuple[asyncio.Task[None], Mount]:
    """Mount in a task of its own, with a page in the kernel's cache."""
    live: asyncio.Future[Mount] = asyncio.get_running_loop().create_future()

    async def lead() -> None:
        async with aiovblk.mounted(disk, attach="ublk", **options) as mount:
            live.set_result(mount)
            await mount.wait()

    task = asyncio.create_task(lead())
    either: list[asyncio.Future[Any]] = [live, task]
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()  # it raises: it could not be mounted
    mount = await live
    kernel.write(3, b"cached")
    return task, mount


async def in_flight(mount: Mount, count: int) -> None:
    """Wait until so many requests have come and are not answered."""
    await until(lambda: mount.stats.in_flight >= count)


def check_end(kernel: FakeUblk) -> None:
    """Nothing is left, and the device's last two handlers were called after all else, once."""
    assert kernel.leaks() == [], kernel.leaks()
    assert kernel.log[-2:] == LAST, kernel.log
    assert kernel.log.count("unmount") == 1


def check_stored(kernel: FakeUblk, disk: Disk) -> None:
    """What a program wrote to page 3 has come to the disk before the device was stopped."""
    assert disk.content[3 * PAGE : 4 * PAGE] == b"cached".ljust(PAGE, b"\0")
    first = kernel.log.index("sync")
    assert kernel.log[first : first + 3] == STORED
    check_end(kernel)
