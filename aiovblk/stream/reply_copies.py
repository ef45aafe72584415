"""Copies of reply payloads that their handler may change before they are sent."""

from __future__ import annotations

from ..protocol import Payload
from .buffers import BufferPool

COPY_BUFFER_SIZE = 1024 * 1024
"""Bytes of a buffer that several copies share."""

MIN_POOLED_COPY = 32 * 1024
"""Minimum bytes of a copy in a shared buffer; a smaller one is a ``bytes`` object, for which the
allocator has memory at hand."""


class ReplyCopyBuffer:
    """Copy reply payloads of one connection into pooled buffers.

    For payloads that their handler may change before they are sent. A copy does not change while
    there is a view of it.
    """

    def __init__(self) -> None:
        self._pool = BufferPool()
        self._buffer = bytearray()
        self._used = 0

    def copy(self, view: memoryview) -> Payload:
        """Return a copy of these bytes, as ``bytes`` or as a view of a pooled buffer."""
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
