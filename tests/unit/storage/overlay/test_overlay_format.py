"""The layout of the diff, and errors for anything else."""

from __future__ import annotations

import errno
import struct
import zlib
from typing import Any

import pytest

from aiovblk.storage import MemoryDevice, Overlay
from aiovblk.storage.overlay.format import DiffHeader

from ....support.power_failure import BLOCK, VolatileDisk

BLOCKS = 64
SIZE = BLOCKS * BLOCK


def a_base(blocks: int = BLOCKS) -> MemoryDevice:
    return MemoryDevice(blocks * BLOCK, block_size=BLOCK)


async def a_diff(**options: Any) -> VolatileDisk:
    diff = VolatileDisk(Overlay.diff_size(a_base(), size=options.get("size")))
    await Overlay.create(a_base(), diff, **options)
    return diff


def test_header_has_the_documented_bytes() -> None:
    page = DiffHeader(512, 65536, 32768, "debian").serialize()
    head = b"aiovblk overlay\n" + bytes.fromhex(
        "01000000 00020000 0000010000000000 0080000000000000"
    )
    head += b"debian" + bytes(462)
    assert len(head) == 508
    assert page == head + struct.pack("<I", zlib.crc32(head)) + bytes(4096 - 512)
    assert DiffHeader.parse(page) == DiffHeader(512, 65536, 32768, "debian")


@pytest.mark.parametrize(
    ("header", "page", "map_size", "data"),
    [
        (DiffHeader(512, 512, 0), 4096, 4096, 1 << 20),
        (DiffHeader(4096, 10 << 30, 0), 4096, 2621440, 3 << 20),
        (DiffHeader(65536, 1 << 40, 0), 65536, 16 << 20, 17 << 20),
    ],
)
def test_layout_follows_from_the_geometry(
    header: DiffHeader, page: int, map_size: int, data: int
) -> None:
    assert (header.page, header.map_size, header.data) == (page, map_size, data)
    assert header.end == data + header.size


async def test_map_and_data_are_where_the_format_says() -> None:
    diff = await a_diff()
    overlay = await Overlay.open(a_base(), diff)
    await overlay.write(3 * BLOCK, memoryview(b"x" * BLOCK))
    await overlay.trim(5 * BLOCK, 2 * BLOCK)
    await overlay.flush()
    assert await diff.read(4096, BLOCK) == bytes([0, 0, 0, 1, 0, 2, 2]).ljust(BLOCK, b"\0")
    assert await diff.read((1 << 20) + 3 * BLOCK, BLOCK) == b"x" * BLOCK


async def changed(
    diff: VolatileDisk, position: int, replacement: bytes, *, sum: bool = False
) -> None:
    block = bytearray(diff.contents[position // BLOCK])
    position %= BLOCK
    block[position : position + len(replacement)] = replacement
    if sum:
        block[508:512] = struct.pack("<I", zlib.crc32(block[:508]))
    await diff.write(0, memoryview(block))


@pytest.mark.parametrize(
    ("position", "replacement", "error", "message"),
    [
        (
            0,
            bytes(512),
            ValueError,
            "it begins with zeroes, and is no diff yet",
        ),
        (0, b"\xeb\x63\x90", ValueError, "not the diff of an overlay: it begins with something"),
        (16, b"\2", ValueError, "has format 2; this version of aiovblk knows 1 only"),
        (24, b"\1", OSError, "header of the diff is damaged; nothing was changed"),
        (508, b"\0\0\0\0", OSError, "header of the diff is damaged; nothing was changed"),
    ],
)
async def test_invalid_header_is_refused_and_unchanged(
    position: int, replacement: bytes, error: type[Exception], message: str
) -> None:
    diff = await a_diff()
    await changed(diff, position, replacement)
    before, diff.requests = dict(diff.contents), []
    with pytest.raises(error, match=message):
        await Overlay.open(a_base(), diff)
    assert diff.contents == before
    assert {name for name, _, _ in diff.requests} == {"read"}


@pytest.mark.parametrize(
    ("position", "number"), [(20, "0"), (20, "768"), (24, "0"), (24, "1000"), (32, "1")]
)
async def test_invalid_numbers_in_the_header_are_refused(position: int, number: str) -> None:
    diff = await a_diff()
    form = "<I" if position == 20 else "<Q"
    await changed(diff, position, struct.pack(form, int(number)), sum=True)
    with pytest.raises(OSError, match="header of the diff is damaged") as caught:
        await Overlay.open(a_base(), diff)
    assert caught.value.errno == errno.EIO


async def test_size_beyond_the_diff_is_refused_before_memory_is_taken() -> None:
    diff = await a_diff()
    await changed(diff, 24, struct.pack("<Q", 1 << 60), sum=True)
    with pytest.raises(ValueError, match=f"the diff has {diff.size} bytes, but .* are needed"):
        await Overlay.open(a_base(), diff)


async def test_map_with_unknown_states_is_refused() -> None:
    diff = await a_diff()
    await diff.write(4096, memoryview(b"\0\1\2\3".ljust(BLOCK, b"\0")))
    with pytest.raises(OSError, match="the map of the diff is damaged at its byte 0"):
        await Overlay.open(a_base(), diff)


async def test_base_that_is_another_one_is_refused() -> None:
    diff = await a_diff(identity="debian 13")
    with pytest.raises(ValueError, match="made over 'debian 13', not over 'debian 12'"):
        await Overlay.open(a_base(), diff, identity="debian 12")
    await Overlay.open(a_base(), diff, identity="debian 13")
    await Overlay.open(a_base(), diff)
    with pytest.raises(ValueError, match=r"does not say over which base it was made; was it 'x'\?"):
        await Overlay.open(a_base(), await a_diff(), identity="x")


async def test_smaller_base_is_refused_and_more_of_a_larger_one_does_not_show() -> None:
    diff = await a_diff(size=2 * SIZE)
    with pytest.raises(ValueError, match=f"base has {SIZE - BLOCK} bytes, but {SIZE} of it show"):
        await Overlay.open(a_base(BLOCKS - 1), diff)
    grown = a_base(3 * BLOCKS)
    await grown.write(SIZE, memoryview(b"x" * BLOCK))
    overlay = await Overlay.open(grown, diff)
    assert overlay.size == 2 * SIZE
    assert await overlay.read(SIZE - BLOCK, 2 * BLOCK) == bytes(2 * BLOCK)


async def test_larger_blocks_than_the_overlay_has_are_refused() -> None:
    diff = await a_diff()
    diff.block_size, diff.blocks = 4096, diff.size // 4096
    with pytest.raises(ValueError, match=r"diff has blocks of 4096 bytes.*open the diff with"):
        await Overlay.open(a_base(), diff)
    with pytest.raises(ValueError, match=r"base has blocks of 4096 bytes.*open the base with"):
        await Overlay.open(MemoryDevice(SIZE), await a_diff())


async def test_truncated_diff_is_refused() -> None:
    diff = await a_diff()
    diff.blocks -= 1
    with pytest.raises(ValueError, match=f"has {diff.size} bytes, but {diff.size + BLOCK} are"):
        await Overlay.open(a_base(), diff)
    with pytest.raises(ValueError, match="512 bytes are not the diff of an overlay"):
        await Overlay.open(a_base(), VolatileDisk(BLOCK))


async def test_device_in_use_is_not_made_a_diff() -> None:
    diff = await a_diff()
    with pytest.raises(FileExistsError, match="the diff is in use"):
        await Overlay.create(a_base(), diff)
    disk = VolatileDisk(diff.size)
    await disk.write(1024, memoryview(b"\x53\xef" * 256))  # where ext4 has its superblock
    before = dict(disk.contents)
    with pytest.raises(FileExistsError, match="zeroes over its first 4096 bytes"):
        await Overlay.create(a_base(), disk)
    assert disk.contents == before


async def test_device_that_cannot_be_a_diff_is_refused() -> None:
    size = Overlay.diff_size(a_base())
    with pytest.raises(ValueError, match=f"has {size - BLOCK} bytes, but {size} are needed"):
        await Overlay.create(a_base(), VolatileDisk(size - BLOCK))
    read_only = VolatileDisk(size)
    read_only.read_only = True
    with pytest.raises(ValueError, match="diff is read-only"):
        await Overlay.create(a_base(), read_only)


@pytest.mark.parametrize("identity", ["x" * 469, "\xe4" * 235, "a\0b"])
async def test_identity_that_is_too_long_is_refused(identity: str) -> None:
    with pytest.raises(ValueError, match="an identity is at most 468 bytes of UTF-8"):
        await a_diff(identity=identity)


async def test_identity_of_468_bytes_fits() -> None:
    diff = await a_diff(identity="\xe4" * 234)
    await Overlay.open(a_base(), diff, identity="\xe4" * 234)


@pytest.mark.parametrize(
    ("blocks", "size", "message"),
    [
        (BLOCKS, SIZE + 1, f"the overlay has {SIZE + 1} bytes, no multiple of 512"),
        (BLOCKS, 0, "an overlay has at least 512 bytes, not 0"),
        (9, None, "the overlay has 4608 bytes, no multiple of 4096"),
        (9, 8192, "the base has 4608 bytes, no multiple of 4096"),
    ],
)
async def test_sizes_that_are_no_whole_blocks_are_refused(
    blocks: int, size: int | None, message: str
) -> None:
    diff = MemoryDevice(2 << 20, block_size=4096 if blocks == 9 else BLOCK)
    with pytest.raises(ValueError, match=message):
        await Overlay.create(a_base(blocks), diff, size=size)
