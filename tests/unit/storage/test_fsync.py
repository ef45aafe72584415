"""A failed fsync() is never forgotten, and concurrent ones are coalesced."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

import pytest

from aiovblk.storage import Cache, FileDevice, MemoryDevice, Mirror, Overlay
from aiovblk.storage.fsync import Fsync, create_file

SIZE = 1 << 20


class Watched:
    """A lock that counts those who come to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.comers = threading.Semaphore(0)

    def __enter__(self) -> None:
        self.comers.release()
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def watched(fsync: Fsync) -> Watched:
    lock = Watched()
    fsync._sync_lock = lock  # type: ignore[assignment]
    return lock


def test_failure_is_raised_to_callers_that_waited_during_the_call(pool: ThreadPoolExecutor) -> None:
    """The kernel reports the error to one of them only; the other call would succeed."""
    fsync = Fsync("file")
    lock = watched(fsync)
    others = []

    def fail() -> None:
        lock.comers.acquire()  # our own
        others.append(pool.submit(fsync, lambda: None))
        lock.comers.acquire()
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        fsync(fail)
    with pytest.raises(OSError, match="file has lost data in an earlier flush") as caught:
        others[0].result()
    assert caught.value.errno == errno.ENOSPC


def test_waiting_callers_share_the_next_call(pool: ThreadPoolExecutor) -> None:
    fsync = Fsync("file")
    lock = watched(fsync)
    calls: list[int] = []
    others = []

    def first() -> None:
        lock.comers.acquire()
        for number in range(3):
            others.append(pool.submit(fsync, partial(calls.append, number)))
        for _ in range(3):
            lock.comers.acquire()

    fsync(first)
    for other in others:
        other.result()
    assert len(calls) == 1
    fsync(lambda: calls.append(9))  # a later call
    assert len(calls) == 2


def test_file_whose_name_cannot_be_made_durable_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, "fsync", lambda fd: is_directory(fd))
    with pytest.raises(OSError, match="injected"):
        create_file(tmp_path / "new", 4096)
    assert list(tmp_path.iterdir()) == []
    create_file(tmp_path / "new", 4096)
    assert (tmp_path / "new").stat().st_size == 4096


async def test_name_of_a_new_disk_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    await FileDevice.create(tmp_path / "new", 4096).unmount()
    assert synced == [(tmp_path / "new").stat().st_ino, tmp_path.stat().st_ino]


def is_directory(fd: int) -> bool:
    return os.path.isdir(f"/proc/self/fd/{fd}")


def fail_once(
    monkeypatch: pytest.MonkeyPatch, name: str, which: Callable[[int], bool] = lambda fd: True
) -> None:
    """Let the next call fail, and the one after that succeed, as the kernel does."""
    call = getattr(os, name)
    failed: list[int] = []

    def once(fd: int) -> None:
        if not failed and which(fd):
            failed.append(fd)
            raise OSError(errno.EIO, "injected")
        call(fd)

    monkeypatch.setattr(os, name, once)


async def flush_fails_for_good(
    device: FileDevice | Cache | Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    await device.write(0, memoryview(b"a" * 4096))
    with monkeypatch.context() as patch:
        fail_once(patch, "fdatasync")
        with pytest.raises(OSError, match="injected"):
            await device.flush()
    for _ in range(2):
        await device.write(8192, memoryview(b"b" * 4096))
        with pytest.raises(OSError, match="has lost data in an earlier flush"):
            await device.flush()
    assert bytes(await device.read(0, 4096)) == b"a" * 4096
    with pytest.raises(OSError, match="has lost data in an earlier flush"):
        await device.unmount()


async def test_write_back_cache_over_a_file_does_not_forget_a_failed_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FileDevice.create(tmp_path / "disk", SIZE)
    cache = Cache(file, size=SIZE, policy="write-back")
    await flush_fails_for_good(cache, monkeypatch)


async def test_overlay_in_a_file_does_not_forget_a_failed_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overlay = await Overlay.file(MemoryDevice(SIZE), tmp_path / "diff")
    await flush_fails_for_good(overlay, monkeypatch)
    # The map has no blocks that were never durable.
    overlay = await Overlay.file(MemoryDevice(SIZE), tmp_path / "diff")
    assert await overlay.read(0, SIZE) == bytes(SIZE)
    await overlay.unmount()


async def test_cache_whose_store_fails_a_flush_starts_empty_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = FileDevice.create(tmp_path / "cache", SIZE)
    cache = Cache(MemoryDevice(SIZE), store, line_size=4096, identity="x")
    await cache.read(0, 4096)
    fail_once(monkeypatch, "fdatasync")
    await cache.unmount()
    assert "the cache will start empty next time" in caplog.text
    cache = Cache(MemoryDevice(SIZE), FileDevice(tmp_path / "cache"), line_size=4096, identity="x")
    await cache.read(0, 4096)
    assert (cache.stats.hits, cache.stats.misses) == (0, 1)
    await cache.unmount()


async def test_member_of_a_mirror_that_failed_a_flush_stays_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = FileDevice.create(tmp_path / "first", SIZE)
    mirror = Mirror(first, MemoryDevice(SIZE, block_size=512))
    mirror._members._members[1].device.flush = _nothing  # type: ignore[method-assign]
    await mirror.write(0, memoryview(b"a" * 4096))
    with monkeypatch.context() as patch:
        fail_once(patch, "fdatasync")
        await mirror.flush()
    assert first not in mirror.in_sync
    with pytest.raises(OSError, match="has lost data in an earlier flush"):
        await mirror.resync(first)
    assert first not in mirror.in_sync
    await mirror.unmount()


async def _nothing() -> None:
    pass
