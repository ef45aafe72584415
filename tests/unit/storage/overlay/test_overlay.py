"""Copy-on-write: all handlers, over bases and diffs of all kinds; opening."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from typing import Any

import pytest

from aiovblk import BlockDevice
from aiovblk.contract import check_geometry
from aiovblk.device import Extent, can
from aiovblk.storage import Layer, MemoryDevice, Overlay
from aiovblk.storage.overlay import blockmap

from ....support.overlays import BLOCKS, OnlyReads, contents, make_overlay, read, write
from ....support.power_failure import BLOCK, Power, VolatileDisk, survival

# Requests


async def test_new_overlay_is_a_disk_that_reads_as_its_base() -> None:
    overlay, diff = await make_overlay()
    check_geometry(overlay)
    assert (overlay.block_size, overlay.blocks, overlay.read_only) == (BLOCK, BLOCKS, False)
    assert await read(overlay, 0, BLOCKS) == contents(0, BLOCKS)
    assert diff.requests == []


def test_constructor_refuses_a_device_and_says_what_to_call() -> None:
    with pytest.raises(TypeError, match=r"await Overlay.open\(base, diff\)"):
        Overlay(OnlyReads(), MemoryDevice(1 << 20))  # type: ignore[arg-type]


async def test_overlay_has_all_handlers_over_a_base_that_only_reads() -> None:
    overlay, _ = await make_overlay()
    for name in ("read", "write", "flush", "trim", "write_zeroes", "extents"):
        assert can(overlay, name)
    assert not can(overlay, "cache")


async def test_what_is_written_is_read_and_the_base_is_not_written() -> None:
    overlay, diff = await make_overlay()
    await write(overlay, 3, 5)
    assert await read(overlay, 0, 8) == contents(0, 3) + contents(3, 5, 1) + contents(5, 8)
    writes = [request for request in diff.requests if request[0] == "write"]
    assert writes == [("write", diff.size - (BLOCKS - 3) * BLOCK, 2 * BLOCK)]  # and nothing else


async def test_read_from_one_device_is_forwarded_without_a_copy() -> None:
    parts: list[Any] = []

    class Remembering(MemoryDevice):
        async def read(self, offset: int, length: int) -> bytes | memoryview:
            parts.append(await super().read(offset, length))
            return parts[-1]  # type: ignore[no-any-return]

    base = Remembering(1 << 20)
    overlay = await Overlay.create(base, Remembering(Overlay.diff_size(base)))
    assert await overlay.read(0, 1 << 16) is parts[-1]
    await overlay.write(0, memoryview(bytes(1 << 16)))
    assert await overlay.read(0, 1 << 16) is parts[-1]


async def test_parts_of_a_read_are_read_concurrently() -> None:
    waiting, everybody = [], asyncio.Event()

    class Slow(OnlyReads):
        async def read(self, offset: int, length: int) -> bytes:
            waiting.append(offset)
            if len(waiting) == 3:
                everybody.set()
            await everybody.wait()
            return await super().read(offset, length)

    overlay, _ = await make_overlay(Slow())
    await write(overlay, 2, 3)
    await write(overlay, 5, 6)
    await overlay.trim(6 * BLOCK, BLOCK)
    expected = contents(0, 2) + contents(2, 3, 1) + contents(3, 5) + contents(5, 6, 1)
    assert await read(overlay, 0, 8) == expected + bytes(BLOCK) + contents(7, 8)
    assert waiting == [0, 3 * BLOCK, 7 * BLOCK]


async def test_part_that_fails_fails_the_read_when_the_others_have_ended() -> None:
    ended = []

    class Failing(OnlyReads):
        async def read(self, offset: int, length: int) -> bytes:
            if not offset:
                raise OSError(errno.EIO, "bad sector")
            await asyncio.sleep(0)
            ended.append(offset)
            return bytes(length)

    overlay, _ = await make_overlay(Failing())
    await write(overlay, 1, 2)
    with pytest.raises(OSError, match="bad sector"):
        await read(overlay, 0, 3)
    assert ended == [2 * BLOCK]


@pytest.mark.parametrize("how", ["trim", "write_zeroes"])
async def test_trimmed_blocks_are_zeroes_and_give_back_only_what_was_written(how: str) -> None:
    overlay, diff = await make_overlay()
    await write(overlay, 2, 4)
    diff.requests.clear()
    if how == "trim":
        await overlay.trim(0, 8 * BLOCK)
    else:
        await overlay.write_zeroes(0, 8 * BLOCK, may_trim=True)
    data = diff.size - BLOCKS * BLOCK
    assert diff.requests == [("write_zeroes", data + 2 * BLOCK, 2 * BLOCK)]
    assert await read(overlay, 0, 9) == bytes(8 * BLOCK) + contents(8, 9)
    await write(overlay, 1, 3, 2)
    assert await read(overlay, 0, 4) == bytes(BLOCK) + contents(1, 3, 2) + bytes(BLOCK)


async def test_zeroes_that_must_stay_allocated_are_allocated_in_the_diff() -> None:
    overlay, diff = await make_overlay()
    await overlay.write_zeroes(0, 8 * BLOCK, may_trim=False)
    page, data = ("allocate", 4096, 4096), diff.size - BLOCKS * BLOCK
    assert diff.requests == [page, ("allocate", data, 8 * BLOCK)]
    assert await read(overlay, 0, 9) == bytes(8 * BLOCK) + contents(8, 9)
    assert await overlay.extents(0, 8 * BLOCK) == [Extent(8 * BLOCK)]


async def test_diff_that_cannot_make_holes_is_not_asked_to_write_zeroes() -> None:
    class NoHoles(VolatileDisk):
        write_zeroes = BlockDevice.write_zeroes

    base = OnlyReads()
    diff = NoHoles(Overlay.diff_size(base))
    overlay = await Overlay.create(base, diff)
    await write(overlay, 0, 8)
    diff.requests.clear()
    await overlay.trim(0, 8 * BLOCK)
    assert diff.requests == []
    assert await read(overlay, 0, 8) == bytes(8 * BLOCK)


async def test_flush_after_a_block_was_written_again_does_not_write_the_map() -> None:
    overlay, diff = await make_overlay()
    await write(overlay, 0, 8)
    diff.requests.clear()
    await overlay.flush()
    assert diff.requests == [("flush", 0, 0), ("write", 4096, 4096), ("flush", 0, 0)]
    await write(overlay, 0, 8, 2)
    diff.requests.clear()
    await overlay.flush()
    assert diff.requests == [("flush", 0, 0)]


async def test_extents_are_those_of_the_base_where_it_shows_through() -> None:
    class Sparse(OnlyReads):
        async def extents(self, offset: int, length: int) -> Sequence[Extent]:
            return [Extent(BLOCK), Extent(1 << 20, hole=True, zero=True)]  # and beyond the end

    overlay, _ = await make_overlay(Sparse(), size=(BLOCKS + 8) * BLOCK)
    await write(overlay, 4, 6)
    await overlay.trim(6 * BLOCK, BLOCK)
    assert await overlay.extents(0, overlay.size) == [
        Extent(BLOCK),
        Extent(3 * BLOCK, hole=True, zero=True),
        Extent(2 * BLOCK),
        Extent(BLOCK, hole=True, zero=True),
        Extent(BLOCK),
        Extent((BLOCKS - 8) * BLOCK, hole=True, zero=True),
        Extent(8 * BLOCK, hole=True, zero=True),
    ]


async def test_extents_end_where_those_of_the_base_end() -> None:
    class Short(OnlyReads):
        async def extents(self, offset: int, length: int) -> Sequence[Extent]:
            return [Extent(BLOCK)]

    overlay, _ = await make_overlay(Short())
    await write(overlay, 4, 6)
    assert await overlay.extents(0, overlay.size) == [Extent(BLOCK)]
    assert await overlay.extents(3 * BLOCK, 4 * BLOCK) == [
        Extent(BLOCK),
        Extent(2 * BLOCK),
        Extent(BLOCK),
    ]


async def test_number_of_extents_is_limited() -> None:
    base = MemoryDevice(4096 * BLOCK, block_size=BLOCK)
    overlay, _ = await make_overlay(base)
    for number in range(0, 4096, 2):
        await write(overlay, number, number + 1)
    found = await overlay.extents(0, overlay.size)
    assert len(found) == 1024
    assert await overlay.extents(1024 * BLOCK, 2 * BLOCK) == [
        Extent(BLOCK),
        Extent(BLOCK, hole=True, zero=True),
    ]


async def test_what_differs_from_the_base_is_known() -> None:
    overlay, _ = await make_overlay()
    assert overlay.changed() == []
    await write(overlay, 2, 4)
    await overlay.trim(4 * BLOCK, BLOCK)
    await overlay.write_zeroes(7 * BLOCK, BLOCK, may_trim=True)
    ranges = [(begin // BLOCK, end // BLOCK) for begin, end in overlay.changed()]
    assert ranges == [(2, 4), (4, 5), (7, 8)]


async def test_hint_to_cache_goes_to_the_base_where_it_shows() -> None:
    hints = []

    class Caching(OnlyReads):
        async def cache(self, offset: int, length: int) -> None:
            hints.append((offset, length))

    overlay, _ = await make_overlay(Caching(), size=(BLOCKS + 8) * BLOCK)
    await write(overlay, 1, 2)
    await overlay.cache(0, overlay.size)
    assert hints == [(0, BLOCK), (2 * BLOCK, (BLOCKS - 2) * BLOCK)]


async def test_unmount_flushes_and_unmounts_both_devices_whatever_fails() -> None:
    let_go = []

    class Base(OnlyReads):
        async def unmount(self) -> None:
            let_go.append("base")

    class Diff(VolatileDisk):
        async def unmount(self) -> None:
            let_go.append("diff")

    base = Base()
    power = Power()
    diff = Diff(Overlay.diff_size(base), power)
    overlay = await Overlay.create(base, diff)
    await write(overlay, 0, 1)
    await overlay.unmount()
    assert let_go == ["diff", "base"]
    overlay = await Overlay.open(base, diff.after_crash(survival(0)))
    assert await read(overlay, 0, 1) == contents(0, 1, 1)
    overlay = await Overlay.open(base, diff)
    await write(overlay, 1, 2)
    power.requests = power.used
    with pytest.raises(OSError, match="no power"):
        await overlay.unmount()
    assert let_go == ["diff", "base"] * 2


# Opening


async def test_reopened_overlay_reads_as_before() -> None:
    overlay, diff = await make_overlay(size=(BLOCKS + 8) * BLOCK, identity="debian 13")
    await write(overlay, 1, 3)
    await overlay.trim(4 * BLOCK, BLOCK)
    await write(overlay, BLOCKS, BLOCKS + 2)
    before = await read(overlay, 0, BLOCKS + 8)
    await overlay.unmount()
    overlay = await Overlay.open(OnlyReads(), diff, identity="debian 13")
    assert overlay.blocks == BLOCKS + 8
    assert await read(overlay, 0, BLOCKS + 8) == before
    assert before.endswith(contents(BLOCKS, BLOCKS + 2, 1) + bytes(6 * BLOCK))


async def test_holes_of_the_map_are_not_read() -> None:
    base = MemoryDevice(1 << 40, block_size=BLOCK)  # 2 GiB of map
    diff = MemoryDevice(Overlay.diff_size(base), block_size=BLOCK)
    overlay = await Overlay.create(base, diff)
    await write(overlay, 1 << 30, (1 << 30) + 1)
    await overlay.flush()
    reads = []

    class Counted(Layer):
        async def read(self, offset: int, length: int) -> bytes | bytearray | memoryview:
            reads.append(length)
            return await super().read(offset, length)

    overlay = await Overlay.open(base, Counted(diff))
    assert sum(reads) < 1 << 20  # of 2 GiB; a memory disk tells extents of 256 KiB
    assert await read(overlay, 1 << 30, (1 << 30) + 1) == contents(1 << 30, (1 << 30) + 1, 1)


async def test_diff_that_is_read_only_makes_a_read_only_disk() -> None:
    overlay, diff = await make_overlay()
    await write(overlay, 0, 1)
    await overlay.flush()
    diff.read_only = True
    diff.power.requests = diff.power.used
    overlay = await Overlay.open(OnlyReads(), diff)
    assert overlay.read_only
    assert await read(overlay, 0, 2) == contents(0, 1, 1) + contents(1, 2)
    for change in (overlay.commit(), overlay.rebase(OnlyReads())):
        with pytest.raises(ValueError, match="overlay is read-only, since its diff is"):
            await change
    await overlay.unmount()


async def test_block_size_is_the_larger_of_base_and_diff() -> None:
    base = MemoryDevice(1 << 20, block_size=BLOCK)
    diff = MemoryDevice(Overlay.diff_size(base), block_size=4096)
    overlay = await Overlay.create(base, diff)
    assert (overlay.block_size, overlay.size) == (4096, 1 << 20)
    base = MemoryDevice(1 << 20, block_size=1 << 16)
    diff = MemoryDevice(Overlay.diff_size(base), block_size=BLOCK)
    overlay = await Overlay.create(base, diff)
    assert (overlay.block_size, overlay.size) == (1 << 16, 1 << 20)
    await overlay.write(1 << 16, memoryview(b"x" * (1 << 16)))
    await overlay.flush()
    overlay = await Overlay.open(base, diff)
    assert await overlay.read(0, 1 << 17) == bytes(1 << 16) + b"x" * (1 << 16)


async def test_overlay_may_be_smaller_than_its_base_and_lie_over_an_overlay() -> None:
    lower, _ = await make_overlay()
    await write(lower, 0, 2)
    upper, _ = await make_overlay(lower, size=4 * BLOCK)
    await write(upper, 1, 3, 2)
    assert upper.blocks == 4
    assert await read(upper, 0, 4) == contents(0, 1, 1) + contents(1, 3, 2) + contents(3, 4)
    assert await read(lower, 0, 3) == contents(0, 2, 1) + contents(2, 3)


async def test_overlay_can_shrink_but_not_grow() -> None:
    overlay, _ = await make_overlay()
    overlay.blocks = 8
    assert overlay.size == 8 * BLOCK
    overlay.blocks = BLOCKS
    with pytest.raises(ValueError, match="does not grow"):
        overlay.blocks = BLOCKS + 1


# The block map


def test_changed_pages_of_the_map_are_returned_in_runs() -> None:
    found = blockmap.BlockMap(BLOCK, 1024 * 1024, 4096)
    found.mark(0, 512, blockmap.DATA)
    found.mark(512, 1024, blockmap.ZERO)
    found.mark(4095 * 512, 4097 * 512, blockmap.DATA)
    found.mark(5 * 4096 * 512, (5 * 4096 + 1) * 512, blockmap.DATA)
    assert found.run(0, 4096) == (blockmap.DATA, 512)
    assert found.run(512, 4096) == (blockmap.ZERO, 1024)
    assert found.run(1024, 4096) == (blockmap.BASE, 4096)
    pages = found.take_changed()
    assert [(offset, len(page)) for offset, page in pages] == [(0, 8192), (5 * 4096, 4096)]
    assert found.take_changed() == []
    found.put_back(pages)
    assert found.take_changed() == pages
    found.mark(0, 512, blockmap.DATA)
    assert found.take_changed() == []
