"""Sets of blocks as the bits of an int: bit 0 is the first block."""

from __future__ import annotations

from collections.abc import Iterator


def runs(blocks: int) -> Iterator[tuple[int, int]]:
    """Where blocks begin that follow one another, and where they end."""
    begin = 0
    while blocks:
        gap = (blocks & -blocks).bit_length() - 1
        blocks >>= gap
        begin += gap
        count = (~blocks & (blocks + 1)).bit_length() - 1
        yield begin, begin + count
        blocks >>= count
        begin += count
