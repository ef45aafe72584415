"""Requests of the transmission phase: bytes become values. The layout of simple replies.

Rules from the NBD specification (doc/proto.md, "Transmission phase"):

* A request is a header of 28 bytes, 32 with extended headers, all integers big-endian; only WRITE
  is followed by a payload.
* Command flags and command type are two fields. A flag never makes a command unknown.
* ``length`` counts payload bytes for READ and WRITE only. The length of TRIM, WRITE_ZEROES and
  the like may cover a whole device, whose data never crosses the wire, so nothing may be allocated
  by it.
* The cookie is opaque, and the reply repeats it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from ..errors import ProtocolError
from .constants import MAX_PAYLOAD, Command, CommandFlag

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698

REQUEST = struct.Struct(">IHHQQI")
"""Request header: magic, command flags, type, cookie, offset, length."""

DIRECT_REQUEST = struct.Struct(">IIQQI")
"""The same header with command flags and type in one field, which is the number of the command if
there are no flags."""

SIMPLE_REPLY = struct.Struct(">IIQ")
"""Simple reply header: magic, error, cookie."""

# Plain ints: comparing an IntEnum costs as much as the rest of a check.
_WRITE, _PAYLOAD_LEN = int(Command.WRITE), int(CommandFlag.PAYLOAD_LEN)


@dataclass(slots=True)
class Request:
    """A request header as received: only its magic number has been checked.

    Treat it as immutable. It is not a frozen dataclass, since creating one for each request would
    cost four times as much; a named tuple would cost more at each access to a field.
    """

    flags: int
    """Command flags; see :class:`CommandFlag`."""
    type: int
    """Request type; see :class:`Command`."""
    cookie: int
    """Opaque; identifies the request in its reply."""
    offset: int
    """Bytes from the start of the export."""
    length: int
    """Bytes; up to 2**32 - 1, with extended headers up to 2**64 - 1."""
    arrival: int = field(default=0, compare=False)
    """When it was received, by the clock of its receiver; not part of the wire format."""

    def payload_length(self, *, extended: bool = False) -> int:
        """Return how many bytes of payload follow this header.

        Args:
            extended: whether it is an extended header, in which a flag may announce a payload for
                any command.

        Raises:
            ProtocolError: more than :data:`MAX_PAYLOAD` bytes. To stay in step with such a client,
                all of them would have to be received, which is what the limit protects from.

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
    """Parse the request header at ``position``; 28 bytes must be there.

    Raises:
        ProtocolError: these bytes are not a request header.

    """
    # Field by field: calling __init__ would add half of the cost of this whole function.
    request = object.__new__(Request)
    fields = REQUEST.unpack_from(buffer, position)
    magic, request.flags, request.type, request.cookie, request.offset, request.length = fields
    request.arrival = arrival
    if magic != REQUEST_MAGIC:
        raise ProtocolError(f"expected a request, found the magic number {magic:#010x}")
    return request
