"""Serialize structured replies, and those with extended headers.

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
from collections.abc import Callable

from .constants import ReplyMode
from .replies import ReplyContent, simple_reply
from .reply_constants import CHUNK_DONE, ReplyType
from .reply_content import BlockStatus, Payload, SparseData
from .requests import Request

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

MAX_EXTENT = (1 << 32) - 4096
"""Maximum bytes of an extent with a length of 32 bits; a multiple of all usual block sizes."""

_DONE, _NONE, _ERROR = CHUNK_DONE, int(ReplyType.NONE), int(ReplyType.ERROR)
_OFFSET_DATA, _OFFSET_HOLE = int(ReplyType.OFFSET_DATA), int(ReplyType.OFFSET_HOLE)


Serializer = Callable[[Request, int, ReplyContent], list[Payload]]
"""Makes the buffers of a reply from request, error value and content; an error has no content."""


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
