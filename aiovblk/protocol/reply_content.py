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
    """The extents that BLOCK_STATUS returns for one metadata context."""

    context_id: int
    extents: Sequence[tuple[int, int]]
    """Length in bytes and status flags of each, in order from the request's offset on."""


class BlockStatuses(NamedTuple):
    """What BLOCK_STATUS returns: the extents of each metadata context that was asked for."""

    contexts: Sequence[BlockStatus]
    """At least one; each context once."""
