"""Commit a diff to its base; rebase it to another base."""

from __future__ import annotations

import asyncio

import pytest

from aiovblk.device import Extent
from aiovblk.storage import MemoryDevice, Overlay

from ....support.overlays import BLOCKS, OnlyReads, Stepped, contents, make_overlay, read, write
from ....support.power_failure import BLOCK, VolatileDisk, pattern


async def test_commit_writes_the_diff_to_the_base_and_frees_its_space_at_unmount() -> None:
    base = VolatileDisk(BLOCKS * BLOCK, None, {number: pattern(number) for number in range(BLOCKS)})
    overlay, diff = await make_overlay(base)
    await write(overlay, 1, 3)
    await overlay.trim(4 * BLOCK, 2 * BLOCK)
    before = await read(overlay, 0, BLOCKS)
    await overlay.commit()
    *changes, last = [request for request in base.requests if request[0] != "read"]
    assert set(changes) == {("write", BLOCK, 2 * BLOCK), ("write_zeroes", 4 * BLOCK, 2 * BLOCK)}
    assert last == ("flush", 0, 0)
    assert await read(overlay, 0, BLOCKS) == await read(base, 0, BLOCKS) == before
    await write(overlay, 8, 9)
    diff.requests.clear()
    await overlay.unmount()
    data = diff.size - BLOCKS * BLOCK
    trims = [request for request in diff.requests if request[0] == "trim"]
    assert trims == [("trim", data, 8 * BLOCK), ("trim", data + 9 * BLOCK, (BLOCKS - 9) * BLOCK)]
    overlay = await Overlay.open(base, diff)
    assert await read(overlay, 0, 9) == before[: 8 * BLOCK] + contents(8, 9, 1)


async def test_write_during_a_commit_waits_and_is_kept() -> None:
    base = Stepped(BLOCKS * BLOCK)
    overlay, _ = await make_overlay(base)
    await write(overlay, 0, 2)
    base.steps = asyncio.Queue()
    committing = asyncio.create_task(overlay.commit())
    assert await base.arrived.get() == "write"
    writing = asyncio.create_task(write(overlay, 1, 3, 2))
    assert await read(overlay, 0, 2) == contents(0, 2, 1)  # reads go on
    assert not writing.done()
    for _ in range(2):
        base.steps.put_nowait(None)
    await asyncio.gather(committing, writing)
    assert await read(overlay, 0, 3) == contents(0, 1, 1) + contents(1, 3, 2)
    assert await read(base, 0, 3) == contents(0, 2, 1) + bytes(BLOCK)


async def test_commit_waits_for_writes_in_progress() -> None:
    base = VolatileDisk(BLOCKS * BLOCK)
    diff = Stepped(Overlay.diff_size(base))
    overlay = await Overlay.create(base, diff)
    steps: asyncio.Queue[None] = asyncio.Queue()
    diff.steps = steps
    writing = asyncio.create_task(write(overlay, 0, 2))
    await diff.arrived.get()
    diff.steps = None
    committing = asyncio.create_task(overlay.commit())
    await asyncio.sleep(0)
    steps.put_nowait(None)
    await asyncio.gather(committing, writing)
    assert await read(base, 0, 2) == contents(0, 2, 1)


async def test_commit_into_an_unfit_base_is_refused() -> None:
    overlay, _ = await make_overlay()
    with pytest.raises(ValueError, match="base is read-only"):
        await overlay.commit()
    overlay, _ = await make_overlay(VolatileDisk(BLOCKS * BLOCK), size=(BLOCKS + 1) * BLOCK)
    with pytest.raises(ValueError, match=f"grow it to {(BLOCKS + 1) * BLOCK} first"):
        await overlay.commit()


class Other(OnlyReads):
    """Another base: one block differs, another is zeroes."""

    async def read(self, offset: int, length: int) -> bytes:
        data = bytearray(await super().read(offset, length))
        for number, block in ((3, pattern(3, 9)), (5, bytes(BLOCK)), (6, bytes(BLOCK))):
            begin = number * BLOCK - offset
            if 0 <= begin < length:
                data[begin : begin + BLOCK] = block
        return bytes(data)


async def test_rebase_preserves_differences_and_returns_the_old_base() -> None:
    old, new = Other(), OnlyReads()
    overlay, diff = await make_overlay(old, identity="old")
    await write(overlay, 4, 6)
    before = await read(overlay, 0, BLOCKS)
    diff.requests.clear()
    assert await overlay.rebase(new, identity="new") is old
    data = diff.size - BLOCKS * BLOCK
    writes = [request for request in diff.requests if request[0] == "write"]
    assert writes == [("write", data + 3 * BLOCK, BLOCK), ("write", 4096, 4096), ("write", 0, 4096)]
    assert await read(overlay, 0, BLOCKS) == before
    assert await overlay.extents(6 * BLOCK, BLOCK) == [Extent(BLOCK, hole=True, zero=True)]
    overlay = await Overlay.open(new, diff, identity="new")
    assert await read(overlay, 0, BLOCKS) == before


async def test_write_during_a_rebase_waits_and_is_kept() -> None:
    diff = Stepped(Overlay.diff_size(OnlyReads()))
    overlay = await Overlay.create(Other(), diff)
    diff.steps = asyncio.Queue()
    rebasing = asyncio.create_task(overlay.rebase(OnlyReads()))
    assert await diff.arrived.get() == "allocate"  # room for the map
    diff.steps.put_nowait(None)
    assert await diff.arrived.get() == "write"  # of block 3, which differs
    writing = asyncio.create_task(write(overlay, 3, 4, 5))
    assert await read(overlay, 3, 4) == contents(3, 4, 9)
    for _ in ("that block", "flush", "map", "flush", "header", "flush", "what is written"):
        diff.steps.put_nowait(None)
    await asyncio.gather(rebasing, writing)
    assert await read(overlay, 3, 4) == contents(3, 4, 5)


async def test_rebase_without_comparison_only_replaces_the_base() -> None:
    overlay, diff = await make_overlay(OnlyReads())
    await write(overlay, 4, 6)
    new = Other()
    await overlay.rebase(new, identity="new", compare=False)
    assert new.reads == []
    expected = contents(0, 3) + contents(3, 4, 9) + contents(4, 6, 1) + bytes(BLOCK)
    assert await read(overlay, 0, 7) == expected
    await Overlay.open(new, diff, identity="new")


async def test_rebase_onto_a_smaller_base_needs_a_comparison() -> None:
    class Smaller(OnlyReads):
        blocks = BLOCKS // 2

    overlay, _ = await make_overlay()
    with pytest.raises(ValueError, match="the base has 16384 bytes, but 32768 of it show"):
        await overlay.rebase(Smaller(), compare=False)
    await overlay.rebase(Smaller())
    assert await read(overlay, 0, BLOCKS) == contents(0, BLOCKS)


async def test_rebase_onto_larger_blocks_is_refused() -> None:
    overlay, _ = await make_overlay()
    with pytest.raises(ValueError, match="base has blocks of 4096 bytes, the overlay of 512"):
        await overlay.rebase(MemoryDevice(1 << 20))
