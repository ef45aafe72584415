"""Requests with extended headers; and the client's side of requests, in either form.

With extended headers a BLOCK_STATUS may have a payload (NBD_FLAG_BLOCK_STATUS_PAYLOAD): which of
the metadata contexts it is about, and the length of the range, since the header has that of the
payload.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ..errors import ProtocolError
from .constants import Command, CommandFlag, ReplyMode
from .requests import REQUEST, REQUEST_MAGIC, Request
from .structured_replies import CONTEXT_ID

EXTENDED_REQUEST_MAGIC = 0x21E41C71

EXTENDED_REQUEST = struct.Struct(">IHHQQQ")
"""Request header with extended headers: the same fields, with a length of 64 bits."""

STATUS_RANGE = struct.Struct(">Q")
"""What the payload of a BLOCK_STATUS begins with: the length of the range. Context ids follow."""

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


def serialize_context_selection(length: int, context_ids: Sequence[int]) -> bytes:
    """Serialize the payload of a BLOCK_STATUS about some contexts, and ``length`` bytes."""
    return STATUS_RANGE.pack(length) + b"".join(map(CONTEXT_ID.pack, context_ids))


def parse_context_selection(payload: bytes | memoryview, limit: int) -> tuple[int, tuple[int, ...]]:
    """Parse the payload of a BLOCK_STATUS: the bytes of its range, and the context ids.

    Raises:
        ProtocolError: it is cut short, names no context, one of them twice, or more than ``limit``.

    """
    size = len(payload) - STATUS_RANGE.size
    if size > limit * CONTEXT_ID.size:
        raise ProtocolError(f"the payload of a BLOCK_STATUS names more than {limit} contexts")
    if size < CONTEXT_ID.size or size % CONTEXT_ID.size:
        raise ProtocolError("the payload of a BLOCK_STATUS has no context ids, or is cut short")
    (length,) = STATUS_RANGE.unpack_from(payload)
    ids = tuple(each for (each,) in CONTEXT_ID.iter_unpack(payload[STATUS_RANGE.size :]))
    if len(set(ids)) < len(ids):
        raise ProtocolError("the payload of a BLOCK_STATUS names a context twice")
    return length, ids
