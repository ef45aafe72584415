"""Constants of the NBD specification (doc/proto.md, "Values"), under the names that it uses.

Those that only a network connection has are in :mod:`.handshake_constants` and
:mod:`.reply_constants`.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

MAX_PAYLOAD = 32 * 1024 * 1024
"""Maximum bytes of one READ or WRITE: the limit that the specification's "Block sizes" lets every
client rely on, and the most that the kernel sends (max_hw_sectors_kb of nbd.c)."""


class Command(IntEnum):
    """Request types of the specification's "Request types"."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class CommandFlag(IntFlag):
    """Command flags, bits 0 to 15 of a request's flags field."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4
    PAYLOAD_LEN = 1 << 5


class TransmissionFlag(IntFlag):
    """Transmission flags: what an export supports. The kernel gets them by NBD_SET_FLAGS."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_RESIZE = 1 << 9
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11
    BLOCK_STAT_PAYLOAD = 1 << 12


class ReplyMode(IntEnum):
    """The negotiated form of requests and replies; see :mod:`.structured_replies`."""

    SIMPLE = 0
    STRUCTURED = 1
    EXTENDED = 2
