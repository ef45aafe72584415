"""Programs whose device is lost: what they hold, what they read, and that it is free again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import aiovblk

from .support import (
    MIB,
    Disk,
    assert_stored_and_said_goodbye,
    becomes_free,
    leave_dirty_pages,
    pread,
    sh,
)

EIO = os.strerror(errno.EIO)


@contextlib.asynccontextmanager
async def held(image: Path) -> AsyncIterator[None]:
    """Reads of a `Gated` device wait for the length of the block."""
    hold = Path(f"{image}.hold")
    hold.touch()
    try:
        yield
    finally:
        hold.unlink()


async def logged(image: Path, event: str) -> None:
    await sh(f"tail -n +1 --retry -f {image}.log 2>/dev/null | grep -q -m1 {event}")


def reading(path: str) -> asyncio.Task[bytes]:
    return asyncio.create_task(asyncio.to_thread(pread, path, MIB, 4096))


async def assert_unreadable(path: str) -> None:
    """A lost device fails, until its size is taken away: then it ends before its first byte."""
    read = reading(path)
    await asyncio.wait([read])
    if read.exception() is None:
        assert read.result() == b""
    else:
        with pytest.raises(OSError, match=EIO):
            await read


async def assert_usable(path: str) -> None:
    assert await becomes_free(path)
    disk = Disk()
    async with aiovblk.mounted(disk, path):
        await leave_dirty_pages(path)
    assert_stored_and_said_goodbye(disk)
