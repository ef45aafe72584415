"""What udev does with a device, and that it is in nobody's way."""

from __future__ import annotations

import asyncio
import grp
import os
import pwd
import re
import stat
import subprocess
from functools import partial
from pathlib import Path
from typing import Literal

import pytest

import aiovblk
from aiovblk.kernel import sysfs
from aiovblk.storage import MemoryDevice

from .support import (
    IMAGE,
    NODE,
    ROOT,
    SIZE,
    as_user,
    attached,
    ensure_user,
    run,
    until,
)

Attach = Literal["ioctl", "netlink"]

ROUNDS = 30
UUID = "0b7a1fd0-6a31-4bd1-9d8a-9d1f6a7c1a10"


def formatted() -> MemoryDevice:
    """A disk with a file system, for blkid to find."""
    with open(IMAGE, "wb") as file:
        file.truncate(SIZE)
    run("mkfs.ext4", "-q", "-F", "-U", UUID, f"{IMAGE}")
    return filled(IMAGE.read_bytes())


def filled(content: bytes) -> MemoryDevice:
    device = MemoryDevice(len(content), block_size=512)  # as sfdisk takes a file's to be
    asyncio.run(device.write(0, memoryview(content)))
    return device


def touch(path: str) -> None:
    """Write to a device: when it is closed, udev probes it."""
    with open(path, "r+b") as file:
        file.write(bytes(512))


@pytest.mark.parametrize("attach", ["ioctl", "netlink"])
@pytest.mark.parametrize("path", [None, NODE])
def test_mounted_many_times_in_a_row_while_udev_probes(attach: Attach, path: str | None) -> None:
    async def rounds() -> None:
        for _ in range(ROUNDS):
            async with aiovblk.mounted(device, path, attach=attach) as mount:
                await asyncio.to_thread(touch, mount.path)

    device = formatted()
    asyncio.run(rounds())
    run("udevadm", "settle")
    assert attached() == []


@pytest.mark.parametrize("attach", ["ioctl", "netlink"])
def test_links_are_there_while_it_is_attached(attach: Attach) -> None:
    async def look() -> None:
        async with aiovblk.mounted(device, NODE, attach=attach):
            await asyncio.to_thread(until, link.exists, "the link")
            assert os.path.samefile(link, NODE)

    link = Path(f"/dev/disk/by-uuid/{UUID}")
    device = formatted()
    asyncio.run(look())
    until(lambda: not link.is_symlink(), "the link to go")


@pytest.mark.parametrize("attach", ["ioctl", "netlink"])
def test_partitions_and_their_links_appear(attach: Attach) -> None:
    async def look() -> None:
        async with aiovblk.mounted(device, NODE, attach=attach, partitions=True):
            assert stat.S_ISBLK(os.stat(f"{NODE}p1").st_mode)
            assert stat.S_ISBLK(os.stat(f"{NODE}p2").st_mode)
            await asyncio.to_thread(until, link.exists, "the link")
            assert os.path.samefile(link, f"{NODE}p2")

    with open(IMAGE, "wb") as file:
        file.truncate(SIZE)
    table = f"label: gpt\nsize=4MiB\nsize=4MiB, uuid={UUID}\n"
    subprocess.run(["sfdisk", "-q", IMAGE], input=table, text=True, check=True)
    link = Path(f"/dev/disk/by-partuuid/{UUID}")
    device = filled(IMAGE.read_bytes())
    asyncio.run(look())
    until(lambda: not link.is_symlink(), "the link to go")
    assert sysfs.partitions(3) == []


def test_rules_of_the_documentation() -> None:
    async def look() -> None:
        async with aiovblk.mounted(device, NODE), aiovblk.mounted(device, "/dev/nbd0"):
            await asyncio.to_thread(run, "udevadm", "settle")
            assert owner(NODE) == ("root:vdisk3", 0o660)
            assert owner("/dev/nbd0") == ("root:vdisk", 0o660)
            for user, theirs, others in (
                ("bob", "/dev/nbd0", NODE),
                ("alice", NODE, "/dev/nbd0"),
            ):
                dd = [*as_user(user), "dd", "of=/dev/null", "count=1"]
                await asyncio.to_thread(run, *dd, f"if={theirs}")
                output = await asyncio.to_thread(partial(run, *dd, f"if={others}", status=1))
                assert "Permission denied" in output

    def owner(path: str) -> tuple[str, int]:
        status = os.stat(path)
        name = pwd.getpwuid(status.st_uid).pw_name
        return f"{name}:{grp.getgrgid(status.st_gid).gr_name}", stat.S_IMODE(status.st_mode)

    text = (ROOT / "docs" / "how-to" / "udev.md").read_text()
    rules = re.search(r"```\n(SUBSYSTEM.*?)```", text, re.DOTALL)
    assert rules
    ensure_user("alice")
    ensure_user("bob")
    Path("/etc/udev/rules.d/60-nbd.rules").write_text(rules[1])
    for command in re.findall(r"^# ((?:groupadd|usermod|udevadm) .*)", text, re.MULTILINE):
        run("sh", "-c", command)
    device = formatted()
    asyncio.run(look())
