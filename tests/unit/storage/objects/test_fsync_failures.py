"""fsync() that fails once, for a disk in a local folder; temporary files of crashed writers."""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from obstore.store import LocalStore

from aiovblk.storage.objects import (
    ObjectStoreClient,
    ObjectStoreDevice,
    check,
    collect_garbage,
    create,
)

from ....support.object_store import CHUNK, SIZE, fill


def fail_fsync(monkeypatch: pytest.MonkeyPatch, pattern: str, number: int = errno.EIO) -> list[str]:
    """Make the next fsync() of a path that matches fail; the one after that succeeds."""
    failed: list[str] = []
    fsync = os.fsync

    def once(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if not failed and re.search(pattern, path):
            failed.append(path)
            raise OSError(number, "injected")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", once)
    return failed


@pytest.mark.parametrize("pattern", [r"/log/\w+#1$", r"/chunks/[\w-]+#1$"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
async def test_object_whose_fsync_failed_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, number: int
) -> None:
    store = LocalStore(tmp_path)
    await create(store, "disk", size=SIZE, chunk_size=CHUNK)
    device = await ObjectStoreDevice.open(store, "disk")
    failed = fail_fsync(monkeypatch, pattern, number)
    await fill(device, 0, b"a")
    with pytest.raises(OSError, match="injected") as caught:
        await device.flush()
    assert caught.value.errno == number
    assert not os.path.exists(failed[0])
    assert not os.path.exists(failed[0].removesuffix("#1"))
    await device.flush()
    shutil.copytree(tmp_path / "disk", tmp_path / "after")
    os.unlink(tmp_path / "after/lease")
    other = await ObjectStoreDevice.open(store, "after")
    assert await other.read(0, CHUNK) == b"a" * CHUNK
    await other.unmount()
    await device.unmount()


@pytest.mark.parametrize("folder", ["log", "chunks"])
async def test_directory_whose_fsync_failed_takes_nothing_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """Its names may be lost, and no later fsync() would report that."""
    store = LocalStore(tmp_path)
    await create(store, "disk", size=SIZE, chunk_size=CHUNK)
    device = await ObjectStoreDevice.open(store, "disk")
    await fill(device, 0, b"a")
    await device.flush()
    fail_fsync(monkeypatch, f"/{folder}$")
    await fill(device, 1, b"b")
    with pytest.raises(OSError, match="injected"):
        await device.flush()
    for _ in range(2):
        with pytest.raises(OSError, match="has lost data in an earlier flush"):
            await device.flush()
    assert await device.read(0, 2 * CHUNK) == b"a" * CHUNK + b"b" * CHUNK
    with pytest.raises(OSError, match="has lost data in an earlier flush"):
        await device.unmount()


async def test_object_that_is_found_is_durable_before_it_is_relied_upon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be of an attempt that failed after that, or of another process."""
    await ObjectStoreClient(LocalStore(tmp_path)).create("log/1", b"data")
    synced: list[str] = []
    fsync = os.fsync

    def note(fd: int) -> None:
        fsync(fd)
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{fd}"), tmp_path))

    monkeypatch.setattr(os, "fsync", note)
    with pytest.raises(FileExistsError):
        await ObjectStoreClient(LocalStore(tmp_path)).create("log/1", b"other")
    assert synced == ["log/1#1", "log/1", "log", "."]


async def test_what_crashed_writers_leave_under_temporary_names_is_garbage(tmp_path: Path) -> None:
    client = ObjectStoreClient(LocalStore(tmp_path))
    await create(client, "disk", size=SIZE, chunk_size=CHUNK)
    device = await ObjectStoreDevice.open(client, "disk")
    await fill(device, 0, b"a")
    await device.unmount()
    old = time.time() - 25 * 3600
    left = [tmp_path / "disk/chunks/00000001-0000100000001#1", tmp_path / "disk/log/000000000009#2"]
    kept = tmp_path / "disk/chunks/00000001-0000100000002#1"  # it may still be written
    for path in [*left, kept]:
        path.write_bytes(b"left")
    for path in left:
        os.utime(path, (old, old))
    assert (await check(client, "disk")).problems == []
    found = await collect_garbage(client, "disk", delete=False)
    assert (found.objects, found.size) == (2, 8)
    assert all(path.exists() for path in left)
    assert await collect_garbage(client, "disk") == found
    assert not any(path.exists() for path in left)
    assert kept.exists()


async def test_temporary_names_do_not_collide(tmp_path: Path) -> None:
    client = ObjectStoreClient(LocalStore(tmp_path))
    (tmp_path / "a#1").write_bytes(b"of another")
    await client.create("a", b"data")
    assert bytes(await client.get("a")) == b"data"
    assert (tmp_path / "a#1").read_bytes() == b"of another"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a", "a#1"]
