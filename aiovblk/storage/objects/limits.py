"""Limits of one open disk."""

from __future__ import annotations

from dataclasses import dataclass

from ...arguments import check_count

FOLD_SHARE = 2
"""A chunk is stored anew when one in so many of its blocks has been written elsewhere."""

_MAX_PART = 64 << 20
_MAX_EXTENTS = 1 << 22


@dataclass(frozen=True, slots=True)
class Limits:
    """Limit the memory, the concurrent requests and the compaction of one open disk."""

    memory: int = 64 << 20
    """Read cache: bytes of chunks that are kept after they were read or stored."""
    unstored: int = 256 << 20
    """Write buffer: bytes of dirty blocks, after which writes wait until some are stored. It holds
    two chunks at least."""
    requests: int = 32
    """Concurrency: chunks that are read, and as many again that are stored, at the same time."""
    inline_size: int = 256 << 10
    """Bytes of blocks that a flush puts into its record; if there are more, into segments. At most
    64 MiB: a record has to be read as a whole."""
    segment_size: int = 4 << 20
    """Bytes of a segment at most, but one block at least; and of blocks in records, after which
    they are put into one. At most 64 MiB, like a chunk."""
    extents: int = 1 << 17
    """Runs of blocks in segments, after which the compactor puts some back into chunks. At twice
    as many flushes wait for it. Each takes about 200 bytes of memory. At most 4,194,304, since a
    checkpoint has to be read as a whole."""
    compaction: int = 32 << 20
    """Bytes per second that the compactor stores, while there are fewer than ``extents`` runs; but
    data in records is put into segments as fast as it comes."""

    def __post_init__(self) -> None:
        """Refuse limits with which a request would never end, or a disk could not be opened."""
        check_count("memory", self.memory, minimum=0)
        check_count("unstored", self.unstored, minimum=0)
        check_count("requests", self.requests)
        check_count("inline_size", self.inline_size, minimum=0, maximum=_MAX_PART)
        check_count("segment_size", self.segment_size, maximum=_MAX_PART)
        check_count("extents", self.extents, maximum=_MAX_EXTENTS)
        check_count("compaction", self.compaction)
