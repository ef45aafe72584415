"""Copies of what handlers return, in memory that is used again.

A large copy in memory of its own would have all of it mapped in by the kernel, page by page, and
given back when it is sent: several times what copying costs.
"""

from __future__ import annotations

from ..protocol import Payload
from ..stream import BufferPool

COPY_BUFFER_SIZE = 1024 * 1024
"""Bytes of the memory that copies share."""

MIN_POOLED_COPY = 32 * 1024
"""Bytes below which a copy has memory of its own, which the allocator keeps at hand."""


class ReplyCopyBuffer:
    """The copies that one connection has under way.

    None changes while anybody looks at it.
    """

    def __init__(self) -> None:
        self._pool = BufferPool()
        self._buffer = bytearray()
        self._used = 0

    def copy(self, view: memoryview) -> Payload:
        """Copy these bytes."""
        if not MIN_POOLED_COPY <= len(view) <= COPY_BUFFER_SIZE:
            return bytes(view)
        begin, end = self._used, self._used + len(view)
        if end > len(self._buffer):
            self._buffer = self._pool.swap(self._buffer, COPY_BUFFER_SIZE)
            begin, end = 0, len(view)
        self._used = end
        copy = memoryview(self._buffer)[begin:end]
        copy[:] = view
        return copy
