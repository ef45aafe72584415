"""Overlays over a base in which each block has different contents."""

from __future__ import annotations

import asyncio
from typing import Any

from aiovblk import BlockDevice
from aiovblk.storage import Overlay

from .power_failure import BLOCK, VolatileDisk, pattern

BLOCKS = 64


class OnlyReads(BlockDevice):
    """A base that has no handler but read, and records its reads."""

    block_size = BLOCK
    blocks = BLOCKS

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []

    async def read(self, offset: int, length: int) -> bytes:
        assert offset + length <= self.size
        self.reads.append((offset, length))
        return contents(offset // BLOCK, (offset + length) // BLOCK)


def contents(first: int, last: int, version: int = 0) -> bytes:
    return b"".join(pattern(number, version) for number in range(first, last))


async def make_overlay(
    base: BlockDevice | None = None, **options: Any
) -> tuple[Overlay, VolatileDisk]:
    base = base or OnlyReads()
    diff = VolatileDisk(Overlay.diff_size(base, size=options.get("size")))
    overlay = await Overlay.create(base, diff, **options)
    diff.requests.clear()
    return overlay, diff


async def read(device: BlockDevice, first: int, last: int) -> bytes:
    return bytes(await device.read(first * BLOCK, (last - first) * BLOCK))


async def write(device: BlockDevice, first: int, last: int, version: int = 1) -> None:
    await device.write(first * BLOCK, memoryview(contents(first, last, version)))


class Stepped(VolatileDisk):
    """A disk that waits before each change for a step of the test."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.steps: asyncio.Queue[None] | None = None
        self.arrived: asyncio.Queue[str] = asyncio.Queue()

    async def _change(self, name: str, offset: int, length: int) -> None:
        if self.steps is not None:
            self.arrived.put_nowait(name)
            await self.steps.get()
        await super()._change(name, offset, length)


async def make_stepped_overlay() -> tuple[Overlay, Stepped]:
    diff = Stepped(Overlay.diff_size(OnlyReads()))
    return await Overlay.create(OnlyReads(), diff), diff
