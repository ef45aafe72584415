"""An unmount from outside, before a fake kernel: which disconnect it takes, and what is stored."""

from __future__ import annotations

import asyncio
import os

import pytest

from aiovblk.kernel import status, unmounting

from ...support.fake_kernel import FakeKernel
from ...support.kernel_tree import KernelTree
from ...support.noting_disk import Disk, How, begun, check_stored, ways_to_attach


@ways_to_attach
async def test_a_server_that_runs_unmounts_in_order_whichever_thread_attached_the_device(
    kernel: FakeKernel,
    tree: KernelTree,
    disk: Disk,
    how: How,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The tree shows no thread that has attached the device, as of one that was taken over."""
    tree.process(os.getpid(), "python")  # the owner of the lock
    task, mount = await begun(kernel, disk, how)
    assert status.server(mount.index) == (os.getpid(), "python")
    await asyncio.to_thread(unmounting.disconnect_gracefully, mount.path)
    await task
    assert kernel.log.index("claim") < kernel.log.index("sync") < kernel.log.index("disconnect")
    assert "cut off" not in caplog.text
    check_stored(kernel, disk)


async def test_a_device_without_a_process_is_disconnected_by_netlink_after_its_sync(
    kernel: FakeKernel, disk: Disk
) -> None:
    """As of nbd-client, which ends once it is connected: NBD_DISCONNECT would not free that."""
    task, mount = await begun(kernel, disk, "netlink")
    await asyncio.to_thread(unmounting.disconnect_gracefully, mount.path)
    await task
    assert "disconnect" not in kernel.log
    check_stored(kernel, disk)
