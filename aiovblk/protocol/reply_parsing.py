"""Parse replies of all forms: the client's side."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ProtocolError
from .constants import MAX_PAYLOAD, ReplyMode
from .handshake_constants import MAX_STRING
from .reply_constants import CHUNK_DONE, CHUNK_ERROR, ReplyType
from .reply_content import BlockStatus
from .requests import SIMPLE_REPLY, SIMPLE_REPLY_MAGIC
from .structured_replies import (
    CONTEXT_ID,
    CONTEXT_ID_AND_COUNT,
    ERROR,
    EXTENDED_EXTENT,
    EXTENDED_REPLY,
    EXTENDED_REPLY_MAGIC,
    EXTENT,
    HOLE,
    OFFSET,
    STRUCTURED_REPLY,
    STRUCTURED_REPLY_MAGIC,
)

MAX_RECEIVED_EXTENTS = 1 << 20
"""Most extents that a server may send in one BLOCK_STATUS reply: what bounds its memory."""


class ReplyHeader(NamedTuple):
    """The header of a simple reply, or of one chunk."""

    cookie: int
    type: int | None
    """Type of the chunk; None for a simple reply."""
    done: bool
    """Whether this is the last chunk of its reply."""
    length: int
    """Bytes of the chunk's payload. (That of a simple reply follows from its request.)"""
    error: int
    """Error value of a simple reply."""


def reply_header_size(
    mode: ReplyMode, buffer: bytes | bytearray | memoryview, position: int
) -> int:
    """Return the size of the reply header at ``position``, whose first four bytes must be there."""
    if mode == ReplyMode.EXTENDED:
        return EXTENDED_REPLY.size
    if mode == ReplyMode.STRUCTURED and buffer[position : position + 4] == _STRUCTURED_START:
        return STRUCTURED_REPLY.size
    return SIMPLE_REPLY.size


_STRUCTURED_START = STRUCTURED_REPLY_MAGIC.to_bytes(4)


def parse_reply_header(
    mode: ReplyMode, buffer: bytes | bytearray | memoryview, position: int = 0
) -> ReplyHeader:
    """Parse the reply header at ``position``; :func:`reply_header_size` bytes must be there.

    Raises:
        ProtocolError: these bytes are no reply that ``mode`` allows, or the payload's length is
            more than any chunk of its type can have.

    """
    size = reply_header_size(mode, buffer, position)
    if size == SIMPLE_REPLY.size:
        magic, error, cookie = SIMPLE_REPLY.unpack_from(buffer, position)
        if magic != SIMPLE_REPLY_MAGIC:
            raise ProtocolError(f"expected a reply, found the magic number {magic:#010x}")
        return ReplyHeader(cookie, None, True, 0, error)
    if size == STRUCTURED_REPLY.size:
        _, flags, chunk, cookie, length = STRUCTURED_REPLY.unpack_from(buffer, position)
    else:
        magic, flags, chunk, cookie, _, length = EXTENDED_REPLY.unpack_from(buffer, position)
        if magic != EXTENDED_REPLY_MAGIC:
            raise ProtocolError(f"expected an extended reply, found the magic {magic:#010x}")
    if length > _max_payload(chunk):
        raise ProtocolError(f"a chunk of type {chunk} cannot have {length} bytes")
    return ReplyHeader(cookie, chunk, bool(flags & CHUNK_DONE), length, 0)


def _max_payload(chunk: int) -> int:
    if chunk == ReplyType.OFFSET_DATA:
        return OFFSET.size + MAX_PAYLOAD
    if chunk == ReplyType.OFFSET_HOLE:
        return HOLE.size
    if chunk == ReplyType.BLOCK_STATUS:
        return CONTEXT_ID.size + MAX_RECEIVED_EXTENTS * EXTENT.size
    if chunk == ReplyType.BLOCK_STATUS_EXT:
        return CONTEXT_ID_AND_COUNT.size + MAX_RECEIVED_EXTENTS * EXTENDED_EXTENT.size
    if chunk & CHUNK_ERROR:
        return ERROR.size + MAX_STRING + OFFSET.size
    return 0


def parse_error(payload: memoryview) -> tuple[int, str]:
    """Parse the error value and message of an error chunk; unknown types begin as known ones do.

    Raises:
        ProtocolError: it is truncated, or its error value is 0.

    """
    if len(payload) < ERROR.size:
        raise ProtocolError("an error chunk without an error value")
    error, length = ERROR.unpack_from(payload)
    message = bytes(payload[ERROR.size : ERROR.size + length])
    if len(message) < length or not error:
        raise ProtocolError("an error chunk that is cut short, or without an error value")
    return error, message.decode(errors="replace")


def parse_block_status(chunk: int, payload: memoryview) -> BlockStatus:
    """Parse the extents of a BLOCK_STATUS or BLOCK_STATUS_EXT chunk.

    Raises:
        ProtocolError: there are none, they are truncated, or one is empty.

    """
    head, entry = CONTEXT_ID, EXTENT
    if chunk == ReplyType.BLOCK_STATUS_EXT:
        head, entry = CONTEXT_ID_AND_COUNT, EXTENDED_EXTENT
    if len(payload) <= head.size or (len(payload) - head.size) % entry.size:
        raise ProtocolError("a block status chunk without extents, or cut short")
    context_id, *count = head.unpack_from(payload)
    extents = list(entry.iter_unpack(payload[head.size :]))
    if count and count[0] != len(extents):
        raise ProtocolError("a block status chunk with another number of extents than it says")
    if not all(length for length, _ in extents):
        raise ProtocolError("a block status chunk with an empty extent")
    return BlockStatus(context_id, extents)
