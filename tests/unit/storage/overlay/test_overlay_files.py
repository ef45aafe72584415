"""A diff in a file: creation, opening, and space on the disk."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aiovblk.storage import FileDevice, Overlay

MIB = 1 << 20
SIZE = 64 * MIB


@pytest.fixture
async def base(tmp_path: Path) -> AsyncIterator[FileDevice]:
    await FileDevice.create(tmp_path / "base", SIZE).unmount()
    base = FileDevice(tmp_path / "base", read_only=True)
    yield base
    await base.unmount()


def used(path: Path) -> int:
    """Return the bytes that a file takes on the disk."""
    return os.stat(path).st_blocks * 512


async def test_new_file_is_sparse(base: FileDevice, tmp_path: Path) -> None:
    overlay = await Overlay.file(base, tmp_path / "diff")
    assert (overlay.size, overlay.block_size) == (SIZE, 512)
    assert os.stat(tmp_path / "diff").st_size == Overlay.diff_size(base) == SIZE + MIB
    await overlay.flush()
    assert used(tmp_path / "diff") <= 64 * 1024
    await overlay.unmount()


async def test_space_is_allocated_by_writes_and_given_back_by_trims(
    base: FileDevice, tmp_path: Path
) -> None:
    path = tmp_path / "diff"
    overlay = await Overlay.file(base, path)
    before = used(path)
    for offset in (0, 8 * MIB, 32 * MIB):
        await overlay.write(offset, memoryview(os.urandom(2 * MIB)))
    await overlay.flush()
    assert 6 * MIB <= used(path) - before <= 6 * MIB + 128 * 1024
    await overlay.trim(0, 16 * MIB)
    await overlay.flush()
    assert 2 * MIB <= used(path) - before <= 2 * MIB + 128 * 1024
    await overlay.write_zeroes(32 * MIB, 2 * MIB, may_trim=True)
    await overlay.flush()
    assert used(path) - before <= 128 * 1024
    await overlay.unmount()


async def test_commit_empties_the_file(tmp_path: Path) -> None:
    base = FileDevice.create(tmp_path / "base", SIZE)
    overlay = await Overlay.file(base, tmp_path / "diff")
    data = os.urandom(2 * MIB)
    await overlay.write(4 * MIB, memoryview(data))
    await overlay.commit()
    await overlay.unmount()
    assert used(tmp_path / "diff") <= 128 * 1024
    assert (tmp_path / "base").read_bytes() == bytes(4 * MIB) + data + bytes(SIZE - 6 * MIB)


async def test_existing_file_is_opened(base: FileDevice, tmp_path: Path) -> None:
    overlay = await Overlay.file(base, tmp_path / "diff", size=SIZE + MIB, identity="base")
    await overlay.write(SIZE, memoryview(b"x" * 4096))
    await overlay.unmount()
    base = FileDevice(tmp_path / "base", read_only=True)
    overlay = await Overlay.file(base, tmp_path / "diff", identity="base")
    assert overlay.size == SIZE + MIB
    assert await overlay.read(SIZE - 4096, 8192) == bytes(4096) + b"x" * 4096
    await overlay.unmount()


async def test_file_that_is_refused_is_unchanged_and_closed(
    base: FileDevice, tmp_path: Path
) -> None:
    path = tmp_path / "diff"
    await (await Overlay.file(base, path, identity="old")).unmount()
    before = path.read_bytes()
    base = FileDevice(tmp_path / "base", read_only=True)
    with pytest.raises(ValueError, match="made over 'old', not over 'new'"):
        await Overlay.file(base, path, identity="new")
    with pytest.raises(ValueError, match=f"is of an overlay of {SIZE} bytes"):
        await Overlay.file(base, path, size=SIZE + MIB)
    await base.unmount()
    assert path.read_bytes() == before
    await FileDevice(path).unmount()  # it would be locked


async def test_file_of_something_else_is_refused_and_unchanged(
    base: FileDevice, tmp_path: Path
) -> None:
    path = tmp_path / "diff"
    path.write_bytes(b"dear diary".ljust(8192, b"\n"))
    with pytest.raises(ValueError, match="not the diff of an overlay"):
        await Overlay.file(base, path)
    assert path.read_bytes() == b"dear diary".ljust(8192, b"\n")


async def test_file_in_use_is_refused(base: FileDevice, tmp_path: Path) -> None:
    overlay = await Overlay.file(base, tmp_path / "diff")
    other = FileDevice(tmp_path / "base", read_only=True)
    with pytest.raises(BlockingIOError):
        await Overlay.file(other, tmp_path / "diff")
    await other.unmount()
    await overlay.unmount()


@pytest.mark.parametrize("size", [0, SIZE + MIB])
async def test_file_that_a_crash_left_without_a_header_is_created_again(
    base: FileDevice, tmp_path: Path, size: int
) -> None:
    (tmp_path / "diff").touch()
    os.truncate(tmp_path / "diff", size)
    overlay = await Overlay.file(base, tmp_path / "diff")
    assert overlay.size == SIZE
    await overlay.unmount()


async def test_file_with_data_but_without_a_header_is_refused(
    base: FileDevice, tmp_path: Path
) -> None:
    (tmp_path / "diff").write_bytes(bytes(2 * MIB) + b"what is left of a disk")
    os.truncate(tmp_path / "diff", SIZE + MIB)
    with pytest.raises(ValueError, match="begins with zeroes, and is no diff yet"):
        await Overlay.file(base, tmp_path / "diff")
    assert used(tmp_path / "diff")


async def test_blocks_are_those_of_the_base(tmp_path: Path) -> None:
    base = FileDevice.create(tmp_path / "base", 3 * 512)
    for _ in range(2):
        overlay = await Overlay.file(base, tmp_path / "diff")
        assert (overlay.block_size, overlay.size) == (512, 3 * 512)
        await overlay.unmount()
        base = FileDevice(tmp_path / "base", read_only=True)
    await base.unmount()


async def test_overlay_over_10_gib_is_opened_by_reading_what_was_written(tmp_path: Path) -> None:
    await FileDevice.create(tmp_path / "base", 10 << 30).unmount()
    base = FileDevice(tmp_path / "base", read_only=True)
    overlay = await Overlay.file(base, tmp_path / "diff")
    await overlay.write(9 << 30, memoryview(b"x" * 4096))
    await overlay.unmount()
    read = []

    class Counted(FileDevice):
        async def read(self, offset: int, length: int) -> bytes:
            read.append(length)
            return await super().read(offset, length)

    base = FileDevice(tmp_path / "base", read_only=True)
    overlay = await Overlay.open(base, Counted(tmp_path / "diff"))
    assert sum(read) <= 128 * 1024
    assert await overlay.read(9 << 30, 8192) == b"x" * 4096 + bytes(4096)
    await overlay.unmount()
