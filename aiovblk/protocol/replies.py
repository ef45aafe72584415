"""Structured and extended replies: what a server says in chunks, and what a client makes of them.

The rules that hold here, from the specification's "Structured replies":

* A reply is one or more chunks; the last, and only it, is marked DONE.
* The chunks of a READ that succeeded cover its range, each byte once; OFFSET_HOLE stands for
  zeroes.
* An error chunk ends the hope for the whole request, wherever it comes.
* A chunk has a header of 20 bytes, with extended headers 32, then a payload of the length that the
  header names. A client believes no length that its request does not explain.

A server answers each command by a structured reply once it may. (Simple replies are still allowed
for commands that return nothing; two forms would gain nothing.)
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
"""Chunk header of OFFSET_DATA, and the offset that the payload begins with."""

OFFSET = struct.Struct(">Q")
HOLE = struct.Struct(">QI")
ERROR = struct.Struct(">IH")
CONTEXT_ID = struct.Struct(">I")
EXTENT = struct.Struct(">II")
CONTEXT_ID_AND_COUNT = struct.Struct(">II")
EXTENDED_EXTENT = struct.Struct(">QQ")

MAX_EXTENTS = 1 << 20
"""Extents of one BLOCK_STATUS reply, at most."""

MAX_EXTENT = (1 << 32) - 4096
"""Bytes of one extent where it has 32 bits; a multiple of each usual block size."""

_DONE, _NONE, _ERROR = CHUNK_DONE, int(ReplyType.NONE), int(ReplyType.ERROR)
_OFFSET_DATA, _OFFSET_HOLE = int(ReplyType.OFFSET_DATA), int(ReplyType.OFFSET_HOLE)

Payload = bytes | memoryview


class SparseData(NamedTuple):
    """The result of a READ, in pieces that cover its range in order."""

    pieces: Sequence[Payload | int]
    """Bytes, or the length of a hole."""


class BlockStatus(NamedTuple):
    """The result of a BLOCK_STATUS."""

    context_id: int
    extents: Sequence[tuple[int, int]]
    """Length in bytes and :class:`StatusFlag` of each, in order from the request's offset on."""


ReplyContent = Payload | SparseData | BlockStatus
"""What a handler has to say beyond its success; ``b""`` for nothing."""

Serializer = Callable[[Request, int, ReplyContent], list[Payload]]
"""Request, error value and content to the buffers of its reply; an error has no content."""


def simple_reply(request: Request, error: int, content: ReplyContent) -> list[Payload]:
    """The whole reply to a request, as simple reply."""
    assert not isinstance(content, tuple)  # nothing else has been negotiated
    head = SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, request.cookie)
    return [head, content] if content else [head]


def structured_reply(request: Request, error: int, content: ReplyContent) -> list[Payload]:
    """The whole reply to a request, as structured reply."""
    if type(content) is bytes and content and not error:  # by far the most: packed at once
        length = OFFSET.size + len(content)
        head = STRUCTURED_DATA.pack(
            STRUCTURED_REPLY_MAGIC, _DONE, _OFFSET_DATA, request.cookie, length, request.offset
        )
        return [head, content]
    return _reply_in_chunks(_structured_header, request, error, content)


def extended_reply(request: Request, error: int, content: ReplyContent) -> list[Payload]:
    """The whole reply to a request, as structured reply with extended headers."""
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
    short = [EXTENT.pack(min(length, MAX_EXTENT), state) for length, state in extents]
    # What follows an extent that had to be cut is for the client to ask again.
    cut = next((i + 1 for i, (length, _) in enumerate(extents) if length > MAX_EXTENT), len(short))
    return ReplyType.BLOCK_STATUS, CONTEXT_ID.pack(content.context_id) + b"".join(short[:cut])


# The client's side


class ReplyHeader(NamedTuple):
    """A simple reply, or the header of one chunk."""

    cookie: int
    type: int | None
    """Type of the chunk; None for a simple reply."""
    done: bool
    """Whether the reply ends with this."""
    length: int
    """Bytes of the chunk's payload. (That of a simple reply is the request's affair.)"""
    error: int
    """Error value of a simple reply."""


def reply_header_size(
    mode: ReplyMode, buffer: bytes | bytearray | memoryview, position: int
) -> int:
    """Bytes of the header whose first four lie at ``position``."""
    if mode == ReplyMode.EXTENDED:
        return EXTENDED_REPLY.size
    if mode == ReplyMode.STRUCTURED and buffer[position : position + 4] == _STRUCTURED_START:
        return STRUCTURED_REPLY.size
    return SIMPLE_REPLY.size


_STRUCTURED_START = STRUCTURED_REPLY_MAGIC.to_bytes(4)


def parse_reply_header(
    mode: ReplyMode, buffer: bytes | bytearray | memoryview, position: int = 0
) -> ReplyHeader:
    """Read the header at ``position``; :func:`reply_header_size` bytes must be there.

    Raises:
        ProtocolError: these bytes are no reply that ``mode`` allows, or it names more payload than
            any reply can have.

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
            raise ProtocolError(f"expected an extended reply, found magic number {magic:#010x}")
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
    """Error value and message of an error chunk; unknown ones begin as the known do.

    Raises:
        ProtocolError: it does not hold what it says.

    """
    if len(payload) < ERROR.size:
        raise ProtocolError("an error chunk without an error")
    error, length = ERROR.unpack_from(payload)
    message = bytes(payload[ERROR.size : ERROR.size + length])
    if len(message) < length or not error:
        raise ProtocolError("an error chunk that is cut short, or without an error")
    return error, message.decode(errors="replace")


def parse_block_status(chunk: int, payload: memoryview) -> BlockStatus:
    """The extents of a BLOCK_STATUS or BLOCK_STATUS_EXT chunk.

    Raises:
        ProtocolError: there are none, they are cut short, or one is empty.

    """
    head, entry = CONTEXT_ID, EXTENT
    if chunk == ReplyType.BLOCK_STATUS_EXT:
        head, entry = CONTEXT_ID_AND_COUNT, EXTENDED_EXTENT
    if len(payload) <= head.size or (len(payload) - head.size) % entry.size:
        raise ProtocolError("a block status without extents, or cut short")
    context_id, *count = head.unpack_from(payload)
    extents = list(entry.iter_unpack(payload[head.size :]))
    if count and count[0] != len(extents):
        raise ProtocolError("a block status with another number of extents than it says")
    if not all(length for length, _ in extents):
        raise ProtocolError("a block status with an empty extent")
    return BlockStatus(context_id, extents)
