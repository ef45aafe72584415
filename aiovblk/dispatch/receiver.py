"""Accept received requests one by one: parse, check, charge, and queue or refuse them.

Most requests never come here: a READ or WRITE that is in order is taken from the receive buffer by
the loop that serves it (:mod:`.serving`). What comes here is everything else, and all requests
while they have to wait: for the concurrency limiter, for a time slice, for memory, or, before
Python 3.12, for a task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..errors import ProtocolError
from ..protocol import (
    EXTENDED_REQUEST,
    REQUEST,
    Command,
    NegotiationResult,
    ReplyMode,
    Request,
    parse_extended_request,
    parse_request,
)
from ..stream import ReceiveBuffer
from .memory_budget import ConnectionQuota
from .reply_sender import ReplySender
from .validation import RequestValidator

# Plain ints: an IntEnum's comparison costs as much as the rest of a check.
_WRITE, _DISC = int(Command.WRITE), int(Command.DISC)


class RequestReceiver:
    """The receiving half of a :class:`Dispatcher`.

    Args:
        sender: answers requests that are refused.
        validator: decides which are.
        negotiated: the result of the handshake.
        quota: what requests are charged to; None for the kernel, which has no quota.
        on_disconnect: called with each DISC.
        on_unfinished: called when only a part of a request has arrived, if there is a quota.

    Attributes:
        reader: what has been received; see :meth:`attach`.
        queue: accepted requests that wait to be served, with the payload of a WRITE.
        header_size: bytes of a request header.
        memory_needed: bytes of memory that must be reserved before the next request is accepted; 0
            if there is none, or memory for it.
        partial: the number of requests that arrived in parts, so far.

    """

    reader: ReceiveBuffer

    def __init__(
        self,
        sender: ReplySender,
        validator: RequestValidator,
        negotiated: NegotiationResult,
        quota: ConnectionQuota | None,
        on_disconnect: Callable[[], None],
        on_unfinished: Callable[[], None],
    ) -> None:
        self._sender = sender
        self._validator = validator
        self._quota = quota
        self._on_disconnect = on_disconnect
        self._on_unfinished = on_unfinished
        self._extended = negotiated.mode is ReplyMode.EXTENDED
        self._parse = parse_extended_request if self._extended else parse_request
        self.header_size = EXTENDED_REQUEST.size if self._extended else REQUEST.size
        self.queue: deque[tuple[Request, memoryview | None]] = deque()
        self.memory_needed = 0
        self.partial = 0

    def attach(self, reader: ReceiveBuffer) -> None:
        """Accept what this reader receives."""
        self.reader = reader
        reader.wanted = self.header_size

    def close(self) -> None:
        """Drop what was received and not accepted; for a connection that is aborted."""
        self.reader.start = self.reader.end

    def has_next(self) -> bool:
        """Return whether a request may be accepted: it has arrived, and no memory is missing."""
        reader = self.reader
        return (
            reader.end - reader.start >= reader.wanted
            and reader.consuming
            and not self.memory_needed
        )

    def accept(self) -> bool:
        """Accept the next request: queue it, or refuse it.

        Returns:
            False if none can be accepted: only a part of it has arrived, it has to wait for memory,
            or it broke the protocol (:meth:`ReceiveBuffer.consume` raises that).

        """
        reader = self.reader
        reader.wanted = self.header_size
        if not self.has_next():
            return False
        try:
            request = self._parse(reader.buffer, reader.start, self._sender.arrival)
            length = self.header_size + request.payload_length(extended=self._extended)
        except ProtocolError as exc:
            reader.set_exception(exc)
            return False
        if not self._is_received(request, length):
            return False
        begin = reader.start + self.header_size
        reader.start += length
        if request.type == _DISC:
            self._on_disconnect()
            return True
        self._sender.stats.in_flight += 1
        if error := self._validator.error_for(request):
            self._sender.reply(request, error)
        elif request.type == _WRITE:
            self.queue.append((request, reader.view[begin : reader.start]))
        else:
            self.queue.append((request, None))
        return True

    def _is_received(self, request: Request, length: int) -> bool:
        """Return whether a request of ``length`` bytes has arrived, and charge it if so."""
        reader, quota = self.reader, self._quota
        is_whole = reader.end - reader.start >= length
        if quota is not None and (
            needed := quota.admit(request, length, is_whole=is_whole, buffered=len(reader.buffer))
        ):
            self.memory_needed = needed
            return False
        if not is_whole:
            reader.wanted = length
            self.partial += 1
            if quota is not None:
                self._on_unfinished()
        return is_whole
