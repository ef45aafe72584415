"""The command `aiovblk`, with devices of its own and of other programs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .support import (
    DATA,
    DEVICES,
    MIB,
    Done,
    aiovblk,
    becomes_free,
    command,
    file_system,
    fio,
    leave_dirty_pages,
    program,
    sh,
    store,
    stored,
    unmount,
)

# The programs have loops of their own.
pytestmark = [pytest.mark.deadline(600), pytest.mark.one_loop, pytest.mark.newest_python]


def assert_refused(done: Done, *words: str) -> None:
    """A command must have failed with one line that holds these words."""
    assert done.status == 1, done.output
    assert done.output.startswith("aiovblk: "), done.output
    assert done.output.count("\n") == 1, done.output
    for word in words:
        assert word in done.output


async def make_partitions(path: str, *sizes: str) -> None:
    lines = "".join(f",{size}\\n" for size in sizes)
    await sh(f"printf '{lines}' | sfdisk -q {path} && blockdev --rereadpt {path}")


# mount


async def test_mount_takes_the_first_device_that_is_free() -> None:
    async with command("memory:64M") as first, command("memory:1.5M") as second:
        assert (first.path, second.path) == ("/dev/nbd0", "/dev/nbd1")
        sizes = await sh("blockdev --getsize64 /dev/nbd0 /dev/nbd1")
        assert sizes.output.split() == [str(64 * MIB), str(3 * MIB // 2)]
        assert await first.end(signal.SIGTERM) == 0
        async with command("memory:64M") as third:
            assert third.path == "/dev/nbd0"
            assert await third.end(signal.SIGINT) == 0
        assert await second.end(signal.SIGINT) == 0


async def test_a_device_that_is_served_is_refused_by_its_server() -> None:
    async with command("memory:1M", "/dev/nbd3") as running:
        refused = await aiovblk("mount", "memory:1M", "/dev/nbd3")
        assert_refused(refused, "/dev/nbd3", f"process {running.process.pid} ")
        assert await running.end(signal.SIGINT) == 0


async def test_a_path_that_is_no_nbd_device_is_refused(image: Path) -> None:
    loop = (await sh(f"losetup --find --show {image}")).output.strip()
    try:
        for path, words in {
            "/dev/null": "not a block device",
            loop: f"not an NBD device (the kernel calls it {Path(loop).name})",
            "/dev/nbd64": "/dev/nbd0 to /dev/nbd63",
        }.items():
            assert_refused(await aiovblk("mount", "memory:1M", path), f"{path}: ", words)
    finally:
        await sh(f"losetup --detach {loop}")


async def test_a_partition_is_refused_with_the_name_of_the_whole() -> None:
    async with command("memory:8M") as running:
        await make_partitions(running.path, "")
        part = f"{running.path}p1"
        for words in (["mount", "memory:1M", part], ["unmount", part]):
            assert_refused(await aiovblk(*words), f"use the whole device, {running.path}")
        assert await running.end(signal.SIGINT) == 0


USERS_MODULE = """
import asyncio
import aiovblk
from aiovblk.storage import MemoryDevice

class Disk(MemoryDevice):
    def __init__(self):
        super().__init__(2 << 20)
        self.running = self.most = 0

    async def read(self, offset, length):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.01)
        self.running -= 1
        return await super().read(offset, length)

    async def unmount(self):
        print(f"at most {self.most} at once", flush=True)

disk = Disk()

def make():
    return Disk()

async def make_later():
    await asyncio.sleep(0)
    return Disk()
"""


@pytest.fixture
def users_module(tmp_path: Path) -> Path:
    path = tmp_path / "users_module.py"
    path.write_text(USERS_MODULE)
    return path


@pytest.mark.parametrize("attribute", ["Disk", "disk", "make_later"])
async def test_an_attribute_of_a_file_is_served(attribute: str, users_module: Path) -> None:
    async with command(f"{users_module}:{attribute}") as running:
        assert (await sh(f"blockdev --getsize64 {running.path}")).output == f"{2 * MIB}\n"
        assert await running.end(signal.SIGINT) == 0


async def test_an_attribute_of_a_module_is_served(users_module: Path) -> None:
    path = str(users_module.parent)  # which an interpreter reads when it starts
    async with command("users_module:disk", fresh=True, PYTHONPATH=path) as running:
        assert (await sh(f"blockdev --getsize64 {running.path}")).output == f"{2 * MIB}\n"
        assert await running.end(signal.SIGINT) == 0


@pytest.mark.parametrize(("options", "most"), [([], 8), (["--concurrency", "1"], 1)])
async def test_concurrency_is_limited(options: list[str], most: int, users_module: Path) -> None:
    async with command(f"{users_module}:make", *options) as running:
        await fio(running.path, "--ioengine=libaio --iodepth=8 --rw=read --bs=4k --size=1M")
        assert await running.end(signal.SIGINT) == 0
        assert await running.rest() == f"at most {most} at once\n"


# The interpreter may lie in a folder of root's, so everything is imported before.
UNPRIVILEGED = """
import os, sys
import anyio._backends._asyncio
from aiovblk import cli
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
sys.exit(cli.main(sys.argv[1:]))
"""


async def unprivileged(*arguments: str) -> Done:
    async with program("-c", UNPRIVILEGED, *arguments) as running:
        output = await running.rest()
        return Done(await running.end(), output)


async def test_an_unprivileged_user_is_told_to_be_root() -> None:
    for path in ([], ["/dev/nbd2"]):
        assert_refused(await unprivileged("mount", "memory:1M", *path), "run as root")
    async with command("memory:1M") as running:
        assert_refused(await unprivileged("unmount", running.path), running.path, "root")
        assert await running.end(signal.SIGINT) == 0


# unmount


async def test_unmount_ends_the_server() -> None:
    async with command("memory:1M") as running:
        assert await unmount(running.path) == Done(0, "")
        assert (await running.end(), await running.rest()) == (0, "")
        assert_refused(await unmount(running.path), running.path, "not mounted")
        forced = await aiovblk("unmount", "--force", running.path)
        assert_refused(forced, running.path, "not mounted")


async def test_unmount_of_a_mounted_file_system_is_refused_then_forced(
    image: Path, tmp_path: Path
) -> None:
    async with (
        command(f"{DEVICES}:Image", IMAGE=str(image)) as running,
        file_system(running.path, tmp_path) as point,
    ):
        assert_refused(await unmount(running.path), f"mounted at {point}")
        await store(point)  # and it lives on
        forced = await aiovblk("unmount", "--force", running.path)
        # The server is done with it; but the index stays taken while the file system is mounted.
        assert_refused(forced, "disconnected, but its index stays taken", f"`umount {point}`")
        assert await running.end() == 0
        assert f"mounted at {point}" in await running.rest()
    assert await becomes_free(running.path)
    await sh(f"mount -o loop {image} {point}")
    try:
        assert await stored(point)
    finally:
        await sh(f"umount {point} && fsck.ext4 -fn {image}")


async def test_second_signal_forces_the_unmount_and_tells_what_keeps_the_index(
    image: Path, tmp_path: Path
) -> None:
    async with (
        command(f"{DEVICES}:Image", IMAGE=str(image)) as running,
        file_system(running.path, tmp_path) as point,
    ):
        running.process.send_signal(signal.SIGTERM)
        assert "still serving; signal again to force" in await running.line()
        assert await running.end(signal.SIGTERM) == 1
        assert f"its index stays taken until its file system is unmounted (`umount {point}`" in (
            await running.rest()
        )
    assert await becomes_free(running.path)


async def test_resize_of_a_mounted_file_extends_the_file(image: Path, tmp_path: Path) -> None:
    async with (
        command(f"file:{image}") as running,
        file_system(running.path, tmp_path) as point,
    ):
        assert await aiovblk("resize", running.path, "+16M") == Done(0, "")
        assert image.stat().st_size == 32 * MIB
        await sh(f"resize2fs {running.path}")
        await store(point)
        info = json.loads((await aiovblk("info", running.path, "--json")).output)
        assert (info["size"], info["kind"]) == (32 * MIB, "attached device")
        refused = await aiovblk("resize", running.path, "1M", "--shrink")
        assert_refused(refused, running.path, f"mounted at {point}")
        assert (await aiovblk("resize", running.path, "1M")).status == 2
        assert await stored(point)


UNMOUNT = """
import sys
from aiovblk import kernel
try:
    kernel.unmount(sys.argv[1], timeout=2)
except OSError as exc:
    print(exc, flush=True)
"""


@pytest.mark.core
@pytest.mark.slow
async def test_unmount_of_a_server_that_hangs_gives_up_then_is_forced(
    image: Path, attach: str
) -> None:
    options = ["--unmount-timeout", "8"]
    async with command(f"{DEVICES}:Hanging", *options, IMAGE=str(image)) as running:
        # By netlink the close of the node writes them back, and hangs until it is forced.
        leaving = asyncio.create_task(leave_dirty_pages(running.path))
        if attach == "ioctl":
            await leaving
        else:
            await sh(f"tail -n +1 --retry -f {image}.log 2>/dev/null | grep -q -m1 hanging")
        async with program("-c", UNMOUNT, running.path) as unmount:
            line = await unmount.line()
            assert line.startswith(f"{running.path}: not unmounted after 2 s"), line
            assert "--force" in line
            assert running.process.returncode is None
            assert await aiovblk("unmount", "--force", running.path) == Done(0, "")
            assert await unmount.end() == 0
        await leaving
        assert await running.end() == 1
        assert running.path in await running.rest()


@contextlib.asynccontextmanager
async def nbdkit(socket: Path) -> AsyncIterator[None]:
    """A server of other make, which listens when the block is entered."""
    process = await asyncio.create_subprocess_exec(
        *("nbdkit", "--foreground", "--unix", str(socket)),
        *("memory", "16M"),
    )
    try:
        await sh(f"until nbdinfo --size 'nbd+unix:///?socket={socket}' 2>/dev/null; do :; done")
        yield
    finally:
        process.kill()
        await process.wait()


async def test_unmount_of_a_device_of_nbd_client(tmp_path: Path) -> None:
    uri = f"'nbd+unix:///?socket={tmp_path}/socket'"
    async with nbdkit(tmp_path / "socket"):
        await sh(f"nbd-client -unix {tmp_path}/socket /dev/nbd4")
        try:
            await leave_dirty_pages("/dev/nbd4")
            assert_refused(await aiovblk("mount", "memory:1M", "/dev/nbd4"), "/dev/nbd4: ")
            (shown,) = json.loads((await aiovblk("list", "--json")).output)
            assert (shown["path"], shown["size"]) == ("/dev/nbd4", 16 * MIB)
            assert shown["used"] == []
            assert await unmount("/dev/nbd4") == Done(0, "")
        finally:
            await sh("nbd-client -d /dev/nbd4", ok=False)
        await sh(f"nbdcopy {uri} {tmp_path}/stored")
    assert (tmp_path / "stored").read_bytes()[:MIB] == DATA


# list


async def test_list_shows_who_serves_and_who_uses(tmp_path: Path) -> None:
    assert (await aiovblk("list")).output.split()[:3] == ["DEVICE", "SIZE", "BLOCK"]
    assert json.loads((await aiovblk("list", "--json")).output) == []
    beef = f"{Path(__file__).parents[2]}/examples/deadbeef.py:Deadbeef"
    async with command("memory:64M") as disk, command(beef) as read_only:
        await make_partitions(disk.path, "8M", "")
        async with file_system(f"{disk.path}p2", tmp_path) as point:
            first, second = json.loads((await aiovblk("list", "--json")).output)
            table = (await aiovblk("list")).output.splitlines()
        assert first == {
            "index": int(disk.path.removeprefix("/dev/nbd")),
            "path": disk.path,
            "size": 64 * MIB,
            "block_size": 4096,
            "read_only": False,
            "server_pid": disk.process.pid,
            "server_name": first["server_name"],
            "rotational": False,
            "flags": ["HAS_FLAGS", "SEND_TRIM", "SEND_WRITE_ZEROES"],
            "state": "alive",
            "identity": first["identity"],
            "in_flight": 0,
            "holders": [],
            "driver": "nbd",
            "owner": None,
            "partitions": [f"{disk.path}p1", f"{disk.path}p2"],
            "used": [f"mounted at {point}"],
        }
        assert first["server_name"].startswith("python")
        assert second["path"] == read_only.path
        assert (second["size"], second["block_size"]) == (4 * MIB, 1024)
        assert second["read_only"]
        assert (second["partitions"], second["used"]) == ([], [])
        assert len(table) == 3
        assert table[1].split()[:5] == [disk.path, "64M", "4096", "rw", str(disk.process.pid)]
        assert table[1].endswith(f"mounted at {point}")
        assert table[2].split()[:4] == [read_only.path, "4M", "1024", "ro"]
        assert await disk.end(signal.SIGINT) == 0
        assert await read_only.end(signal.SIGINT) == 0
