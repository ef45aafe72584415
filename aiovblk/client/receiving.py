"""Receive replies: the usual ones in one frame, all others through :mod:`.pending`.

What holds here:

* A reply is processed in the callback that received it; nothing waits for a turn of the event loop.
* A reply in one chunk, without an error, that contains what its request asked for is processed in
  the loop of :meth:`ReplyReceiver.take`, without an object of its own. Everything else (errors,
  holes, several chunks, extents, simple replies with data, and what the protocol does not allow) is
  validated and assembled by a :class:`.PendingRequest`, which is made when its first chunk arrives.
* A call is known by its cookie until its reply is complete, also when its caller was cancelled.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, NamedTuple

from ..errors import ProtocolError
from ..protocol import (
    SIMPLE_REPLY_MAGIC,
    Command,
    NegotiationResult,
    ReplyMode,
    ReplyType,
    Request,
    parse_reply_header,
    reply_header_size,
)
from ..protocol.reply_constants import CHUNK_DONE
from ..protocol.structured_replies import EXTENDED_REPLY_MAGIC, OFFSET, STRUCTURED_REPLY_MAGIC
from ..stream import InPlaceStreamReader
from .pending import MIN_ZERO_COPY, PendingBlockStatus, PendingRead, PendingRequest

Call = tuple[asyncio.Future[Any], int, int, int, memoryview | None, float]
"""A request that waits for its reply: result, command, offset, length, the buffer of a READ that
brings one or the selection of a BLOCK_STATUS, and the deadline in the loop's time. A plain tuple,
since it is made for each request: an object with attributes takes eight times as long."""

_HEAD = struct.Struct(">IIQ")
"""What replies of all forms begin with: magic; the error of a simple reply, or flags and type of a
chunk; cookie."""


class _Layout(NamedTuple):
    """Which replies without an error a mode allows, and what follows :data:`_HEAD` in a chunk."""

    simple_magic: int
    """Of a simple reply without data."""
    chunk_magic: int
    length: struct.Struct
    """The length of the payload: the rest of the header."""
    data: struct.Struct
    """Of OFFSET_DATA: the same, and the offset with which the payload begins."""


_NOT_ALLOWED = -1
"""In place of a magic number."""

_LENGTH, _DATA = struct.Struct(">I"), struct.Struct(">IQ")
_LAYOUTS = {
    ReplyMode.SIMPLE: _Layout(SIMPLE_REPLY_MAGIC, _NOT_ALLOWED, _LENGTH, _DATA),
    ReplyMode.STRUCTURED: _Layout(SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, _LENGTH, _DATA),
    ReplyMode.EXTENDED: _Layout(
        _NOT_ALLOWED, EXTENDED_REPLY_MAGIC, struct.Struct(">8xQ"), struct.Struct(">8xQQ")
    ),
}

# Plain ints: comparing an IntEnum costs as much as the rest of a check.
_READ, _BLOCK_STATUS = int(Command.READ), int(Command.BLOCK_STATUS)
_ONLY_DATA = CHUNK_DONE << 16 | ReplyType.OFFSET_DATA
_ONLY_NONE = CHUNK_DONE << 16 | ReplyType.NONE

_unpack_head = _HEAD.unpack_from


class ReplyReceiver:
    """The receiving half of a :class:`.ClientConnection`.

    Args:
        reader: what has been received.
        negotiated: the result of the handshake.

    Attributes:
        calls: those that wait for their replies, by cookie, in the order in which they were sent.

    """

    def __init__(self, reader: InPlaceStreamReader, negotiated: NegotiationResult) -> None:
        self.calls: dict[int, Call] = {}
        self._reader = reader
        self._mode = negotiated.mode
        self._contexts = {number: name for name, number in negotiated.contexts.items()}
        self._partial: dict[int, PendingRequest] = {}
        self._layout = _LAYOUTS[negotiated.mode]
        reader.wanted = _HEAD.size

    def take(self) -> None:
        """Process every reply, or chunk of one, that has arrived whole; say what is wanted next.

        Raises:
            ProtocolError: these bytes cannot be a reply, or a part of one, to what was sent.

        """
        reader, calls, partial = self._reader, self.calls, self._partial
        buffer, view, end = reader.buffer, reader.view, reader.end
        while end - (start := reader.start) >= _HEAD.size:
            magic, kind, cookie = _unpack_head(buffer, start)
            call, length = calls.get(cookie), 0
            if call is not None and cookie not in partial:
                length = self._usual_length(call, magic, kind, start)
            if call is None or not length:
                if self._take_any():
                    continue
                return
            stop = start + length
            if stop > end:
                reader.wanted = length
                return
            reader.start = stop
            del calls[cookie]
            result, command, _, length, _, _ = call
            value = None
            if command == _READ:
                data = view[stop - length : stop]
                value = data.toreadonly() if length >= MIN_ZERO_COPY else memoryview(bytes(data))
            if not result.done():  # else its caller was cancelled
                result.set_result(value)
        reader.wanted = _HEAD.size

    def _usual_length(self, call: Call, magic: int, kind: int, start: int) -> int:
        """Return the bytes of a reply that is the usual one to a call; 0 if it may be another."""
        _, command, offset, length, into, _ = call
        reader, layout = self._reader, self._layout
        begin = start + _HEAD.size
        if command == _READ:
            data = layout.data
            if (
                kind == _ONLY_DATA
                and magic == layout.chunk_magic
                and reader.end - begin >= data.size
                and data.unpack_from(reader.buffer, begin) == (OFFSET.size + length, offset)
                and into is None
            ):
                return _HEAD.size + data.size + length
        elif command != _BLOCK_STATUS:
            if magic == layout.simple_magic and kind == 0:
                return _HEAD.size
            if (
                kind == _ONLY_NONE
                and magic == layout.chunk_magic
                and reader.end - begin >= layout.length.size
                and layout.length.unpack_from(reader.buffer, begin) == (0,)
            ):
                return _HEAD.size + layout.length.size
        return 0

    def _take_any(self) -> bool:
        """Process the next reply, or chunk of one, of whatever kind.

        Returns:
            False if it has not arrived whole; then it is wanted next.

        """
        reader, mode = self._reader, self._mode
        buffer, start = reader.buffer, reader.start
        available = reader.end - start
        size = length = reply_header_size(mode, buffer, start)
        if available >= size:
            header = parse_reply_header(mode, buffer, start)
            pending = self._partial.get(header.cookie) or self._begin(header.cookie)
            length += pending.payload_size(header)
        if available < length:
            reader.wanted = length
            return False
        reader.start = start + length
        pending.feed(header, reader.view[start + size : start + length])
        if header.done:
            del self.calls[header.cookie], self._partial[header.cookie]
        return True

    def _begin(self, cookie: int) -> PendingRequest:
        """Make what assembles the reply to a call."""
        if (call := self.calls.get(cookie)) is None:
            raise ProtocolError(
                f"the server replied to a request that was not sent (cookie {cookie})"
            )
        result, command, offset, length, into, _ = call
        request = Request(0, command, cookie, offset, length)
        pending: PendingRequest
        if command == _READ:
            pending = PendingRead(request, self._mode, result, into)
        elif command == _BLOCK_STATUS:
            pending = PendingBlockStatus(request, self._mode, result, self._contexts, into)
        else:
            pending = PendingRequest(request, self._mode, result)
        self._partial[cookie] = pending
        return pending
