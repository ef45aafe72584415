"""Full disks: a request without room fails with ENOSPC at once, and accepted writes stay."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import get_args

import pytest
from obstore.store import LocalStore

import aiovblk
from aiovblk.storage import Cache, FileDevice, MemoryDevice, Overlay
from aiovblk.storage.cache import Policy
from aiovblk.storage.objects import (
    Limits,
    ObjectStoreClient,
    ObjectStoreDevice,
    create,
)

from ...support.object_store import CHUNK, SIZE
from ...support.power_failure import BLOCK, VolatileDisk, pattern, survival

MIB = 1 << 20
PAGE = 4096
PAGES = 8
OVERLAY = PAGES * PAGE * BLOCK


class Full(VolatileDisk):
    """A sparse disk whose file system has room for a number of blocks more."""

    def __init__(self, size: int, room: int) -> None:
        super().__init__(size)
        self.room = room
        self.allocated: set[int] = set()

    async def _change(self, name: str, offset: int, length: int) -> None:
        blocks = set(range(offset // BLOCK, (offset + length) // BLOCK))
        if name in ("write", "allocate"):
            new = blocks - self.allocated
            if len(new) > self.room:
                raise OSError(errno.ENOSPC, "full")
            self.room -= len(new)
            self.allocated |= new
        else:
            self.room += len(blocks & self.allocated)
            self.allocated -= blocks
        await super()._change(name, offset, length)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2M", "none", os.fspath(path)]
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("a file system to fill up needs root")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    yield path
    subprocess.run(["umount", "-l", os.fspath(path)], check=True)


def places() -> Iterator[int]:
    """Blocks to write to: each the first in a page of the map, then the others."""
    for first in count(0):
        yield from range(first, PAGES * PAGE, PAGE)


async def fill_up(
    device: aiovblk.BlockDevice, offset_of: Callable[[int], int], length: int
) -> list[int]:
    """Write until the disk is full; return the blocks that were accepted."""
    accepted: list[int] = []
    for number in places():
        data = memoryview(pattern(number) * (length // BLOCK))
        try:
            await device.write(offset_of(number), data)
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            return accepted
        accepted.append(number)
    raise AssertionError


# Overlays


async def make_overlay(room: int) -> tuple[Overlay, Full]:
    base = MemoryDevice(OVERLAY, block_size=BLOCK)
    diff = Full(Overlay.diff_size(base), 8)
    overlay = await Overlay.create(base, diff)
    diff.room = room
    return overlay, diff


@pytest.mark.parametrize("room", range(0, 80, 3))
async def test_writes_of_an_overlay_before_its_disk_was_full_survive(room: int) -> None:
    overlay, diff = await make_overlay(room)
    accepted = await fill_up(overlay, lambda number: number * BLOCK, BLOCK)
    assert diff.room < 9
    await overlay.flush()
    found = diff.after_crash(survival(0))
    overlay = await Overlay.open(MemoryDevice(OVERLAY, block_size=BLOCK), found)
    for number in accepted:
        assert bytes(await overlay.read(number * BLOCK, BLOCK)) == pattern(number)
    # Refused writes have changed nothing.
    refused = next(islice(places(), len(accepted), None))
    assert bytes(await overlay.read(refused * BLOCK, BLOCK)) == bytes(BLOCK)


async def test_full_overlay_can_be_trimmed_and_written_again() -> None:
    overlay, diff = await make_overlay(20)
    accepted = await fill_up(overlay, lambda number: number * BLOCK, BLOCK)
    with pytest.raises(OSError, match="full"):
        await overlay.write_zeroes(0, OVERLAY, may_trim=True)
    await overlay.trim(0, OVERLAY)  # most pages of the map have no room, and need none
    assert diff.room >= len(accepted)
    await overlay.flush()
    for number in accepted:
        assert bytes(await overlay.read(number * BLOCK, BLOCK)) == bytes(BLOCK)
    assert await fill_up(overlay, lambda number: number * BLOCK, BLOCK) == accepted


async def test_pages_of_a_stored_map_are_not_allocated_again() -> None:
    """That would overwrite it with zeroes."""
    overlay, diff = await make_overlay(100)
    await overlay.write(0, memoryview(pattern(0)))
    await overlay.flush()
    overlay = await Overlay.open(MemoryDevice(OVERLAY, block_size=BLOCK), diff)
    diff.requests.clear()
    await overlay.write(BLOCK, memoryview(pattern(1)))
    await overlay.write(PAGE * BLOCK, memoryview(pattern(2)))
    assert [request for request in diff.requests if request[0] == "allocate"] == [
        ("allocate", 2 * PAGE, PAGE)
    ]
    assert bytes(await overlay.read(0, 2 * BLOCK)) == pattern(0) + pattern(1)


async def test_writes_to_one_page_of_the_map_allocate_it_once() -> None:
    overlay, diff = await make_overlay(100)
    await asyncio.gather(
        *(overlay.write(at * BLOCK, memoryview(pattern(at))) for at in range(8)),
        overlay.flush(),
    )
    assert [request[0] for request in diff.requests].count("allocate") == 1
    await overlay.flush()
    overlay = await Overlay.open(
        MemoryDevice(OVERLAY, block_size=BLOCK), diff.after_crash(survival(0))
    )
    assert bytes(await overlay.read(0, 8 * BLOCK)) == b"".join(map(pattern, range(8)))


async def test_overlay_on_a_file_system_that_fills_up(small: Path) -> None:
    size = PAGES * PAGE * PAGE
    overlay = await Overlay.file(MemoryDevice(size), small / "diff")
    accepted = await fill_up(overlay, lambda number: number * PAGE, PAGE)
    assert len(accepted) > 40
    await overlay.flush()
    await overlay.unmount()
    overlay = await Overlay.file(MemoryDevice(size), small / "diff")
    for number in accepted:
        assert bytes(await overlay.read(number * PAGE, PAGE)) == pattern(number) * (PAGE // BLOCK)
    await overlay.unmount()


# Files


async def test_file_on_a_file_system_that_fills_up(small: Path) -> None:
    device = FileDevice.create(small / "disk", 1 << 30)
    accepted = await fill_up(device, lambda number: number * PAGE, PAGE)
    assert len(accepted) > 400
    await device.flush()
    for number in accepted:
        data = bytes(await device.read(number * PAGE, PAGE))
        assert data == pattern(number) * (PAGE // BLOCK)
    await device.trim(0, 1 << 30)
    await device.write(0, memoryview(b"a" * PAGE))
    await device.unmount()


async def test_short_write_on_a_full_disk_is_enospc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FileDevice.create(tmp_path / "disk", MIB)
    pwrite = os.pwrite

    def half(fd: int, data: memoryview, offset: int) -> int:
        if offset:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data[:512], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        with pytest.raises(OSError, match="full") as caught:
            await device.write(0, memoryview(b"a" * PAGE))
    assert caught.value.errno == errno.ENOSPC
    await device.write(0, memoryview(b"b" * PAGE))
    await device.flush()
    assert await device.read(0, PAGE) == b"b" * PAGE
    await device.unmount()


# Caches


class FullStore(MemoryDevice):
    """A store with room for the header and a few lines."""

    left = 4

    async def write(self, offset: int, data: memoryview) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "full")
        await super().write(offset, data)


async def test_cache_whose_store_is_full_loses_no_data_and_fails_no_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for policy in get_args(Policy):
        inner, store = MemoryDevice(MIB), FullStore(MIB)
        cache = Cache(inner, store, line_size=PAGE, policy=policy, identity="x")
        for number in range(16):
            await cache.write(number * PAGE, memoryview(bytes([number]) * PAGE))
        await cache.flush()
        for number in range(16):
            assert bytes(await cache.read(number * PAGE, PAGE)) == bytes([number]) * PAGE
            assert bytes(await inner.read(number * PAGE, PAGE)) == bytes([number]) * PAGE
        await cache.unmount()
        assert "caching has stopped, because the store has failed" in caplog.text
        store.left = 1000
        again = Cache(inner, store, line_size=PAGE, identity="x")
        await again.read(0, PAGE)
        assert again.stats.hits == 0
        await again.unmount()


async def test_blank_store_on_a_full_disk_stops_caching(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = FullStore(MIB)
    store.left = 0
    cache = Cache(MemoryDevice(MIB), store, line_size=PAGE, identity="x")
    await cache.write(0, memoryview(b"a" * PAGE))
    assert await cache.read(0, PAGE) == b"a" * PAGE
    assert "caching has stopped, because the store has failed: [Errno 28]" in caplog.text
    await cache.unmount()
    assert await store.read(0, MIB) == bytes(MIB)


async def test_store_that_cannot_be_marked_as_in_use_fails_requests() -> None:
    """Otherwise it would be stale, and be used at the next start."""
    store = FullStore(MIB)
    store.left = 1000
    await Cache(MemoryDevice(MIB), store, line_size=PAGE, identity="x").unmount()
    cache = Cache(MemoryDevice(MIB), store, line_size=PAGE, identity="x")
    await cache.read(0, PAGE)
    await cache.unmount()
    store.left = 0
    cache = Cache(MemoryDevice(MIB), store, line_size=PAGE, identity="x")
    with pytest.raises(OSError, match="full"):
        await cache.write(0, memoryview(b"a" * PAGE))


# Folders


def no_room(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let every write() to a file fail; return the calls."""
    calls: list[int] = []

    def write(fd: int, data: memoryview) -> int:
        calls.append(fd)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("aiovblk.storage.objects.folder.os.write", write)
    return calls


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
async def test_error_of_a_folder_is_raised_unchanged_and_not_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    client = ObjectStoreClient(LocalStore(tmp_path))
    with monkeypatch.context() as patch:
        calls = no_room(patch, number)
        for request in (client.put, client.create):
            with pytest.raises(OSError, match="a/b: ") as caught:
                await request("a/b", b"data")
            assert caught.value.errno == number
    assert len(calls) == 2
    assert [each.name for each in tmp_path.rglob("*")] == ["a"]
    await client.create("a/b", b"data")


async def test_error_of_the_package_for_a_folder_is_not_retried(tmp_path: Path) -> None:
    client = ObjectStoreClient(LocalStore(tmp_path), patience=3600)
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a: Is a directory") as caught:
        await client.delete(["a"])
    assert caught.value.errno == errno.EISDIR
    with pytest.raises(FileNotFoundError, match="a: Object at location"):
        await client.get("a")


async def test_client_of_a_disk_in_a_full_folder_gets_enospc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    await create(store, "disk", size=SIZE, chunk_size=CHUNK)
    limits = Limits(unstored=2 * CHUNK)
    device = await ObjectStoreDevice.open(store, "disk", limits=limits)
    async with (
        aiovblk.serve({"": device}, unix=tmp_path / "socket"),
        aiovblk.connect(f"nbd+unix:///?socket={tmp_path}/socket") as remote,
    ):
        with monkeypatch.context() as patch:
            no_room(patch, errno.ENOSPC)
            with pytest.raises(OSError, match="No space") as caught:
                for index in range(8):
                    await remote.write(index * CHUNK, memoryview(b"a" * 2 * PAGE))
            assert caught.value.errno == errno.ENOSPC
            with pytest.raises(OSError, match="No space") as caught:
                await remote.flush()
            assert caught.value.errno == errno.ENOSPC
        await remote.flush()
        await remote.write(7 * CHUNK, memoryview(b"b" * PAGE))
    device = await ObjectStoreDevice.open(store, "disk", read_only=True)
    assert await device.read(0, PAGE) == b"a" * PAGE
    assert await device.read(7 * CHUNK, PAGE) == b"b" * PAGE
    await device.unmount()


async def test_disk_in_a_folder_on_a_file_system_that_fills_up(small: Path) -> None:
    store = LocalStore(small)
    await create(store, "disk", size=16 * MIB, chunk_size=256 << 10)
    device = await ObjectStoreDevice.open(store, "disk")
    await device.write(0, memoryview(os.urandom(MIB)))
    await device.flush()
    (small / "filler").write_bytes(b"x")
    with (
        (small / "filler").open("ab", buffering=0) as filler,
        pytest.raises(OSError, match="space"),
    ):
        while True:
            filler.write(bytes(PAGE))
    before = await device.read(0, MIB)
    await device.write(MIB, memoryview(b"a" * MIB))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left on device") as caught:
            await device.flush()
        assert caught.value.errno == errno.ENOSPC
    (small / "filler").unlink()
    (small / "disk/lease").unlink(missing_ok=True)
    await device.write(MIB, memoryview(b"b" * 256 * 1024))
    await device.write(MIB + 256 * 1024, memoryview(bytes(MIB - 256 * 1024)))
    await device.flush()
    await device.unmount()
    device = await ObjectStoreDevice.open(store, "disk", read_only=True)
    assert await device.read(0, 2 * MIB) == bytes(before) + b"b" * (256 << 10) + bytes(768 << 10)
    await device.unmount()
