"""A disk in memory with a volatile write cache, to test crashes (power failures)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator, Sequence
from itertools import groupby
from random import Random

from ..arguments import check_block_size, check_count
from ..device import BlockDevice, Extent

_MAX_EXTENTS = 4096  # blocks that one result of extents describes

Held = bytes | None
"""What a block holds; None for zeroes, which take no memory."""


class CrashableDisk:
    """A disk with a volatile write cache, all zeroes at first.

    Its contents outlive the devices that :meth:`open` makes, one at a time. In a crash each block
    keeps or loses, independently, what was written since the last flush.

    It does all that a disk may do: requests take some turns of the event loop and finish in any
    order, and trimmed blocks read as what they were, as zeroes, or as garbage.

    Args:
        size: bytes, a multiple of ``block_size``.
        block_size: bytes.
        seed: of all random choices. The same requests give the same outcome.

    Raises:
        TypeError, ValueError: a number is impossible, or the size is no multiple of the block size.

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
        """Open a device on this disk.

        Raises:
            RuntimeError: the previous device is still open: neither unmounted, nor crashed.

        """
        if self._device is not None and self._device.is_open:
            raise RuntimeError("the disk has an open device: unmount that, or call crash()")
        self._device = _CrashableDevice(
            self._contents, self._random, block_size=self._block_size, blocks=self._blocks
        )
        return self._device

    def crash(self) -> None:
        """Cut the power: each block keeps one of its versions since the last flush.

        The open device is dead: all its requests, also those in flight, fail with EIO.
        """
        self._contents.crash(self._random)
        if self._device is not None:
            self._device.is_open = False


class _Contents:
    """The contents of the blocks: durable ones, and those in the write cache."""

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
    """A device on the disk, from opening it to unmount or crash."""

    def __init__(
        self, contents: _Contents, random: Random, *, block_size: int, blocks: int
    ) -> None:
        self._contents = contents
        self._random = random
        self.block_size = block_size
        self.blocks = blocks
        self.is_open = True

    async def read(self, offset: int, length: int) -> bytes:
        """Return the last version of the blocks."""
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
        """Make the cached versions durable."""
        await self._wait()
        self._contents.flush()
        await self._wait()

    async def trim(self, offset: int, length: int) -> None:
        """Leave the blocks as they are, or make them zeroes or garbage, at random."""
        await self._wait()
        for block in self._run(offset, length):
            garbage = self._random.randbytes(self.block_size)
            self._contents.put(
                block, self._random.choice([self._contents.get(block), None, garbage])
            )
        await self._wait()

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Write zeroes into the cache; they take no memory."""
        await self._wait()
        for block in self._run(offset, length):
            self._contents.put(block, None)
        await self._wait()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Report blocks that were never written, or are zeroes, as holes."""
        await self._wait()
        return list(self._extents(offset, min(length, _MAX_EXTENTS * self.block_size)))

    async def unmount(self) -> None:
        """Allow the disk to be opened again; the cache is not flushed."""
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
        """Wait for a few turns of the loop; fail if the device is dead or unmounted after them."""
        for _ in range(self._random.randint(0, 2)):
            await asyncio.sleep(0)
        if not self.is_open:
            raise OSError(errno.EIO, "the device has lost its power, or was unmounted")
