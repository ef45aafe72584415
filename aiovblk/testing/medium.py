"""A disk in memory that outlives its devices, and may lose its power."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Sequence
from itertools import groupby
from random import Random

from ..arguments import check_block_size, check_count
from ..device import BlockDevice, Extent

_MAX_EXTENTS = 4096  # blocks that one answer of extents is about

Held = bytes | None
"""What a block holds; None for zeroes, which take no memory."""


class CrashableDisk:
    """A disk with a volatile write cache, all zeroes at first.

    Its contents outlive the devices that :meth:`open` makes, one at a time. What was written since
    the last flush is lost in a crash, or not, each block for itself.

    It does what a disk may do: requests take some turns of the event loop and finish in any order,
    and trimmed blocks read as what they were, as zeroes, or as garbage.

    Args:
        size: bytes, a multiple of ``block_size``.
        block_size: bytes.
        seed: of all that is left to chance. The same requests give the same outcome.

    Raises:
        TypeError, ValueError: a number is impossible, or the size no multiple of the block size.

    """

    def __init__(self, size: int, block_size: int = 4096, seed: int = 0) -> None:
        check_block_size(block_size)
        check_count("size", size)
        if size < block_size or size % block_size:
            raise ValueError(f"the size must be a multiple of {block_size} bytes, not {size}")
        self._block_size = block_size
        self._blocks = size // block_size
        self._random = Random(seed)
        self._contents = _Contents()
        self._device: _CrashableDevice | None = None

    def open(self) -> BlockDevice:
        """Make a device of it.

        Raises:
            RuntimeError: the one that was opened before was not unmounted, nor was there a crash.

        """
        if self._device is not None and self._device.is_open:
            raise RuntimeError("the medium has an open device: unmount that, or let it crash")
        self._device = _CrashableDevice(
            self._contents, self._random, block_size=self._block_size, blocks=self._blocks
        )
        return self._device

    def crash(self) -> None:
        """Cut the power: of each block one of the versions since the last flush is left.

        The open device is dead: all its requests, those in flight too, fail with EIO.
        """
        self._contents.crash(self._random)
        if self._device is not None:
            self._device.is_open = False


class _Contents:
    """What the blocks hold, durable or not."""

    def __init__(self) -> None:
        self._durable: dict[int, bytes] = {}
        self._unflushed: dict[int, list[Held]] = {}

    def get(self, block: int) -> Held:
        versions = self._unflushed.get(block)
        return versions[-1] if versions else self._durable.get(block)

    def put(self, block: int, held: Held) -> None:
        self._unflushed.setdefault(block, []).append(held)

    def flush(self) -> None:
        for block, versions in self._unflushed.items():
            self._store(block, versions[-1])
        self._unflushed.clear()

    def crash(self, random: Random) -> None:
        for block, versions in self._unflushed.items():
            self._store(block, random.choice([self._durable.get(block), *versions]))
        self._unflushed.clear()

    def _store(self, block: int, held: Held) -> None:
        if held is None:
            self._durable.pop(block, None)
        else:
            self._durable[block] = held


class _CrashableDevice(BlockDevice):
    """One life of a medium."""

    def __init__(
        self, contents: _Contents, random: Random, *, block_size: int, blocks: int
    ) -> None:
        self._contents = contents
        self._random = random
        self.block_size = block_size
        self.blocks = blocks
        self.is_open = True

    async def read(self, offset: int, length: int) -> bytes:
        """Return what was written last."""
        await self._wait()
        zeroes = bytes(self.block_size)
        data = b"".join(self._contents.get(block) or zeroes for block in self._run(offset, length))
        await self._wait()
        return data

    async def write(self, offset: int, data: memoryview) -> None:
        """Write into the cache."""
        await self._wait()
        size = self.block_size
        for at, block in enumerate(self._run(offset, len(data))):
            self._contents.put(block, bytes(data[at * size : (at + 1) * size]))
        await self._wait()

    async def flush(self) -> None:
        """Make durable what is in the cache."""
        await self._wait()
        self._contents.flush()
        await self._wait()

    async def trim(self, offset: int, length: int) -> None:
        """Let blocks be anything."""
        await self._wait()
        for block in self._run(offset, length):
            garbage = self._random.randbytes(self.block_size)
            self._contents.put(
                block, self._random.choice([self._contents.get(block), None, garbage])
            )
        await self._wait()

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes into the cache, at no cost of memory."""
        await self._wait()
        for block in self._run(offset, length):
            self._contents.put(block, None)
        await self._wait()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Tell what was never written, or is zeroes."""
        await self._wait()
        return list(self._extents(offset, min(length, _MAX_EXTENTS * self.block_size)))

    async def unmount(self) -> None:
        """Let the medium be opened again; what is cached stays so."""
        self.is_open = False

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        kinds = (self._contents.get(block) is None for block in self._run(offset, length))
        for zero, alike in groupby(kinds):
            yield Extent(sum(1 for _ in alike) * self.block_size, hole=zero, zero=zero)

    def _run(self, offset: int, length: int) -> range:
        if offset < 0 or length < 1 or offset + length > self.size:
            raise ValueError(f"{length} bytes at {offset} are not inside of {self.size}")
        if (offset | length) % self.block_size:
            raise ValueError(f"{length} bytes at {offset} are not whole blocks")
        return range(offset // self.block_size, (offset + length) // self.block_size)

    async def _wait(self) -> None:
        """Take a few turns of the loop, and be alive after them."""
        for _ in range(self._random.randint(0, 2)):
            await asyncio.sleep(0)
        if not self.is_open:
            raise OSError(errno.EIO, "the device has lost its power, or was unmounted")
