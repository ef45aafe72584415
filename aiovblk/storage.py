"""Devices that are ready to be mounted."""

from __future__ import annotations

import errno
import mmap

from .device import BlockDevice

_PAGE = mmap.PAGESIZE
_MAP_NORESERVE = 0x4000  # include/uapi/asm-generic/mman-common.h; Python names it since 3.13


class MemoryDevice(BlockDevice):
    """A disk in memory, all zeroes at first.

    Takes memory only for what was written: a device of terabytes costs nothing until it is filled.
    What is trimmed or zeroed is given back. The contents end with the object; :meth:`flush` has
    nothing to do.

    Args:
        size: bytes, a multiple of ``block_size``.
        block_size: bytes.

    Raises:
        ValueError: the size is no multiple of the block size.
        OSError: more than this machine's address space (128 TiB on most) was asked for.

    """

    def __init__(self, size: int, *, block_size: int = 4096) -> None:
        if size < block_size or size % block_size:
            raise ValueError(f"the size must be a multiple of {block_size} bytes, not {size}")
        self.block_size = block_size
        self.blocks = size // block_size
        # Pages that were never written exist only as a promise, which NORESERVE keeps the kernel
        # from counting.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._memory = mmap.mmap(-1, size, flags=flags)
        except (OverflowError, OSError) as exc:
            reason = f"no memory disk of {size} bytes: a process cannot address as much"
            raise OSError(errno.ENOMEM, reason) from exc

    async def read(self, offset: int, length: int) -> bytes:
        """Copy out of memory."""
        return self._memory[offset : offset + length]

    async def write(self, offset: int, data: memoryview) -> None:
        """Copy into memory."""
        self._memory[offset : offset + len(data)] = data

    async def trim(self, offset: int, length: int) -> None:
        """Give whole pages back; they read as zeroes from now on."""
        begin = -(-offset // _PAGE) * _PAGE
        end = (offset + length) // _PAGE * _PAGE
        if begin < end:
            self._memory.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    async def write_zeroes(self, offset: int, length: int, *, may_trim: bool) -> None:
        """Give whole pages back, which makes them zeroes, and clear the rest by hand."""
        end = offset + length
        first = min(-(-offset // _PAGE) * _PAGE, end)
        last = max(end // _PAGE * _PAGE, first)
        await self.trim(first, last - first)
        self._memory[offset:first] = bytes(first - offset)
        self._memory[last:end] = bytes(end - last)
