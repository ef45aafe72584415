"""Handlers that take too long: for us (`handler_timeout`), and for the kernel (`timeout`)."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
from pathlib import Path

import pytest

import aiovblk

from .support import DEVICES, MIB, Disk, becomes_free, command, pread, pwrite, sh

pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop]


class Hanging(Disk):
    """Never finishes what begins at a mebibyte."""

    cancelled = 0

    async def hang_at(self, offset: int) -> None:
        if offset == MIB:
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.cancelled += 1

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        await self.hang_at(offset)
        return await super().read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        await self.hang_at(offset)
        await super().write(offset, data)


@pytest.mark.core
async def test_a_handler_that_outlasts_its_timeout_fails_one_request() -> None:
    disk = Hanging()
    async with aiovblk.mounted(disk, handler_timeout=1) as mount:
        dd = f"LC_ALL=C dd if={mount.path} of=/dev/null bs=4k count=1 iflag=direct skip="
        failed = await sh(f"{dd}256", ok=False)
        assert failed.status == 1
        assert "Input/output error" in failed.output
        await sh(f"{dd}0")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await asyncio.to_thread(pwrite, mount.path, MIB, bytes(4096))
        await asyncio.to_thread(pwrite, mount.path, 0, bytes(4096))
        assert (disk.cancelled, mount.stats.errors) == (2, 2)


@pytest.mark.core
@pytest.mark.slow
async def test_a_handler_that_outlasts_the_kernels_timeout_ends_the_device(attach: str) -> None:
    disk = Hanging()
    with pytest.raises(aiovblk.AttachError, match="connection was lost"):
        async with aiovblk.mounted(disk, timeout=1, unmount_timeout=2) as mount:
            await asyncio.to_thread(pwrite, mount.path, 0, bytes(4096))
            reading = asyncio.create_task(asyncio.to_thread(pread, mount.path, MIB, 4096))
            await mount.wait()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        await reading
    # By netlink it is called once more, on another connection.
    assert disk.cancelled == (2 if attach == "netlink" else 1)
    assert disk.events == ["flush", "unmount"]


async def test_a_handler_timeout_comes_before_the_kernels() -> None:
    async with aiovblk.mounted(Hanging(), handler_timeout=0.5, timeout=20) as mount:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await asyncio.to_thread(pread, mount.path, MIB, 4096)
        assert await asyncio.to_thread(pread, mount.path, 0, 4096) == bytes(4096)


async def test_the_command_fails_what_takes_too_long_and_tells_of_it(image: Path) -> None:
    options = ("--handler-timeout=2", "--slow-request=1")
    async with command(f"{DEVICES}:Hanging", *options, IMAGE=str(image)) as running:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await asyncio.to_thread(pwrite, running.path, 0, bytes(4096))
        line = await running.line()
        slow = r"aiovblk: slow: write of 4096 bytes at 0 has been running for (\S+) s"
        assert (told := re.fullmatch(slow, line)) is not None
        assert 1 <= float(told[1]) < 2
        assert await running.line() == (
            f"aiovblk: {running.path} (Hanging): WRITE at 0, 4096 bytes, failed: not done in 2.0 s"
            " (handler_timeout)"
        )
        assert await running.end(signal.SIGTERM) == 0


async def test_the_command_ends_with_the_kernels_timeout(image: Path) -> None:
    options = ("--timeout=1", "--unmount-timeout=2")
    async with command(f"{DEVICES}:Hanging", *options, IMAGE=str(image)) as running:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            await asyncio.to_thread(pwrite, running.path, 0, bytes(4096))
        assert "the kernel's connection was lost" in await running.rest()
        assert await running.end() == 1
        assert await becomes_free(running.path)
