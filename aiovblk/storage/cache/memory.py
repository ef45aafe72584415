"""Slots for cached lines in memory."""

from __future__ import annotations

from ..sparse_memory import map_sparse


class MemorySlots:
    """Slots in memory, whose pages are allocated when they are first written.

    Args:
        size: bytes.

    Attributes:
        memory: the slots, to read without waiting. A slice is a copy, as it must be: the slot may
            be reused for another line.

    """

    def __init__(self, size: int) -> None:
        self.memory = map_sparse(size)
        self._view = memoryview(self.memory).toreadonly()

    async def read(self, begin: int, length: int) -> memoryview:
        """Return a view of a part of a slot. Never waits."""
        return self._view[begin : begin + length]

    async def write(self, begin: int, data: memoryview) -> None:
        """Copy data into a slot. Never waits."""
        self.memory[begin : begin + len(data)] = data
