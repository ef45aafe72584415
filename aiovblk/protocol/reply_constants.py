"""Constants of structured and extended replies (doc/proto.md, "Values"): chunks and extents."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class ReplyType(IntEnum):
    """Reply types of structured replies; bit 15 marks an error."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = (1 << 15) + 1
    ERROR_OFFSET = (1 << 15) + 2


CHUNK_DONE = 1 << 0
"""NBD_REPLY_FLAG_DONE: marks the last chunk of a reply."""

CHUNK_ERROR = 1 << 15
"""The bit that marks error chunks in a chunk's type, whether the type is known or not."""


class StatusFlag(IntFlag):
    """Status flags of ``base:allocation``."""

    HOLE = 1 << 0
    ZERO = 1 << 1


STATUS_DIRTY = 1 << 0
"""Status flag of ``qemu:dirty-bitmap:NAME``: the range is dirty (NBD_STATE_DIRTY in qemu)."""
