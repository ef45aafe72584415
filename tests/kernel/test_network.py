"""The network server and the kernel: nbd-client attaches an export, and so does our own client."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import aiovblk

from .support import (
    MIB,
    Disk,
    becomes_free,
    command,
    file_system,
    fio,
    program,
    sh,
    store,
    stored,
)

pytestmark = [pytest.mark.deadline(600), pytest.mark.newest_python]


@asynccontextmanager
async def attached_by_nbd_client(socket: Path, path: str) -> AsyncIterator[None]:
    await sh(f"nbd-client -unix {socket} {path}")
    try:
        yield
    finally:
        # By netlink, which drops what is cached.
        await sh(f"blockdev --flushbufs {path} && nbd-client -d {path}")


@pytest.mark.parametrize("block_size", [512, 4096])
async def test_nbd_client_attaches_an_export(tmp_path: Path, block_size: int) -> None:
    disk, path = Disk(block_size=block_size), "/dev/nbd5"
    async with aiovblk.serve(disk, unix=tmp_path / "s") as server:
        async with attached_by_nbd_client(tmp_path / "s", path):
            # nbd-client does not ask for block sizes: its blocks have 512 bytes.
            described = await sh(f"blockdev --getsize64 --getss --getro {path}")
            assert described.output.split() == [str(64 * MIB), "512", "0"]
            await fio(
                path,
                "--ioengine=libaio --iodepth=32 --rw=randrw --bsrange=512-8k "
                "--blockalign=512 --verify=crc32c --verify_fatal=1 --size=4M --randseed=7",
            )
            async with file_system(path, tmp_path) as point:
                await store(point)
                assert await stored(point)
            await sh(f"fsck.ext4 -fn {path}")
            (connection,) = server.connections
            assert connection.stats.writes > 0
            assert connection.stats.errors == 0
        assert await becomes_free(path)
    assert disk.events[-2:] == ["flush", "unmount"]


async def test_remote_export_is_mounted_through_python(tmp_path: Path) -> None:
    disk = Disk()
    async with (
        aiovblk.serve(disk, unix=tmp_path / "s") as server,
        aiovblk.connect(server.uris[0]) as remote,
        aiovblk.mounted(remote) as mount,
    ):
        await fio(
            mount.path,
            "--ioengine=libaio --iodepth=32 --rw=randrw --bsrange=4k-64k --verify=crc32c "
            "--verify_fatal=1 --size=16M --io_size=8M --randseed=7",
        )
        async with file_system(mount.path, tmp_path) as point:
            await store(point)
            assert await stored(point)
        await sh(f"fsck.ext4 -fn {mount.path}")
        assert mount.stats.errors == 0
    assert disk.events[-2:] == ["flush", "unmount"]


@pytest.mark.one_loop
async def test_one_command_mounts_what_another_serves(tmp_path: Path) -> None:
    serve = ("-m", "aiovblk", "serve", "memory:16M", "--socket", str(tmp_path / "s"))
    async with program(*serve) as server:
        uri = (await server.line()).removeprefix("serving ")
        async with command(uri) as client:
            size = await sh(f"blockdev --getsize64 {client.path}")
            assert int(size.output) == 16 * MIB
            async with file_system(client.path, tmp_path) as point:
                await store(point)
                assert await stored(point)
            assert await client.end(signal.SIGTERM) == 0
        assert await server.end(signal.SIGTERM) == 0
        assert await server.rest() == ""
