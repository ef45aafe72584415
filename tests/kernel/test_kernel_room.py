"""How the kernel is called: by whom, and what the ruder calls do."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import threading
from types import ModuleType
from typing import Any

import pytest

import aiovblk
from aiovblk.kernel import attachment, ioctl_attachment, netlink, node_user
from aiovblk.kernel.ioctl_attachment import IoctlAttachment

from .support import Disk, pattern, pread, pwrite

pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]


@pytest.mark.core
async def test_nothing_touches_the_node_in_the_loops_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop_thread = threading.get_ident()
    touched: list[tuple[str, int]] = []

    def record(module: ModuleType, name: str) -> None:
        original = getattr(module, name)

        def recorded(*arguments: Any, **options: Any) -> Any:
            touched.append((name, threading.get_ident()))
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, recorded)

    watching = True

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event == "open" and str(arguments[0]).startswith("/dev/nbd"):
            touched.append(("open", threading.get_ident()))

    sys.addaudithook(audit)
    record(attachment, "ioctl")
    record(node_user, "sync")
    record(ioctl_attachment, "ioctl")
    try:
        async with aiovblk.mounted(Disk()) as mount:
            await mount.resize(1024)
    finally:
        watching = False
    assert {"open", "ioctl", "sync"} == {name for name, _ in touched}
    assert loop_thread not in {thread for _, thread in touched}


async def test_netlink_disconnects_many_devices_at_once() -> None:
    disks = [Disk(1 << 20) for _ in range(4)]
    contexts = [aiovblk.mounted(disk) for disk in disks]
    mounts = [await context.__aenter__() for context in contexts]
    # Each call has a socket of its own, so none takes another's answer.
    await asyncio.gather(
        *(asyncio.to_thread(netlink.disconnect, mount.index, 30.0) for mount in mounts)
    )
    for mount in mounts:
        await mount.wait()
    for context in contexts:
        await context.__aexit__(None, None, None)
    assert [disk.events[-2:] for disk in disks] == [["flush", "unmount"]] * 4


@pytest.mark.core
async def test_netlink_refuses_an_unknown_index() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        await asyncio.to_thread(netlink.disconnect, 30000, 30.0)


@pytest.mark.core
async def test_a_kernel_that_does_not_let_go_is_rescued(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if NBD_DO_IT did not return before netlink was asked; the steps before it get a second.
    monkeypatch.setattr(sys.modules["aiovblk.mounting.unmounting"], "KERNEL_TIMEOUT", 1.0)
    asked = threading.Event()
    do_it, rescue = IoctlAttachment._do_it, IoctlAttachment.force_disconnect

    def do_it_and_stay(link: IoctlAttachment) -> int:
        result = do_it(link)
        asked.wait()
        return result

    def ask(link: IoctlAttachment) -> None:
        rescue(link)
        asked.set()

    monkeypatch.setattr(IoctlAttachment, "_do_it", do_it_and_stay)
    monkeypatch.setattr(IoctlAttachment, "force_disconnect", ask)
    async with aiovblk.mounted(Disk(), attach="ioctl"):
        assert not asked.is_set()
    assert asked.is_set()


@pytest.mark.core
async def test_two_programs_cannot_share_an_index() -> None:
    async with aiovblk.mounted(Disk()) as mount:
        with pytest.raises(aiovblk.DeviceBusyError, match="already attached, served by process"):
            await aiovblk.mount(Disk(), mount.path)
        data = pattern(4096)
        await asyncio.to_thread(pwrite, mount.path, 0, data)  # the first is none the worse
        assert await asyncio.to_thread(pread, mount.path, 0, 4096) == data


@pytest.mark.core
async def test_concurrent_mounts_get_devices_of_their_own() -> None:
    contexts = [aiovblk.mounted(Disk(1 << 20)) for _ in range(8)]
    mounts = await asyncio.gather(*(context.__aenter__() for context in contexts))
    try:
        assert len({mount.index for mount in mounts}) == 8
    finally:
        for context in contexts:
            await context.__aexit__(None, None, None)
