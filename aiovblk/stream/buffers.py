"""Buffers that are used again once nobody looks at them.

Fresh memory costs more than it seems: the kernel maps it in page by page, which takes longer than
to copy as much.
"""

from __future__ import annotations

from ..protocol import Payload

MAX_POOLED_BUFFERS = 2
"""How many buffers that are still in use are remembered, to be used again."""


class BufferPool:
    """Buffers of one size, for one user.

    The interpreter itself knows whether views of one are out, since a bytearray refuses to be
    resized then.
    """

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []

    def swap(self, used: bytearray, size: int) -> bytearray:
        """Take note of a buffer that may still be in use; return one that is not.

        It may be the same. What lies in it is of no meaning.
        """
        # Those that are in use stay alive through their views. Only as many are kept for later as
        # a device needs whose handlers are quick, and none of a size that was for one payload.
        fitting = [each for each in (*self._buffers, used) if len(each) == size]
        self._buffers = fitting[-MAX_POOLED_BUFFERS:]
        for at, buffer in enumerate(self._buffers):
            if not _is_viewed(buffer):
                return self._buffers.pop(at)
        return bytearray(size)


def _is_viewed(buffer: bytearray) -> bool:
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return True
    return False


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
