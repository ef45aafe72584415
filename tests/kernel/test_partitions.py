"""Partitions of a mounted device: what is there on entering, and what is left afterwards."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import aiovblk
from aiovblk.kernel import partitions

from .support import MIB, Disk, command, pattern, program, pwrite, sh

pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]


@pytest.fixture
async def disk() -> Disk:
    """A disk with two partitions."""
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"printf ',16M\\n,\\n' | sfdisk -q {mount.path}")
    return disk


def nodes(path: str) -> list[str]:
    return [path + suffix for suffix in ("p1", "p2") if os.path.exists(path + suffix)]


@pytest.mark.core
async def test_each_partition_can_be_opened_at_once(disk: Disk) -> None:
    async with aiovblk.mounted(disk, partitions=True) as mount:
        assert nodes(mount.path) == [f"{mount.path}p1", f"{mount.path}p2"]
        await asyncio.to_thread(pwrite, f"{mount.path}p2", 0, pattern(4096))
        assert disk.contents(17 * MIB, 4096) == pattern(4096)
    assert nodes(mount.path) == []


async def test_the_next_to_open_the_device_does_not_take_its_partitions_away(disk: Disk) -> None:
    for _ in range(10):
        async with aiovblk.mounted(disk) as mount:
            reads = len(disk.lengths["read"])
            os.close(await asyncio.to_thread(os.open, mount.path, os.O_RDONLY))
            assert len(disk.lengths["read"]) == reads  # or it would have been scanned again


@pytest.mark.parametrize("make_table", ["true", "echo 'label: gpt' | sfdisk -q"])
async def test_nobody_waits_for_partitions_that_are_not_declared(
    make_table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever waited would outlast this test.
    monkeypatch.setattr(sys.modules["aiovblk.mounting.partitions"], "PARTITIONS_TIMEOUT", 3600.0)
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"{make_table} {mount.path}")
    async with aiovblk.mounted(disk, partitions=True) as mount:
        assert nodes(mount.path) == []


@pytest.mark.core
async def test_a_table_that_cannot_be_read_is_told(disk: Disk) -> None:
    class Unreadable(Disk):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            raise OSError(errno.EIO, "the far end is gone")

    unreadable = Unreadable()
    with pytest.raises(aiovblk.AttachError, match=r"its partition table cannot be read: .*Input"):
        async with aiovblk.mounted(unreadable, partitions=True):
            pytest.fail("entered")
    assert unreadable.events[-2:] == ["flush", "unmount"]
    async with aiovblk.mounted(unreadable):  # without, that is nobody's concern
        pass


async def test_a_device_that_is_in_use_is_not_scanned_again(disk: Disk) -> None:
    async with aiovblk.mounted(Disk()) as mount:
        other = await asyncio.to_thread(os.open, mount.path, os.O_RDONLY | os.O_EXCL)
        wait = partitions.wait_for_nodes
        with pytest.raises(aiovblk.DeviceBusyError, match="opened by this process"):
            await asyncio.to_thread(wait, mount.index, mount.path, 0.1)
        os.close(other)
        await asyncio.to_thread(wait, mount.index, mount.path, 0.1)
    async with aiovblk.mounted(disk, mount.path):
        # As somebody's who was quicker than we: there is nothing left to scan.
        other = await asyncio.to_thread(os.open, f"{mount.path}p1", os.O_RDONLY | os.O_EXCL)
        await asyncio.to_thread(wait, mount.index, mount.path, 0.1)
        os.close(other)


@pytest.fixture
async def no_minors() -> AsyncIterator[None]:
    """The driver as `modprobe nbd max_part=0` loads it: nothing is scanned unasked."""
    await sh("modprobe -r nbd && modprobe nbd max_part=0")
    yield
    await sh("modprobe -r nbd && modprobe nbd nbds_max=64")


@pytest.mark.usefixtures("no_minors")
async def test_partitions_are_found_although_the_driver_has_no_minors_for_them() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"printf ',16M\\n,\\n' | sfdisk -q {mount.path}")
    async with aiovblk.mounted(disk, mount.path):
        assert nodes(mount.path) == []
    async with aiovblk.mounted(disk, mount.path, partitions=True):
        assert len(nodes(mount.path)) == 2
    assert nodes(mount.path) == []


@pytest.fixture
def image(disk: Disk, tmp_path: Path) -> Path:
    """The same in a file."""
    path = tmp_path / "image"
    path.write_bytes(disk.contents(0, MIB))
    os.truncate(path, disk.size)
    return path


async def test_the_command_waits_for_partitions(image: Path) -> None:
    async with command(f"file:{image}", "--partitions") as running:
        assert len(nodes(running.path)) == 2
        assert await running.end(signal.SIGTERM) == 0


async def test_a_node_that_does_not_appear_is_told_with_what_helps(image: Path) -> None:
    # As in a container: a /dev with what somebody has put there.
    script = (
        "mount -t tmpfs none /mnt && cp -a /dev/nbd0 /dev/null /dev/urandom /mnt &&"
        " mount --move /mnt /dev &&"
        f" exec {sys.executable} -m aiovblk mount file:{image} /dev/nbd0 --partitions"
        f" --attach {os.environ['ATTACH']}"
    )
    unshared = "import os, sys; os.execvp('unshare', ['unshare', '-m', 'sh', '-c', *sys.argv[1:]])"
    async with program("-c", unshared, script) as running:
        output = await running.rest()
        assert "nbd0: the device has a partition nbd0p1, but /dev/nbd0p1 does not appear" in output
        assert output.endswith("do not appear by themselves: `mknod /dev/nbd0p1 b 43 1`\n")
        assert await running.end() == 1
