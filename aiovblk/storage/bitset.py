"""Sets of blocks as the bits of an int: bit 0 is the first block."""

from __future__ import annotations

from collections.abc import Iterator


def runs(blocks: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of consecutive blocks in a set: the first of each, and the one after it."""
    begin = 0
    while blocks:
        gap = (blocks & -blocks).bit_length() - 1
        blocks >>= gap
        begin += gap
        count = (~blocks & (blocks + 1)).bit_length() - 1
        yield begin, begin + count
        blocks >>= count
        begin += count
