"""Devices as a user writes them, for ``aiovblk serve bench/peers/plain.py:Plain``."""

import asyncio
import bz2
import random

import aiovblk

DELAY = 0.001  # seconds; the other peers' slow back ends take as long


class Plain(aiovblk.BlockDevice):
    """256 MiB in a bytearray."""

    block_size = 4096
    blocks = 65536

    def __init__(self) -> None:
        self.memory = bytearray(self.size)

    async def read(self, offset: int, length: int) -> memoryview | bytes | bytearray:
        """Give a view; the library copies it."""
        return memoryview(self.memory)[offset : offset + length]

    async def write(self, offset: int, data: memoryview) -> None:
        """Copy `data`."""
        self.memory[offset : offset + len(data)] = data


class Copying(Plain):
    """Reads are copies, as of an author who does not know that a view will do."""

    async def read(self, offset: int, length: int) -> bytes:
        """Copy out of memory."""
        return bytes(memoryview(self.memory)[offset : offset + length])


class Slicing(Plain):
    """The same, as it is written most easily: each read is a new bytearray."""

    async def read(self, offset: int, length: int) -> bytearray:
        """Copy out of memory."""
        return self.memory[offset : offset + length]


class Slow(Plain):
    """The same, behind something that takes a millisecond to answer."""

    async def read(self, offset: int, length: int) -> memoryview | bytes | bytearray:
        """Wait, then read."""
        await asyncio.sleep(DELAY)
        return await super().read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Wait, then write."""
        await asyncio.sleep(DELAY)
        await super().write(offset, data)


class Packed(aiovblk.BlockDevice):
    """What takes a processor's time: each block is unpacked when it is read.

    It is the same disk in each process that makes one.
    """

    block_size = 512
    blocks = 256 * 2048
    multi_conn = True

    # 4 KiB without a pattern: they take the longest.
    _block = bz2.compress(random.Random(1).randbytes(4096))

    async def read(self, offset: int, length: int) -> bytes:
        """Unpack."""
        pieces = -(-length // 4096)
        return b"".join(bz2.decompress(self._block) for _ in range(pieces))[:length]
