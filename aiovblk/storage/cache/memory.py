"""Slots in memory."""

from __future__ import annotations

import mmap

_MAP_NORESERVE = 0x4000  # include/uapi/asm-generic/mman-common.h; Python names it since 3.13


class MemorySlots:
    """Memory for lines, which is taken when it is first written to.

    Args:
        size: bytes.

    Attributes:
        memory: for whoever wants to read without waiting. A slice is a copy, as it must be: the
            slot may become another line's.

    """

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self.memory = mmap.mmap(-1, size, flags=flags)
        self._view = memoryview(self.memory).toreadonly()

    async def read(self, begin: int, length: int) -> memoryview:
        """Show what is in a slot; does not wait."""
        return self._view[begin : begin + length]

    async def write(self, begin: int, data: memoryview) -> None:
        """Copy into a slot; does not wait."""
        self.memory[begin : begin + len(data)] = data
