"""One connection in transmission phase, the client's side.

What holds here:

* A request is known by its cookie from the moment it is queued until its reply has come to its
  end, whether or not somebody still waits for it.
* Requests that are made in one turn of the event loop leave together, in one ``writelines``.
* While the server does not read, no further request is queued: what waits to be sent is bounded by
  :data:`SEND_BUFFER`, and by one request.
* What is queued belongs to the connection. A caller may be cancelled, and its buffer used again,
  while the transport still holds on to what was to be sent; so memory that may change is copied.
* Whatever the server sends that it may not send ends the connection.
* Where requests have a limit, one that is not answered whole within it ends the connection: its
  reply could still come in parts, at any time, and those behind it wait.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import struct
from typing import Any

from ..errors import ProtocolError
from ..protocol import (
    SIMPLE_REPLY,
    Command,
    NegotiationResult,
    Request,
    parse_reply_header,
    reply_header_size,
    serialize_request,
)
from ..stream import StreamProtocol
from .pending import PendingBlockStatus, PendingRead, PendingRequest

SEND_BUFFER = 1024 * 1024
"""Bytes that may wait to be sent before requests wait: some of a usual size."""


class ConnectionLostError(Exception):
    """The connection ended before the request was answered.

    Attributes:
        sent: whether the server may have seen the request.

    """

    def __init__(self, why: Exception, *, sent: bool) -> None:
        super().__init__(str(why))
        self.sent = sent


class ClientConnection:
    """Carries requests to a server, any number of them at once, and their replies back.

    :meth:`run` must run all the time: it receives.

    Args:
        stream: what connects it with a server, the handshake done.
        negotiated: what the handshake led to.
        request_timeout: seconds in which each request must be answered; None for no limit.

    Attributes:
        negotiated: the same.

    """

    def __init__(
        self,
        stream: StreamProtocol,
        negotiated: NegotiationResult,
        *,
        request_timeout: float | None = None,
    ) -> None:
        self.negotiated = negotiated
        self._request_timeout = request_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._overdue: Exception | None = None
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._cookies = itertools.count(1)
        self._pending: dict[int, PendingRequest] = {}
        self._send_queue: list[bytes | memoryview] = []
        self._queued = 0
        self._send_is_due = False
        self._write_resumed = asyncio.Event()
        self._idle = asyncio.Event()
        self._why: Exception | None = None
        self._closing = False
        stream.on_write_resumed = self._write_resumed.set
        stream.transport.set_write_buffer_limits(SEND_BUFFER)

    @property
    def in_flight(self) -> int:
        """How many requests have no answer yet."""
        return len(self._pending)

    async def call(
        self,
        command: Command,
        offset: int = 0,
        length: int = 0,
        *,
        flags: int = 0,
        data: memoryview | None = None,
        into: memoryview | None = None,
    ) -> Any:
        """Make a request and wait for its reply.

        Args:
            command: what to do.
            offset: bytes.
            length: bytes, one at least where the command has a range.
            flags: command flags.
            data: of a WRITE; what is in it need not stay as it is once this call has ended, but
                nobody else may release this view.
            into: zeroes that a READ puts its data into.

        Returns:
            A view for READ, a :class:`BlockStatus` for BLOCK_STATUS, else None.

        Raises:
            OSError: the server could not.
            LostError: the connection ended before the reply.

        Cancellation: the request is not taken back.

        """
        while self._stream.write_paused and self._why is None:
            self._write_resumed.clear()
            await self._write_resumed.wait()
        if self._why is not None or self._closing:
            raise ConnectionLostError(self._why or ConnectionError("it is closed"), sent=False)
        request = Request(flags, command, next(self._cookies), offset, length)
        try:
            header = serialize_request(request, self.negotiated.mode)
        except struct.error:  # a number that the protocol has no room for
            raise ValueError(f"no {command.name} at {offset} of {length} bytes") from None
        awaited = self._expect(request, into)
        self._pending[request.cookie] = awaited
        if self._request_timeout is not None:
            awaited.deadline = self._loop.time() + self._request_timeout
            self._watch()
        self._queue(header, data)
        return await awaited.result

    async def run(self) -> Exception:
        """Receive until the connection ends; requests without reply fail then.

        Returns:
            Why it ended.

        """
        why: Exception = ConnectionAbortedError("it was given up")
        try:
            why = await self._receive()
        finally:
            self._fail(why)
        return self._overdue or why

    async def close(self) -> None:
        """Wait until all requests are answered, then tell the server and close.

        Cancellation: call :meth:`abort`.

        """
        self._closing = True
        while self._pending:
            self._idle.clear()
            await self._idle.wait()
        if self._why is None:
            goodbye = Request(0, Command.DISC, 0, 0, 0)
            self._queue(serialize_request(goodbye, self.negotiated.mode), None)
            self._send()
            self._stream.transport.close()
        await asyncio.wait([self._stream.closed])

    def abort(self) -> None:
        """Close at once; :meth:`run` ends soon after."""
        self._closing = True
        self._stream.transport.abort()

    # Sending

    def _expect(self, request: Request, into: memoryview | None) -> PendingRequest:
        mode, result = self.negotiated.mode, self._loop.create_future()
        if request.type == Command.READ:
            return PendingRead(request, mode, result, into)
        if request.type == Command.BLOCK_STATUS:
            context_id = self.negotiated.allocation_context_id
            assert context_id is not None  # else nobody asks
            return PendingBlockStatus(request, mode, result, context_id)
        return PendingRequest(request, mode, result)

    def _queue(self, header: bytes, data: memoryview | None) -> None:
        self._send_queue.append(header)
        if data is not None:
            self._send_queue.append(data if isinstance(data.obj, bytes) else bytes(data))
            self._queued += len(data)
        if self._queued > SEND_BUFFER:
            self._send()  # so that the next one finds out whether it must wait
        elif not self._send_is_due:
            self._send_is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._send_is_due = False
        outgoing, self._send_queue, self._queued = self._send_queue, [], 0
        self._stream.send(outgoing)

    # Receiving

    async def _receive(self) -> Exception:
        reader = self._stream.reader
        wanted = SIMPLE_REPLY.size
        try:
            while await reader.wait_for(wanted):
                wanted = self._take_batch()
        except EOFError:
            return ConnectionResetError("the server closed it within a reply")
        except (OSError, ProtocolError) as exc:
            return exc
        return ConnectionResetError("the server closed it")

    def _watch(self) -> None:
        """See to it that the oldest request, the first in order, is answered in time."""
        if self._timer is None and self._pending:
            oldest = next(iter(self._pending.values()))
            self._timer = self._loop.call_at(oldest.deadline, self._check_oldest)

    def _check_oldest(self) -> None:
        self._timer = None
        oldest = next(iter(self._pending.values()), None)
        if oldest is None or oldest.deadline > self._loop.time():
            self._watch()
            return
        command = Command(oldest.request.type).name
        self._overdue = TimeoutError(
            errno.ETIMEDOUT,
            f"the server did not answer a {command} within {self._request_timeout:g} s",
        )
        self._stream.transport.abort()  # so that `run` ends

    def _fail(self, why: Exception) -> None:
        why = self._overdue or why
        self._why = why
        if self._timer is not None:
            self._timer.cancel()
        self._stream.transport.abort()
        awaited, self._pending = self._pending, {}
        for each in awaited.values():
            if not each.result.done():
                each.result.set_exception(ConnectionLostError(why, sent=True))
        self._idle.set()
        self._write_resumed.set()

    def _take_batch(self) -> int:
        """Take in every chunk that has arrived whole.

        Returns:
            How many bytes the next one needs.

        """
        reader, mode = self._stream.reader, self.negotiated.mode
        buffer, end = reader.buffer, reader.end
        # The simple reply is the shortest header there is.
        while end - (start := reader.start) >= SIMPLE_REPLY.size:
            size = reply_header_size(mode, buffer, start)
            if end - start < size:
                return size
            header = parse_reply_header(mode, buffer, start)
            awaited = self._pending.get(header.cookie)
            if awaited is None:
                raise ProtocolError(f"a reply to nothing that was asked (cookie {header.cookie})")
            length = size + awaited.payload_size(header)
            if end - start < length:
                return length
            reader.start = start + length
            awaited.feed(header, memoryview(buffer)[start + size : start + length])
            if header.done:
                self._discard(header.cookie)
        return SIMPLE_REPLY.size

    def _discard(self, cookie: int) -> None:
        del self._pending[cookie]
        if not self._pending:
            self._idle.set()
