"""Pending requests of the client: each one's reply is validated and assembled here. No I/O.

What holds here, from the specification's "Structured replies":

* A READ that succeeds delivers each byte of its range exactly once, in chunks of any order.
* An error chunk fails the request, whatever came before it or comes after it.
* No length is trusted: whether a chunk's length fits the request is checked by its header, before
  its payload is received.
"""

from __future__ import annotations

import asyncio
import errno
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ProtocolError
from ..protocol import (
    WIRE_ERRORS,
    Command,
    ReplyHeader,
    ReplyMode,
    ReplyType,
    Request,
    parse_block_status,
    parse_context_selection,
    parse_error,
)
from ..protocol.reply_constants import CHUNK_ERROR
from ..protocol.structured_replies import (
    CONTEXT_ID,
    CONTEXT_ID_AND_COUNT,
    EXTENDED_EXTENT,
    EXTENT,
    HOLE,
    OFFSET,
)
from ..text import quote

MIN_ZERO_COPY = 256 * 1024
"""Bytes from which on a READ's result is a view of the receive buffer of 1 MiB, not a copy. A
smaller view would keep many times its size alive, for as long as its caller keeps it."""

MAX_READ_FRAGMENTS = 4096
"""Parts with gaps between them that a READ's reply may have. No server needs as many, and without a
limit a search among them could take any time."""

_NONE, _OFFSET_DATA, _OFFSET_HOLE = (
    int(ReplyType.NONE),
    int(ReplyType.OFFSET_DATA),
    int(ReplyType.OFFSET_HOLE),
)


class PendingRequest:
    """Assemble the reply to a request, which returns None unless a subclass says otherwise.

    Args:
        request: as it was sent.
        mode: format of replies: simple, structured or extended.
        result: done when the reply is complete; an OSError where the server answered with an
            error. If it is cancelled, the reply is received and dropped.

    """

    def __init__(self, request: Request, mode: ReplyMode, result: asyncio.Future[Any]) -> None:
        self.request = request
        self.result = result
        self._mode = mode
        self._error: OSError | None = None

    def payload_size(self, header: ReplyHeader) -> int:
        """Return how many bytes follow a header.

        Raises:
            ProtocolError: it cannot be of a reply, or a part of one, to the request.

        """
        chunk = header.type
        if chunk is None:
            return 0 if header.error else self._simple_payload_size()
        if chunk & CHUNK_ERROR:
            return header.length
        if chunk != _NONE:
            return self._content_payload_size(chunk, header.length)
        # "NBD_REPLY_TYPE_NONE: MUST always be used with NBD_REPLY_FLAG_DONE"
        if not header.done:
            raise ProtocolError("an empty chunk that is not the last one of its reply")
        return 0

    def feed(self, header: ReplyHeader, payload: memoryview) -> None:
        """Process what follows a header, and complete the request if it is the last.

        Raises:
            ProtocolError: it cannot be a part of a reply to the request.

        """
        chunk = header.type
        if chunk is None:
            if header.error:
                self._error = _error(header.error)
            else:
                self._feed_simple(payload)
        elif chunk & CHUNK_ERROR:
            self._error = self._error or _error(*parse_error(payload))
        elif chunk != _NONE:
            self._feed_content(chunk, payload)
        if header.done:
            self._finish()

    def _finish(self) -> None:
        value = None if self._error else self._value()
        if self.result.done():  # the caller was cancelled
            return
        if self._error:
            self.result.set_exception(self._error)
        else:
            self.result.set_result(value)

    # What the reply may contain, by command

    def _simple_payload_size(self) -> int:
        return 0

    def _content_payload_size(self, chunk: int, length: int) -> int:
        raise self._mismatch(f"a chunk of type {chunk}")

    def _feed_simple(self, payload: memoryview) -> None:
        pass

    def _feed_content(self, chunk: int, payload: memoryview) -> None:
        raise NotImplementedError  # refused by _content_payload_size

    def _value(self) -> object:
        return None

    def _mismatch(self, what: str) -> ProtocolError:
        command = Command(self.request.type).name
        return ProtocolError(f"the server sent {what} in reply to a {command}")


class PendingRead(PendingRequest):
    """Assemble the reply to a READ; its result is a read-only view.

    Args:
        into: a zeroed buffer to put the data into, where it is a part of a larger read.

    """

    def __init__(
        self,
        request: Request,
        mode: ReplyMode,
        result: asyncio.Future[Any],
        into: memoryview | None = None,
    ) -> None:
        super().__init__(request, mode, result)
        self._into = into
        self._whole: memoryview | None = None
        self._coverage = Coverage(request.offset, request.offset + request.length)

    def _simple_payload_size(self) -> int:
        if self._mode is not ReplyMode.SIMPLE:
            raise self._mismatch("a simple reply instead of a structured one")
        return self.request.length

    def _content_payload_size(self, chunk: int, length: int) -> int:
        if chunk == _OFFSET_DATA:
            if not OFFSET.size < length <= OFFSET.size + self.request.length:
                raise self._mismatch(f"{length - OFFSET.size} bytes")
        elif chunk != _OFFSET_HOLE or length != HOLE.size:
            raise self._mismatch(f"a chunk of type {chunk} and {length} bytes")
        return length

    def _feed_simple(self, payload: memoryview) -> None:
        self._feed_data(self.request.offset, payload)

    def _feed_content(self, chunk: int, payload: memoryview) -> None:
        if chunk == _OFFSET_DATA:
            self._feed_data(OFFSET.unpack_from(payload)[0], payload[OFFSET.size :])
        else:
            # Nothing to store: the buffer is zeroed.
            offset, length = HOLE.unpack(payload)
            self._coverage.add(offset, offset + length)

    def _feed_data(self, offset: int, data: memoryview) -> None:
        self._coverage.add(offset, offset + len(data))
        if len(data) == self.request.length and self._into is None:
            self._whole = (
                data.toreadonly() if len(data) >= MIN_ZERO_COPY else memoryview(bytes(data))
            )
            return
        if self._into is None:
            self._into = memoryview(bytearray(self.request.length))
        start = offset - self.request.offset
        self._into[start : start + len(data)] = data

    def _value(self) -> memoryview:
        if not self._coverage.complete:
            raise self._mismatch("only a part of the data")
        if self._whole is not None:
            return self._whole
        if self._into is None:
            return memoryview(bytes(self.request.length))
        return self._into.toreadonly()


class PendingBlockStatus(PendingRequest):
    """Assemble the reply to a BLOCK_STATUS; its result is the extents of each metadata context.

    Args:
        contexts: the names of the negotiated ones, by their ids.
        selection: the payload of the request, if it is about some of them only.

    """

    def __init__(
        self,
        request: Request,
        mode: ReplyMode,
        result: asyncio.Future[Any],
        contexts: Mapping[int, str],
        selection: memoryview | None = None,
    ) -> None:
        super().__init__(request, mode, result)
        self._length, ids = request.length, tuple(contexts)
        if selection is not None:
            self._length, ids = parse_context_selection(selection, len(ids))
        self._missing = {number: contexts[number] for number in ids}
        self._found: dict[str, Sequence[tuple[int, int]]] = {}

    def _simple_payload_size(self) -> int:
        raise self._mismatch("a simple reply without extents")

    def _content_payload_size(self, chunk: int, length: int) -> int:
        expected, head, entry = ReplyType.BLOCK_STATUS, CONTEXT_ID.size, EXTENT.size
        if self._mode is ReplyMode.EXTENDED:
            expected, head = ReplyType.BLOCK_STATUS_EXT, CONTEXT_ID_AND_COUNT.size
            entry = EXTENDED_EXTENT.size
        # At most one extent for each byte.
        if chunk != expected or length > head + entry * self._length:
            raise self._mismatch(f"a chunk of type {chunk} and {length} bytes")
        return length

    def _feed_content(self, chunk: int, payload: memoryview) -> None:
        status = parse_block_status(chunk, payload)
        name = self._missing.pop(status.context_id, None)
        if name is None:
            raise self._mismatch("a metadata context that was not negotiated, or one twice")
        self._found[name] = status.extents

    def _value(self) -> dict[str, Sequence[tuple[int, int]]]:
        if self._missing:
            raise self._mismatch(f"no extents for {quote(next(iter(self._missing.values())))}")
        return self._found


class Coverage:
    """Track which bytes of a range were received; each may be received once.

    Args:
        start: offset of the first byte.
        end: offset behind the last byte.

    """

    def __init__(self, start: int, end: int) -> None:
        self._range = start, end
        # The parts received so far, sorted; adjacent ones are merged.
        self._starts: list[int] = []
        self._ends: list[int] = []

    @property
    def complete(self) -> bool:
        """Return whether each byte was received."""
        return ([self._range[0]], [self._range[1]]) == (self._starts, self._ends)

    def add(self, start: int, end: int) -> None:
        """Record that the bytes from ``start`` to ``end`` were received.

        Raises:
            ProtocolError: there are none, some are outside of the range, or were received before;
                or what was received has too many gaps.

        """
        if not self._range[0] <= start < end <= self._range[1]:
            raise ProtocolError(f"the server sent data at {start} that was not requested")
        starts, ends = self._starts, self._ends
        at = bisect_right(starts, start)
        if (at > 0 and ends[at - 1] > start) or (at < len(starts) and starts[at] < end):
            raise ProtocolError(f"the server sent the data at {start} twice")
        if at < len(starts) and starts[at] == end:
            starts[at] = start
        else:
            starts.insert(at, start)
            ends.insert(at, end)
        if at > 0 and ends[at - 1] == start:
            del starts[at], ends[at - 1]
        if len(starts) > MAX_READ_FRAGMENTS:
            raise ProtocolError(
                f"the server sent data in more than {MAX_READ_FRAGMENTS} scattered parts"
            )


def _error(number: int, message: str = "") -> OSError:
    # "Clients SHOULD treat an unknown error value as EINVAL."
    known = number if number in WIRE_ERRORS else errno.EINVAL
    return OSError(known, quote(message) or os.strerror(known))
