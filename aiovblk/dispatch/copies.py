"""Copies of what handlers return, in memory that is used again.

A large copy in memory of its own would have all of it mapped in by the kernel, page by page, and
given back when it is sent: several times what copying costs.
"""

from __future__ import annotations

from ..protocol import Data
from ..stream import Spares

BUFFER_SIZE = 1024 * 1024
"""Bytes of the memory that copies share."""

SMALLEST_SHARED = 32 * 1024
"""Bytes below which a copy has memory of its own, which the allocator keeps at hand."""


class Copies:
    """The copies that one connection has under way.

    None changes while anybody looks at it.
    """

    def __init__(self) -> None:
        self._spares = Spares()
        self._buffer = bytearray()
        self._used = 0

    def copy(self, view: memoryview) -> Data:
        """Copy these bytes."""
        if not SMALLEST_SHARED <= len(view) <= BUFFER_SIZE:
            return bytes(view)
        begin, end = self._used, self._used + len(view)
        if end > len(self._buffer):
            self._buffer = self._spares.exchange(self._buffer, BUFFER_SIZE)
            begin, end = 0, len(view)
        self._used = end
        copy = memoryview(self._buffer)[begin:end]
        copy[:] = view
        return copy
