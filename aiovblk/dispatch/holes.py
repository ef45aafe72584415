"""Holes: the extents of a device for BLOCK_STATUS, and READs that leave out what is zero.

Only clients that have negotiated structured replies get here; the kernel has not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from operator import index

from ..device import Extent
from ..protocol import Payload, ReplyContent, SparseData, StatusFlag

MIN_HOLE_SIZE = 32 * 1024
"""Bytes of the smallest hole in the reply to a READ; shorter runs of zeroes are sent as data."""

MAX_SENT_EXTENTS = 1 << 16
"""Most extents in one BLOCK_STATUS reply; a client requests the rest with another command."""

# Plain ints: an IntFlag's operations cost much more.
_HOLE, _ZERO = int(StatusFlag.HOLE), int(StatusFlag.ZERO)


def merge_extents(found: Sequence[Extent], length: int) -> list[tuple[int, int]]:
    """Return (length, status flags) of each extent: equal neighbours merged, cut at the end.

    Args:
        found: what a device's ``extents`` returned.
        length: bytes that it was asked for.

    Raises:
        ValueError: there are none, or one is empty.

    """
    extents: list[tuple[int, int]] = []
    left = length
    for size, hole, zero in found:
        size = index(size)  # a float could not be packed, and no reply would be sent
        if size < 1:
            raise ValueError(f"extents returned one of {size} bytes")
        state = (_HOLE if hole else 0) | (_ZERO if zero else 0)
        size = min(size, left)
        left -= size
        if extents and extents[-1][1] == state:
            extents[-1] = extents[-1][0] + size, state
        elif len(extents) == MAX_SENT_EXTENTS:
            break
        else:
            extents.append((size, state))
        if not left:
            break
    if not extents:
        raise ValueError("extents returned none")
    return extents


async def read_around_holes(
    read: Callable[[int, int], Awaitable[Payload]],
    extents: list[tuple[int, int]],
    offset: int,
    length: int,
    block_size: int,
) -> ReplyContent:
    """Read only the data: holes of :data:`MIN_HOLE_SIZE` or more become holes of the reply.

    Args:
        read: reads from the device, and checks the result.
        extents: of the range, from :func:`merge_extents`.
        offset: bytes, where the range begins.
        length: bytes of the range.
        block_size: of the device.

    """
    mask = block_size - 1
    pieces: list[Payload | int] = []
    begin = position = offset
    for size, state in extents:
        hole, position = (position + mask) & ~mask, position + size
        hole_end = position & ~mask
        if state & _ZERO and hole_end - hole >= MIN_HOLE_SIZE:
            if begin < hole:
                pieces.append(await read(begin, hole - begin))
            pieces.append(hole_end - hole)
            begin = hole_end
    if not pieces:
        return await read(offset, length)
    if begin < offset + length:
        pieces.append(await read(begin, offset + length - begin))
    return SparseData(pieces)
