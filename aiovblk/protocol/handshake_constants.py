"""Constants of the handshake phase of the NBD specification (doc/proto.md, "Values")."""

from __future__ import annotations

from enum import IntEnum, IntFlag

DEFAULT_PORT = 10809
"""The TCP port that IANA has assigned to NBD."""

MAX_STRING = 4096
"""Maximum bytes of a name, description, query or message ("Values")."""

BASE_ALLOCATION = "base:allocation"
"""The metadata context that reports holes and zeroes."""

QEMU = "qemu:"
"""The namespace of metadata contexts that qemu has defined (its docs/interop/nbd.txt)."""

DIRTY_BITMAP = "qemu:dirty-bitmap:"
"""What precedes the name of a dirty bitmap in the name of its metadata context."""

MAX_CONTEXTS = 64
"""Most metadata contexts that one client may select: each costs a call for each BLOCK_STATUS."""


class HandshakeFlag(IntFlag):
    """Handshake flags; the client flags have the same values."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    """Option types."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    PEEK_EXPORT = 4
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class OptionReply(IntEnum):
    """Option reply types; bit 31 marks an error."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_PLATFORM = (1 << 31) + 4
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_BLOCK_SIZE_REQD = (1 << 31) + 8
    ERR_TOO_BIG = (1 << 31) + 9
    ERR_EXT_HEADER_REQD = (1 << 31) + 10


class Info(IntEnum):
    """Information types of NBD_REP_INFO."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3
