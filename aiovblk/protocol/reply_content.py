"""What replies carry: data; with structured replies also data with holes, and extents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Payload = bytes | memoryview


class SparseData(NamedTuple):
    """The data of a READ with holes, in pieces that cover its range in order."""

    pieces: Sequence[Payload | int]
    """Each piece is bytes, or the length of a hole in bytes."""


class BlockStatus(NamedTuple):
    """The extents that BLOCK_STATUS returns."""

    context_id: int
    extents: Sequence[tuple[int, int]]
    """Length in bytes and :class:`StatusFlag` of each, in order from the request's offset on."""
