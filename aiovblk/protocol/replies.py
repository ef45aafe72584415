"""Serialize and parse replies: simple, structured, and structured with extended headers.

Rules from the specification's "Structured replies":

* A reply is one or more chunks; only the last one is marked DONE.
* The chunks of a READ that succeeded cover its range, each byte once; OFFSET_HOLE stands for
  zeroes.
* An error chunk means that the whole request has failed, wherever the chunk comes.
* A chunk has a header of 20 bytes, 32 with extended headers, and a payload of the length in the
  header. A client rejects a length that its request does not explain.

Once structured replies are negotiated, the server uses them for every command. (Simple replies are
still allowed for commands that return no data; using both forms would gain nothing.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..errors import ProtocolError
from .constants import CHUNK_DONE, CHUNK_ERROR, MAX_PAYLOAD, MAX_STRING, ReplyMode, ReplyType
from .requests import SIMPLE_REPLY, SIMPLE_REPLY_MAGIC, Request

STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REPLY_MAGIC = 0x6E8A278C

STRUCTURED_REPLY = struct.Struct(">IHHQI")
"""Chunk header: magic, flags, type, cookie, payload length."""

EXTENDED_REPLY = struct.Struct(">IHHQQQ")
"""Chunk header with extended headers: magic, flags, type, cookie, offset, payload length."""

STRUCTURED_DATA = struct.Struct(">IHHQIQ")
"""Chunk header of OFFSET_DATA, with the offset at the start of its payload."""

OFFSET = struct.Struct(">Q")
HOLE = struct.Struct(">QI")
ERROR = struct.Struct(">IH")
CONTEXT_ID = struct.Struct(">I")
EXTENT = struct.Struct(">II")
CONTEXT_ID_AND_COUNT = struct.Struct(">II")
EXTENDED_EXTENT = struct.Struct(">QQ")

MAX_EXTENTS = 1 << 20
"""Maximum number of extents in one BLOCK_STATUS reply."""

MAX_EXTENT = (1 << 32) - 4096
"""Maximum bytes of an extent with a length of 32 bits; a multiple of all usual block sizes."""

_DONE, _NONE, _ERROR = CHUNK_DONE, int(ReplyType.NONE), int(ReplyType.ERROR)
_OFFSET_DATA, _OFFSET_HOLE = int(ReplyType.OFFSET_DATA), int(ReplyType.OFFSET_HOLE)

Payload = bytes | memoryview


class SparseData(NamedTuple):
    """The data of a READ with holes, in pieces that cover its range in order."""

    pieces: Sequence[Payload | int]
    """Each piece is bytes, or the length of a hole in bytes."""


class BlockStatus(NamedTuple):
    """The extents that BLOCK_STATUS returns."""

    context_id: int
    extents: Sequence[tuple[int, int]]
    """Length in bytes and :class:`StatusFlag` of each, in order from the request's offset on."""


ReplyContent = Payload | SparseData | BlockStatus
"""What a successful reply carries; ``b""`` for nothing."""

Serializer = Callable[[Request, int, ReplyContent], list[Payload]]
"""Makes the buffers of a reply from request, error value and content; an error has no content."""


def simple_reply(request: Request, error: int, content: ReplyContent) -> list[Payload]:
    """Serialize a simple reply: the buffers to send, payload not copied."""
    assert not isinstance(content, tuple)  # sparse data and extents need structured replies
    head = SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, request.cookie)
    return [head, content] if content else [head]


def structured_reply(request: Request, error: int, content: ReplyContent) -> list[Payload]:
    """Serialize a structured reply: the buffers to send, payload not copied."""
    if type(content) is bytes and content and not error:  # the common case: one pack()
        length = OFFSET.size + len(content)
        head = STRUCTURED_DATA.pack(
            STRUCTURED_REPLY_MAGIC, _DONE, _OFFSET_DATA, request.cookie, length, request.offset
        )
        return [head, content]
    return _reply_in_chunks(_structured_header, request, error, content)


def structured_read_header(cookie: int, offset: int, length: int) -> bytes:
    """Serialize what precedes the payload in the structured reply to a successful READ."""
    return STRUCTURED_DATA.pack(
        STRUCTURED_REPLY_MAGIC, _DONE, _OFFSET_DATA, cookie, OFFSET.size + length, offset
    )


def structured_success(cookie: int) -> bytes:
    """Serialize the structured reply to a request that succeeded and has no payload."""
    return STRUCTURED_REPLY.pack(STRUCTURED_REPLY_MAGIC, _DONE, _NONE, cookie, 0)


def extended_reply(request: Request, error: int, content: ReplyContent) -> list[Payload]:
    """Serialize a structured reply with extended headers: the buffers to send."""
    return _reply_in_chunks(_extended_header, request, error, content)


SERIALIZERS: dict[ReplyMode, Serializer] = {
    ReplyMode.SIMPLE: simple_reply,
    ReplyMode.STRUCTURED: structured_reply,
    ReplyMode.EXTENDED: extended_reply,
}


def _structured_header(request: Request, flags: int, chunk: int, length: int) -> bytes:
    return STRUCTURED_REPLY.pack(STRUCTURED_REPLY_MAGIC, flags, chunk, request.cookie, length)


def _extended_header(request: Request, flags: int, chunk: int, length: int) -> bytes:
    return EXTENDED_REPLY.pack(
        EXTENDED_REPLY_MAGIC, flags, chunk, request.cookie, request.offset, length
    )


def _reply_in_chunks(
    header: Callable[[Request, int, int, int], bytes],
    request: Request,
    error: int,
    content: ReplyContent,
) -> list[Payload]:
    if error:
        return [header(request, _DONE, _ERROR, ERROR.size) + ERROR.pack(error, 0)]
    if not content:
        return [header(request, _DONE, _NONE, 0)]
    if isinstance(content, SparseData):
        return _sparse_chunks(header, request, content)
    if isinstance(content, BlockStatus):
        chunk, payload = _status_payload(content, extended=header is _extended_header)
        return [header(request, _DONE, chunk, len(payload)) + payload]
    head = header(request, _DONE, _OFFSET_DATA, OFFSET.size + len(content))
    return [head + OFFSET.pack(request.offset), content]


def _sparse_chunks(
    header: Callable[[Request, int, int, int], bytes], request: Request, content: SparseData
) -> list[Payload]:
    buffers: list[Payload] = []
    offset, end = request.offset, request.offset + request.length
    for piece in content.pieces:
        length = piece if isinstance(piece, int) else len(piece)
        flags = _DONE if offset + length == end else 0
        if isinstance(piece, int):
            head = header(request, flags, _OFFSET_HOLE, HOLE.size)
            buffers.append(head + HOLE.pack(offset, length))
        else:
            head = header(request, flags, _OFFSET_DATA, OFFSET.size + length)
            buffers += [head + OFFSET.pack(offset), piece]
        offset += length
    return buffers


def _status_payload(content: BlockStatus, *, extended: bool) -> tuple[int, bytes]:
    extents = content.extents
    if extended:
        head = CONTEXT_ID_AND_COUNT.pack(content.context_id, len(extents))
        return ReplyType.BLOCK_STATUS_EXT, head + b"".join(
            EXTENDED_EXTENT.pack(*e) for e in extents
        )
    short = [EXTENT.pack(min(length, MAX_EXTENT), flags) for length, flags in extents]
    # The reply ends behind an extent that had to be shortened; the client asks again from there.
    cut = next((i + 1 for i, (length, _) in enumerate(extents) if length > MAX_EXTENT), len(short))
    return ReplyType.BLOCK_STATUS, CONTEXT_ID.pack(content.context_id) + b"".join(short[:cut])


# The client's side


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
        return CONTEXT_ID.size + MAX_EXTENTS * EXTENT.size
    if chunk == ReplyType.BLOCK_STATUS_EXT:
        return CONTEXT_ID_AND_COUNT.size + MAX_EXTENTS * EXTENDED_EXTENT.size
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
