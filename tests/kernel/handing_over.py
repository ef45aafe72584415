"""A device that goes from one mount to another in this process, by either driver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from aiovblk import AttachError, Error, Mount

from .support import DATA, MIB, Disk, pread, pwrite


async def hand_over(
    surviving: Callable[..., AbstractAsyncContextManager[Mount]],
    check_alive: Callable[[Mount], None],
) -> Disk:
    """Refuse a handover twice, then do it, while a read and a write wait.

    Returns:
        What was served, after the second mount has ended.

    """
    disk = Disk()
    async with surviving(disk, unmount_timeout=1) as first:
        disk.gate.clear()
        reading = asyncio.ensure_future(asyncio.to_thread(pread, first.path, 0, MIB))
        await disk.arrived.wait()
        with pytest.raises(AttachError, match=r"does not hand it over: .*which is not"):
            async with surviving(Disk(MIB), replace=True):
                pass
        with pytest.raises(Error, match="handlers did not end within"):
            async with surviving(disk, replace=True):
                pass
        writing = asyncio.ensure_future(asyncio.to_thread(pwrite, first.path, MIB, DATA))
        disk.gate.set()
        async with surviving(disk, replace=True) as second:
            await first.wait()
            assert second.path == first.path
            assert await reading == bytes(MIB)
            assert await writing == MIB
            check_alive(second)
            await asyncio.to_thread(pwrite, second.path, 0, DATA)
    assert disk.contents(0, 2 * MIB) == DATA * 2
    assert disk.events[-2:] == ["flush", "unmount"]
    assert disk.events.count("unmount") == 2
    return disk
