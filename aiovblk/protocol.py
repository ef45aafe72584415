"""The transmission phase of the NBD protocol on the wire: bytes to values and back, no I/O.

The rules that hold here, from the NBD specification (doc/proto.md, "Transmission phase"):

* A request is a header of 28 bytes, all integers big-endian; only WRITE is followed by a payload.
* Command flags and command type are two fields. A flag never makes a command unknown.
* ``length`` counts payload bytes for READ and WRITE only. TRIM and WRITE_ZEROES may name up to
  4 GiB that never cross the wire, so nothing may be allocated by their length.
* A simple reply is a header of 16 bytes, then, for a READ that succeeded and for nothing else,
  exactly ``length`` bytes of payload.
* The cookie is opaque and comes back as it was.
"""

from __future__ import annotations

import errno
import struct
from enum import IntEnum, IntFlag
from typing import NamedTuple

from .errors import ProtocolError

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698

REQUEST = struct.Struct(">IHHQQI")
"""Request header: magic, command flags, type, cookie, offset, length."""

SIMPLE_REPLY = struct.Struct(">IIQ")
"""Simple reply header: magic, error, cookie."""

MAX_PAYLOAD = 32 * 1024 * 1024
"""The longest READ or WRITE, in bytes: the limit that the specification's "Block sizes" lets
every client rely on, and the most that the kernel sends (max_hw_sectors_kb of nbd.c)."""


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


class TransmissionFlag(IntFlag):
    """What a server tells about an export; the kernel takes them from NBD_SET_FLAGS."""

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


WIRE_ERRORS = frozenset(
    {
        errno.EPERM,
        errno.EIO,
        errno.ENOMEM,
        errno.EINVAL,
        errno.ENOSPC,
        errno.EOVERFLOW,
        errno.ENOTSUP,
        errno.ESHUTDOWN,
    }
)
"""The values that the specification's "Error values" allows; Linux's numbers are the wire's."""

_AS_WIRE_ERROR = {
    errno.EACCES: errno.EPERM,
    errno.EROFS: errno.EPERM,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
}


def wire_error(number: int | None) -> int:
    """The error value that stands for a system error number on the wire.

    What the specification has no value for becomes EIO, as it asks for.
    """
    if number in WIRE_ERRORS:
        return number or errno.EIO
    return _AS_WIRE_ERROR.get(number or 0, errno.EIO)


class Request(NamedTuple):
    """One request header, as it came: nothing in it has been checked but the magic number.

    A named tuple and not a dataclass, because one is made for each request and a frozen
    dataclass costs four times as much.
    """

    flags: int
    """Command flags; see :class:`CommandFlag`."""
    type: int
    """Request type; see :class:`Command`."""
    cookie: int
    """Opaque; names the request in its reply."""
    offset: int
    """Bytes from the start of the export."""
    length: int
    """Bytes; up to 2**32 - 1."""

    @property
    def payload_length(self) -> int:
        """How many bytes follow this header.

        Raises:
            ProtocolError: a WRITE of more than :data:`MAX_PAYLOAD` bytes. There is no way to stay
                in step with such a client but to read on past all of it, which is what the limit
                protects from.

        """
        if self.type != Command.WRITE:
            return 0
        if self.length > MAX_PAYLOAD:
            raise ProtocolError(
                f"the client sent a WRITE of {self.length} bytes; at most {MAX_PAYLOAD} are allowed"
            )
        return self.length


def parse_request(buffer: bytes | bytearray | memoryview, position: int = 0) -> Request:
    """Read the request header that starts at ``position``; 28 bytes must be there.

    Raises:
        ProtocolError: these bytes are not a request header.

    """
    magic, *fields = REQUEST.unpack_from(buffer, position)
    if magic != REQUEST_MAGIC:
        raise ProtocolError(f"expected a request, found the magic number {magic:#010x}")
    return Request(*fields)


def serialize_request(request: Request) -> bytes:
    """The 28 bytes of a request header; the payload of a WRITE goes behind them."""
    return REQUEST.pack(REQUEST_MAGIC, *request)


def serialize_simple_reply(error: int, cookie: int) -> bytes:
    """The 16 bytes of a simple reply; the payload of a successful READ goes behind them."""
    return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)


def parse_simple_reply(
    buffer: bytes | bytearray | memoryview, position: int = 0
) -> tuple[int, int]:
    """Read the simple reply that starts at ``position``: its error value and its cookie.

    Raises:
        ProtocolError: these bytes are not a simple reply.

    """
    magic, error, cookie = SIMPLE_REPLY.unpack_from(buffer, position)
    if magic != SIMPLE_REPLY_MAGIC:
        raise ProtocolError(f"expected a simple reply, found the magic number {magic:#010x}")
    return error, cookie
