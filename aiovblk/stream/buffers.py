"""Pools of buffers that are reused once no memoryview of them is left.

Fresh memory is expensive: the kernel maps it page by page, which takes longer than copying the same
number of bytes.
"""

from __future__ import annotations

MAX_POOLED_BUFFERS = 2
"""Maximum number of buffers still in use that are kept for reuse."""


class PooledBuffer(bytearray):
    """A pool's buffer: what a view of it shows does not change, and may be sent without a copy."""


class BufferPool:
    """Reuse the buffers of one connection once no memoryview of them is left.

    The interpreter knows whether there are views: a bytearray with views refuses to be resized.
    """

    def __init__(self) -> None:
        self._buffers: list[bytearray] = []

    def swap(self, used: bytearray, size: int) -> bytearray:
        """Return a buffer of ``size`` bytes that has no views, and keep ``used`` for reuse.

        Args:
            used: a buffer that may still have views.
            size: bytes of the returned buffer, which may be ``used`` itself. Its contents are
                undefined.

        """
        # Views keep their buffers alive. Only as many are kept here as a device with quick handlers
        # needs, and none whose size was for one large payload.
        fitting = [each for each in (*self._buffers, used) if len(each) == size]
        self._buffers = fitting[-MAX_POOLED_BUFFERS:]
        for at, buffer in enumerate(self._buffers):
            if not is_viewed(buffer):
                return self._buffers.pop(at)
        return PooledBuffer(size)


def is_viewed(buffer: bytearray) -> bool:
    """Return whether there is a memoryview, or another export, of a buffer."""
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return True
    return False
