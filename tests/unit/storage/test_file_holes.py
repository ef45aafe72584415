"""A file's holes: extents, trim and zeroes, on file systems that have them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pytest

from aiovblk.device import Extent
from aiovblk.storage import FileDevice, openfile


def hole(length: int) -> Extent:
    return Extent(length, hole=True, zero=True)


def write_bytes(path: str, offsets: Iterable[int]) -> None:
    """Write a byte at each of these offsets, past the device."""
    with open(path, "r+b") as file:
        for offset in offsets:
            os.pwrite(file.fileno(), b"\x01", offset)


@pytest.fixture(params=["the file system of tmp_path", "tmpfs"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder whose file system can punch holes, or else a skip."""
    with contextlib.ExitStack() as stack:
        folder = tmp_path
        if request.param == "tmpfs":
            if not os.access("/dev/shm", os.W_OK):
                pytest.skip("there is no tmpfs at /dev/shm")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        with (folder / "probe").open("wb") as probe:
            probe.truncate(4096)
            try:
                openfile.fallocate(probe.fileno(), openfile.PUNCH_HOLE, 0, 4096)
            except OSError as exc:
                pytest.skip(f"{request.param} punches no holes: {exc}")
        yield folder


@pytest.fixture
async def sparse(folder: Path) -> AsyncIterator[FileDevice]:
    """A device of 1 MiB, all of it a hole."""
    device = FileDevice.create(folder / "sparse", 1 << 20)
    yield device
    await device.unmount()


async def test_extents_report_holes(sparse: FileDevice) -> None:
    size = sparse.size
    assert await sparse.extents(0, size) == [hole(size)]
    await sparse.write(65536, memoryview(b"\x01" * 65536))
    assert await sparse.extents(0, size) == [hole(65536), Extent(65536), hole(size - 131072)]
    assert await sparse.extents(61440, 8192) == [hole(4096), Extent(4096)]
    assert await sparse.extents(126976, 8192) == [Extent(4096), hole(4096)]
    assert await sparse.extents(size - 4096, 4096) == [hole(4096)]


@pytest.mark.parametrize("trimming", [False, True])
async def test_trim_and_write_zeroes_punch_holes(sparse: FileDevice, trimming: bool) -> None:
    await sparse.write(0, memoryview(b"\x01" * (1 << 20)))
    before = os.stat(sparse.path).st_blocks
    if trimming:
        await sparse.trim(65536, 131072)
    else:
        await sparse.write_zeroes(65536, 131072, may_trim=True)
    assert await sparse.read(61440, 139264) == b"\x01" * 4096 + bytes(131072) + b"\x01" * 4096
    found = await sparse.extents(0, 1 << 20)
    assert found == [Extent(65536), hole(131072), Extent((1 << 20) - 196608)]
    assert os.stat(sparse.path).st_blocks < before
    await sparse.write(65536, memoryview(b"\x02" * 4096))
    assert await sparse.read(65536, 8192) == b"\x02" * 4096 + bytes(4096)
    assert os.stat(sparse.path).st_size == 1 << 20


async def test_zeroes_that_may_not_be_trimmed_stay_allocated(sparse: FileDevice) -> None:
    await sparse.write(0, memoryview(b"\x01" * (1 << 20)))
    before = os.stat(sparse.path).st_blocks
    await sparse.write_zeroes(4096, (1 << 20) - 8192, may_trim=False)
    expected = b"\x01" * 4096 + bytes((1 << 20) - 8192) + b"\x01" * 4096
    assert await sparse.read(0, 1 << 20) == expected
    assert os.stat(sparse.path).st_blocks >= before


async def test_extents_are_whole_blocks_where_holes_are_not(folder: Path) -> None:
    device = FileDevice.create(folder / "coarse", 1 << 20, block_size=65536)
    write_bytes(device.path, [65536 + 8192])
    assert await device.extents(0, 1 << 20) == [hole(65536), Extent(65536), hole(14 * 65536)]
    await device.unmount()


async def test_number_of_extents_is_limited(folder: Path) -> None:
    device = FileDevice.create(folder / "pieces", 4096 * 4096)
    write_bytes(device.path, range(0, device.size, 8192))
    assert await device.extents(0, device.size) == [Extent(4096), hole(4096)] * 512
    await device.unmount()
