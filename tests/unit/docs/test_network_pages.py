"""The Python blocks of the pages on servers, clients and TLS, run as they stand."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aiovblk
from aiovblk import tls
from aiovblk.storage import MemoryDevice

from ...support.bitmap_disk import BitmapDisk
from ...support.pages import all_blocks, blocks, run

pytestmark = pytest.mark.slow


async def test_device_of_the_readme_is_served_and_read(tmp_path: Path) -> None:
    printed: list[Any] = []
    block = blocks("README.md")[2].replace("/run/", f"{tmp_path}/")
    await run(block, aiovblk=aiovblk, device=MemoryDevice(1 << 20), print=printed.append)
    assert printed == [[f"nbd+unix:///disk?socket={tmp_path}/disk.sock"], bytes(4096)]


async def test_all_exports_are_served_until_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: asyncio.Queue[str] = asyncio.Queue()
    mains: list[Any] = []
    monkeypatch.setattr(asyncio, "run", mains.append)
    block = blocks("docs/how-to/serve.md")[0].replace("/run/", f"{tmp_path}/").replace("10809", "0")
    exec(block, {"print": printed.put_nowait})
    serving = asyncio.create_task(mains[0])
    uris = [await asyncio.wait_for(printed.get(), 60) for _ in range(6)]
    assert uris[0] == f"nbd+unix:///scratch?socket={tmp_path}/disks.sock"
    async with aiovblk.connect(uris[1]) as private, aiovblk.connect(uris[2]) as golden:
        await private.write(0, b"x" * 4096)
        assert (golden.read_only, golden.description) == (True, "do not touch")
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_remote_export_is_written_and_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    connect, device, mounts = aiovblk.connect, MemoryDevice(1 << 20), []

    async def mount(device: aiovblk.BlockDevice) -> None:
        mounts.append(device)

    async with aiovblk.serve(device, port=0) as server:

        def connect_here(uri: str, **options: Any) -> Any:
            assert uri == "nbd://server/scratch"
            return connect(server.uris[0], **options)

        monkeypatch.setattr(aiovblk, "connect", connect_here)
        monkeypatch.setattr(aiovblk, "mount", mount)
        await run(blocks("docs/how-to/connect.md")[0], aiovblk=aiovblk)
    assert isinstance(mounts[0], aiovblk.RemoteDevice)
    assert await device.read(0, 4096) == b"x" * 4096


async def test_dirty_bitmaps_of_a_server_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    disk, printed = BitmapDisk(1 << 20, "monday", "tuesday"), list[Any]()
    disk.mark("monday", 4096, 512)
    connect = aiovblk.connect
    async with aiovblk.serve(disk, port=0) as server:
        monkeypatch.setattr(
            aiovblk, "connect", lambda uri, **options: connect(server.uris[0], **options)
        )
        block = blocks("docs/how-to/connect.md")[1]
        await run(block, aiovblk=aiovblk, print=lambda *args: printed.append(args))
    assert printed == [(["monday", "tuesday"],), (4096, 512)]


@pytest.mark.deadline(120)
async def test_a_file_is_served_by_workers(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(8192))
    block = blocks("docs/how-to/workers.md")[3].replace("/run/", f"{tmp_path}/")
    block = block.replace("disk.img", f"{tmp_path}/disk.img").replace("...", "await use(server)")

    async def use(server: aiovblk.Server) -> None:
        async with aiovblk.connect(server.uris[0], connections=1) as remote:
            assert (remote.size, remote.multi_conn) == (8192, True)

    await run(block, aiovblk=aiovblk, use=use)


async def test_a_remote_export_leaves_its_server_when_it_is_unmounted() -> None:
    made: list[aiovblk.BlockDevice] = []

    @asynccontextmanager
    async def mounted(factory: Any, *, workers: int) -> AsyncIterator[None]:
        made.append(await factory())
        yield
        await made[0].unmount()

    async with aiovblk.serve(MemoryDevice(1 << 20), port=0) as server:
        here = SimpleNamespace(
            BlockDevice=aiovblk.BlockDevice,
            connect=lambda uri: aiovblk.connect(server.uris[0]),
            mounted=mounted,
        )
        block = blocks("docs/how-to/workers.md")[2].replace("...", "await read()")
        await run(block, aiovblk=here, read=lambda: made[0].read(0, 4096))
        with pytest.raises(OSError, match="closed"):
            await made[0].read(0, 4096)


def make_certificates(folder: Path) -> None:
    """Make certificates in a folder as the page on TLS does."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    version = subprocess.run([openssl, "version"], capture_output=True, text=True, check=True)
    if int(version.stdout.split()[1].split(".")[0]) < 3:
        pytest.skip("openssl 3 is not installed")
    (steps,) = [each.text for each in all_blocks("docs/how-to/tls.md") if each.language == "sh"]
    subprocess.run(["sh", "-e", "-c", steps], cwd=folder, capture_output=True, check=True)


@pytest.mark.deadline(120)
async def test_certificates_are_made_and_used(tmp_path: Path) -> None:
    await asyncio.to_thread(make_certificates, tmp_path)
    context = tls.server_context(tmp_path / "disks", verify_peer=True)
    async with aiovblk.serve(MemoryDevice(1 << 20), port=0, tls=context) as server:
        port = server.uris[0].rpartition(":")[2].strip("/")
        for host in "localhost", "127.0.0.1":
            uri = f"nbds://{host}:{port}/?tls-certificates={tmp_path}/me"
            async with aiovblk.connect(uri) as remote:
                assert remote.size == 1 << 20


def test_certificates_are_taken_from_a_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        tls, "server_context", lambda *args, **options: asked.append((args, options))
    )
    exec(blocks("docs/how-to/tls.md")[0], {})
    assert asked == [(("/etc/pki/disks",), {"verify_peer": True})]
