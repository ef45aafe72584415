"""What a cache counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class CacheStats:
    """Counters of a cache, which only ever grow, and what it holds now."""

    hits: int = 0
    """Reads that were answered without the inner device."""
    misses: int = 0
    """Reads that had to wait for the inner device."""
    fetched_bytes: int = 0
    """What was read of the inner device."""
    read_ahead_bytes: int = 0
    """What was read of it, or is being read, before anybody asked."""
    evictions: int = 0
    """Lines that had to make room for others."""
    cached_bytes: int = 0
    """The lines that are cached, with their gaps; never more than the cache's size."""
    dirty_bytes: int = 0
    """What was written, and the inner device does not have yet (write-back)."""
