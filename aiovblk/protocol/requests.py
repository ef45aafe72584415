"""Requests and simple replies of the transmission phase, bytes to values and back.

The rules that hold here, from the NBD specification (doc/proto.md, "Transmission phase"):

* A request is a header of 28 bytes, 32 with extended headers, all integers big-endian; only WRITE
  is followed by a payload.
* Command flags and command type are two fields. A flag never makes a command unknown.
* ``length`` counts payload bytes for READ and WRITE only. TRIM, WRITE_ZEROES and the like may name
  a whole device that never crosses the wire, so nothing may be allocated by their length.
* A simple reply is a header of 16 bytes, then, for a READ that succeeded and for nothing else,
  exactly ``length`` bytes of payload.
* The cookie is opaque and comes back as it was.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, field

from ..errors import ProtocolError
from .constants import MAX_PAYLOAD, Command, CommandFlag, ReplyMode

REQUEST_MAGIC = 0x25609513
EXTENDED_REQUEST_MAGIC = 0x21E41C71
SIMPLE_REPLY_MAGIC = 0x67446698

REQUEST = struct.Struct(">IHHQQI")
"""Request header: magic, command flags, type, cookie, offset, length."""

EXTENDED_REQUEST = struct.Struct(">IHHQQQ")
"""Request header with extended headers: the same fields, the length one of 64 bits."""

SIMPLE_REPLY = struct.Struct(">IIQ")
"""Simple reply header: magic, error, cookie."""

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

# Plain ints: an IntEnum's comparison costs as much as the rest of a check.
_WRITE, _PAYLOAD_LEN = int(Command.WRITE), int(CommandFlag.PAYLOAD_LEN)

_ERRNO_TO_WIRE = {
    errno.EACCES: errno.EPERM,
    errno.EROFS: errno.EPERM,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.ENOSPC,
}


def errno_to_wire(number: int | None) -> int:
    """The error value that stands for a system error number on the wire.

    What the specification has no value for becomes EIO, as it asks for.
    """
    if number in WIRE_ERRORS:
        return int(number or 0)  # anybody may raise OSError with a float
    return _ERRNO_TO_WIRE.get(number or 0, errno.EIO)


@dataclass(slots=True)
class Request:
    """One request header, as it came: nothing in it has been checked but the magic number.

    Nobody changes one. It is not frozen because one is made for each request, which would cost
    four times as much; a named tuple would cost more with each look at a field.
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
    """Bytes; up to 2**32 - 1, with extended headers up to 2**64 - 1."""
    arrival: int = field(default=0, compare=False)
    """When it was received, by whatever clock its receiver has; not of the wire."""

    def payload_length(self, *, extended: bool = False) -> int:
        """How many bytes follow this header.

        Args:
            extended: whether it is an extended header, in which a flag may announce a payload for
                any command.

        Raises:
            ProtocolError: more than :data:`MAX_PAYLOAD` bytes. There is no way to stay in step
                with such a client but to read on past all of it, which is what the limit protects
                from.

        """
        if self.type != _WRITE and not (extended and self.flags & _PAYLOAD_LEN):
            return 0
        if self.length > MAX_PAYLOAD:
            raise ProtocolError(
                f"the client sent {self.length} bytes with one request;"
                f" at most {MAX_PAYLOAD} are allowed"
            )
        return self.length


def parse_request(
    buffer: bytes | bytearray | memoryview, position: int = 0, arrival: int = 0
) -> Request:
    """Read the request header that starts at ``position``; 28 bytes must be there.

    Raises:
        ProtocolError: these bytes are not a request header.

    """
    # Field by field: to call its __init__ costs half as much again as all of this.
    request = object.__new__(Request)
    fields = REQUEST.unpack_from(buffer, position)
    magic, request.flags, request.type, request.cookie, request.offset, request.length = fields
    request.arrival = arrival
    if magic != REQUEST_MAGIC:
        raise ProtocolError(f"expected a request, found the magic number {magic:#010x}")
    return request


def parse_extended_request(
    buffer: bytes | bytearray | memoryview, position: int = 0, arrival: int = 0
) -> Request:
    """Read the extended request header that starts at ``position``; 32 bytes must be there.

    Raises:
        ProtocolError: these bytes are not an extended request header.

    """
    magic, flags, command, cookie, offset, length = EXTENDED_REQUEST.unpack_from(buffer, position)
    if magic != EXTENDED_REQUEST_MAGIC:
        raise ProtocolError(f"expected an extended request, found the magic {magic:#010x}")
    return Request(flags, command, cookie, offset, length, arrival)


def serialize_request(request: Request, mode: ReplyMode = ReplyMode.SIMPLE) -> bytes:
    """The header of a request; the payload of a WRITE goes behind it."""
    flags, command = request.flags, request.type
    where = request.cookie, request.offset, request.length
    if mode < ReplyMode.EXTENDED:
        return REQUEST.pack(REQUEST_MAGIC, flags, command, *where)
    if command == _WRITE:
        flags |= _PAYLOAD_LEN
    return EXTENDED_REQUEST.pack(EXTENDED_REQUEST_MAGIC, flags, command, *where)


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
