"""fio and file systems: the same on every loop and interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

import aiovblk

from .support import MIB, Disk, fio, sh

pytestmark = [pytest.mark.deadline(600), pytest.mark.newest_python]


async def test_fio_verifies_random_mixed_io_at_depth_32() -> None:
    disk = Disk()
    async with aiovblk.mounted(disk) as mount:
        await fio(
            mount.path,
            "--ioengine=libaio --iodepth=32 --rw=randrw --bsrange=4k-64k --verify=crc32c "
            "--verify_fatal=1 --size=32M --io_size=16M --randseed=7",
        )
        assert mount.stats.errors == 0
        assert mount.stats.writes > 100


@pytest.mark.parametrize(
    ("mkfs", "fsck", "size"),
    [
        ("mkfs.ext4 -q", "fsck.ext4 -fn", 64 * MIB),
        ("mkfs.xfs -q", "xfs_repair -n", 320 * MIB),
    ],
    ids=["ext4", "xfs"],
)
async def test_a_file_system_is_made_filled_checked_and_mounted_again(
    mkfs: str, fsck: str, size: int, tmp_path: Path
) -> None:
    disk = Disk(size)
    point = tmp_path / "mnt"
    point.mkdir()
    async with aiovblk.mounted(disk) as mount:
        await sh(f"{mkfs} {mount.path} && mount {mount.path} {point}")
        await sh(f"mkdir {point}/d && cp -r /usr/include/linux {point}/d && sync -f {point}")
        # One list of checksums, over a name that does not depend on where it is mounted.
        await sh(f"cd {point} && find d -type f | xargs sha256sum > {tmp_path}/sums")
        await sh(f"umount {point} && {fsck} {mount.path}")
    async with aiovblk.mounted(disk, mount.path) as mount:
        await sh(f"mount {mount.path} {point}")
        await sh(f"cd {point} && sha256sum --quiet -c {tmp_path}/sums && cd / && umount {point}")
        assert mount.stats.errors == 0
    assert disk.events[-2:] == ["flush", "unmount"]
