"""Users of a device that no exclusive open finds, or that no mount table shows."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

import aiovblk
from aiovblk import DeviceBusyError

from .stacked_devices import loop_on, mapped
from .support import MIB, Disk, Done, becomes_true, command, file_system, sh, store, stored, unmount

# Processes that are started, and the kernel: which loop runs makes little difference.
pytestmark = [
    pytest.mark.one_loop,
    pytest.mark.newest_python,
    pytest.mark.deadline(600),
    pytest.mark.usefixtures("stacking_modules"),
]


@pytest.mark.parametrize("on_top", [loop_on, mapped])
async def test_a_file_system_on_a_device_on_top_is_refused_by_name_and_forced(
    on_top: contextlib.AbstractAsyncContextManager[str], tmp_path: Path
) -> None:
    disk = Disk()
    async with (
        aiovblk.mounted(disk) as mount,
        on_top(mount.path) as above,  # type: ignore[operator]
        file_system(above, tmp_path) as point,
    ):
        with pytest.raises(DeviceBusyError, match="in use: held by ") as caught:
            await mount.unmount()
        (holder,) = caught.value.holders
        assert holder.endswith(f"mounted at {point})")
        refused = await unmount(mount.path)
        assert (refused.status, holder in refused.output) == (1, True)
        with pytest.raises(DeviceBusyError, match="held by"):
            await mount.resize(mount.device.blocks // 2)
        await store(point)  # not synced; and the device lives on
        await mount.unmount(force=True)
    async with (
        aiovblk.mounted(disk, mount.path) as mount,
        on_top(mount.path) as above,  # type: ignore[operator]
    ):
        await sh(f"mount {above} {tmp_path}/mnt")
        assert await stored(tmp_path / "mnt")
        await sh(f"umount {tmp_path}/mnt")


@pytest.mark.core
async def test_a_loop_device_is_a_user_though_it_is_not_used() -> None:
    async with aiovblk.mounted(Disk()) as mount:
        async with loop_on(mount.path) as loop:
            name = loop.removeprefix("/dev/")
            with pytest.raises(DeviceBusyError, match=f"held by {name}$"):
                await mount.unmount()
        await mount.unmount()


async def test_a_loop_device_on_a_partition_is_a_user_of_the_device() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"printf ',,\\n' | sfdisk -q {mount.path}")
    async with aiovblk.mounted(disk, mount.path, partitions=True) as mount:
        async with loop_on(f"{mount.path}p1"):
            with pytest.raises(DeviceBusyError, match="held by loop"):
                await mount.unmount()
        await mount.unmount()


async def test_a_file_system_that_was_unmounted_lazily_is_not_taken_for_the_server(
    tmp_path: Path,
) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    async with command("memory:64M") as running:
        await sh(f"mkfs.ext4 -q {running.path} && mount {running.path} {point}")
        user = await asyncio.create_subprocess_exec("sleep", "3600", cwd=point)
        await sh(f"umount -l {point}")
        refused = await unmount(running.path)
        assert refused.status == 1
        assert "held by a file system (ext4) that is mounted nowhere to be seen" in refused.output
        assert f"process {running.process.pid} " not in refused.output
        user.kill()
        await user.wait()
        name = running.path.removeprefix("/dev/")
        await becomes_true(lambda: not Path(f"/sys/fs/ext4/{name}").exists())
        assert await unmount(running.path) == Done(0, "")
        assert await running.end() == 0


async def test_what_this_process_serves_a_device_by_is_no_user(tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    async with aiovblk.mounted(Disk(16 * MIB)) as mount:
        await sh(f"mkfs.ext4 -q {mount.path} && mount {mount.path} {point}")
        user = await asyncio.create_subprocess_exec("sleep", "3600", cwd=point)
        await sh(f"umount -l {point}")
        with pytest.raises(DeviceBusyError, match="umount -l") as caught:
            await mount.unmount()
        assert "opened by" not in str(caught.value)
        user.kill()
        await user.wait()
        name = mount.path.removeprefix("/dev/")
        await becomes_true(lambda: not Path(f"/sys/fs/ext4/{name}").exists())
