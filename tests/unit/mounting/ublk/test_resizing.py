"""Resizing a ublk device, with a driver that can and with one that cannot."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator

import pytest

import aiovblk
from aiovblk import AttachError, DeviceBusyError
from aiovblk.events import EventStream, Resized

from ....support.fake_ublk import PAGE, FakeUblk, Op
from ....support.noting_disk import Disk
from ....support.ublk_disk import check_end


async def test_grow_and_shrink(ublk_kernel: FakeUblk, ublk_disk: Disk) -> None:
    async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
        events = mount.events()
        size = ublk_disk.size
        ublk_disk.content += bytes(size)
        await mount.resize(2 * ublk_disk.blocks)
        assert ublk_kernel.device.size == ublk_disk.size == 2 * size
        beyond = ublk_kernel.send(Op.READ, size, PAGE)
        assert await asyncio.wrap_future(beyond) == bytes(PAGE)
        await mount.resize(ublk_disk.blocks // 4)
        assert ublk_kernel.device.size == size // 2
        for op, error in ((Op.READ, errno.EINVAL), (Op.WRITE, errno.ENOSPC)):
            beyond = ublk_kernel.send(op, size, PAGE, bytes(PAGE))
            with pytest.raises(OSError, match="answer") as caught:
                await asyncio.wrap_future(beyond)
            assert caught.value.errno == error
        assert ublk_kernel.device.setting["read_ahead_kb"] == "4096"
        assert ublk_kernel.log.count("UPDATE_SIZE") == 2
        found = [event async for event in _until(events, 2)]
        assert [event.size for event in found] == [2 * size, size // 2]
    check_end(ublk_kernel)


async def _until(events: EventStream, count: int) -> AsyncIterator[Resized]:
    async for event in events:
        if isinstance(event, Resized):
            yield event
            count -= 1
            if not count:
                return


async def test_driver_that_cannot_resize_says_which_can(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    ublk_kernel.features = 0x1FE  # Linux 6.12
    blocks = ublk_disk.blocks
    async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
        for wanted in (2 * blocks, blocks // 2):
            with pytest.raises(OSError, match=r"that takes Linux 6\.16") as caught:
                await mount.resize(wanted)
            assert caught.value.errno == errno.EOPNOTSUPP
            assert ublk_disk.blocks == blocks
        assert "UPDATE_SIZE" not in ublk_kernel.log
    check_end(ublk_kernel)


async def test_resize_that_is_refused_changes_nothing(
    ublk_kernel: FakeUblk, ublk_disk: Disk
) -> None:
    blocks = ublk_disk.blocks
    async with aiovblk.mounted(ublk_disk, attach="ublk") as mount:
        ublk_kernel.failing["UPDATE_SIZE"] = errno.EINVAL
        with pytest.raises(OSError, match="UPDATE_SIZE: Invalid argument"):
            await mount.resize(2 * blocks)
        assert ublk_disk.blocks == blocks
        ublk_kernel.holder = True
        with pytest.raises(DeviceBusyError, match="cannot shrink"):
            await mount.resize(blocks // 2)
        assert ublk_disk.blocks == blocks
        ublk_kernel.holder = False
    with pytest.raises(AttachError, match="unmounted"):
        await mount.resize(blocks)
    check_end(ublk_kernel)
