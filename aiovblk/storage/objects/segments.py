"""Divide blocks into segments: objects with blocks of many chunks."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field

from .client import Buffer
from .extents import ZEROES, Placed, Run

Piece = tuple[int, int, Buffer | None]
"""A run of blocks with their data: first block in the chunk, blocks, and data; None for zeroes."""

_UNKNOWN = 1  # the source of runs in a segment that is not stored yet


@dataclass(slots=True)
class SegmentPart:
    """What goes into one segment."""

    blocks: int = 0
    pieces: list[Buffer] = field(default_factory=list)
    """The data, in order."""
    runs: list[Placed] = field(default_factory=list)
    """The runs, whose position is that in the segment; zeroes are in none."""


def divide(pieces: Iterable[tuple[int, Piece]], longest: int) -> Generator[SegmentPart, None, None]:
    """Divide blocks into segments.

    Args:
        pieces: index of the chunk, and blocks of it.
        longest: blocks of a segment, at most.

    """
    part = SegmentPart()
    for index, (first, count, data) in pieces:
        if data is None:
            part.runs.append((index, Run(first, count, ZEROES, 0)))
            continue
        size = len(data) // count
        done = 0
        while done < count:
            if part.blocks == longest:
                yield part
                part = SegmentPart()
            taken = min(count - done, longest - part.blocks)
            part.pieces.append(memoryview(data)[done * size : (done + taken) * size])
            part.runs.append((index, Run(first + done, taken, _UNKNOWN, part.blocks)))
            part.blocks += taken
            done += taken
    if part.runs:
        yield part
