"""A disk that notes its calls in the log of a fake kernel, and what an unmount must leave there."""

from __future__ import annotations

import asyncio
import errno
from typing import Literal, Protocol

import pytest

import aiovblk
from aiovblk import BlockDevice, Mount

from .fake_kernel import PAGE, FakeKernel

How = Literal["ioctl", "netlink"]

ways_to_attach = pytest.mark.parametrize("how", ["ioctl", "netlink"])

STORED = ["sync", "write", "flush"]
LAST = ["flush", "unmount"]


class Noting(Protocol):
    """A fake kernel with a log."""

    def note(self, what: str) -> None:
        """Add to the log."""


class Disk(BlockDevice):
    """A disk whose handlers note their calls in the kernel's log.

    Attributes:
        hanging, failing: the names of handlers that do.
        gate: what reads wait for.

    """

    blocks = 16

    def __init__(self, kernel: Noting) -> None:
        self.note = kernel.note
        self.content = bytearray(self.size)
        self.hanging: set[str] = set()
        self.failing: set[str] = set()
        self.gate: asyncio.Future[None] | None = None

    async def _do(self, what: str) -> None:
        self.note(what)
        if what in self.hanging:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)
        if what in self.failing:
            raise OSError(errno.ENOSPC, "No space left on device")

    async def read(self, offset: int, length: int) -> bytes:
        if self.gate is not None:
            self.note("read")
            await self.gate
        return bytes(self.content[offset : offset + length])

    async def write(self, offset: int, data: memoryview) -> None:
        await self._do("write")
        self.content[offset : offset + len(data)] = data

    async def flush(self) -> None:
        await self._do("flush")

    async def unmount(self) -> None:
        await self._do("unmount")


@pytest.fixture
def disk(kernel: FakeKernel) -> Disk:
    return Disk(kernel)


def check_end(kernel: FakeKernel) -> None:
    """The device is free, and its last two handlers were called after all else, once."""
    assert kernel.is_free
    assert kernel.log[-2:] == LAST
    assert kernel.log.count("unmount") == 1


def check_stored(kernel: FakeKernel, disk: Disk) -> None:
    """What a program wrote to page 3 has come to the disk before the disconnect."""
    assert disk.content[3 * PAGE : 4 * PAGE] == b"cached".ljust(PAGE, b"\0")
    first = kernel.log.index("sync")
    assert kernel.log[first : first + 3] == STORED
    check_end(kernel)


def check_given_up(kernel: FakeKernel) -> None:
    """The device's handlers have been called at the end, once, whatever the kernel did."""
    assert [each for each in kernel.log if each in LAST][-2:] == LAST
    assert kernel.log.count("unmount") == 1


async def begun(kernel: FakeKernel, disk: Disk, how: How) -> tuple[asyncio.Task[None], Mount]:
    """A mount in a task of its own."""
    live: asyncio.Future[Mount] = asyncio.get_running_loop().create_future()

    async def lead() -> None:
        async with aiovblk.mounted(disk, attach=how) as mount:
            live.set_result(mount)
            await mount.wait()

    task = asyncio.create_task(lead())
    mount = await live
    kernel.write(3, b"cached")
    return task, mount
