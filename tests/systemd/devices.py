"""Devices for the unit to serve."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import aiovblk

IMAGE = Path("/srv/disk.img")
GO = Path("/run/go")


class Held(aiovblk.BlockDevice):
    """Nothing can be read before there is a file."""

    blocks = 4096

    async def read(self, offset: int, length: int) -> bytes:
        while not GO.exists():  # noqa: ASYNC110 (another process makes it)
            await asyncio.sleep(0.05)
        return bytes(length)


class Image(aiovblk.BlockDevice):
    """A file that two processes may have open, as a device has to bear that is handed over."""

    def __init__(self) -> None:
        self._fd = os.open(IMAGE, os.O_RDWR)
        self.blocks = os.fstat(self._fd).st_size // self.block_size

    async def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    async def write(self, offset: int, data: memoryview) -> None:
        os.pwrite(self._fd, data, offset)

    async def flush(self) -> None:
        os.fdatasync(self._fd)

    async def unmount(self) -> None:
        os.close(self._fd)
