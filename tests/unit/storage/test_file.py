"""A file as a disk: opening it, requests, cancellation, block devices."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from aiovblk import BlockDevice
from aiovblk.contract import check_geometry
from aiovblk.device import Extent
from aiovblk.dispatch import transmission_flags
from aiovblk.protocol import TransmissionFlag as Flag
from aiovblk.storage import FileDevice, openfile
from aiovblk.storage.openfile import OpenFile

BLOCKS = 16
SIZE = BLOCKS * 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file in which every byte is 0xff."""
    path = tmp_path / "disk"
    path.write_bytes(b"\xff" * SIZE)
    return path


@pytest.fixture
async def device(path: Path) -> AsyncIterator[FileDevice]:
    device = FileDevice(path)
    yield device
    await device.unmount()


# Opening


@pytest.mark.parametrize(
    ("size", "block_size"),
    [(1, 1), (1000, 8), (1536, 512), (2048, 512), (4096, 512), (4097, 1), (1 << 20, 512)],
)
async def test_block_size_is_512_or_less_where_that_does_not_fit(
    path: Path, size: int, block_size: int
) -> None:
    os.truncate(path, size)
    device = FileDevice(path)
    check_geometry(device, min_block_size=1)
    assert (device.size, device.block_size) == (size, block_size)
    last = size - block_size
    await device.write(last, memoryview(b"\x01" * block_size))
    await device.unmount()
    assert path.read_bytes()[last:] == b"\x01" * block_size


async def test_block_size_can_be_chosen(path: Path) -> None:
    device = FileDevice(path, block_size=4096)
    assert (device.block_size, device.size) == (4096, SIZE)
    await device.unmount()


def test_block_size_that_does_not_fit_is_refused(path: Path) -> None:
    os.truncate(path, SIZE + 512)
    with pytest.raises(ValueError, match=f"has {SIZE + 512} bytes, no multiple of 4096"):
        FileDevice(path, block_size=4096)


def test_empty_file_is_refused_with_what_to_do(path: Path) -> None:
    os.truncate(path, 0)
    with pytest.raises(ValueError, match=f"{path} is empty; `truncate -s 1G {path}` gives it"):
        FileDevice(path)


def test_neither_file_nor_block_device_is_refused_without_opening_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match=f"{path} is neither a regular file nor a block"):
            FileDevice(path, read_only=True)
    with pytest.raises(FileNotFoundError, match="missing"):
        FileDevice(tmp_path / "missing")


async def test_flags_follow_from_the_mode(path: Path) -> None:
    device: BlockDevice = FileDevice(path)
    abilities = Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES
    assert transmission_flags(device) == Flag.HAS_FLAGS | abilities
    await device.unmount()
    device = FileDevice(path, read_only=True)
    assert Flag.READ_ONLY in transmission_flags(device)
    await device.unmount()


async def test_read_only_device_opens_for_reading_only(path: Path) -> None:
    device = FileDevice(path, read_only=True)
    assert await device.read(0, SIZE) == b"\xff" * SIZE
    with pytest.raises(OSError, match="Bad file descriptor"):
        await device.write(0, memoryview(bytes(4096)))
    await device.unmount()


@pytest.mark.parametrize(("first", "second"), [(False, False), (False, True), (True, False)])
async def test_file_is_locked_until_unmount(path: Path, first: bool, second: bool) -> None:
    device = FileDevice(path, read_only=first)
    with pytest.raises(BlockingIOError, match=f"{path} is in use, by another process"):
        FileDevice(path, read_only=second)
    await device.unmount()
    await FileDevice(path, read_only=second).unmount()


async def test_readers_share_a_file(path: Path) -> None:
    devices = [FileDevice(path, read_only=True) for _ in range(2)]
    for device in devices:
        await device.unmount()


async def test_writers_with_multi_conn_share_a_file(path: Path) -> None:
    devices = [FileDevice(path, multi_conn=True) for _ in range(2)]
    with pytest.raises(BlockingIOError, match=f"{path} is in use, by another process"):
        FileDevice(path)
    await devices[0].write(4096, memoryview(b"z" * 4096))
    assert await devices[1].read(4096, 4096) == b"z" * 4096
    for device in devices:
        assert device.multi_conn
        await device.unmount()


def test_lock_of_another_program_is_respected(path: Path) -> None:
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(BlockingIOError):
            FileDevice(path)


async def test_create_makes_a_hole_of_exactly_this_size(tmp_path: Path) -> None:
    path = tmp_path / "new"
    device = FileDevice.create(path, (5 << 40) + 512)
    assert (device.size, device.block_size) == ((5 << 40) + 512, 512)
    assert path.stat().st_blocks == 0
    await device.write(5 << 40, memoryview(b"\x05" * 512))
    assert await device.read((5 << 40) - 512, 1024) == bytes(512) + b"\x05" * 512
    await device.unmount()


def test_create_leaves_a_file_alone_that_exists(path: Path) -> None:
    with pytest.raises(FileExistsError):
        FileDevice.create(path, 4096)
    assert path.read_bytes() == b"\xff" * SIZE


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), (0, ValueError), (4097, ValueError)])
def test_create_that_fails_leaves_no_file(
    tmp_path: Path, size: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        FileDevice.create(tmp_path / "new", size, block_size=512)
    assert list(tmp_path.iterdir()) == []


# Requests


async def test_what_was_written_is_read_and_is_in_the_file(path: Path, device: FileDevice) -> None:
    await device.write(4096, memoryview(b"\x01" * 8192))
    await device.flush()
    expected = b"\xff" * 4096 + b"\x01" * 8192 + b"\xff" * (SIZE - 12288)
    assert await device.read(0, SIZE) == path.read_bytes() == expected


async def test_requests_run_at_the_same_time(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, all_are_there = os.pwrite, threading.Barrier(BLOCKS)

    def meet(fd: int, data: memoryview, at: int) -> int:
        all_are_there.wait()
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", meet)
    blocks = [bytes([at]) * 4096 for at in range(BLOCKS)]
    writes = [device.write(at * 4096, memoryview(blocks[at])) for at in range(BLOCKS)]
    await asyncio.gather(*writes)
    assert await device.read(0, SIZE) == b"".join(blocks)


async def test_short_reads_and_writes_are_continued(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, length, at: pread(fd, min(length, 1000), at))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:1000], at))
    data = os.urandom(8192)
    await device.write(4096, memoryview(data))
    assert await device.read(0, SIZE) == b"\xff" * 4096 + data + b"\xff" * (SIZE - 12288)


async def test_truncated_file_fails_with_eio_until_it_is_written_again(
    path: Path, device: FileDevice
) -> None:
    os.truncate(path, SIZE - 4096 - 1)
    assert await device.read(0, SIZE - 8192) == b"\xff" * (SIZE - 8192)
    with pytest.raises(OSError, match="has become shorter than 65536 bytes") as caught:
        await device.read(0, SIZE)
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="has become shorter") as caught:
        await device.extents(0, SIZE)
    assert caught.value.errno == errno.EIO
    await device.write(SIZE - 4096, memoryview(b"\x01" * 4096))
    assert (await device.read(SIZE - 4096, 4096)) == b"\x01" * 4096


async def test_error_of_a_system_call_is_raised(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    monkeypatch.setattr(openfile, "fallocate", full)
    for call in (
        device.write(0, memoryview(bytes(4096))),
        device.write_zeroes(0, 4096, may_trim=True),
        device.trim(0, 4096),
    ):
        with pytest.raises(OSError, match="No space left on device"):
            await call


async def test_failed_flush_fails_for_good(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lost)
        with pytest.raises(OSError, match="Input/output error"):
            await device.flush()
    with pytest.raises(OSError, match="has lost data in an earlier flush") as caught:
        await device.flush()
    assert caught.value.errno == errno.EIO


CALLS = ["read", "write", "flush", "trim", "write_zeroes", "extents"]


def request(device: BlockDevice, name: str) -> Coroutine[None, None, object]:
    """One of CALLS, for the first block."""
    if name == "write":
        return device.write(0, memoryview(b"\x01" * 4096))
    if name == "write_zeroes":
        return device.write_zeroes(0, 4096, may_trim=False)
    if name == "flush":
        return device.flush()
    call: Callable[[int, int], Coroutine[None, None, object]] = getattr(device, name)
    return call(0, 4096)


@pytest.mark.parametrize("name", CALLS)
async def test_system_calls_run_in_threads_of_the_device(
    name: str, device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = "allocate" if name in ("trim", "write_zeroes") else name
    original, threads = getattr(OpenFile, method), []

    def spy(*args: object) -> object:
        threads.append(threading.current_thread().name)
        return original(*args)

    monkeypatch.setattr(OpenFile, method, spy)
    await request(device, name)
    assert [thread.startswith("aiovblk disk") for thread in threads] == [True]


# Where there are no holes


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
@pytest.mark.parametrize("may_trim", [False, True])
async def test_zeroes_are_written_where_fallocate_is_refused(
    may_trim: bool, error: int, device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def refuse(_fd: int, mode: int, _offset: int, _length: int) -> None:
        modes.append(mode)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(openfile, "fallocate", refuse)
    await device.trim(0, SIZE)
    assert await device.read(0, SIZE) == b"\xff" * SIZE
    await device.write_zeroes(4096, SIZE - 8192, may_trim=may_trim)
    assert await device.read(0, SIZE) == b"\xff" * 4096 + bytes(SIZE - 8192) + b"\xff" * 4096
    punch, zero = openfile.PUNCH_HOLE, openfile.ZERO_RANGE
    assert modes == ([punch, punch, zero] if may_trim else [punch, zero])


async def test_all_is_data_where_holes_cannot_be_found(
    device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "lseek", refuse)
    assert await device.extents(4096, 8192) == [Extent(8192)]


# Cancellation


class Gate:
    """Holds the first call of OpenFile.write back, in its thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived = threading.Event()
        self.opened = threading.Event()
        self._write = OpenFile.write
        monkeypatch.setattr(OpenFile, "write", lambda *args: self._hold(*args))

    def _hold(self, file: OpenFile, offset: int, data: memoryview) -> None:
        if not self.arrived.is_set():
            self.arrived.set()
            self.opened.wait()
        self._write(file, offset, data)


async def cancelled_write(device: FileDevice, gate: Gate) -> None:
    """Cancel a handler, and release its data, while its thread is about to write."""
    data = memoryview(bytearray(b"\x01" * 4096))
    task = asyncio.create_task(device.write(0, data))
    await asyncio.to_thread(gate.arrived.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    data.release()


async def some_turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_thread_of_a_cancelled_handler_keeps_its_data_and_unmount_waits_for_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, gate = FileDevice(path), Gate(monkeypatch)
    await cancelled_write(device, gate)
    unmounting = asyncio.create_task(device.unmount())
    await some_turns()
    assert not unmounting.done()
    gate.opened.set()
    await unmounting
    assert path.read_bytes() == b"\x01" * 4096 + b"\xff" * (SIZE - 4096)
    assert not any(thread.name.startswith("aiovblk disk") for thread in threading.enumerate())


@pytest.mark.parametrize("name", ["write", "trim", "write_zeroes"])
async def test_change_waits_for_the_thread_of_a_cancelled_handler(
    name: str, device: FileDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    await cancelled_write(device, gate)
    assert await device.read(4096, 4096) == b"\xff" * 4096  # a read need not wait
    cancelled, change = (asyncio.create_task(request(device, name)) for _ in range(2))
    await some_turns()
    cancelled.cancel()
    await some_turns()
    assert cancelled.cancelled()
    assert not change.done()
    gate.opened.set()
    await change
    if name != "trim":
        assert await device.read(0, 4096) == (b"\x01" if name == "write" else b"\0") * 4096
    await asyncio.wait_for(request(device, name), 60)


async def test_write_that_is_cancelled_before_it_has_begun_never_happens(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, opened = FileDevice(path), threading.Event()
    monkeypatch.setattr(OpenFile, "flush", lambda _: opened.wait())
    flushes = [asyncio.create_task(device.flush()) for _ in range(16)]
    await some_turns()
    write = asyncio.create_task(device.write(0, memoryview(bytes(4096))))
    await some_turns()
    write.cancel()
    await some_turns()
    assert write.cancelled()
    opened.set()
    await asyncio.gather(*flushes)
    await device.unmount()
    assert path.read_bytes() == b"\xff" * SIZE


async def test_unmount_may_be_called_again(device: FileDevice) -> None:
    await device.unmount()
    await device.unmount()


# Block devices


@pytest.fixture
def loop_device(path: Path) -> Iterator[Path]:
    """A loop device, on a file in which every byte is 0xff."""
    command = ["losetup", "--find", "--show", str(path)]
    try:
        node = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"no loop device can be made: {exc}")
    yield Path(node)
    subprocess.run(["losetup", "--detach", node], check=True)


async def test_block_device_is_served_and_claimed(loop_device: Path) -> None:
    device = FileDevice(loop_device)
    assert (device.size, device.block_size) == (SIZE, 512)
    await device.write(0, memoryview(b"\x01" * 4096))
    await device.write_zeroes(4096, 4096, may_trim=False)
    await device.write_zeroes(8192, 4096, may_trim=True)
    await device.trim(SIZE - 4096, 4096)
    await device.flush()
    assert await device.read(0, 16384) == b"\x01" * 4096 + bytes(8192) + b"\xff" * 4096
    assert await device.extents(0, SIZE) == [Extent(SIZE)]
    with pytest.raises(OSError, match="Device or resource busy"):
        FileDevice(loop_device)
    await device.unmount()
