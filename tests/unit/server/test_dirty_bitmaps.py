"""Dirty bitmaps over NBD: a server that offers them, and a client that reads them."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from aiovblk import BlockDevice, Export, RemoteDevice, connect
from aiovblk.bitmaps import DirtyExtent, SupportsDirtyBitmaps
from aiovblk.client import dialing
from aiovblk.protocol import ClientHandshake, ReplyMode
from aiovblk.server.exports import ExportSource
from aiovblk.storage import MemoryDevice
from tests.support.bitmap_disk import BitmapDisk, dirty_ranges
from tests.support.network_client import serve

SIZE = 1 << 20
PREFIX = "qemu:dirty-bitmap:"
A, B = f"{PREFIX}a", f"{PREFIX}b"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socket"


@pytest.fixture
def disk() -> BitmapDisk:
    disk = BitmapDisk(SIZE, "a", "b")
    disk.mark("a", 4096, 8192)
    disk.mark("a", 65536, 512)
    disk.mark("b", 512, 512)
    return disk


@asynccontextmanager
async def remote_of(
    served: ExportSource, path: Path, *contexts: str, **options: Any
) -> AsyncIterator[RemoteDevice]:
    async with (
        serve(served, unix=path),
        connect(f"nbd+unix:///?socket={path}", contexts=contexts, **options) as remote,
    ):
        yield remote


@pytest.fixture(params=[ReplyMode.STRUCTURED, ReplyMode.EXTENDED])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ReplyMode:
    """The forms of replies that have contexts: the most that the client asks for."""

    def handshake(*args: Any, **options: Any) -> ClientHandshake:
        return ClientHandshake(*args, mode=request.param, **options)

    monkeypatch.setattr(dialing, "ClientHandshake", handshake)
    found: ReplyMode = request.param
    return found


async def test_remote_device_has_the_bitmaps_that_were_selected(
    disk: BitmapDisk, path: Path, mode: ReplyMode
) -> None:
    async with remote_of(disk, path, PREFIX) as remote:
        assert isinstance(remote, SupportsDirtyBitmaps)
        assert remote.contexts == ("base:allocation", A, B)
        assert await remote.dirty_bitmaps() == ["a", "b"]
        extents = await remote.dirty_extents("a", 0, SIZE)
        assert dirty_ranges(extents) == [(4096, 8192), (65536, 512)]
        assert sum(extent.length for extent in extents) == SIZE
        assert dirty_ranges(await remote.dirty_extents("b", 0, SIZE)) == [(512, 512)]
        assert await remote.dirty_extents("a", 8192, 8192) == [(4096, True), (4096, False)]
        await remote.write(131072, bytes(1024))
        await remote.flush()
        assert (131072, 1024) in dirty_ranges(await remote.dirty_extents("b", 0, SIZE))
        assert [extent.length for extent in await remote.extents(0, SIZE)]


async def test_one_bitmap_alone(disk: BitmapDisk, path: Path, mode: ReplyMode) -> None:
    async with remote_of(disk, path, B, f"{PREFIX}other") as remote:
        assert await remote.dirty_bitmaps() == ["b"]
        assert dirty_ranges(await remote.dirty_extents("b", 0, SIZE)) == [(512, 512)]
        for name in ("a", "other"):
            with pytest.raises(KeyError):
                await remote.dirty_extents(name, 0, SIZE)


async def test_without_contexts_there_is_no_bitmap_and_the_device_is_not_asked(
    disk: BitmapDisk, path: Path
) -> None:
    async with remote_of(disk, path) as remote:
        assert await remote.dirty_bitmaps() == []
        assert (remote.contexts, remote.offered_contexts) == (("base:allocation",), None)
        await remote.extents(0, SIZE)
    assert disk.queries == []


async def test_any_context_can_be_queried_by_its_name(
    disk: BitmapDisk, path: Path, mode: ReplyMode
) -> None:
    async with remote_of(disk, path, A, list_contexts=True) as remote:
        assert remote.offered_contexts == ("base:allocation", A, B)
        assert await remote.block_status(A, 0, 16384) == [(4096, 0), (8192, 1), (4096, 0)]
        assert await remote.block_status("base:allocation", 0, 4096) == [(4096, 3)]
        with pytest.raises(KeyError):
            await remote.block_status(B, 0, 4096)


async def test_with_extended_headers_the_server_is_asked_for_one_context_only(
    disk: BitmapDisk, path: Path
) -> None:
    async with remote_of(disk, path, PREFIX) as remote:
        assert remote.info.flags.BLOCK_STAT_PAYLOAD in remote.info.flags
        await remote.dirty_extents("a", 0, 4096)
        await remote.extents(0, 4096)
    assert disk.queries == [("a", 0, 4096)]


@pytest.mark.parametrize("block_size", [512, 4096])
async def test_parts_of_blocks(path: Path, block_size: int) -> None:
    disk = BitmapDisk(SIZE, "a", block_size=block_size)
    disk.mark("a", 4096, 4096)
    async with remote_of(disk, path, A) as remote:
        assert await remote.dirty_extents("a", 4000, 200) == [(96, False), (104, True)]
        assert await remote.block_status(A, 8191, 2) == [(1, 1), (1, 0)]


async def test_device_of_single_bytes(path: Path) -> None:
    disk = BitmapDisk(SIZE, "a", block_size=1)
    disk.mark("a", 512, 512)
    async with remote_of(disk, path, A) as remote:
        assert dirty_ranges(await remote.dirty_extents("a", 0, 4096)) == [(512, 512)]


async def test_bitmap_that_disappears_while_in_use(
    disk: BitmapDisk, path: Path, mode: ReplyMode, caplog: pytest.LogCaptureFixture
) -> None:
    async with remote_of(disk, path, A, B) as remote:
        await remote.dirty_extents("a", 0, 4096)
        del disk.bitmaps["a"]
        with pytest.raises(KeyError):
            await remote.dirty_extents("a", 0, 4096)
        with pytest.raises(OSError, match="not supported") as caught:
            await remote.block_status(A, 0, 4096)
        assert caught.value.errno == errno.ENOTSUP
        await remote.write(0, bytes(512))  # the connection goes on
    assert "there is no dirty bitmap 'a' any more" in caplog.text
    assert "Traceback" not in caplog.text


async def test_bitmap_that_cannot_be_read(path: Path) -> None:
    class Broken(BitmapDisk):
        async def dirty_extents(self, name: str, offset: int, length: int) -> Sequence[DirtyExtent]:
            raise OSError(errno.ENOMEM, "not now")

    async with remote_of(Broken(SIZE, "a"), path, A) as remote:
        with pytest.raises(OSError, match="memory") as caught:
            await remote.dirty_extents("a", 0, 4096)
        assert caught.value.errno == errno.ENOMEM


async def test_bitmaps_that_cannot_be_listed_refuse_the_option_and_are_logged(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(BitmapDisk):
        async def dirty_bitmaps(self) -> Sequence[str]:
            raise OSError(errno.EIO, "the list is gone")

    uri = f"nbd+unix:///?socket={path}"
    async with serve(Broken(SIZE), unix=path):
        with pytest.raises(Exception, match="the dirty bitmaps of this export cannot be listed"):
            async with connect(uri, contexts=[A]):
                pass
        async with connect(uri) as remote:  # others are served
            assert remote.contexts == ("base:allocation",)
    assert re.search("listing its dirty bitmaps failed: .*the list is gone", caplog.text)
    assert "Traceback" not in caplog.text


async def test_each_client_of_a_factory_has_the_bitmaps_of_its_device(path: Path) -> None:
    made: list[BitmapDisk] = []

    async def make() -> BlockDevice:
        disk = BitmapDisk(SIZE, "a")
        disk.mark("a", len(made) * 512, 512)
        made.append(disk)
        return disk

    async with remote_of(make, path, A, connections=1) as remote:
        assert dirty_ranges(await remote.dirty_extents("a", 0, SIZE)) == [(0, 512)]
        async with connect(f"nbd+unix:///?socket={path}", contexts=[A]) as other:
            assert dirty_ranges(await other.dirty_extents("a", 0, SIZE)) == [(512, 512)]
    assert len(made) == 2  # one for each client, which its handshake has opened already


async def test_export_that_cannot_be_opened(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> BlockDevice:
        raise OSError(errno.EIO, "no disk")

    async with serve(fail, unix=path):
        with pytest.raises(Exception, match="cannot be listed"):
            async with connect(f"nbd+unix:///?socket={path}", contexts=[A]):
                pass
    assert "no disk" in caplog.text


async def test_served_again_a_remote_device_passes_its_bitmaps_on(
    disk: BitmapDisk, path: Path, tmp_path: Path
) -> None:
    async with (
        remote_of(disk, path, PREFIX) as remote,
        remote_of(remote, tmp_path / "again", A) as again,
    ):
        assert dirty_ranges(await again.dirty_extents("a", 0, SIZE)) == [
            (4096, 8192),
            (65536, 512),
        ]


async def test_device_without_bitmaps_offers_none(path: Path) -> None:
    async with remote_of(MemoryDevice(SIZE), path, PREFIX, A, list_contexts=True) as remote:
        assert remote.offered_contexts == remote.contexts == ("base:allocation",)


# Reconnect


async def test_reconnect_selects_the_same_contexts(disk: BitmapDisk, path: Path) -> None:
    uri = f"nbd+unix:///?socket={path}"
    async with serve(disk, unix=path):
        connecting = connect(uri, contexts=[PREFIX], reconnect=60.0, connections=1)
        remote = await connecting.__aenter__()
    disk.bitmaps = {"0": set(), **disk.bitmaps}
    async with serve(disk, unix=path):
        # By other ids than before.
        assert dirty_ranges(await remote.dirty_extents("b", 0, SIZE)) == [(512, 512)]
        assert dirty_ranges(await remote.dirty_extents("a", 0, SIZE))[0] == (4096, 8192)
        await connecting.__aexit__(None, None, None)


async def test_context_that_is_missing_after_a_reconnect_ends_the_session(
    disk: BitmapDisk, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    uri = f"nbd+unix:///?socket={path}"
    async with serve(disk, unix=path):
        connecting = connect(uri, contexts=[A, B], reconnect=60.0, connections=1)
        remote = await connecting.__aenter__()
    del disk.bitmaps["b"]
    async with serve(disk, unix=path):
        with pytest.raises(OSError, match=f"the server now lacks the metadata context {B}") as got:
            await remote.read(0, 512)
        assert got.value.errno == errno.ENOTCONN
        await connecting.__aexit__(None, None, None)


# Arguments


@pytest.mark.parametrize(
    ("contexts", "error", "why"),
    [
        (A, TypeError, "must be a sequence of names"),
        ([1], TypeError, "must be a str, not 1"),
        ([""], ValueError, "NAMESPACE:NAME"),
        (["allocation"], ValueError, "NAMESPACE:NAME"),
        (["x:" + "é" * 2048], ValueError, "at most 4096 bytes"),
        ([f"x:{number}" for number in range(65)], ValueError, "at most 64 can be selected"),
    ],
)
def test_invalid_contexts(contexts: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        connect("nbd://localhost", contexts=contexts)


class SyncNames(BitmapDisk):
    def dirty_bitmaps(self) -> Sequence[str]:  # type: ignore[override]  # on purpose
        return list(self.bitmaps)


class NoRange(BitmapDisk):
    async def dirty_extents(self, name: str) -> Sequence[DirtyExtent]:  # type: ignore[override]
        return []


@pytest.mark.one_loop
@pytest.mark.parametrize(
    ("device", "why"),
    [
        (SyncNames, r"SyncNames.dirty_bitmaps must be async def dirty_bitmaps\(self\)"),
        (NoRange, r"NoRange.dirty_extents must be async def dirty_extents\(self, name, offset"),
    ],
)
def test_methods_that_cannot_be_called_are_refused_before_a_client_comes(
    device: type[BitmapDisk], why: str
) -> None:
    for served in (device, device(SIZE)):
        with pytest.raises(TypeError, match=why):
            Export(served)
