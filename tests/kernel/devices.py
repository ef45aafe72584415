"""Devices for programs that the tests start: `aiovblk mount tests/kernel/devices.py:NAME`."""

from __future__ import annotations

import asyncio
import os
import time

import aiovblk

SIZE = 16 * 1024 * 1024


class Image(aiovblk.BlockDevice):
    """A file, $IMAGE, and beside it a log, $IMAGE.log, of the last handlers."""

    blocks = SIZE // 4096

    def __init__(self) -> None:
        self.file = os.open(os.environ["IMAGE"], os.O_RDWR)

    async def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.file, length, offset)

    async def write(self, offset: int, data: memoryview) -> None:
        await asyncio.sleep(0)
        os.pwrite(self.file, data, offset)

    async def flush(self) -> None:
        self.log("flush")

    async def unmount(self) -> None:
        self.log("unmount")

    def log(self, event: str) -> None:
        with open(os.environ["IMAGE"] + ".log", "a") as log:
            log.write(event + "\n")


class Hanging(Image):
    """Never finishes a write."""

    async def write(self, offset: int, data: memoryview) -> None:
        self.log("hanging")
        await asyncio.get_running_loop().create_future()


async def make() -> Image:
    """What a SPEC may name as well: an async function."""
    return Image()


class Shared(Image):
    """The same file in every worker."""

    multi_conn = True


def wait_while(path: str) -> None:
    """Wait until the test removes a file, which is another process."""
    while os.path.exists(path):
        time.sleep(0.02)


class Gated(Image):
    """Lets reads wait for as long as there is a file $IMAGE.hold."""

    async def read(self, offset: int, length: int) -> bytes:
        hold = os.environ["IMAGE"] + ".hold"
        if os.path.exists(hold):
            self.log("held")
            await asyncio.to_thread(wait_while, hold)
        return await super().read(offset, length)
