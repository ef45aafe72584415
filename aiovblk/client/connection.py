"""One connection of the client in transmission phase: it sends requests and receives replies.

What holds here:

* A request is known by its cookie from the moment it is queued until its reply is complete, also
  when its caller was cancelled.
* Requests that are made in one turn of the event loop are sent together, in one ``writelines``.
* Backpressure: while the server does not read, no further request is queued. What waits to be sent
  is bounded by :data:`SEND_BUFFER`, and by one request.
* What is queued belongs to the connection. A caller may be cancelled, and its buffer used again,
  while the transport still holds what is to be sent; so memory that may change is copied.
* Any violation of the protocol by the server ends the connection.
* With a request timeout, a request that is not answered whole within it ends the connection: its
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
"""Bytes that may wait to be sent before further requests wait: room for some of a usual size."""


class ConnectionLostError(Exception):
    """Raised when the connection ended before the request was answered.

    Attributes:
        sent: whether the server may have received the request.

    """

    def __init__(self, cause: Exception, *, sent: bool) -> None:
        super().__init__(str(cause))
        self.sent = sent


class ClientConnection:
    """Send requests to a server, any number of them at once, and receive their replies.

    :meth:`run` must run all the time: it receives.

    Args:
        stream: the connection, after the handshake.
        negotiated: the result of the handshake.
        request_timeout: seconds in which each request must be answered; None for no limit.

    Attributes:
        negotiated: the result of the handshake.

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
        self._cause: Exception | None = None
        self._closing = False
        stream.on_write_resumed = self._write_resumed.set
        stream.transport.set_write_buffer_limits(SEND_BUFFER)

    @property
    def in_flight(self) -> int:
        """Count the requests that are not answered yet."""
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
        """Send a request and wait for its reply.

        Args:
            command: of the request.
            offset: bytes.
            length: bytes, one at least where the command has a range.
            flags: command flags.
            data: of a WRITE; its content may change once this call has ended, but the caller must
                not release this view.
            into: a zeroed buffer that a READ puts its data into.

        Returns:
            A view for READ, a :class:`BlockStatus` for BLOCK_STATUS, else None.

        Raises:
            OSError: the server answered with an error.
            ConnectionLostError: the connection ended before the reply.
            ValueError: the offset or the length does not fit the protocol.

        Cancellation: the request is not withdrawn; its reply is received and dropped.

        """
        while self._stream.write_paused and self._cause is None:
            self._write_resumed.clear()
            await self._write_resumed.wait()
        if self._cause is not None or self._closing:
            raise ConnectionLostError(self._cause or ConnectionError("it is closed"), sent=False)
        request = Request(flags, command, next(self._cookies), offset, length)
        try:
            header = serialize_request(request, self.negotiated.mode)
        except struct.error:  # a number that the protocol has no room for
            reason = f"{command.name} at {offset} of {length} bytes does not fit the protocol"
            raise ValueError(reason) from None
        pending = self._make_pending(request, into)
        self._pending[request.cookie] = pending
        if self._request_timeout is not None:
            pending.deadline = self._loop.time() + self._request_timeout
            self._start_timer()
        self._queue(header, data)
        return await pending.result

    async def run(self) -> Exception:
        """Receive until the connection ends; then fail the requests that were not answered.

        Returns:
            Why it ended.

        """
        cause: Exception = ConnectionAbortedError("it was aborted by this client")
        try:
            cause = await self._receive()
        finally:
            self._fail_pending(cause)
        return self._overdue or cause

    async def close(self) -> None:
        """Shut down gracefully: wait until all requests are answered, send NBD_CMD_DISC, close.

        Cancellation: call :meth:`abort`.

        """
        self._closing = True
        while self._pending:
            self._idle.clear()
            await self._idle.wait()
        if self._cause is None:
            disconnect = Request(0, Command.DISC, 0, 0, 0)
            self._queue(serialize_request(disconnect, self.negotiated.mode), None)
            self._send()
            self._stream.transport.close()
        await asyncio.wait([self._stream.closed])

    def abort(self) -> None:
        """Close at once; :meth:`run` ends soon after."""
        self._closing = True
        self._stream.transport.abort()

    # Sending

    def _make_pending(self, request: Request, into: memoryview | None) -> PendingRequest:
        mode, result = self.negotiated.mode, self._loop.create_future()
        if request.type == Command.READ:
            return PendingRead(request, mode, result, into)
        if request.type == Command.BLOCK_STATUS:
            context_id = self.negotiated.allocation_context_id
            assert context_id is not None  # else `extents` is not supported
            return PendingBlockStatus(request, mode, result, context_id)
        return PendingRequest(request, mode, result)

    def _queue(self, header: bytes, data: memoryview | None) -> None:
        self._send_queue.append(header)
        if data is not None:
            self._send_queue.append(data if isinstance(data.obj, bytes) else bytes(data))
            self._queued += len(data)
        if self._queued > SEND_BUFFER:
            self._send()  # so that the next request sees whether it must wait
        elif not self._send_is_due:
            self._send_is_due = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._send_is_due = False
        buffers, self._send_queue, self._queued = self._send_queue, [], 0
        self._stream.send(buffers)

    # Receiving

    async def _receive(self) -> Exception:
        reader = self._stream.reader
        nbytes = SIMPLE_REPLY.size
        try:
            while await reader.wait_for(nbytes):
                nbytes = self._take_batch()
        except EOFError:
            return ConnectionResetError("the server closed it within a reply")
        except (OSError, ProtocolError) as exc:
            return exc
        return ConnectionResetError("the server closed it")

    def _start_timer(self) -> None:
        """Start the request timeout of the oldest request, which is the first in order."""
        if self._timer is None and self._pending:
            oldest = next(iter(self._pending.values()))
            self._timer = self._loop.call_at(oldest.deadline, self._check_oldest)

    def _check_oldest(self) -> None:
        self._timer = None
        oldest = next(iter(self._pending.values()), None)
        if oldest is None or oldest.deadline > self._loop.time():
            self._start_timer()
            return
        command = Command(oldest.request.type).name
        self._overdue = TimeoutError(
            errno.ETIMEDOUT,
            f"the server did not answer a {command} within {self._request_timeout:g} s",
        )
        self._stream.transport.abort()  # so that `run` ends

    def _fail_pending(self, cause: Exception) -> None:
        cause = self._overdue or cause
        self._cause = cause
        if self._timer is not None:
            self._timer.cancel()
        self._stream.transport.abort()
        unanswered, self._pending = self._pending, {}
        for each in unanswered.values():
            if not each.result.done():
                each.result.set_exception(ConnectionLostError(cause, sent=True))
        self._idle.set()
        self._write_resumed.set()

    def _take_batch(self) -> int:
        """Process every reply, or chunk of one, that has arrived whole.

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
            pending = self._pending.get(header.cookie)
            if pending is None:
                raise ProtocolError(
                    f"the server replied to a request that was not sent (cookie {header.cookie})"
                )
            length = size + pending.payload_size(header)
            if end - start < length:
                return length
            reader.start = start + length
            pending.feed(header, memoryview(buffer)[start + size : start + length])
            if header.done:
                self._discard(header.cookie)
        return SIMPLE_REPLY.size

    def _discard(self, cookie: int) -> None:
        del self._pending[cookie]
        if not self._pending:
            self._idle.set()
