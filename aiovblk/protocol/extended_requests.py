"""Requests with extended headers; and the client's side of requests, in either form."""

from __future__ import annotations

import struct

from ..errors import ProtocolError
from .constants import Command, CommandFlag, ReplyMode
from .requests import REQUEST, REQUEST_MAGIC, Request

EXTENDED_REQUEST_MAGIC = 0x21E41C71

EXTENDED_REQUEST = struct.Struct(">IHHQQQ")
"""Request header with extended headers: the same fields, with a length of 64 bits."""

_WRITE, _PAYLOAD_LEN = int(Command.WRITE), int(CommandFlag.PAYLOAD_LEN)


def parse_extended_request(
    buffer: bytes | bytearray | memoryview, position: int = 0, arrival: int = 0
) -> Request:
    """Parse the extended request header at ``position``; 32 bytes must be there.

    Raises:
        ProtocolError: these bytes are not an extended request header.

    """
    magic, flags, command, cookie, offset, length = EXTENDED_REQUEST.unpack_from(buffer, position)
    if magic != EXTENDED_REQUEST_MAGIC:
        raise ProtocolError(f"expected an extended request, found the magic number {magic:#010x}")
    return Request(flags, command, cookie, offset, length, arrival)


def serialize_request(request: Request, mode: ReplyMode = ReplyMode.SIMPLE) -> bytes:
    """Serialize the header of a request; the payload of a WRITE follows it."""
    flags, command = request.flags, request.type
    where = request.cookie, request.offset, request.length
    if mode < ReplyMode.EXTENDED:
        return REQUEST.pack(REQUEST_MAGIC, flags, command, *where)
    if command == _WRITE:
        flags |= _PAYLOAD_LEN
    return EXTENDED_REQUEST.pack(EXTENDED_REQUEST_MAGIC, flags, command, *where)
